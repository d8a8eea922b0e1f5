package component

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

func TestTheOperatorsArgumentsReplaceOurs(t *testing.T) {
	got := Arguments(map[string]string{"b": "2", "a": "1", "v": "0"}, []string{"v=4", "--c=x=y"})
	if want := []string{"--a=1", "--b=2", "--v=4", "--c=x=y"}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v", got)
	}
}

func TestAnUnknownArgumentIsRefusedByName(t *testing.T) {
	for name, prepare := range map[string]func([]string) (Runner, error){
		"kube-apiserver": PrepareAPIServer, "kube-controller-manager": PrepareControllerManager,
		"kube-scheduler": PrepareScheduler, "kube-proxy": PrepareProxy, "kubelet": PrepareKubelet,
	} {
		_, err := prepare([]string{"--v=0", "--nonsense=1"})
		var wrong *ArgumentError
		if !errors.As(err, &wrong) || !strings.Contains(err.Error(), "nonsense") || !strings.Contains(err.Error(), name+"-arg") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
