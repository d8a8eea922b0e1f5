"""The CNI configuration: what runtimes are told, and that nothing else is taken for ours."""

from __future__ import annotations

import ipaddress
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.cluster.conflist import (
    EVERYWHERE,
    PATH,
    TEXT_MAX,
    PodNetwork,
    conflist_text,
    pod_network,
    read_conflist,
)
from appliance.cluster.errors import ConflistError
from appliance.cluster.ranges import Network, RangePlan
from appliance.overlay.addresses import pods_prefix

PLAN = RangePlan(b"skerry network 1", ipaddress.IPv4Network("10.244.0.0/16"), 8)
PODS = PLAN.pod_range(PLAN.numbered(7))
DIRECT = (PLAN.pod_cidr, ipaddress.IPv4Network("10.10.0.0/16"), pods_prefix(PLAN.network_id))
USUAL = pod_network(PODS, 1280, DIRECT)
TEXT = conflist_text(USUAL)


def parsed(network: PodNetwork = USUAL) -> dict[str, Any]:
    whole: dict[str, Any] = json.loads(conflist_text(network))
    return whole


def test_a_runtime_finds_three_plugins_and_both_versions() -> None:
    whole = parsed()
    assert whole["name"] == "skerry"
    assert whole["cniVersions"] == ["1.0.0", "1.1.0"]
    assert whole["cniVersion"] in whole["cniVersions"]
    assert [one["type"] for one in whole["plugins"]] == ["skerry-cni", "portmap", "bandwidth"]
    assert whole["plugins"][1]["capabilities"] == {"portMappings": True}
    assert whole["plugins"][2]["capabilities"] == {"bandwidth": True}
    assert PATH.endswith(".conflist")


def test_our_plugin_is_told_all_it_needs() -> None:
    ours = parsed()["plugins"][0]
    assert ours["bridge"] == "skerry-pods"
    assert ours["mtu"] == 1280
    assert ours["ipMasq"] is True
    assert ours["ranges"] == [
        {"subnet": "10.244.7.0/24", "gateway": "10.244.7.1"},
        {"subnet": str(PODS.ipv6), "gateway": str(PODS.ipv6[1])},
    ]
    assert ours["routes"] == [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    assert ours["direct"] == [str(one) for one in DIRECT]


def test_a_node_without_ipv6_is_told_nothing_of_it() -> None:
    network = pod_network(PODS, 1280, DIRECT, ipv6=False)
    assert ":" not in "".join(
        [*parsed(network)["plugins"][0]["direct"], *(str(one) for one in network.ranges)]
    )
    assert parsed(network)["plugins"][0]["routes"] == [{"dst": "0.0.0.0/0"}]
    assert read_conflist(conflist_text(network).encode()) == network


NETWORKS = st.builds(
    lambda start, bits: ipaddress.IPv4Network((start >> 32 - bits << 32 - bits, bits)),
    st.integers(0, 2**32 - 1),
    st.integers(0, 32),
) | st.builds(
    lambda start, bits: ipaddress.IPv6Network((start >> 128 - bits << 128 - bits, bits)),
    st.integers(0, 2**128 - 1),
    st.integers(0, 128),
)
SOME = st.lists(NETWORKS, max_size=4, unique=True).map(tuple)


@settings(max_examples=40)
@given(
    st.integers(4, 12),
    st.integers(0, 15),
    st.integers(1280, 65_535),
    SOME,
    SOME,
    st.booleans(),
    st.from_regex(r"[a-z][a-z0-9_.-]{0,14}", fullmatch=True),
)
def test_what_is_written_is_read(
    bits: int,
    number: int,
    mtu: int,
    routes: tuple[Network, ...],
    direct: tuple[Network, ...],
    masquerade: bool,
    bridge: str,
) -> None:
    plan = replace(PLAN, node_bits=bits)
    pods = plan.pod_range(plan.numbered(number))
    network = PodNetwork(
        ranges=(pods.ipv4, pods.ipv6),
        mtu=mtu,
        routes=routes,
        direct=direct,
        masquerade=masquerade,
        bridge=bridge,
    )
    text = conflist_text(network).encode()
    assert len(text) <= TEXT_MAX
    assert read_conflist(text) == network


def ours_with(**changed: object) -> bytes:
    whole = parsed()
    whole["plugins"][0].update(changed)
    return (json.dumps(whole, indent=2) + "\n").encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff\xfe",
        b"[" * 15_000,
        b'{"plugins":[' + b"[" * 15_000,
        b'{"x":' * 3000,
        TEXT.encode()[:-1],
        TEXT.encode() + b" ",
        json.dumps(parsed()).encode(),
        TEXT.replace('"portmap"', '"tuning"').encode(),
        TEXT.replace('"mtu": 1280', '"mtu": 1280,\n      "mtu": 1500').encode(),
        TEXT.replace('"name": "skerry"', '"name": "other"').encode(),
        json.dumps(parsed() | {"plugins": []}).encode(),
        ours_with(mtu=True),
        ours_with(mtu="1280"),
        ours_with(mtu=1279),
        ours_with(mtu=10**30),
        ours_with(bridge="../../etc"),
        ours_with(ranges=[]),
        ours_with(ranges=[{"subnet": "10.244.7.0/24", "gateway": "10.244.7.2"}]),
        ours_with(ranges=[{"subnet": "10.244.7.0/24"}]),
        ours_with(ranges=[{"subnet": "10.244.7.1/24", "gateway": "10.244.7.1"}]),
        ours_with(routes=[{"dst": "everywhere"}]),
        ours_with(direct=["10.0.0.0/8", "10.0.0.0/8"]),
        ours_with(more=1),
    ],
)
def test_what_is_not_ours_to_the_byte_is_refused_in_words(data: bytes) -> None:
    with pytest.raises(ConflistError) as caught:
        read_conflist(data)
    assert str(caught.value)
    assert len(str(caught.value)) < 400


def test_what_is_too_long_is_not_looked_at() -> None:
    with pytest.raises(ConflistError, match=f"{TEXT_MAX + 1} bytes, {TEXT_MAX} at most"):
        read_conflist(b" " * (TEXT_MAX + 1))


@settings(max_examples=200)
@given(st.binary(max_size=300), st.integers(0, len(TEXT) - 1))
def test_junk_is_refused_or_is_another_network_to_the_byte(data: bytes, at: int) -> None:
    whole = TEXT.encode()
    for one in (data, whole[:at] + data + whole[at + 1 :], whole[:at] + data):
        try:
            found = read_conflist(one)
        except ConflistError:
            continue
        assert conflist_text(found).encode() == one
        assert (found == USUAL) is (one == whole)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ranges": ()}, "no ranges are not"),
        ({"ranges": (PODS.ipv6,)}, "are not a node's pod ranges"),
        ({"ranges": (PODS.ipv6, PODS.ipv4)}, "are not a node's pod ranges"),
        ({"ranges": (ipaddress.IPv4Network("10.0.0.0/31"),)}, "no room"),
        ({"mtu": 1279}, "the MTU 1279 is not within 1280 to 65535"),
        ({"mtu": 65_536}, "the MTU"),
        ({"mtu": 575, "ranges": (PODS.ipv4,)}, "the MTU 575 is not within 576 to 65535"),
        ({"bridge": ""}, "can't be the name of a bridge"),
        ({"bridge": "x" * 16}, "can't be the name of a bridge"),
        ({"bridge": "a b"}, "can't be the name of a bridge"),
        ({"bridge": "br0\n"}, "can't be the name of a bridge"),
        ({"routes": EVERYWHERE * 2}, "routes has 4 networks"),
    ],
)
def test_a_network_that_cannot_be_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConflistError, match=message):
        replace(USUAL, **changed)


def test_without_ipv6_packets_may_be_shorter_than_that_needs() -> None:
    """As in Flannel mode: 50 bytes less than the overlay's 1280."""
    network = pod_network(PODS, 1230, DIRECT, ipv6=False)
    assert read_conflist(conflist_text(network).encode()) == network
    with pytest.raises(ConflistError, match="the MTU 1230 is not within 1280"):
        pod_network(PODS, 1230, DIRECT)
