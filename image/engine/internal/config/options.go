package config

import (
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
)

// Options are those of a call, complete and checked. Token and AgentToken are secrets.
type Options struct {
	Role             Role
	Token            string
	TokenFile        string
	AgentToken       string
	AgentTokenFile   string
	Join             string
	DataDir          string
	NodeName         string
	NodeIPs          []string
	NodeLabels       []string
	NodeTaints       []string
	RuntimeEndpoint  string
	KubeletArgs      []string
	ProxyArgs        []string
	BindAddress      string
	Port             int
	AdvertiseAddress string
	TLSSANs          []string
	ClusterCIDRs     []string
	ServiceCIDRs     []string
	ClusterDNS       []string
	ClusterDomain    string
	FlannelBackend   string
	Disable          []string
	NoNetworkPolicy  bool
	Kubeconfig       string
	KubeconfigMode   os.FileMode
	ClusterInit      bool
	// SecretsEncryption asks for Secrets to be encrypted in the datastore of a cluster that is founded.
	SecretsEncryption bool
	APIServerArgs     []string
	ControllerArgs    []string
	SchedulerArgs     []string

	portText, modeText string
}

func defaults(role Role) *Options {
	return &Options{
		Role:            role,
		DataDir:         "/var/lib/rancher/k3s",
		RuntimeEndpoint: "unix:///run/containerd/containerd.sock",
		ClusterDomain:   "cluster.local",
		FlannelBackend:  "none",
		Kubeconfig:      DefaultKubeconfig,
		portText:        "6443",
		modeText:        "0600",
	}
}

func (o *Options) complete(read func(string) ([]byte, error)) error {
	if err := o.readTokens(read); err != nil {
		return err
	}
	if o.Role == Agent && (o.Join == "" || o.Token == "") {
		return wrong("an agent needs the options \"server\" and \"token\" (or \"token-file\")")
	}
	if o.Join != "" {
		address, err := url.Parse(o.Join)
		if err != nil || address.Scheme != "https" || address.Host == "" || strings.Trim(address.Path, "/") != "" {
			return wrong("option \"server\" is https://ADDRESS:PORT, not %q", o.Join)
		}
		if address.Port() == "" {
			address.Host += ":6443"
		}
		o.Join = "https://" + address.Host
		if o.Role == Server && o.Token == "" {
			return wrong("a server that joins needs the option \"token\" (or \"token-file\")")
		}
		if o.ClusterInit {
			return wrong("option \"cluster-init\" founds a cluster, \"server\" joins one: give one of them")
		}
	}
	port, err := strconv.ParseUint(o.portText, 10, 16)
	if err != nil || port == 0 {
		return wrong("option \"https-listen-port\" is a port, not %q", o.portText)
	}
	o.Port = int(port)
	mode, err := strconv.ParseUint(o.modeText, 8, 32)
	if err != nil || mode > 0o777 {
		return wrong("option \"write-kubeconfig-mode\" is an octal mode, not %q", o.modeText)
	}
	o.KubeconfigMode = os.FileMode(mode)
	if o.FlannelBackend != "none" {
		return wrong("option \"flannel-backend\" can only be \"none\" here, not %q: Flannel runs as a DaemonSet of its own", o.FlannelBackend)
	}
	if !filepath.IsAbs(o.DataDir) {
		return wrong("option \"data-dir\" is an absolute path, not %q", o.DataDir)
	}
	if o.NodeName == "" {
		if o.NodeName, err = os.Hostname(); err != nil {
			return wrong("this machine has no host name; give the option \"node-name\"")
		}
	}
	o.NodeName = strings.ToLower(o.NodeName)
	if problems := validation.IsDNS1123Subdomain(o.NodeName); len(problems) > 0 {
		return wrong("option \"node-name\" is no name of a Node: %q: %s", o.NodeName, problems[0])
	}
	return o.addresses()
}

func (o *Options) readTokens(read func(string) ([]byte, error)) error {
	for _, pair := range []struct {
		name  string
		value *string
		file  string
	}{{"token", &o.Token, o.TokenFile}, {"agent-token", &o.AgentToken, o.AgentTokenFile}} {
		if pair.file == "" {
			continue
		}
		if *pair.value != "" {
			return wrong("give one of the options %q and %q", pair.name, pair.name+"-file")
		}
		content, err := read(pair.file)
		if err != nil {
			return wrong("option %q: %v", pair.name+"-file", err)
		}
		if *pair.value = strings.TrimSpace(string(content)); *pair.value == "" {
			return wrong("option %q: %s is empty", pair.name+"-file", pair.file)
		}
	}
	return nil
}

func (o *Options) addresses() error {
	for name, values := range map[string][]string{"node-ip": o.NodeIPs, "cluster-dns": o.ClusterDNS} {
		if err := dual(name, values, func(value string) (bool, bool) {
			address, err := netip.ParseAddr(value)
			return address.Is4(), err == nil && address.Zone() == ""
		}); err != nil {
			return err
		}
	}
	for name, value := range map[string]string{"bind-address": o.BindAddress, "advertise-address": o.AdvertiseAddress} {
		if _, err := netip.ParseAddr(value); value != "" && err != nil {
			return wrong("option %q is an address, not %q", name, value)
		}
	}
	if len(o.ClusterCIDRs) == 0 {
		o.ClusterCIDRs = []string{"10.42.0.0/16"}
	}
	if len(o.ServiceCIDRs) == 0 {
		o.ServiceCIDRs = []string{"10.43.0.0/16"}
	}
	for name, values := range map[string][]string{"cluster-cidr": o.ClusterCIDRs, "service-cidr": o.ServiceCIDRs} {
		if err := dual(name, values, func(value string) (bool, bool) {
			prefix, err := netip.ParsePrefix(value)
			return prefix.Addr().Is4(), err == nil && prefix == prefix.Masked()
		}); err != nil {
			return err
		}
	}
	if len(o.ClusterDNS) == 0 {
		for _, cidr := range o.ServiceCIDRs {
			o.ClusterDNS = append(o.ClusterDNS, nth(netip.MustParsePrefix(cidr), 10).String())
		}
	}
	return nil
}

// dual refuses values that are wrong, more than two, or two of one family.
func dual(name string, values []string, parse func(string) (isIPv4, good bool)) error {
	var families []bool
	for _, value := range values {
		isIPv4, good := parse(value)
		if !good {
			return wrong("option %q has a wrong value: %q", name, value)
		}
		families = append(families, isIPv4)
	}
	if len(families) > 2 || len(slices.Compact(families)) != len(families) {
		return wrong("option %q takes one value, or one IPv4 and one IPv6: %s", name, strings.Join(values, ", "))
	}
	return nil
}

func nth(prefix netip.Prefix, n int) netip.Addr {
	address := prefix.Addr()
	for range n {
		address = address.Next()
	}
	return address
}

// FirstServiceIPs returns the API server's own addresses within the service ranges.
func (o *Options) FirstServiceIPs() []string {
	var addresses []string
	for _, cidr := range o.ServiceCIDRs {
		addresses = append(addresses, nth(netip.MustParsePrefix(cidr), 1).String())
	}
	return addresses
}

// ServerDir and AgentDir return places below the data directory.
func (o *Options) ServerDir(parts ...string) string {
	return filepath.Join(append([]string{o.DataDir, "server"}, parts...)...)
}

// AgentDir returns a place of the agent below the data directory.
func (o *Options) AgentDir(parts ...string) string {
	return filepath.Join(append([]string{o.DataDir, "agent"}, parts...)...)
}
