// Package approve decides who gets a node's certificate.
package approve

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/kubernetes/pkg/apis/certificates"

	"skerry/engine/internal/cluster"
)

// Verdict is what to do with a request.
type Verdict int

// Wait means that what would allow it is not there yet; Ignore that it is not ours to decide.
const (
	Ignore Verdict = iota
	Wait
	Approve
	Deny
)

// joiningLasts is how long a node that was let in has to make its Node: until then the name is its own. A
// machine that lost its disk meanwhile, or whose Node was deleted, does not wait longer for its name.
const joiningLasts = 10 * time.Minute

// Decide judges a request for a kubelet's certificate. `nodes` are all Nodes, `others` all requests.
//
// A token lets a machine in under a name that no Node has; so a leaked token does not take over a node
// that is there. A kubelet may renew its own, and may serve under its own name and addresses.
func Decide(request *certificatesv1.CertificateSigningRequest, nodes []*core.Node, others []*certificatesv1.CertificateSigningRequest, now time.Time) (Verdict, string) {
	for _, condition := range request.Status.Conditions {
		if condition.Type == certificatesv1.CertificateApproved || condition.Type == certificatesv1.CertificateDenied {
			return Ignore, ""
		}
	}
	serving := request.Spec.SignerName == certificatesv1.KubeletServingSignerName
	if !serving && request.Spec.SignerName != certificatesv1.KubeAPIServerClientKubeletSignerName {
		return Ignore, ""
	}
	parsed, err := certificates.ParseCSR(request.Spec.Request)
	if err != nil {
		return Deny, "the request cannot be read: " + err.Error()
	}
	usages := sets.String{}
	for _, usage := range request.Spec.Usages {
		usages.Insert(string(usage))
	}
	user := parsed.Subject.CommonName
	name := strings.TrimPrefix(user, "system:node:")
	itself := request.Spec.Username == user && slices.Contains(request.Spec.Groups, "system:nodes")
	var node *core.Node
	for _, one := range nodes {
		if one.Name == name {
			node = one
		}
	}
	if serving {
		if !certificates.IsKubeletServingCSR(parsed, usages) || !itself {
			return Deny, "only a kubelet gets a kubelet's serving certificate, for itself"
		}
		if len(parsed.DNSNames) > 1 || len(parsed.DNSNames) == 1 && parsed.DNSNames[0] != name {
			return Deny, fmt.Sprintf("names %v are not those of the node %s", parsed.DNSNames, name)
		}
		for _, address := range parsed.IPAddresses {
			for _, one := range nodes {
				if one.Name != name && hasAddress(one, address.String()) {
					return Deny, fmt.Sprintf("address %s is that of the node %s", address, one.Name)
				}
			}
			if node == nil || !hasAddress(node, address.String()) {
				return Wait, fmt.Sprintf("address %s is not yet one of the node %s", address, name)
			}
		}
		return Approve, "a kubelet's own name and addresses"
	}
	if !certificates.IsKubeletClientCSR(parsed, usages) {
		return Deny, "not the request of a kubelet"
	}
	if itself && node == nil {
		// Else the certificate of a node that was put out would live for ever.
		return Deny, fmt.Sprintf("there is no Node %s: it was deleted, and its kubelet has not made it again", name)
	}
	if itself {
		return Approve, "a kubelet renews its certificate"
	}
	if !slices.Contains(request.Spec.Groups, cluster.JoiningGroup) {
		return Deny, "asked by someone who may not join nodes"
	}
	if node != nil {
		return Deny, fmt.Sprintf("a Node called %s is there; if this machine takes its place, delete that Node first", name)
	}
	for _, other := range others {
		if other.Name != request.Name && sameNode(other, user, now) && !bytes.Equal(other.Spec.Request, request.Spec.Request) {
			return Deny, fmt.Sprintf("another machine is joining as %s", name)
		}
	}
	return Approve, "a new node joins with a token"
}

func hasAddress(node *core.Node, address string) bool {
	for _, one := range node.Status.Addresses {
		if one.Type == core.NodeInternalIP && one.Address == address {
			return true
		}
	}
	return false
}

// sameNode says whether another key got an approval for this node's user by a token just now.
func sameNode(other *certificatesv1.CertificateSigningRequest, user string, now time.Time) bool {
	if other.Spec.SignerName != certificatesv1.KubeAPIServerClientKubeletSignerName || !slices.Contains(other.Spec.Groups, cluster.JoiningGroup) {
		return false
	}
	approved := false
	for _, condition := range other.Status.Conditions {
		recent := now.Sub(condition.LastUpdateTime.Time) < joiningLasts
		approved = approved || recent && condition.Type == certificatesv1.CertificateApproved
	}
	parsed, err := certificates.ParseCSR(other.Spec.Request)
	return approved && err == nil && parsed.Subject.CommonName == user
}
