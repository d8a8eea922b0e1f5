package component

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"
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

func supervised(t *testing.T, result error, ends time.Duration) (failures []error) {
	t.Helper()
	synctest.Test(t, func(*testing.T) {
		ctx, cancel := context.WithTimeout(context.Background(), ends)
		defer cancel()
		run := func(context.Context) error { return result }
		<-Supervise(ctx, "one", run, func(err error) { failures = append(failures, err) })
	})
	return failures
}

func TestWhatEndsByTheProcessesSignalHasNotFailed(t *testing.T) {
	for _, result := range []error{nil, errors.New("it was told to end")} {
		if failures := supervised(t, result, signalLate-time.Second); failures != nil {
			t.Errorf("%v", failures)
		}
	}
}

func TestWhatEndsBeforeItShouldHasFailed(t *testing.T) {
	cause := errors.New("no room")
	if failures := supervised(t, cause, time.Hour); len(failures) != 1 || !errors.Is(failures[0], cause) || failures[0].Error() != "one: no room" {
		t.Errorf("%v", failures)
	}
	if failures := supervised(t, nil, time.Hour); len(failures) != 1 || failures[0].Error() != "one: it ended by itself" {
		t.Errorf("%v", failures)
	}
}
