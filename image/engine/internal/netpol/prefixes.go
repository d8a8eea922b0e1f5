package netpol

import (
	"net/netip"
	"slices"
)

// block returns what is in a CIDR and in none of the exceptions, as few prefixes. ok is false when one
// of the texts is no CIDR.
func block(cidr string, except []string) (prefixes []netip.Prefix, ok bool) {
	whole, err := netip.ParsePrefix(cidr)
	if err != nil {
		return nil, false
	}
	left := []netip.Prefix{whole.Masked()}
	for _, text := range except {
		hole, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, false
		}
		var next []netip.Prefix
		for _, prefix := range left {
			next = append(next, subtract(prefix, hole.Masked())...)
		}
		left = next
	}
	return left, true
}

// subtract returns prefix without hole.
func subtract(prefix, hole netip.Prefix) []netip.Prefix {
	if !prefix.Overlaps(hole) {
		return []netip.Prefix{prefix}
	}
	if hole.Bits() <= prefix.Bits() {
		return nil
	}
	low, high := halves(prefix)
	return append(subtract(low, hole), subtract(high, hole)...)
}

func halves(prefix netip.Prefix) (low, high netip.Prefix) {
	bits := prefix.Bits()
	address := prefix.Addr().AsSlice()
	address[bits/8] |= 0x80 >> (bits % 8)
	upper, _ := netip.AddrFromSlice(address)
	return netip.PrefixFrom(prefix.Addr(), bits+1), netip.PrefixFrom(upper, bits+1)
}

// disjoint returns the prefixes in order, without those that are within others. "Everything" comes as
// two halves: not every nft takes it as an element of a set.
func disjoint(prefixes []netip.Prefix) []netip.Prefix {
	var split []netip.Prefix
	for _, prefix := range prefixes {
		if prefix.Bits() == 0 {
			low, high := halves(prefix)
			split = append(split, low, high)
		} else {
			split = append(split, prefix)
		}
	}
	slices.SortFunc(split, func(a, b netip.Prefix) int {
		if order := a.Addr().Compare(b.Addr()); order != 0 {
			return order
		}
		return a.Bits() - b.Bits()
	})
	var kept []netip.Prefix
	for _, prefix := range split {
		if len(kept) == 0 || !kept[len(kept)-1].Overlaps(prefix) {
			kept = append(kept, prefix)
		}
	}
	return kept
}

func single(address netip.Addr) netip.Prefix {
	return netip.PrefixFrom(address, address.BitLen())
}
