package config

import (
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"
)

func files(content map[string]string) func(string) ([]byte, error) {
	return func(name string) ([]byte, error) {
		if text, there := content[name]; there {
			return []byte(text), nil
		}
		return nil, os.ErrNotExist
	}
}

func TestTheCallWinsAndListsAppend(t *testing.T) {
	read := files(map[string]string{"/c.yaml": `
token: from-the-file
node-name: Box
node-label: [a=1, "b=2,c=3"]
write-kubeconfig-mode: 0640
kubelet-arg:
  - max-pods=20
  - system-reserved=cpu=100m,memory=50Mi
cluster-init: true
https-listen-port: 7443
`})
	o, err := Parse(Server, []string{"--config", "/c.yaml", "--token=from-the-call", "--node-label", "d=4", "--cluster-init=false"}, read)
	if err != nil {
		t.Fatal(err)
	}
	if o.Token != "from-the-call" || o.NodeName != "box" || o.KubeconfigMode != 0o640 || o.ClusterInit || o.Port != 7443 {
		t.Errorf("got %+v", o)
	}
	if want := []string{"a=1", "b=2", "c=3", "d=4"}; !reflect.DeepEqual(o.NodeLabels, want) {
		t.Errorf("labels %v", o.NodeLabels)
	}
	if want := []string{"max-pods=20", "system-reserved=cpu=100m,memory=50Mi"}; !reflect.DeepEqual(o.KubeletArgs, want) {
		t.Errorf("kubelet arguments %v", o.KubeletArgs)
	}
}

func TestTheDefaultsFollowFromTheRanges(t *testing.T) {
	o, err := Parse(Server, []string{"--service-cidr", "10.96.0.0/16,fd00:96::/112"}, files(nil))
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"10.96.0.10", "fd00:96::a"}; !reflect.DeepEqual(o.ClusterDNS, want) {
		t.Errorf("cluster DNS %v", o.ClusterDNS)
	}
	if want := []string{"10.96.0.1", "fd00:96::1"}; !reflect.DeepEqual(o.FirstServiceIPs(), want) {
		t.Errorf("API service %v", o.FirstServiceIPs())
	}
}

func TestWhatIsWrongIsNamed(t *testing.T) {
	agent := []string{"--server", "https://10.0.0.1:6443", "--token", "x"}
	for _, test := range []struct {
		role  Role
		words []string
		file  string
		want  string
	}{
		{Server, []string{"--nonsense"}, "", `unknown option "nonsense" (command line)`},
		{Server, nil, "node-ip: 10.0.0.1\nnonsense: 1\n", `unknown option "nonsense" (` + DefaultFile + ` line 2)`},
		{Server, nil, "token: a\ntoken: b\n", `"token" stands twice`},
		{Server, nil, "token: [a, b]\n", `"token" takes one value`},
		{Server, nil, "- a\n", "has to be a mapping"},
		{Server, nil, "a: [\n", "is no YAML"},
		{Server, []string{"--config", "/gone"}, "", "/gone cannot be read"},
		{Server, []string{"extra"}, "", `unexpected word "extra"`},
		{Server, []string{"--token"}, "", `"token" needs a value`},
		{Server, []string{"--token", "a", "--token-file", "/t"}, "", `one of the options "token" and "token-file"`},
		{Server, []string{"--token-file", "/gone"}, "", `"token-file": file does not exist`},
		{Server, []string{"--cluster-init=maybe"}, "", `"cluster-init" is true or false, not "maybe"`},
		{Server, []string{"--https-listen-port", "66000"}, "", `not "66000"`},
		{Server, []string{"--write-kubeconfig-mode", "rw"}, "", `not "rw"`},
		{Server, []string{"--node-ip", "10.0.0.1,10.0.0.2"}, "", `"node-ip" takes one value, or one IPv4 and one IPv6`},
		{Server, []string{"--node-ip", "10.0.0"}, "", `"node-ip" has a wrong value: "10.0.0"`},
		{Server, []string{"--service-cidr", "10.0.0.1/16"}, "", `"10.0.0.1/16"`},
		{Server, []string{"--flannel-backend", "vxlan"}, "", `not "vxlan"`},
		{Server, []string{"--node-name", "a b"}, "", `"a b"`},
		{Server, []string{"--data-dir", "here"}, "", `absolute path, not "here"`},
		{Server, []string{"--server", "https://10.0.0.1"}, "", `needs the option "token"`},
		{Server, []string{"--server", "https://10.0.0.1", "--token", "x", "--cluster-init"}, "", "give one of them"},
		{Agent, nil, "", `needs the options "server" and "token"`},
		{Agent, []string{"--server", "http://10.0.0.1", "--token", "x"}, "", `not "http://10.0.0.1"`},
		{Agent, append(agent, "--cluster-init"), "", `"cluster-init" (command line) is for servers`},
		{Agent, agent, "disable: coredns\n", `"disable" (` + DefaultFile + ` line 1) is for servers`},
	} {
		content := map[string]string{}
		if test.file != "" {
			content[DefaultFile] = test.file
		}
		_, err := Parse(test.role, test.words, files(content))
		var usage *UsageError
		if !errors.As(err, &usage) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s %v %q: got %v, wanted %q", test.role, test.words, test.file, err, test.want)
		}
	}
}

func TestAnAgent(t *testing.T) {
	o, err := Parse(Agent, []string{"-s", "https://[fd00::1]", "--token-file", "/t"}, files(map[string]string{"/t": "secret\n"}))
	if err != nil || o.Join != "https://[fd00::1]:6443" || o.Token != "secret" {
		t.Errorf("got %+v, %v", o, err)
	}
	if _, err := Parse(Agent, []string{"--help"}, files(nil)); !errors.Is(err, ErrHelp) {
		t.Errorf("got %v", err)
	}
	if text := Help(Agent); strings.Contains(text, "cluster-init") || !strings.Contains(text, "--kubelet-arg") {
		t.Error(text)
	}
}
