"""What the kernel's WireGuard says through netlink, packed and read by pyroute2."""

from __future__ import annotations

import base64
import ipaddress
import socket
from typing import Any

from pyroute2.netlink.generic.wireguard import wgmsg

from appliance.cluster.ranges import ipv6_range
from appliance.overlay.endpoint import Endpoint
from appliance.overlay.wireguard import PeerState
from appliance.overlay.wireguard_kernel import merge_peers

PEERS = 1000
PODS6 = str(ipv6_range(bytes(16), ipaddress.IPv4Network("10.244.7.0/24")))


def peer(key: bytes, allowed: tuple[str, ...], *, known: bool = True) -> dict[str, Any]:
    addresses = []
    for one in allowed:
        host, _, prefix = one.partition("/")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        pairs = [
            ["WGALLOWEDIP_A_FAMILY", family],
            ["WGALLOWEDIP_A_IPADDR", socket.inet_pton(family, host)],
            ["WGALLOWEDIP_A_CIDR_MASK", int(prefix)],
        ]
        addresses.append({"attrs": pairs})
    attributes: list[list[Any]] = [["WGPEER_A_PUBLIC_KEY", base64.b64encode(key).decode()]]
    if known:
        seen = {"tv_sec": 1_795_000_000, "tv_nsec": 500_000_000}
        attributes += [
            ["WGPEER_A_ENDPOINT", {"addr": "192.0.2.1", "port": 51820}],
            ["WGPEER_A_LAST_HANDSHAKE_TIME", seen],
            ["WGPEER_A_RX_BYTES", 92],
            ["WGPEER_A_TX_BYTES", 148],
        ]
    attributes.append(["WGPEER_A_ALLOWEDIPS", addresses])
    return {"attrs": attributes}


def message(*peers: dict[str, Any]) -> Any:  # noqa: ANN401 - pyroute2 is untyped
    made = wgmsg()
    made["attrs"].append(["WGDEVICE_A_IFNAME", "skerry0"])
    made["attrs"].append(["WGDEVICE_A_PEERS", list(peers)])
    made["header"]["type"] = 30
    made.encode()
    read = wgmsg(made.data)
    read.decode()
    return read


def test_a_peer_that_is_split_over_two_messages_is_one() -> None:
    key, other = b"\x0a" * 32, b"\x0b" * 32
    dump = (
        message(peer(key, ("10.10.0.5/32", "10.244.7.0/24"))),
        message(peer(key, ("fd00::5/128", PODS6), known=False), peer(other, (), known=False)),
    )
    # To the letter as they were set: what differs would be set again and again.
    allowed = frozenset({"10.10.0.5/32", "10.244.7.0/24", "fd00::5/128", PODS6})
    assert merge_peers(dump) == {
        key: PeerState(Endpoint("192.0.2.1", 51820), 1_795_000_000.5, 92, 148, allowed),
        other: PeerState(None, None, 0, 0, frozenset()),
    }


def test_no_peer_of_a_long_table_is_dropped() -> None:
    keys = [number.to_bytes(32, "big") for number in range(1, PEERS + 1)]
    dump = [
        message(*(peer(key, (), known=False) for key in keys[at : at + 100]))
        for at in range(0, PEERS, 100)
    ]
    assert set(merge_peers(dump)) == set(keys)
