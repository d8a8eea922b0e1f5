package server

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"skerry/engine/internal/component"
	"skerry/engine/internal/config"
	"skerry/engine/internal/datastore"
	"skerry/engine/internal/files"
)

// anonymous says what those without credentials may ask: whether the server is well, and for the signed
// statement by which a node that knows the secret recognises the cluster.
const anonymous = `apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
anonymous:
  enabled: true
  conditions:
  - path: /livez
  - path: /readyz
  - path: /healthz
  - path: /api/v1/namespaces/kube-public/configmaps/cluster-info
`

func isAddress(text string) bool {
	_, err := netip.ParseAddr(text)
	return err == nil
}

// listenAddress is where the API server listens, localServer how this machine reaches it.
func listenAddress(o *config.Options) string {
	if o.BindAddress != "" {
		return o.BindAddress
	}
	if len(o.NodeIPs) > 0 && strings.Contains(o.NodeIPs[0], ":") {
		return "::"
	}
	return "0.0.0.0"
}

func localServer(o *config.Options) string {
	address := netip.MustParseAddr(listenAddress(o))
	host := address.String()
	if address.IsUnspecified() {
		host = map[bool]string{true: "127.0.0.1", false: "::1"}[address.Is4()]
	}
	return "https://" + net.JoinHostPort(host, strconv.Itoa(o.Port))
}

func apiServerArguments(o *config.Options, p *pki, store *datastore.Running, encryption string) ([]string, error) {
	authentication := o.ServerDir("etc", "authentication.yaml")
	if err := files.Write(authentication, []byte(anonymous), 0o600); err != nil {
		return nil, err
	}
	ours := map[string]string{
		"advertise-address":                  o.AdvertiseAddress,
		"allow-privileged":                   "true",
		"authentication-config":              authentication,
		"authorization-mode":                 "Node,RBAC",
		"bind-address":                       listenAddress(o),
		"secure-port":                        strconv.Itoa(o.Port),
		"client-ca-file":                     p.file("client-ca.crt"),
		"enable-admission-plugins":           "NodeRestriction",
		"enable-bootstrap-token-auth":        "true",
		"etcd-servers":                       strings.Join(store.Endpoints, ","),
		"event-ttl":                          "30m",
		"kubelet-certificate-authority":      p.file("kubelet-ca.crt"),
		"kubelet-client-certificate":         p.file("kube-apiserver-kubelet.crt"),
		"kubelet-client-key":                 p.file("kube-apiserver-kubelet.key"),
		"kubelet-preferred-address-types":    "InternalIP,Hostname",
		"profiling":                          "false",
		"proxy-client-cert-file":             p.file("front-proxy.crt"),
		"proxy-client-key-file":              p.file("front-proxy.key"),
		"requestheader-allowed-names":        "front-proxy-client",
		"requestheader-client-ca-file":       p.file("front-proxy-ca.crt"),
		"requestheader-extra-headers-prefix": "X-Remote-Extra-",
		"requestheader-group-headers":        "X-Remote-Group",
		"requestheader-username-headers":     "X-Remote-User",
		"service-account-issuer":             "https://kubernetes.default.svc." + o.ClusterDomain,
		"service-account-key-file":           p.file("service.key"),
		"service-account-signing-key-file":   p.file("service.key"),
		"service-cluster-ip-range":           strings.Join(o.ServiceCIDRs, ","),
		"tls-cert-file":                      p.file("kube-apiserver.crt"),
		"tls-private-key-file":               p.file("kube-apiserver.key"),
		"tls-min-version":                    "VersionTLS12",
	}
	if o.AdvertiseAddress == "" {
		delete(ours, "advertise-address")
	}
	if encryption != "" {
		ours["encryption-provider-config"] = encryption
	}
	if len(store.Volatile) > 0 {
		ours["etcd-servers-overrides"] = volatileOverrides(store)
	}
	if store.CAFile != "" {
		ours["etcd-cafile"], ours["etcd-certfile"], ours["etcd-keyfile"] = store.CAFile, store.CertFile, store.KeyFile
	}
	return component.Arguments(ours, o.APIServerArgs), nil
}

// Controllers that have nothing to do here: pod ranges come from the overlay, there is no cloud, and who
// may have a node's certificate is decided by package approve.
var leftOut = []string{
	"certificatesigningrequest-approving-controller",
	"cloud-node-lifecycle-controller",
	"node-ipam-controller",
	"node-route-controller",
	"selinux-warning-controller",
	"service-lb-controller",
}

func controllerArguments(o *config.Options, p *pki, kubeconfig string, several bool) []string {
	controllers := []string{"*", "bootstrap-signer-controller"}
	for _, name := range leftOut {
		controllers = append(controllers, "-"+name)
	}
	return component.Arguments(map[string]string{
		"allocate-node-cidrs":                             "false",
		"authentication-kubeconfig":                       kubeconfig,
		"authorization-kubeconfig":                        kubeconfig,
		"client-ca-file":                                  p.file("client-ca.crt"),
		"cluster-signing-kubelet-client-cert-file":        p.file("client-ca.crt"),
		"cluster-signing-kubelet-client-key-file":         p.file("client-ca.key"),
		"cluster-signing-kubelet-serving-cert-file":       p.file("kubelet-ca.crt"),
		"cluster-signing-kubelet-serving-key-file":        p.file("kubelet-ca.key"),
		"cluster-signing-kube-apiserver-client-cert-file": p.file("client-ca.crt"),
		"cluster-signing-kube-apiserver-client-key-file":  p.file("client-ca.key"),
		"configure-cloud-routes":                          "false",
		"controllers":                                     strings.Join(controllers, ","),
		"kubeconfig":                                      kubeconfig,
		"leader-elect":                                    fmt.Sprint(several),
		"profiling":                                       "false",
		"root-ca-file":                                    p.file("server-ca.crt"),
		"secure-port":                                     "0",
		"service-account-private-key-file":                p.file("service.key"),
		"service-cluster-ip-range":                        strings.Join(o.ServiceCIDRs, ","),
		"use-service-account-credentials":                 "true",
	}, o.ControllerArgs)
}

func schedulerArguments(o *config.Options, kubeconfig string, several bool) []string {
	return component.Arguments(map[string]string{
		"authentication-kubeconfig": kubeconfig,
		"authorization-kubeconfig":  kubeconfig,
		"kubeconfig":                kubeconfig,
		"leader-elect":              fmt.Sprint(several),
		"profiling":                 "false",
		"secure-port":               "0",
	}, o.SchedulerArgs)
}
