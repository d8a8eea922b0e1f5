package approve

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"net"
	"strings"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skerry/engine/internal/cluster"
)

type request = certificatesv1.CertificateSigningRequest

func pemRequest(t *testing.T, template *x509.CertificateRequest) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

func subject(name string) pkix.Name {
	return pkix.Name{CommonName: "system:node:" + name, Organization: []string{"system:nodes"}}
}

func client(t *testing.T, name string) *request {
	made := &request{ObjectMeta: meta.ObjectMeta{Name: "csr-" + name}}
	made.Spec.SignerName = certificatesv1.KubeAPIServerClientKubeletSignerName
	made.Spec.Usages = []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageClientAuth}
	made.Spec.Username, made.Spec.Groups = "system:bootstrap:abcdef", []string{cluster.JoiningGroup}
	made.Spec.Request = pemRequest(t, &x509.CertificateRequest{Subject: subject(name)})
	return made
}

func serving(t *testing.T, name string, names []string, addresses ...string) *request {
	made := client(t, name)
	made.Spec.SignerName = certificatesv1.KubeletServingSignerName
	made.Spec.Usages = []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageServerAuth}
	made.Spec.Username, made.Spec.Groups = "system:node:"+name, []string{"system:nodes"}
	template := &x509.CertificateRequest{Subject: subject(name), DNSNames: names}
	for _, address := range addresses {
		template.IPAddresses = append(template.IPAddresses, net.ParseIP(address))
	}
	made.Spec.Request = pemRequest(t, template)
	return made
}

func node(name, address string) *core.Node {
	made := &core.Node{ObjectMeta: meta.ObjectMeta{Name: name}}
	made.Status.Addresses = []core.NodeAddress{{Type: core.NodeInternalIP, Address: address}}
	return made
}

var today = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func approved(one *request) *request {
	one = one.DeepCopy()
	one.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{Type: certificatesv1.CertificateApproved, LastUpdateTime: meta.NewTime(today)}}
	return one
}

func change(one *request, how func(*request)) *request {
	one = one.DeepCopy()
	how(one)
	return one
}

func TestWhoGetsACertificate(t *testing.T) {
	nodes := []*core.Node{node("here", "10.0.0.1"), node("other", "10.0.0.2")}
	fresh, renewal := client(t, "fresh"), client(t, "here")
	renewal.Spec.Username, renewal.Spec.Groups = "system:node:here", []string{"system:nodes"}
	rival := approved(client(t, "fresh"))
	rival.Name = "csr-rival"
	late := rival.DeepCopy()
	late.Status.Conditions[0].LastUpdateTime = meta.NewTime(today.Add(-joiningLasts))
	for _, test := range []struct {
		name    string
		request *request
		others  []*request
		want    Verdict
		why     string
	}{
		{"a new node", fresh, nil, Approve, ""},
		{"its own request again, with the same key", fresh, []*request{change(approved(fresh), func(r *request) { r.Name = "csr-before" })}, Approve, ""},
		{"a new node, while another machine takes the name", fresh, []*request{rival}, Deny, "another machine is joining as fresh"},
		{"a new node, whose rival has made no Node for long", fresh, []*request{late}, Approve, ""},
		{"a token does not take a node's name", client(t, "here"), nil, Deny, "a Node called here is there"},
		{"a renewal", renewal, nil, Approve, ""},
		{"a renewal where the Node was deleted", change(client(t, "gone"), func(r *request) {
			r.Spec.Username, r.Spec.Groups = "system:node:gone", []string{"system:nodes"}
		}), nil, Deny, "no Node gone"},
		{"a renewal for another", change(renewal, func(r *request) { r.Spec.Username = "system:node:other" }), nil, Deny, "may not join"},
		{"a token of servers joins no nodes", change(fresh, func(r *request) { r.Spec.Groups = []string{cluster.ServerGroup} }), nil, Deny, "may not join"},
		{"anybody", change(fresh, func(r *request) { r.Spec.Groups = []string{"system:authenticated"} }), nil, Deny, "may not join"},
		{"more uses than a kubelet has", change(fresh, func(r *request) { r.Spec.Usages = append(r.Spec.Usages, certificatesv1.UsageServerAuth) }), nil, Deny, "not the request of a kubelet"},
		{"an administrator's name", change(fresh, func(r *request) {
			r.Spec.Request = pemRequest(t, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "admin", Organization: []string{"system:masters"}}})
		}), nil, Deny, "not the request of a kubelet"},
		{"no request at all", change(fresh, func(r *request) { r.Spec.Request = []byte("x") }), nil, Deny, "cannot be read"},
		{"decided before", approved(fresh), nil, Ignore, ""},
		{"another signer", change(fresh, func(r *request) { r.Spec.SignerName = "example.org/x" }), nil, Ignore, ""},
		{"serving", serving(t, "here", []string{"here"}, "10.0.0.1"), nil, Approve, ""},
		{"serving before the address is known", serving(t, "here", []string{"here"}, "10.0.0.9"), nil, Wait, "10.0.0.9 is not yet"},
		{"serving of a node that is not there", serving(t, "fresh", nil, "10.0.0.9"), nil, Wait, "not yet"},
		{"serving as another's address", serving(t, "here", nil, "10.0.0.1", "10.0.0.2"), nil, Deny, "that of the node other"},
		{"serving under another name", serving(t, "here", []string{"kubernetes"}, "10.0.0.1"), nil, Deny, "[kubernetes]"},
		{"serving under more names", serving(t, "here", []string{"here", "kubernetes"}, "10.0.0.1"), nil, Deny, "kubernetes"},
		{"serving, asked by a token", change(serving(t, "here", []string{"here"}, "10.0.0.1"), func(r *request) { r.Spec.Groups = []string{cluster.JoiningGroup} }), nil, Deny, "only a kubelet"},
	} {
		verdict, why := Decide(test.request, nodes, test.others, today)
		if verdict != test.want || !strings.Contains(why, test.why) {
			t.Errorf("%s: %d %q", test.name, verdict, why)
		}
	}
}
