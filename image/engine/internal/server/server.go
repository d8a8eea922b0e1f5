package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	authorization "k8s.io/api/authorization/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	apinet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"skerry/engine/internal/addons"
	"skerry/engine/internal/agent"
	"skerry/engine/internal/approve"
	"skerry/engine/internal/cluster"
	"skerry/engine/internal/component"
	"skerry/engine/internal/config"
	"skerry/engine/internal/datastore"
	"skerry/engine/internal/files"
	"skerry/engine/internal/notify"
	"skerry/engine/internal/token"
)

// How long each layer gets to end, from the top down.
const (
	stopComponents = time.Second
	stopAPIServer  = 2 * time.Second
)

// Run runs a server until the context ends, or something that it cannot do without fails.
func Run(ctx context.Context, o *config.Options, notifier *notify.Notifier) error {
	if err := resolveAddresses(o); err != nil {
		return err
	}
	if err := os.MkdirAll(o.ServerDir(), 0o700); err != nil {
		return fmt.Errorf("making the data directory: %w", err)
	}
	if o.Join != "" {
		if err := receive(ctx, o); err != nil {
			return cause(ctx, err)
		}
	}
	secrets, err := ensureSecrets(o)
	if err != nil {
		return err
	}
	certificates, err := ensurePKI(o.ServerDir("tls"), time.Now())
	if err != nil {
		return err
	}
	if err := certificates.leaves(o, secrets.serverKeys.Administrators(), time.Now()); err != nil {
		return err
	}
	if err := secrets.write(o, certificates.serving.PEM); err != nil {
		return err
	}
	encryption, err := ensureEncryption(o)
	if err != nil {
		return err
	}
	inner, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	store, err := openStore(inner, o, certificates, func(err error) { cancel(err) })
	if err != nil {
		return cause(inner, err)
	}
	defer store.Stop()
	return serve(inner, o, certificates, secrets, store, encryption, notifier)
}

func factsOf(o *config.Options, clientCA string) cluster.Facts {
	return cluster.Facts{
		ClusterCIDRs: o.ClusterCIDRs, ServiceCIDRs: o.ServiceCIDRs, ClusterDNS: o.ClusterDNS, ClusterDomain: o.ClusterDomain,
		NetworkPolicy: !o.NoNetworkPolicy, ClientCA: clientCA,
	}
}

// serve runs everything above the datastore, and ends it in order.
func serve(parent context.Context, o *config.Options, p *pki, secrets *secrets, store *datastore.Running, encryption string, notifier *notify.Notifier) error {
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)
	failed := func(err error) { cancel(err) }
	apiContext, stopAPI := context.WithCancel(context.WithoutCancel(parent))
	defer stopAPI()

	words, err := apiServerArguments(o, p, store, encryption)
	if err != nil {
		return err
	}
	apiServer, err := component.PrepareAPIServer(words)
	if err != nil {
		return err
	}
	upper, err := prepareUpper(o, p, store.Several)
	if err != nil {
		return err
	}
	apiEnded := component.Supervise(apiContext, "kube-apiserver", apiServer, failed)
	var ended []<-chan struct{}
	defer func() {
		cancel(nil)
		waitAll(ended, stopComponents)
		stopAPI()
		waitAll([]<-chan struct{}{apiEnded}, stopAPIServer)
	}()

	enginePath, err := p.kubeconfigFor("engine", localServer(o))
	if err != nil {
		return err
	}
	engine, err := clientcmd.BuildConfigFromFlags("", enginePath)
	if err != nil {
		return err
	}
	engine.QPS, engine.Burst = 50, 100
	if err := waitReady(ctx, engine); err != nil {
		return cause(ctx, err)
	}
	client, err := kubernetes.NewForConfig(engine)
	if err != nil {
		return err
	}
	for name, run := range upper {
		ended = append(ended, component.Supervise(ctx, name, run, failed))
	}

	facts := factsOf(o, string(p.client.PEM))
	public := "https://" + net.JoinHostPort(publicAddress(o), strconv.Itoa(o.Port))
	if err := keepObjects(ctx, client, secrets, facts, public, p.serving.PEM); err != nil {
		return cause(ctx, err)
	}
	if err := admit(ctx, o, p); err != nil {
		return cause(ctx, err)
	}
	if store.Several {
		if err := publish(ctx, client, secrets.serverKeys, o); err != nil {
			return cause(ctx, fmt.Errorf("keeping what servers share: %w", err))
		}
	}
	notifier.Ready("the API server answers, nodes can join")
	parts := map[string]component.Runner{
		"certificate approval": func(ctx context.Context) error { return approve.Run(ctx, client) },
		"manifests": func(ctx context.Context) error {
			return addons.Run(ctx, engine, addons.Settings{Folder: o.ServerDir("manifests"), State: o.ServerDir("manifests.json"), Disabled: o.Disable})
		},
		"node role": func(ctx context.Context) error { return labelNode(ctx, client, o) },
	}
	if store.Several {
		parts["datastore members"] = func(ctx context.Context) error { return removeMembers(ctx, client, store, o.NodeName) }
	}
	for name, run := range parts {
		ended = append(ended, component.Supervise(ctx, name, run, failed))
	}
	// The node's own components have nothing to finish: they are not waited for.
	_, err = agent.Start(ctx, o, agent.Credentials{Server: localServer(o), CA: p.serving.PEM, Issuer: p.client}, facts, failed)
	if err != nil {
		return cause(ctx, err)
	}
	<-ctx.Done()
	return cause(ctx, nil)
}

// admit writes the administrator's kubeconfig, and returns once it has its rights: the API server hears of
// their binding a moment after it is kept.
func admit(ctx context.Context, o *config.Options, p *pki) error {
	if err := p.writeAdmin(o, localServer(o)); err != nil {
		return err
	}
	path, err := p.kubeconfigFor("admin", localServer(o))
	if err != nil {
		return err
	}
	admin, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(admin)
	if err != nil {
		return err
	}
	all := &authorization.SelfSubjectAccessReview{Spec: authorization.SelfSubjectAccessReviewSpec{
		ResourceAttributes: &authorization.ResourceAttributes{Verb: "*", Group: "*", Resource: "*"},
	}}
	for attempt := 1; ; attempt++ {
		answer, err := client.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, all, meta.CreateOptions{})
		if err == nil && answer.Status.Allowed {
			return nil
		}
		if attempt%100 == 0 {
			klog.Warningf("the administrator has no rights yet (%v)", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func prepareUpper(o *config.Options, p *pki, several bool) (map[string]component.Runner, error) {
	controllerConfig, err := p.kubeconfigFor("controller-manager", localServer(o))
	if err != nil {
		return nil, err
	}
	schedulerConfig, err := p.kubeconfigFor("scheduler", localServer(o))
	if err != nil {
		return nil, err
	}
	controllers, err := component.PrepareControllerManager(controllerArguments(o, p, controllerConfig, several))
	if err != nil {
		return nil, err
	}
	scheduler, err := component.PrepareScheduler(schedulerArguments(o, schedulerConfig, several))
	if err != nil {
		return nil, err
	}
	return map[string]component.Runner{"kube-controller-manager": controllers, "kube-scheduler": scheduler}, nil
}

// cause returns why the context ended, unless it was asked to.
func cause(ctx context.Context, err error) error {
	if why := context.Cause(ctx); why != nil && !errors.Is(why, context.Canceled) {
		return why
	}
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func waitAll(ended []<-chan struct{}, limit time.Duration) {
	timer := time.After(limit)
	for _, one := range ended {
		select {
		case <-one:
		case <-timer:
			klog.Warningf("not everything ended within %s", limit)
			return
		}
	}
}

// resolveAddresses fills in what was left open, from the interface of the default route.
func resolveAddresses(o *config.Options) error {
	if len(o.NodeIPs) == 0 {
		address, err := apinet.ChooseHostInterface()
		if err != nil {
			return fmt.Errorf("no address of this node was found (%w); give the option \"node-ip\"", err)
		}
		o.NodeIPs = []string{address.String()}
	}
	if o.AdvertiseAddress == "" && !isUnspecified(listenAddress(o)) {
		o.AdvertiseAddress = listenAddress(o)
	}
	if o.AdvertiseAddress == "" {
		o.AdvertiseAddress = o.NodeIPs[0]
	}
	return nil
}

func isUnspecified(address string) bool { return net.ParseIP(address).IsUnspecified() }

func publicAddress(o *config.Options) string { return o.AdvertiseAddress }

// waitReady returns when the API server says that it is ready.
func waitReady(ctx context.Context, config *rest.Config) error {
	transport, err := rest.TLSConfigFor(config)
	if err != nil {
		return err
	}
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{TLSClientConfig: transport.Clone(), DisableKeepAlives: true}}
	begun := time.Now()
	for attempt := 1; ; attempt++ {
		answer, err := client.Get(config.Host + "/readyz")
		if err == nil {
			answer.Body.Close()
			if answer.StatusCode == http.StatusOK {
				klog.Infof("the API server is ready after %.1f s", time.Since(begun).Seconds())
				return nil
			}
			err = fmt.Errorf("status %d", answer.StatusCode)
		}
		var unknown *tls.CertificateVerificationError
		if errors.As(err, &unknown) {
			return fmt.Errorf("another program answers at %s: %w", config.Host, err)
		}
		if attempt%100 == 0 {
			klog.Infof("waiting for the API server: %v", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// secrets are the tokens of this cluster, as kept in the data directory.
type secrets struct {
	server, agent string
	serverKeys    token.Keys
	agentKeys     *token.Keys
}

// ensureSecrets takes the secrets of the options, else those kept, else makes one.
func ensureSecrets(o *config.Options) (*secrets, error) {
	made := &secrets{}
	for _, one := range []struct {
		name, given string
		place       *string
		needed      bool
	}{{"token", o.Token, &made.server, true}, {"agent-token", o.AgentToken, &made.agent, false}} {
		text := one.given
		if text == "" {
			kept, err := os.ReadFile(o.ServerDir(one.name))
			if err != nil && !os.IsNotExist(err) {
				return nil, err
			}
			text = strings.TrimSpace(string(kept))
		}
		if text == "" && one.needed {
			text = token.New()
		}
		if text == "" {
			continue
		}
		parsed, err := token.Parse(text)
		if err != nil {
			return nil, fmt.Errorf("option %q: %w", one.name, err)
		}
		*one.place = parsed.Secret
	}
	var err error
	if made.serverKeys, err = token.Derive(made.server); err != nil {
		return nil, err
	}
	if made.agent != "" {
		keys, err := token.Derive(made.agent)
		if err != nil {
			return nil, err
		}
		made.agentKeys = &keys
	}
	return made, nil
}

func (s *secrets) joinTokens() []joinToken { return joinTokens(s.serverKeys, s.agentKeys) }

// write leaves the tokens where k3s has them: `token` and `node-token` for all, `agent-token` for agents.
func (s *secrets) write(o *config.Options, ca []byte) error {
	whole := []byte(token.Format(ca, token.Server, s.server) + "\n")
	written := map[string][]byte{"token": whole, "node-token": whole}
	if s.agent != "" {
		written["agent-token"] = []byte(token.Format(ca, token.Agent, s.agent) + "\n")
	}
	for name, content := range written {
		if err := files.Write(filepath.Join(o.ServerDir(), name), content, 0o600); err != nil {
			return err
		}
	}
	return nil
}
