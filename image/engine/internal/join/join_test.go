package join

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	core "k8s.io/api/core/v1"
	"k8s.io/cluster-bootstrap/token/jws"
)

const statement = `apiVersion: v1
kind: Config
clusters:
- name: ""
  cluster:
    server: https://10.0.0.1:6443
    certificate-authority-data: LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCk1JST0KLS0tLS1FTkQgQ0VSVElGSUNBVEUtLS0tLQo=
`

func answer(t *testing.T, data map[string]string) []byte {
	t.Helper()
	text, err := json.Marshal(core.ConfigMap{Data: data})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestOnlyASignedStatementIsBelieved(t *testing.T) {
	good, err := jws.ComputeDetachedSignature(statement, "abcdef", "0123456789abcdef")
	if err != nil {
		t.Fatal(err)
	}
	other, err := jws.ComputeDetachedSignature(statement, "abcdef", "another-secret!!")
	if err != nil {
		t.Fatal(err)
	}
	ca, err := statedCA(answer(t, map[string]string{"kubeconfig": statement, "jws-kubeconfig-abcdef": good}), "s", "abcdef", "0123456789abcdef")
	if err != nil || !strings.HasPrefix(string(ca), "-----BEGIN CERTIFICATE") {
		t.Errorf("%q, %v", ca, err)
	}
	for name, test := range map[string]struct {
		data  map[string]string
		final bool
	}{
		"not signed yet":                {map[string]string{"kubeconfig": statement}, false},
		"signed with another token":     {map[string]string{"kubeconfig": statement, "jws-kubeconfig-zzzzzz": good}, true},
		"signed with another secret":    {map[string]string{"kubeconfig": statement, "jws-kubeconfig-abcdef": other}, true},
		"changed after it was signed":   {map[string]string{"kubeconfig": strings.Replace(statement, "10.0.0.1", "10.0.0.2", 1), "jws-kubeconfig-abcdef": good}, true},
		"a signature of something else": {map[string]string{"kubeconfig": "", "jws-kubeconfig-abcdef": good}, true},
	} {
		ca, err := statedCA(answer(t, test.data), "s", "abcdef", "0123456789abcdef")
		var final *Refused
		if err == nil || errors.As(err, &final) != test.final {
			t.Errorf("%s: %q, %v", name, ca, err)
		}
	}
	if _, err := statedCA([]byte("<html>"), "s", "abcdef", "0123456789abcdef"); err == nil {
		t.Error("a web page passed")
	}
}
