// Package join finds out whether a server is the one that the token means, and gets from it what this
// node needs. Nothing is believed that the token does not prove.
package join

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"time"

	authentication "k8s.io/api/authentication/v1"
	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/json"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/cluster-bootstrap/token/jws"
	"k8s.io/klog/v2"

	"skerry/engine/internal/agent"
	"skerry/engine/internal/certs"
	"skerry/engine/internal/cluster"
	"skerry/engine/internal/config"
	"skerry/engine/internal/files"
	"skerry/engine/internal/token"
)

const (
	callTimeout = 10 * time.Second
	pause       = 2 * time.Second
	infoPath    = "/api/v1/namespaces/kube-public/configmaps/cluster-info"
	infoLimit   = 1 << 20
	mostDoubts  = 4
)

// Refused means that trying again helps nothing: wrong server, or wrong token. `soft` is what a server
// that has just been founded says too, before it knows its own tokens.
type Refused struct {
	text string
	soft bool
}

func (e *Refused) Error() string { return e.text }

func refused(format string, values ...any) error {
	return &Refused{fmt.Sprintf(format, values...), false}
}

func doubted(format string, values ...any) error {
	return &Refused{fmt.Sprintf(format, values...), true}
}

// patiently repeats a call until it succeeds, is refused, or the context ends.
func patiently(ctx context.Context, what string, call func() error) error {
	doubts := 0
	for attempt := 0; ; attempt++ {
		err := call()
		var final *Refused
		if err == nil {
			return nil
		}
		if errors.As(err, &final) {
			if doubts++; !final.soft || doubts >= mostDoubts {
				return err
			}
		}
		if attempt%10 == 0 {
			klog.Warningf("%s: %v; trying again", what, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// Agent returns how an agent reaches the API server, and what it has to know of the cluster. A node that
// was in the cluster before needs no server for that.
func Agent(ctx context.Context, o *config.Options) (agent.Credentials, cluster.Facts, error) {
	caFile, factsFile := o.AgentDir("server-ca.crt"), o.AgentDir("cluster.json")
	parsed, err := token.Parse(o.Token)
	if err != nil {
		return agent.Credentials{}, cluster.Facts{}, fmt.Errorf("option \"token\": %w", err)
	}
	if known, err := os.ReadFile(caFile); err == nil && agent.HasIdentity(o, time.Now()) {
		if text, err := os.ReadFile(factsFile); err == nil {
			if facts, err := cluster.Parse(text); err == nil {
				if parsed.CAHash != "" && parsed.CAHash != token.HashCA(known) {
					return agent.Credentials{}, facts, refused("this node is in another cluster than the token's: its CA is %s, the token's %s; to join that one, remove %s", token.HashCA(known), parsed.CAHash, o.AgentDir())
				}
				go refresh(ctx, o, factsFile)
				return agent.Credentials{Server: o.Join, CA: known}, facts, nil
			}
		}
	}
	member, err := Introduce(ctx, o.Join, parsed, token.Agent)
	if err != nil {
		return agent.Credentials{}, cluster.Facts{}, err
	}
	var facts cluster.Facts
	err = patiently(ctx, "asking about the cluster", func() error {
		config, err := member.Client.CoreV1().ConfigMaps(cluster.Namespace).Get(ctx, cluster.ConfigMap, meta.GetOptions{})
		if err != nil {
			return err
		}
		facts, err = keepFacts(config, factsFile)
		return err
	})
	if err != nil {
		return agent.Credentials{}, facts, err
	}
	if err := files.Write(caFile, member.CA, 0o644); err != nil {
		return agent.Credentials{}, facts, err
	}
	return agent.Credentials{Server: o.Join, CA: member.CA, BootstrapToken: member.Bearer}, facts, nil
}

func keepFacts(config *core.ConfigMap, path string) (cluster.Facts, error) {
	facts, err := cluster.Decode(config.Data)
	if err != nil {
		return facts, err
	}
	text, err := json.Marshal(facts)
	if err != nil {
		return facts, err
	}
	return facts, files.Write(path, text, 0o600)
}

// refresh renews the copy of the facts once; they count from the next start.
func refresh(ctx context.Context, o *config.Options, path string) {
	_ = patiently(ctx, "asking about the cluster", func() error {
		config, err := clientcmd.BuildConfigFromFlags("", o.AgentDir("kubelet.kubeconfig"))
		if err != nil {
			return err
		}
		client, err := kubernetes.NewForConfig(config)
		if err != nil {
			return err
		}
		found, err := client.CoreV1().ConfigMaps(cluster.Namespace).Get(ctx, cluster.ConfigMap, meta.GetOptions{})
		if err != nil {
			return err
		}
		_, err = keepFacts(found, path)
		return err
	})
}

// Member is somebody whom the server knows by a join token.
type Member struct {
	CA     []byte
	Bearer string
	Client kubernetes.Interface
}

// Introduce proves the server by the token, then ourselves to the server.
func Introduce(ctx context.Context, address string, parsed token.Token, class token.Class) (*Member, error) {
	if class == token.Server && parsed.OnlyAgent() {
		return nil, refused("option \"token\": this token is for agents, a server needs the server token")
	}
	keys, err := token.Derive(parsed.Secret)
	if err != nil {
		return nil, err
	}
	id, secret := keys.Bootstrap(class)
	var ca []byte
	err = patiently(ctx, "joining "+address, func() error {
		if parsed.CAHash != "" {
			ca, err = caByHash(ctx, address, parsed.CAHash)
		} else {
			ca, err = caBySignature(ctx, address, id, secret)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	member := &Member{CA: ca, Bearer: id + "." + secret}
	client := &rest.Config{Host: address, BearerToken: member.Bearer, Timeout: callTimeout, TLSClientConfig: rest.TLSClientConfig{CAData: ca}}
	if member.Client, err = kubernetes.NewForConfig(client); err != nil {
		return nil, err
	}
	return member, patiently(ctx, "joining "+address, func() error {
		_, err := member.Client.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authentication.SelfSubjectReview{}, meta.CreateOptions{})
		if apierrors.IsUnauthorized(err) {
			return doubted("%s refuses the token: its secret is not this cluster's (or not one for a node of this kind)", address)
		}
		return err
	})
}

// caByHash returns the CA of the server's certificate whose hash is the token's. The server shows it in
// the handshake; it is used only if the hash fits and the server's certificate is signed by it.
func caByHash(ctx context.Context, address, hash string) ([]byte, error) {
	target, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	var found []byte
	var shown string
	dialer := &tls.Dialer{Config: &tls.Config{
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: true, // verified below, by the hash
		VerifyConnection: func(state tls.ConnectionState) error {
			for _, certificate := range state.PeerCertificates[1:] {
				text := certs.EncodeCertificate(certificate.Raw)
				shown = token.HashCA(text)
				if shown != hash {
					continue
				}
				roots := x509.NewCertPool()
				roots.AddCert(certificate)
				if _, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, DNSName: target.Hostname()}); err != nil {
					return refused("the server %s shows the token's CA, but its own certificate does not hold: %v", address, err)
				}
				found = text
				return nil
			}
			return refused("the server %s is not of the token's cluster: its CA is %q, the token's %q", address, shown, hash)
		},
	}}
	limited, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	connection, err := dialer.DialContext(limited, "tcp", target.Host)
	if err != nil {
		return nil, err
	}
	return found, connection.Close()
}

// caBySignature returns the CA that the cluster's signed statement names: only who knows the secret can
// have signed it. The server is then called again, and has to be of that CA.
func caBySignature(ctx context.Context, address, id, secret string) ([]byte, error) {
	client := &http.Client{Timeout: callTimeout, Transport: &http.Transport{
		DisableKeepAlives: true,
		// Nothing is believed but what the signature covers, and nothing secret is sent.
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true},
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address+infoPath, nil)
	if err != nil {
		return nil, err
	}
	answer, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, infoLimit))
	if err != nil {
		return nil, err
	}
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s has no statement of its cluster yet (status %d)", address, answer.StatusCode)
	}
	return statedCA(text, address, id, secret)
}

func statedCA(text []byte, address, id, secret string) ([]byte, error) {
	var info core.ConfigMap
	if err := json.Unmarshal(text, &info); err != nil {
		return nil, fmt.Errorf("the statement of %s: %w", address, err)
	}
	statement := info.Data["kubeconfig"]
	signature := info.Data["jws-kubeconfig-"+id]
	if signature == "" {
		signed := false
		for name := range info.Data {
			signed = signed || name != "kubeconfig"
		}
		if !signed {
			return nil, fmt.Errorf("%s has not signed its statement yet", address)
		}
		return nil, doubted("%s does not know the token's secret: nothing there is signed with it", address)
	}
	if !jws.DetachedTokenIsValid(signature, statement, id, secret) {
		return nil, refused("%s does not know the token's secret: the signature is wrong", address)
	}
	stated, err := clientcmd.Load([]byte(statement))
	if err != nil {
		return nil, fmt.Errorf("the statement of %s: %w", address, err)
	}
	for _, one := range stated.Clusters {
		if block, _ := pem.Decode(one.CertificateAuthorityData); block != nil {
			return one.CertificateAuthorityData, nil
		}
	}
	return nil, refused("the statement of %s names no CA", address)
}
