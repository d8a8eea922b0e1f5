package agent

import (
	"encoding/json"
	"os"
	"strings"

	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"
	"sigs.k8s.io/yaml"

	"skerry/engine/internal/cluster"
	"skerry/engine/internal/component"
	"skerry/engine/internal/config"
	"skerry/engine/internal/files"
)

func pointer[T any](value T) *T { return &value }

// kubeletConfiguration is made for small machines with an SD card.
func kubeletConfiguration(o *config.Options, facts cluster.Facts, clientCAFile, cgroupDriver string) *kubeletconfig.KubeletConfiguration {
	made := &kubeletconfig.KubeletConfiguration{
		TypeMeta: meta.TypeMeta{APIVersion: "kubelet.config.k8s.io/v1beta1", Kind: "KubeletConfiguration"},
		Authentication: kubeletconfig.KubeletAuthentication{
			Anonymous: kubeletconfig.KubeletAnonymousAuthentication{Enabled: pointer(false)},
			Webhook:   kubeletconfig.KubeletWebhookAuthentication{Enabled: pointer(true)},
			X509:      kubeletconfig.KubeletX509Authentication{ClientCAFile: clientCAFile},
		},
		Authorization:            kubeletconfig.KubeletAuthorization{Mode: kubeletconfig.KubeletAuthorizationModeWebhook},
		CgroupDriver:             cgroupDriver,
		ClusterDNS:               facts.ClusterDNS,
		ClusterDomain:            facts.ClusterDomain,
		ContainerRuntimeEndpoint: o.RuntimeEndpoint,
		// Logs and image collection are Kubernetes' defaults: who starts this says otherwise (kubelet-arg).
		EventRecordQPS: pointer(int32(5)),
		// A 2 GiB node: pods go before the machine swaps itself to death or its card is full.
		EvictionHard: map[string]string{
			"memory.available":  "100Mi",
			"nodefs.available":  "5%",
			"nodefs.inodesFree": "5%",
			"imagefs.available": "5%",
		},
		FailCgroupV1:           pointer(false),
		FailSwapOn:             pointer(false),
		HealthzPort:            pointer(int32(0)),
		MakeIPTablesUtilChains: pointer(false),
		ReadOnlyPort:           0,
		RotateCertificates:     true,
		ServerTLSBootstrap:     true,
		TLSMinVersion:          "VersionTLS12",
	}
	if len(o.NodeIPs) > 0 {
		made.Address = o.NodeIPs[0]
	}
	// resolved's stub listens on the node's loopback, where no pod reaches it
	if upstream := "/run/systemd/resolve/resolv.conf"; exists(upstream) {
		made.ResolverConfig = &upstream
	}
	return made
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func prepareKubelet(o *config.Options, made *kubeletconfig.KubeletConfiguration) (component.Runner, error) {
	text, err := yaml.Marshal(made)
	if err != nil {
		return nil, err
	}
	path := o.AgentDir("etc", "kubelet.yaml")
	if err := files.Write(path, text, 0o600); err != nil {
		return nil, err
	}
	ours := map[string]string{
		"cert-dir":          o.AgentDir("pki"),
		"config":            path,
		"hostname-override": o.NodeName,
		"kubeconfig":        kubeconfigFile(o),
	}
	if len(o.NodeIPs) > 0 {
		ours["node-ip"] = strings.Join(o.NodeIPs, ",")
	}
	if len(o.NodeLabels) > 0 {
		ours["node-labels"] = strings.Join(o.NodeLabels, ",")
	}
	if len(o.NodeTaints) > 0 {
		ours["register-with-taints"] = strings.Join(o.NodeTaints, ",")
	}
	return component.PrepareKubelet(component.Arguments(ours, o.KubeletArgs))
}

func prepareProxy(o *config.Options, facts cluster.Facts) (component.Runner, error) {
	return component.PrepareProxy(component.Arguments(map[string]string{
		"cluster-cidr":           strings.Join(facts.ClusterCIDRs, ","),
		"conntrack-max-per-core": "0", // the kernel's own measure goes by the machine's memory
		"healthz-port":           "0",
		"hostname-override":      o.NodeName,
		"kubeconfig":             kubeconfigFile(o),
		"proxy-mode":             "nftables",
	}, o.ProxyArgs))
}

// runtimeDriver reads from a CRI runtime's own report whether it has systemd make the cgroups.
func runtimeDriver(report map[string]string) string {
	var config struct {
		Containerd struct {
			Runtimes map[string]struct {
				Options struct{ SystemdCgroup bool } `json:"options"`
			} `json:"runtimes"`
			DefaultRuntimeName string `json:"defaultRuntimeName"`
		} `json:"containerd"`
	}
	if json.Unmarshal([]byte(report["config"]), &config) == nil && config.Containerd.Runtimes[config.Containerd.DefaultRuntimeName].Options.SystemdCgroup {
		return "systemd"
	}
	return "cgroupfs"
}
