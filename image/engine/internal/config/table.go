// Package config reads the options of the engine: the words of the call and a YAML file with the
// same keys. The words of the call win; lists are the file's followed by the call's.
package config

// Role is what a node runs as.
type Role string

// The two commands that start a node.
const (
	Server Role = "server"
	Agent  Role = "agent"
)

type kind int

const (
	text kind = iota
	flag
	// list elements may also be given as one text with commas
	list
	// extra elements may hold commas: they are arguments of a component
	extra
)

type option struct {
	name       string
	kind       kind
	serverOnly bool
	help       string
	set        func(*Options, []string)
}

func last(values []string) string { return values[len(values)-1] }

// table is all there is: the parser, the file, the help and the refusal of unknown names go by it.
var table = []option{
	{"token", text, false, "secret shared by the cluster's nodes", func(o *Options, v []string) { o.Token = last(v) }},
	{"token-file", text, false, "file that holds the token", func(o *Options, v []string) { o.TokenFile = last(v) }},
	{"agent-token", text, true, "another secret with which nodes join as agents only", func(o *Options, v []string) { o.AgentToken = last(v) }},
	{"agent-token-file", text, true, "file that holds the agent token", func(o *Options, v []string) { o.AgentTokenFile = last(v) }},
	{"server", text, false, "https://ADDRESS:6443 of a server to join", func(o *Options, v []string) { o.Join = last(v) }},
	{"data-dir", text, false, "where state is kept", func(o *Options, v []string) { o.DataDir = last(v) }},
	{"node-name", text, false, "name of the Node", func(o *Options, v []string) { o.NodeName = last(v) }},
	{"node-ip", list, false, "address of the node, or one IPv4 and one IPv6", func(o *Options, v []string) { o.NodeIPs = v }},
	{"node-label", list, false, "KEY=VALUE for the Node when it registers", func(o *Options, v []string) { o.NodeLabels = v }},
	{"node-taint", list, false, "KEY=VALUE:EFFECT for the Node when it registers", func(o *Options, v []string) { o.NodeTaints = v }},
	{"container-runtime-endpoint", text, false, "CRI socket of the container runtime", func(o *Options, v []string) { o.RuntimeEndpoint = last(v) }},
	{"kubelet-arg", extra, false, "NAME=VALUE for the kubelet", func(o *Options, v []string) { o.KubeletArgs = v }},
	{"kube-proxy-arg", extra, false, "NAME=VALUE for kube-proxy", func(o *Options, v []string) { o.ProxyArgs = v }},
	{"bind-address", text, true, "address the API server listens on", func(o *Options, v []string) { o.BindAddress = last(v) }},
	{"https-listen-port", text, true, "port the API server listens on", func(o *Options, v []string) { o.portText = last(v) }},
	{"advertise-address", text, true, "address of this API server for others", func(o *Options, v []string) { o.AdvertiseAddress = last(v) }},
	{"tls-san", list, true, "further names and addresses of the API server", func(o *Options, v []string) { o.TLSSANs = v }},
	{"cluster-cidr", list, true, "addresses of pods", func(o *Options, v []string) { o.ClusterCIDRs = v }},
	{"service-cidr", list, true, "addresses of services", func(o *Options, v []string) { o.ServiceCIDRs = v }},
	{"cluster-dns", list, true, "address of the cluster's DNS", func(o *Options, v []string) { o.ClusterDNS = v }},
	{"cluster-domain", text, true, "domain of services", func(o *Options, v []string) { o.ClusterDomain = last(v) }},
	{"flannel-backend", text, true, "only `none`: pods' network is the CNI configuration's", func(o *Options, v []string) { o.FlannelBackend = last(v) }},
	{"disable", list, true, "names of manifests that are not applied, and are deleted", func(o *Options, v []string) { o.Disable = v }},
	{"disable-network-policy", flag, true, "do not enforce NetworkPolicy", func(o *Options, v []string) { o.NoNetworkPolicy = last(v) == "true" }},
	{"write-kubeconfig", text, true, "where the administrator's kubeconfig is written", func(o *Options, v []string) { o.Kubeconfig = last(v) }},
	{"write-kubeconfig-mode", text, true, "its mode, octal", func(o *Options, v []string) { o.modeText = last(v) }},
	{"cluster-init", flag, true, "keep the state in embedded etcd, so that servers can join", func(o *Options, v []string) { o.ClusterInit = last(v) == "true" }},
	{"secrets-encryption", flag, true, "encrypt Secrets in the datastore, from the founding on", func(o *Options, v []string) { o.SecretsEncryption = last(v) == "true" }},
	{"kube-apiserver-arg", extra, true, "NAME=VALUE for the API server", func(o *Options, v []string) { o.APIServerArgs = v }},
	{"kube-controller-manager-arg", extra, true, "NAME=VALUE for the controller manager", func(o *Options, v []string) { o.ControllerArgs = v }},
	{"kube-scheduler-arg", extra, true, "NAME=VALUE for the scheduler", func(o *Options, v []string) { o.SchedulerArgs = v }},
}

func find(name string) *option {
	for i := range table {
		if table[i].name == name {
			return &table[i]
		}
	}
	return nil
}
