package netpol

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/knftables"
	"sigs.k8s.io/yaml"
)

const node = "lagoon"

// A small world: two namespaces, pods of several kinds, all on one node.
var world = map[string]labels.Set{"shop": {"team": "a"}, "bank": {"team": "b"}}

func pod(namespace, name, app string, last int, ports ...NamedPort) *Pod {
	return &Pod{
		UID: namespace + name, Namespace: namespace, Name: name, Node: node,
		Labels: labels.Set{"app": app},
		Addresses: []netip.Addr{
			netip.MustParseAddr(fmt.Sprintf("10.244.1.%d", last)),
			netip.MustParseAddr(fmt.Sprintf("fd00::%d", last)),
		},
		Ports: ports,
	}
}

var (
	web    = pod("shop", "web", "web", 2, NamedPort{"http", core.ProtocolTCP, 8080})
	other  = pod("shop", "web2", "web", 3, NamedPort{"http", core.ProtocolTCP, 9090})
	client = pod("shop", "client", "client", 4)
	teller = pod("bank", "teller", "client", 5)
	vault  = pod("bank", "vault", "web", 6, NamedPort{"http", core.ProtocolUDP, 8080})
	pods   = []*Pod{web, other, client, teller, vault}
)

func policy(t *testing.T, namespace, spec string) *networking.NetworkPolicy {
	t.Helper()
	made := &networking.NetworkPolicy{}
	made.Name, made.Namespace = "p", namespace
	if err := yaml.UnmarshalStrict([]byte(spec), &made.Spec); err != nil {
		t.Fatal(err)
	}
	return made
}

// passes says whether a new connection gets through, as the table decides it.
func passes(rules Ruleset, from, to netip.Addr, protocol core.Protocol, port uint16) bool {
	if from == to {
		return true
	}
	let := func(direction Direction, own, peer netip.Addr) bool {
		all, isolated := rules.Isolated[direction][own]
		return !isolated || slices.ContainsFunc(all, func(rule Rule) bool {
			if slices.Contains(rule.Exactly, Endpoint{to, protocol, port}) {
				return true
			}
			there := rule.AnyPeer || slices.ContainsFunc(rule.Peers, func(prefix netip.Prefix) bool {
				return prefix.Contains(peer)
			})
			return there && (rule.AnyPort || slices.ContainsFunc(rule.Ports, func(ports Ports) bool {
				return ports.Protocol == protocol && ports.From <= port && port <= ports.To
			}))
		})
	}
	return let(Egress, from, to) && let(Ingress, to, from)
}

type try struct {
	from, to string
	port     string // 8080, or 53/UDP
	want     bool
}

var addresses = map[string]*Pod{"web": web, "web2": other, "client": client, "teller": teller, "vault": vault}

func address(t *testing.T, name string, family int) (netip.Addr, bool) {
	t.Helper()
	if pod, known := addresses[name]; known {
		return pod.Addresses[family], true
	}
	one, err := netip.ParseAddr(name)
	if err != nil {
		t.Fatal(err)
	}
	return one, one.Is4() == (family == 0)
}

func TestSemantics(t *testing.T) {
	for name, one := range map[string]struct {
		namespace string
		specs     []string
		tries     []try
	}{
		"no policy: everything": {"shop", nil, []try{
			{"teller", "web", "8080", true}, {"web", "192.0.2.1", "443", true},
		}},
		"selected and no rule: nothing comes in, all goes out": {"shop", []string{`podSelector: {matchLabels: {app: web}}`}, []try{
			{"client", "web", "8080", false}, {"client", "web2", "8080", false}, {"192.0.2.1", "web", "80", false},
			{"web", "client", "80", true}, {"web", "192.0.2.1", "80", true}, {"client", "vault", "80", true},
			{"web", "web", "8080", true},
		}},
		"an empty selector selects the namespace": {"shop", []string{`podSelector: {}`}, []try{
			{"web", "client", "1", false}, {"teller", "web", "1", false}, {"web", "vault", "1", true},
		}},
		"an empty rule lets everything in": {"shop", []string{"podSelector: {}\ningress: [{}]"}, []try{
			{"teller", "web", "1", true}, {"192.0.2.1", "web", "9/UDP", true},
		}},
		"pods of the own namespace": {"shop", []string{`{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}`}, []try{
			{"client", "web", "1", true}, {"web2", "web", "1", false}, {"teller", "web", "1", false},
		}},
		"a namespace": {"shop", []string{`{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: b}}}]}]}`}, []try{
			{"teller", "web", "1", true}, {"vault", "web", "1", true}, {"client", "web", "1", false},
		}},
		"pods in a namespace: both hold": {"shop", []string{`{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: b}}, podSelector: {matchLabels: {app: client}}}]}]}`}, []try{
			{"teller", "web", "1", true}, {"vault", "web", "1", false}, {"client", "web", "1", false},
		}},
		"two peers: one of them holds": {"shop", []string{`{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: b}}}, {podSelector: {matchLabels: {app: client}}}]}]}`}, []try{
			{"vault", "web", "1", true}, {"client", "web", "1", true}, {"web2", "web", "1", false},
		}},
		"expressions": {"shop", []string{`{podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [client]}]}}`}, []try{
			{"client", "web", "1", false}, {"web", "client", "1", true},
		}},
		"a range with an exception": {"shop", []string{`{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.128/25]}}]}]}`}, []try{
			{"192.0.2.1", "web", "1", true}, {"192.0.2.127", "web", "1", true}, {"192.0.2.128", "web", "1", false},
			{"192.0.3.1", "web", "1", false}, {"client", "web", "1", false},
		}},
		"everything of one family": {"shop", []string{`{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: "0.0.0.0/0"}}]}]}`}, []try{
			{"192.0.2.1", "web", "1", true}, {"250.0.2.1", "web", "1", true}, {"2001:db8::1", "web", "1", false},
		}},
		"everything of the other": {"shop", []string{`{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: "::/0", except: ["2001:db8::/32"]}}]}]}`}, []try{
			{"192.0.2.1", "web", "1", false}, {"2001:db8::1", "web", "1", false}, {"2001:db9::1", "web", "1", true},
		}},
		"a port, TCP unless it says otherwise": {"shop", []string{`{podSelector: {}, ingress: [{ports: [{port: 80}]}]}`}, []try{
			{"client", "web", "80", true}, {"client", "web", "80/UDP", false}, {"client", "web", "81", false},
		}},
		"several ports": {"shop", []string{`{podSelector: {}, ingress: [{ports: [{port: 53, protocol: UDP}, {port: 53}, {port: 7, protocol: SCTP}]}]}`}, []try{
			{"client", "web", "53", true}, {"client", "web", "53/UDP", true}, {"client", "web", "53/SCTP", false}, {"client", "web", "7/SCTP", true},
		}},
		"all ports of a protocol": {"shop", []string{`{podSelector: {}, ingress: [{ports: [{protocol: UDP}]}]}`}, []try{
			{"client", "web", "53/UDP", true}, {"client", "web", "53", false},
		}},
		"from one port to another": {"shop", []string{`{podSelector: {}, ingress: [{ports: [{port: 8000, endPort: 8080}]}]}`}, []try{
			{"client", "web", "7999", false}, {"client", "web", "8000", true}, {"client", "web", "8080", true}, {"client", "web", "8081", false},
		}},
		"a port's name, each pod's own number": {"shop", []string{`{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: http}]}]}`}, []try{
			{"client", "web", "8080", true}, {"client", "web", "9090", false}, {"client", "web2", "9090", true}, {"client", "web2", "8080", false},
		}},
		"a name that nobody has": {"shop", []string{`{podSelector: {}, ingress: [{ports: [{port: https}]}]}`}, []try{
			{"client", "web", "8080", false},
		}},
		"going out: denied": {"shop", []string{`{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress]}`}, []try{
			{"client", "web", "1", false}, {"client", "192.0.2.1", "1", false}, {"web", "client", "1", true},
		}},
		"a rule for going out means both types": {"shop", []string{`{podSelector: {matchLabels: {app: client}}, egress: [{to: [{podSelector: {}}]}]}`}, []try{
			{"client", "web", "1", true}, {"client", "vault", "1", false}, {"web", "client", "1", false},
		}},
		"ports by name going out, each peer's own": {"shop", []string{`{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: http}]}]}`}, []try{
			{"client", "web", "8080", true}, {"client", "web", "9090", false}, {"client", "web2", "9090", true}, {"client", "vault", "8080", false},
		}},
		"a port's name of any peer, by its protocol": {"shop", []string{`{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [{ports: [{port: http, protocol: UDP}]}]}`}, []try{
			{"client", "vault", "8080/UDP", true}, {"client", "web", "8080", false}, {"client", "web", "8080/UDP", false}, {"client", "192.0.2.1", "8080/UDP", false},
		}},
		"policies add up": {"shop", []string{
			`{podSelector: {}}`,
			`{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 80}]}]}`,
			`{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{namespaceSelector: {}}], ports: [{port: 81}]}]}`,
		}, []try{
			{"client", "web", "80", true}, {"client", "web", "81", true}, {"teller", "web", "80", false}, {"teller", "web", "81", true}, {"web", "client", "80", false},
		}},
		"policies are the namespace's": {"bank", []string{`{podSelector: {}}`}, []try{
			{"client", "web", "1", true}, {"web", "teller", "1", false},
		}},
		"a selector that cannot be read denies": {"shop", []string{`{podSelector: {matchExpressions: [{key: app, operator: Is, values: [web]}]}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/40}}]}]}`}, []try{
			{"client", "web", "1", false}, {"web", "client", "1", false},
		}},
		"a peer that cannot be read is nobody": {"shop", []string{`{podSelector: {}, ingress: [{from: [{podSelector: {matchExpressions: [{key: app, operator: Is}]}}], ports: [{port: 80, endPort: 70}]}]}`}, []try{
			{"client", "web", "80", false}, {"client", "web", "75", false},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			cluster := Cluster{Pods: pods, Namespaces: world}
			for _, spec := range one.specs {
				cluster.Policies = append(cluster.Policies, policy(t, one.namespace, spec))
			}
			rules, troubles := Compile(cluster, node)
			if unreadable := strings.Contains(name, "cannot be read"); unreadable != (len(troubles) > 0) {
				t.Errorf("troubles: %v", troubles)
			}
			for _, try := range one.tries {
				for family := range families {
					from, ok := address(t, try.from, family)
					to, both := address(t, try.to, family)
					if !ok || !both {
						continue
					}
					number, protocol := try.port, "TCP"
					if before, after, found := strings.Cut(try.port, "/"); found {
						number, protocol = before, after
					}
					var port uint16
					if _, err := fmt.Sscan(number, &port); err != nil {
						t.Fatal(err)
					}
					if got := passes(rules, from, to, core.Protocol(protocol), port); got != try.want {
						t.Errorf("%s (%s) to %s (%s) port %s: passes %v", try.from, from, try.to, to, try.port, got)
					}
				}
			}
			install(t, rules)
		})
	}
}

// install puts rules into an imitation of nftables that checks that all that is named is there.
func install(t *testing.T, rules Ruleset) *knftables.Fake {
	t.Helper()
	fake := knftables.NewFake(knftables.InetFamily, Table)
	for range 2 {
		write(t, fake, rules)
	}
	return fake
}

func write(t *testing.T, fake *knftables.Fake, rules Ruleset) {
	t.Helper()
	laid := fake.NewTransaction()
	Lay(laid, rules, "pods")
	c := &controller{policy: fake}
	if err := c.write(context.Background(), laid, rules); err != nil {
		t.Fatalf("%v in\n%s", err, fake.Dump())
	}
}

func TestPodsElsewhereArePeersOnly(t *testing.T) {
	far := *web
	far.Node = "atoll"
	rules, _ := Compile(Cluster{
		Pods: []*Pod{&far, client}, Namespaces: world,
		Policies: []*networking.NetworkPolicy{policy(t, "shop", `{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}`)},
	}, node)
	if !slices.Equal(rules.Known, client.Addresses) {
		t.Errorf("known: %v", rules.Known)
	}
	if len(rules.Isolated[Ingress]) != 2 {
		t.Errorf("isolated: %v", rules.Isolated[Ingress])
	}
	if !passes(rules, far.Addresses[0], client.Addresses[0], core.ProtocolTCP, 1) {
		t.Error("a peer on another node is let in")
	}
}

func TestEqualRulesShareAChain(t *testing.T) {
	spec := `{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {}}], ports: [{port: 1}, {port: 1}]}]}`
	rules, _ := Compile(Cluster{Pods: pods, Namespaces: world, Policies: []*networking.NetworkPolicy{policy(t, "shop", spec)}}, node)
	fake := install(t, rules)
	var chains []string
	for name := range fake.Table.Chains {
		if strings.HasPrefix(name, "in-") {
			chains = append(chains, name)
		}
	}
	if len(chains) != 1 {
		t.Fatalf("chains: %v", chains)
	}
	if found := len(fake.Table.Chains[chains[0]].Rules); found != 3 {
		t.Errorf("%d rules instead of one for each family and the end:\n%s", found, fake.Dump())
	}
}

// A packet that is under way when rules change must never meet a chain that is empty yet.
func TestAChainIsThereBeforeAnythingLeadsToIt(t *testing.T) {
	fake := knftables.NewFake(knftables.InetFamily, Table)
	for port := range 3 {
		spec := fmt.Sprintf(`{podSelector: {}, ingress: [{from: [{podSelector: {}}], ports: [{port: %d}]}]}`, port+1)
		rules, _ := Compile(Cluster{Pods: pods, Namespaces: world, Policies: []*networking.NetworkPolicy{policy(t, "shop", spec)}}, node)
		laid := fake.NewTransaction()
		Lay(laid, rules, "pods")
		if strings.Contains(laid.String(), "delete") {
			t.Errorf("laying takes away:\n%s", laid)
		}
		before := targets(fake)
		if err := fake.Run(context.Background(), laid); err != nil {
			t.Fatal(err)
		}
		if !maps.Equal(before, targets(fake)) {
			t.Error("laying changed who is decided about where")
		}
		full := map[string]bool{}
		for name, chain := range fake.Table.Chains {
			full[name] = len(chain.Rules) > 0
		}
		write(t, fake, rules)
		now := targets(fake)
		if len(now) == 0 || maps.Equal(before, now) {
			t.Fatal("nothing was put in force")
		}
		for chain := range now {
			if !full[chain] {
				t.Errorf("chain %s was empty until it was in force", chain)
			}
		}
		for name := range fake.Table.Chains {
			if !now[name] && name != "through" && name != "in" {
				t.Errorf("chain %s is left over", name)
			}
		}
		if found := len(fake.Table.Sets); found != 4+2 {
			t.Errorf("%d sets", found)
		}
	}
}

func targets(fake *knftables.Fake) map[string]bool {
	found := map[string]bool{}
	if fake.Table != nil {
		for _, decisions := range fake.Table.Maps {
			for _, element := range decisions.Elements {
				found[strings.TrimPrefix(element.Value[0], "jump ")] = true
			}
		}
	}
	return found
}

func TestBlocks(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	address := func() netip.Addr {
		return netip.AddrFrom4([4]byte{10, 0, byte(random.IntN(4)), byte(random.IntN(256))})
	}
	for range 500 {
		var whole netip.Prefix
		var except []string
		var holes []netip.Prefix
		whole = netip.PrefixFrom(address(), random.IntN(32)+1).Masked()
		for range random.IntN(4) {
			hole := netip.PrefixFrom(address(), 20+random.IntN(13)).Masked()
			holes, except = append(holes, hole), append(except, hole.String())
		}
		prefixes, ok := block(whole.String(), except)
		if !ok {
			t.Fatal(whole, except)
		}
		prefixes = disjoint(append(prefixes, prefixes...))
		for range 20 {
			one := address()
			want := whole.Contains(one) && !slices.ContainsFunc(holes, func(hole netip.Prefix) bool { return hole.Contains(one) })
			count := 0
			for _, prefix := range prefixes {
				if prefix.Contains(one) {
					count++
				}
			}
			if (count == 1) != want || count > 1 {
				t.Fatalf("%s without %v: %s is in %d of %v", whole, except, one, count, prefixes)
			}
		}
	}
}
