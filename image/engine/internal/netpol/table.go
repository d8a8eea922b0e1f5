package netpol

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"sigs.k8s.io/knftables"
)

// Table is the name of our nftables table, of family inet.
const Table = "skerry-policy"

type family struct {
	name, kind string
	suffix     string
}

var families = []family{{"ip", "ipv4_addr", "4"}, {"ip6", "ipv6_addr", "6"}}

func familyOf(address netip.Addr) family {
	if address.Is4() {
		return families[0]
	}
	return families[1]
}

// side names the end of a packet that a direction looks at: whose pod it is, and who the peer is.
var sides = [2]struct{ name, pod, peer string }{
	Ingress: {"in", "daddr", "saddr"},
	Egress:  {"out", "saddr", "daddr"},
}

// Replace adds to a transaction what makes the table say these rules and nothing else. bridge is the
// interface of the node's pods.
//
// Connections that exist go on: rules decide about new ones. What the node itself sends to its pods
// passes no hook of this table, so kubelet's probes always get through.
func Replace(tx *knftables.Transaction, rules Ruleset, bridge string) {
	tx.Add(&knftables.Table{})
	tx.Delete(&knftables.Table{})
	tx.Add(&knftables.Table{})
	writer := &writer{tx: tx, made: map[string]bool{}}
	for _, family := range families {
		tx.Add(&knftables.Set{Name: "known" + family.suffix, Type: family.kind})
		self := family.kind + " . " + family.kind
		tx.Add(&knftables.Set{Name: "self" + family.suffix, Type: self})
		for _, side := range sides {
			tx.Add(&knftables.Map{Name: side.name + family.suffix, Type: family.kind + " : verdict"})
		}
	}
	for _, address := range rules.Known {
		family := familyOf(address)
		tx.Add(&knftables.Element{Set: "known" + family.suffix, Key: []string{address.String()}})
		both := []string{address.String(), address.String()}
		tx.Add(&knftables.Element{Set: "self" + family.suffix, Key: both})
	}
	for direction, side := range sides {
		addresses := make([]netip.Addr, 0, len(rules.Isolated[direction]))
		for address := range rules.Isolated[direction] {
			addresses = append(addresses, address)
		}
		slices.SortFunc(addresses, netip.Addr.Compare)
		for _, address := range addresses {
			chain := writer.chain(Direction(direction), rules.Isolated[direction][address])
			tx.Add(&knftables.Element{
				Map: side.name + familyOf(address).suffix, Key: []string{address.String()},
				Value: []string{"jump " + chain},
			})
		}
	}
	writer.base("through", knftables.ForwardHook, bridge)
	writer.base("in", knftables.InputHook, bridge)
}

type writer struct {
	tx   *knftables.Transaction
	made map[string]bool
}

func (w *writer) base(name string, hook knftables.BaseChainHook, bridge string) {
	w.tx.Add(&knftables.Chain{
		Name:     name,
		Type:     knftables.PtrTo(knftables.FilterType),
		Hook:     knftables.PtrTo(hook),
		Priority: knftables.PtrTo(knftables.FilterPriority),
	})
	w.rule(name, "ct state established,related accept")
	// A pod asks the node for its gateway's hardware address; that is no connection.
	w.rule(name, "icmpv6 type { nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert } accept")
	quoted := strconv.Quote(bridge)
	for _, family := range families {
		w.rule(name, "iifname", quoted, family.name, "saddr != @known"+family.suffix, "drop")
		if hook == knftables.ForwardHook {
			w.rule(name, "oifname", quoted, family.name, "daddr != @known"+family.suffix, "drop")
			self := fmt.Sprintf("%s saddr . %s daddr @self%s", family.name, family.name, family.suffix)
			w.rule(name, self, "accept")
		}
		for direction, side := range sides {
			if hook == knftables.ForwardHook || Direction(direction) == Egress {
				w.rule(name, family.name, side.pod, "vmap @"+side.name+family.suffix)
			}
		}
	}
}

func (w *writer) rule(chain string, words ...string) {
	w.tx.Add(&knftables.Rule{Chain: chain, Rule: strings.Join(words, " ")})
}

// chain returns the chain that comes back if one of the rules lets a packet through, and drops it else.
func (w *writer) chain(direction Direction, rules []Rule) string {
	side := sides[direction]
	var lines []string
	for _, rule := range rules {
		for _, line := range w.lines(direction, rule) {
			if !slices.Contains(lines, line) {
				lines = append(lines, line)
			}
		}
	}
	name := side.name + "-" + digest(lines)
	if !w.made[name] {
		w.made[name] = true
		w.tx.Add(&knftables.Chain{Name: name})
		for _, line := range lines {
			w.rule(name, line, "return")
		}
		w.rule(name, "drop")
	}
	return name
}

// lines returns one rule's matches, of which one has to hold.
func (w *writer) lines(direction Direction, rule Rule) []string {
	var lines []string
	for _, peer := range w.peerMatches(direction, rule) {
		for _, ports := range portMatches(rule) {
			lines = append(lines, strings.TrimSpace(peer+" "+ports))
		}
	}
	return append(lines, w.exactMatches(rule)...)
}

func (w *writer) peerMatches(direction Direction, rule Rule) []string {
	if rule.AnyPeer {
		return []string{""}
	}
	var found []string
	for _, family := range families {
		var keys [][]string
		for _, prefix := range rule.Peers {
			if familyOf(prefix.Addr()) == family {
				keys = append(keys, []string{element(prefix)})
			}
		}
		if len(keys) > 0 {
			set := w.set("peers"+family.suffix, family.kind, keys, knftables.IntervalFlag)
			found = append(found, fmt.Sprintf("%s %s @%s", family.name, sides[direction].peer, set))
		}
	}
	return found
}

// portMatches returns nothing when no port is let through, and one empty match when all are.
func portMatches(rule Rule) []string {
	if rule.AnyPort {
		return []string{""}
	}
	var found []string
	for _, ports := range rule.Ports {
		protocol := strings.ToLower(string(ports.Protocol))
		match := "meta l4proto " + protocol
		switch {
		case ports.From == 0 && ports.To == 65535:
		case ports.From == ports.To:
			match += fmt.Sprintf(" th dport %d", ports.From)
		default:
			match += fmt.Sprintf(" th dport %d-%d", ports.From, ports.To)
		}
		found = append(found, match)
	}
	return found
}

func (w *writer) exactMatches(rule Rule) []string {
	var found []string
	for _, family := range families {
		var keys [][]string
		for _, one := range rule.Exactly {
			if familyOf(one.Address) == family {
				protocol := strings.ToLower(string(one.Protocol))
				keys = append(keys, []string{one.Address.String(), protocol, strconv.Itoa(int(one.Port))})
			}
		}
		if len(keys) > 0 {
			kind := family.kind + " . inet_proto . inet_service"
			set := w.set("ports"+family.suffix, kind, keys)
			found = append(found, fmt.Sprintf("%s daddr . meta l4proto . th dport @%s", family.name, set))
		}
	}
	return found
}

// set returns the name of a set with these elements; equal ones are made once.
func (w *writer) set(prefix, kind string, keys [][]string, flags ...knftables.SetFlag) string {
	var words []string
	for _, key := range keys {
		words = append(words, strings.Join(key, " . "))
	}
	name := prefix + "-" + digest(words)
	if !w.made[name] {
		w.made[name] = true
		w.tx.Add(&knftables.Set{Name: name, Type: kind, Flags: flags})
		for _, key := range keys {
			w.tx.Add(&knftables.Element{Set: name, Key: key})
		}
	}
	return name
}

func element(prefix netip.Prefix) string {
	if prefix.IsSingleIP() {
		return prefix.Addr().String()
	}
	return prefix.String()
}

func digest(words []string) string {
	sum := sha256.Sum256([]byte(strings.Join(words, "\n")))
	return hex.EncodeToString(sum[:8])
}
