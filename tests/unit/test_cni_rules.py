"""The text of our nftables table, and what nft lists of it."""

from __future__ import annotations

import ipaddress
import json

import pytest

from appliance.cni import rules
from skerry.errors import SkerryError

RANGES = [ipaddress.ip_network(one) for one in ("10.244.7.0/24", "fd42:0:0:af4:700::/80")]


def direct(*texts: str) -> list[rules.Network]:
    return [ipaddress.ip_network(one) for one in texts]


def test_what_leaves_the_cluster_is_masqueraded_and_what_stays_is_not() -> None:
    text = rules.table_text(
        "skerry-pods", RANGES, direct("10.244.0.0/16", "fd42::/48"), masquerade=True
    )
    assert (
        'oifname != "skerry-pods" ip saddr 10.244.7.0/24'
        " ip daddr != { 10.244.0.0/16, 224.0.0.0/4, 255.255.255.255/32 } masquerade\n"
    ) in text
    assert (
        'oifname != "skerry-pods" ip6 saddr fd42:0:0:af4:700::/80'
        " ip6 daddr != { fd42::/48, fe80::/10, ff00::/8 } masquerade\n"
    ) in text
    assert "masquerade" not in rules.table_text("skerry-pods", RANGES, [], masquerade=False)


def test_a_network_within_another_is_named_once() -> None:
    text = rules.table_text(
        "b", RANGES[:1], direct("10.0.0.0/8", "10.244.0.0/16", "fd00::/8"), masquerade=True
    )
    assert "{ 10.0.0.0/8, 224.0.0.0/4, 255.255.255.255/32 }" in text
    assert "ip6 saddr fd" not in text


def test_one_transaction_that_keeps_what_the_sets_hold() -> None:
    text = rules.table_text("b", RANGES, [], masquerade=True)
    assert "delete" not in text
    assert "flush set" not in text
    for chain in ("gate", "leave"):
        assert f"flush chain inet skerry-pods {chain}\n" in text
    # What exists goes on; then nobody who is held back sends or is sent anything.
    gate = text[text.rindex("chain gate") :]
    assert gate.index("established") < gate.index("drop")
    for rule in ("ip saddr @pending_v4", "ip daddr @pending_v4", "ip6 daddr @pending_v6"):
        assert f"{rule} drop\n" in gate


def test_services_own_addresses_are_for_the_node_and_its_pods() -> None:
    plain = rules.table_text("b", RANGES, [], masquerade=True)
    text = rules.table_text("b", RANGES, [], masquerade=True, services=direct("10.96.0.0/12"))
    # A server that has just started does not know them yet: it takes nothing away.
    assert "guard" not in plain
    assert text.startswith(plain)
    guard = text.removeprefix(plain)
    assert "hook prerouting priority -150;" in guard
    assert guard.index("flush chain") < guard.index("drop")
    assert 'iifname != { "lo", "b" } ip daddr 10.96.0.0/12 fib daddr type != local drop\n' in guard


def test_addresses_go_into_the_gate_and_out_of_it_whether_they_were_in_or_not() -> None:
    assert rules.hold_text(["10.244.7.2", "fd42::2"]) == (
        "add element inet skerry-pods pending_v4 { 10.244.7.2 }\n"
        "add element inet skerry-pods pending_v6 { fd42::2 }\n"
    )
    assert rules.release_text(["fd42::2"]) == (
        "add element inet skerry-pods pending_v6 { fd42::2 }\n"
        "delete element inet skerry-pods pending_v6 { fd42::2 }\n"
    )


def listed(*parts: object) -> bytes:
    return json.dumps({"nftables": [{"metainfo": {"version": "1.0.6"}}, *parts]}).encode()


def test_what_nft_lists() -> None:
    first = {"set": {"name": "pending_v4", "type": "ipv4_addr", "elem": ["10.244.7.2"]}}
    empty = {"set": {"name": "pending_v6", "type": "ipv6_addr"}}
    other = {"set": {"name": "somebody's", "elem": ["10.1.1.1"]}}
    assert rules.held(listed(first, empty, other)) == {"10.244.7.2"}
    assert rules.held(listed({"rule": {}})) == frozenset()


@pytest.mark.parametrize("data", [b"", b"{}", b'{"nftables": 1}', listed({"set": {"elem": 1}})])
def test_what_nft_never_lists(data: bytes) -> None:
    with pytest.raises(SkerryError, match="skerry-pods"):
        rules.held(data)
