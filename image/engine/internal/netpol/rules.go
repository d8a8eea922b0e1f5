package netpol

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// A Pod is what policies say something about.
type Pod struct {
	UID       string
	Namespace string
	Name      string
	Node      string
	Labels    labels.Set
	Addresses []netip.Addr
	Ports     []NamedPort
	// Leaving: it is being deleted. Its policies hold to the end, but nobody waits for it any more.
	Leaving bool
}

// A NamedPort is a container's port that has a name.
type NamedPort struct {
	Name     string
	Protocol core.Protocol
	Number   uint16
}

// Ports of one protocol, both ends included.
type Ports struct {
	Protocol core.Protocol
	From, To uint16
}

// An Endpoint is one port of one address.
type Endpoint struct {
	Address  netip.Addr
	Protocol core.Protocol
	Port     uint16
}

// A Rule lets something through: what comes from or goes to Peers, at Ports; and Exactly these.
type Rule struct {
	// AnyPeer: Peers does not count.
	AnyPeer bool
	Peers   []netip.Prefix
	// AnyPort: Ports does not count.
	AnyPort bool
	Ports   []Ports
	// Exactly is for a port's name in an egress rule: every pod has its own number for it.
	Exactly []Endpoint
}

// Direction of a pod's packets.
type Direction int

// The two of them.
const (
	Ingress Direction = iota
	Egress
)

// A Ruleset is all that one node enforces.
type Ruleset struct {
	// Known are the addresses of the node's pods. All other addresses are held back.
	Known []netip.Addr
	// Isolated: what an address lets through in a direction. An address that is not here lets everything.
	Isolated [2]map[netip.Addr][]Rule
}

// A Cluster is what rules are made of.
type Cluster struct {
	Pods       []*Pod
	Namespaces map[string]labels.Set
	Policies   []*networking.NetworkPolicy
}

// Compile returns what a node has to enforce, and what could not be read in the policies: such a part
// of a policy lets nothing through.
//
// Source: the API reference of networking.k8s.io/v1 NetworkPolicy.
func Compile(cluster Cluster, node string) (Ruleset, []error) {
	rules := Ruleset{Isolated: [2]map[netip.Addr][]Rule{{}, {}}}
	reader := &reader{cluster: cluster}
	selected := make([]labels.Selector, len(cluster.Policies))
	for place, policy := range cluster.Policies {
		// What selects nobody knows whom is taken to select all: it denies.
		selected[place] = reader.selector(policy, &policy.Spec.PodSelector, labels.Everything())
	}
	for _, pod := range cluster.Pods {
		if pod.Node != node {
			continue
		}
		rules.Known = append(rules.Known, pod.Addresses...)
		for place, policy := range cluster.Policies {
			if policy.Namespace != pod.Namespace || !selected[place].Matches(pod.Labels) {
				continue
			}
			for _, direction := range directions(policy) {
				found := reader.rules(policy, direction, pod)
				for _, address := range pod.Addresses {
					isolated := rules.Isolated[direction]
					isolated[address] = append(isolated[address], found...)
				}
			}
		}
	}
	slices.SortFunc(rules.Known, netip.Addr.Compare)
	rules.Known = slices.Compact(rules.Known)
	return rules, reader.errors
}

// directions returns those in which a policy isolates.
func directions(policy *networking.NetworkPolicy) []Direction {
	var found []Direction
	for _, kind := range policy.Spec.PolicyTypes {
		switch kind {
		case networking.PolicyTypeIngress:
			found = append(found, Ingress)
		case networking.PolicyTypeEgress:
			found = append(found, Egress)
		}
	}
	if len(policy.Spec.PolicyTypes) == 0 {
		found = append(found, Ingress)
		if len(policy.Spec.Egress) > 0 {
			found = append(found, Egress)
		}
	}
	return found
}

// reader reads policies, and remembers what it could not.
type reader struct {
	cluster Cluster
	errors  []error
	seen    map[string]bool
}

func (r *reader) fail(policy *networking.NetworkPolicy, format string, values ...any) {
	text := fmt.Sprintf("NetworkPolicy %s/%s: ", policy.Namespace, policy.Name) + fmt.Sprintf(format, values...)
	if r.seen == nil {
		r.seen = map[string]bool{}
	}
	if !r.seen[text] {
		r.seen[text] = true
		r.errors = append(r.errors, fmt.Errorf("%s", text))
	}
}

func (r *reader) selector(
	policy *networking.NetworkPolicy, given *meta.LabelSelector, otherwise labels.Selector,
) labels.Selector {
	selector, err := meta.LabelSelectorAsSelector(given)
	if err != nil {
		r.fail(policy, "a selector cannot be read: %v", err)
		return otherwise
	}
	return selector
}

func (r *reader) rules(policy *networking.NetworkPolicy, direction Direction, pod *Pod) []Rule {
	var found []Rule
	if direction == Ingress {
		for _, one := range policy.Spec.Ingress {
			peers := r.peers(policy, one.From)
			found = append(found, r.rule(policy, one.Ports, peers, []*Pod{pod}, false))
		}
		return found
	}
	for _, one := range policy.Spec.Egress {
		peers := r.peers(policy, one.To)
		found = append(found, r.rule(policy, one.Ports, peers, peers.pods, true))
	}
	return found
}

// peers of one rule.
type peers struct {
	any    bool
	pods   []*Pod
	blocks []netip.Prefix
}

func (p peers) prefixes() []netip.Prefix {
	found := slices.Clone(p.blocks)
	for _, pod := range p.pods {
		for _, address := range pod.Addresses {
			found = append(found, single(address))
		}
	}
	return disjoint(found)
}

func (r *reader) peers(policy *networking.NetworkPolicy, given []networking.NetworkPolicyPeer) peers {
	if len(given) == 0 {
		return peers{any: true, pods: r.cluster.Pods}
	}
	var found peers
	for _, peer := range given {
		if peer.IPBlock != nil {
			prefixes, ok := block(peer.IPBlock.CIDR, peer.IPBlock.Except)
			if !ok {
				r.fail(policy, "ipBlock %s except %v is no range", peer.IPBlock.CIDR, peer.IPBlock.Except)
			}
			found.blocks = append(found.blocks, prefixes...)
			continue
		}
		found.pods = append(found.pods, r.selected(policy, peer)...)
	}
	return found
}

func (r *reader) selected(policy *networking.NetworkPolicy, peer networking.NetworkPolicyPeer) []*Pod {
	pods, namespaces := labels.Everything(), labels.Nothing()
	if peer.PodSelector != nil {
		pods = r.selector(policy, peer.PodSelector, labels.Nothing())
	}
	if peer.NamespaceSelector != nil {
		namespaces = r.selector(policy, peer.NamespaceSelector, labels.Nothing())
	}
	var found []*Pod
	for _, pod := range r.cluster.Pods {
		there := pod.Namespace == policy.Namespace
		if peer.NamespaceSelector != nil {
			set, known := r.cluster.Namespaces[pod.Namespace]
			there = known && namespaces.Matches(set)
		}
		if there && pods.Matches(pod.Labels) {
			found = append(found, pod)
		}
	}
	return found
}

// rule returns what one rule lets through. named are the pods whose ports a name means; exactly is
// whether those are the other side's, so that every address has ports of its own.
func (r *reader) rule(
	policy *networking.NetworkPolicy,
	given []networking.NetworkPolicyPort,
	peers peers,
	named []*Pod,
	exactly bool,
) Rule {
	rule := Rule{AnyPeer: peers.any, AnyPort: len(given) == 0}
	if !peers.any {
		rule.Peers = peers.prefixes()
	}
	exact := map[Endpoint]bool{}
	for _, port := range given {
		protocol := core.ProtocolTCP
		if port.Protocol != nil {
			protocol = *port.Protocol
		}
		switch {
		case port.Port == nil:
			rule.Ports = append(rule.Ports, Ports{protocol, 0, 65535})
		case port.Port.Type == intstr.Int:
			first, last := port.Port.IntVal, port.Port.IntVal
			if port.EndPort != nil {
				last = *port.EndPort
			}
			if first < 1 || last > 65535 || last < first {
				r.fail(policy, "ports %d to %d cannot be", first, last)
				continue
			}
			rule.Ports = append(rule.Ports, Ports{protocol, uint16(first), uint16(last)})
		default:
			for _, pod := range named {
				for _, own := range pod.Ports {
					if own.Name != port.Port.StrVal || own.Protocol != protocol {
						continue
					}
					if !exactly {
						rule.Ports = append(rule.Ports, Ports{protocol, own.Number, own.Number})
						continue
					}
					for _, address := range pod.Addresses {
						exact[Endpoint{address, protocol, own.Number}] = true
					}
				}
			}
		}
	}
	rule.Exactly = slices.SortedFunc(maps.Keys(exact), compareEndpoints)
	return rule
}

func compareEndpoints(a, b Endpoint) int {
	return cmp.Or(
		a.Address.Compare(b.Address), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port),
	)
}

// sort puts the cluster into an order that is always the same.
func (c Cluster) sort() {
	slices.SortFunc(c.Pods, func(a, b *Pod) int { return cmp.Compare(a.UID, b.UID) })
	slices.SortFunc(c.Policies, func(a, b *networking.NetworkPolicy) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
}
