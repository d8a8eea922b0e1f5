// Package agent runs what every node has: kubelet, kube-proxy and network policy.
package agent

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"go.opentelemetry.io/otel/trace/noop"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	cri "k8s.io/cri-client/pkg"
	"k8s.io/klog/v2"

	"skerry/engine/internal/certs"
	"skerry/engine/internal/cluster"
	"skerry/engine/internal/component"
	"skerry/engine/internal/config"
	"skerry/engine/internal/files"
	"skerry/engine/internal/kubeconfig"
	"skerry/engine/internal/netpol"
)

// Credentials are how this node reaches the API server.
type Credentials struct {
	Server string
	CA     []byte
	// BootstrapToken is used until the node has a certificate of its own; empty on servers.
	BootstrapToken string
	// Issuer makes that certificate on servers; nil elsewhere.
	Issuer *certs.Authority
}

func kubeconfigFile(o *config.Options) string { return o.AgentDir("kubelet.kubeconfig") }

func currentPair(o *config.Options) string {
	return o.AgentDir("pki", "kubelet-client-current.pem")
}

// HasIdentity says whether this node has a certificate for a while yet.
func HasIdentity(o *config.Options, now time.Time) bool {
	text, err := os.ReadFile(currentPair(o))
	if err != nil {
		return false
	}
	certificate, err := certs.ParseCertificate(text)
	return err == nil && now.Before(certificate.NotAfter) && certificate.Subject.CommonName == "system:node:"+o.NodeName
}

// ensureIdentity leaves a kubeconfig for the kubelet, or returns the one to ask for its certificate with
// where it has none yet.
func ensureIdentity(o *config.Options, c Credentials, now time.Time) (bootstrap string, err error) {
	if c.Issuer != nil && !(HasIdentity(o, now.Add(60*24*time.Hour)) && issuedBy(o, c.Issuer)) {
		leaf := certs.Leaf{Name: "system:node:" + o.NodeName, Organisations: []string{"system:nodes"}}
		certificate, key, err := c.Issuer.Issue(leaf, now)
		if err != nil {
			return "", err
		}
		dated := o.AgentDir("pki", fmt.Sprintf("kubelet-client-%s.pem", now.UTC().Format("2006-01-02-15-04-05")))
		if err := files.Write(dated, append(certificate, key...), 0o600); err != nil {
			return "", err
		}
		if err := os.Remove(currentPair(o)); err != nil && !os.IsNotExist(err) {
			return "", err
		}
		if err := os.Symlink(filepath.Base(dated), currentPair(o)); err != nil {
			return "", fmt.Errorf("naming the kubelet's certificate: %w", err)
		}
	}
	config := kubeconfig.Config{Server: c.Server, CA: c.CA}
	if HasIdentity(o, now) {
		config.CertificateFile, config.KeyFile = currentPair(o), currentPair(o)
		if err := os.Remove(o.AgentDir("bootstrap.kubeconfig")); err != nil && !os.IsNotExist(err) {
			return "", err
		}
		return "", kubeconfig.Write(kubeconfigFile(o), 0o600, config)
	}
	for _, stale := range []string{kubeconfigFile(o), currentPair(o)} {
		if err := os.Remove(stale); err != nil && !os.IsNotExist(err) {
			return "", err
		}
	}
	config.BearerToken = c.BootstrapToken
	bootstrap = o.AgentDir("bootstrap.kubeconfig")
	return bootstrap, kubeconfig.Write(bootstrap, 0o600, config)
}

func issuedBy(o *config.Options, issuer *certs.Authority) bool {
	text, err := os.ReadFile(currentPair(o))
	if err != nil {
		return false
	}
	certificate, err := certs.ParseCertificate(text)
	return err == nil && certificate.CheckSignatureFrom(issuer.Certificate) == nil
}

// waitForRuntime returns the runtime's cgroup driver once it answers.
func waitForRuntime(ctx context.Context, endpoint string) (string, error) {
	for attempt := 0; ; attempt++ {
		driver, err := askRuntime(ctx, endpoint)
		if err == nil || ctx.Err() != nil {
			return driver, ctx.Err()
		}
		if attempt%20 == 0 {
			klog.Warningf("waiting for the container runtime at %s: %v", endpoint, err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(500 * time.Millisecond):
		}
	}
}

func askRuntime(ctx context.Context, endpoint string) (string, error) {
	service, err := cri.NewRemoteRuntimeService(ctx, endpoint, 5*time.Second, noop.NewTracerProvider(), false)
	if err != nil {
		return "", err
	}
	defer service.Close(ctx)
	status, err := service.Status(ctx, true)
	if err != nil {
		return "", err
	}
	return runtimeDriver(status.GetInfo()), nil
}

// Start runs the node's components until the context ends. It returns once they are under way; a failure
// later goes to `failed`.
func Start(ctx context.Context, o *config.Options, c Credentials, facts cluster.Facts, failed func(error)) ([]<-chan struct{}, error) {
	driver, err := waitForRuntime(ctx, o.RuntimeEndpoint)
	if err != nil {
		return nil, fmt.Errorf("the container runtime at %s: %w", o.RuntimeEndpoint, err)
	}
	bootstrap, err := ensureIdentity(o, c, time.Now())
	if err != nil {
		return nil, err
	}
	clientCA := o.AgentDir("client-ca.crt")
	if err := files.Write(clientCA, []byte(facts.ClientCA), 0o644); err != nil {
		return nil, err
	}
	kubelet, err := prepareKubelet(o, kubeletConfiguration(o, facts, clientCA, driver))
	if err != nil {
		return nil, err
	}
	proxy, err := prepareProxy(o, facts)
	if err != nil {
		return nil, err
	}
	if bootstrap != "" {
		if err := obtain(ctx, o, bootstrap); err != nil {
			return nil, err
		}
	}
	running := []<-chan struct{}{component.Supervise(ctx, "kubelet", kubelet, failed)}
	client, err := waitForIdentity(ctx, o)
	if err != nil {
		return running, err
	}
	running = append(running, component.Supervise(ctx, "kube-proxy", proxy, failed))
	if facts.NetworkPolicy {
		policies := func(ctx context.Context) error {
			return netpol.Run(ctx, netpol.Settings{Client: client, NodeName: o.NodeName})
		}
		running = append(running, component.Supervise(ctx, "network policy", policies, failed))
	} else if err := netpol.Remove(ctx); err != nil {
		// Rules of before would know no new pod, and keep it closed.
		klog.Warningf("NetworkPolicy is switched off: %v", err)
	}
	return running, nil
}

// waitForIdentity returns the node's own credentials once the kubelet has them.
func waitForIdentity(ctx context.Context, o *config.Options) (*rest.Config, error) {
	for {
		if exists(kubeconfigFile(o)) && exists(currentPair(o)) {
			client, err := clientcmd.BuildConfigFromFlags("", kubeconfigFile(o))
			if err == nil {
				return client, nil
			}
			klog.Errorf("the kubelet's kubeconfig: %v", err)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// WaitRegistered returns when the Node object of this node is there.
func WaitRegistered(ctx context.Context, o *config.Options) error {
	config, err := waitForIdentity(ctx, o)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	for {
		if _, err := client.CoreV1().Nodes().Get(ctx, o.NodeName, meta.GetOptions{}); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// Balance starts what passes this agent's connections on to the servers, and returns its URL.
func Balance(ctx context.Context, o *config.Options, failed func(error)) (string, error) {
	given, err := url.Parse(o.Join)
	if err != nil {
		return "", err
	}
	balancer := NewBalancer(given.Host, o.AgentDir("servers.json"))
	listener, err := balancer.Listen()
	if err != nil {
		return "", err
	}
	component.Supervise(ctx, "way to the servers", func(ctx context.Context) error { return balancer.Serve(ctx, listener) }, failed)
	component.Supervise(ctx, "list of servers", func(ctx context.Context) error {
		config, err := waitForIdentity(ctx, o)
		if err != nil {
			return err
		}
		client, err := kubernetes.NewForConfig(config)
		if err != nil {
			return err
		}
		return balancer.Follow(ctx, client)
	}, failed)
	return "https://" + balanceAddress, nil
}

// Wait gives components some seconds to end.
func Wait(running []<-chan struct{}) {
	limit := time.After(5 * time.Second)
	for _, one := range running {
		select {
		case <-one:
		case <-limit:
			return
		}
	}
}
