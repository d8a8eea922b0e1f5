"""Pod ranges of real supervisors: claimed, routed, reached, and gone with their node."""

from __future__ import annotations

import ipaddress
import json
import socket
from functools import partial
from typing import Any

import pytest

from appliance.overlay.wireguard_userspace import read_peers
from tests.netns.lab import SOCKETS, Lab, Node, wait_until
from tests.netns.ledger import together
from tests.netns.operators import Operator
from tests.netns.pinger import Pinger, Stream

pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]

BRIDGE = "skerry-pods"


def cluster(node: Node) -> dict[str, Any]:
    """Return what Kubernetes on a node is told; nothing while nobody answers."""
    return node.api("GET", "/v1/cluster")


def pod_range(node: Node) -> dict[str, str] | None:
    """Return the range that a node may give its pods."""
    found: dict[str, str] | None = cluster(node)["range"]
    return found


def ranged(*nodes: Node, seconds: float = 30) -> None:
    """Wait until each of these has a range, and all know it."""

    def look() -> bool:
        own = {node.node_id(): pod_range(node) for node in nodes}
        seen = [
            {one["node_id"]: one["range"] for one in cluster(node)["members"]} for node in nodes
        ]
        return None not in own.values() and all(own.items() <= one.items() for one in seen)

    wait_until(look, seconds, "everybody has a range and all know it", every=0.2)


def make_pods(node: Node) -> tuple[str, str]:
    """Make the bridge of a node's pods; return the addresses of one pod on it."""
    found = pod_range(node)
    assert found is not None
    pods = []
    node.ip("link", "add", BRIDGE, "type", "bridge")
    node.ip("link", "set", BRIDGE, "up")
    for text in (found["ipv4"], found["ipv6"]):
        network = ipaddress.ip_network(text)
        words = ("nodad",) if network.version == 6 else ()
        node.ip("addr", "add", f"{network[1]}/{network.prefixlen}", "dev", BRIDGE, *words)
        node.ip("addr", "add", f"{network[5]}/{network.max_prefixlen}", "dev", BRIDGE, *words)
        pods.append(str(network[5]))
    return pods[0], pods[1]


def allowed(node: Node, other: Node) -> set[str]:
    """Return the networks that a node's WireGuard lets another one send from."""
    peers = read_peers(wireguard(node, "get=1\n\n"))
    address = f"{other.overlay_addresses()[0]}/32"
    return {one for peer in peers.values() if address in peer.allowed for one in peer.allowed}


def wireguard(node: Node, question: str) -> str:
    """Ask a node's wireguard-go."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.settimeout(5)
        channel.connect(str(SOCKETS / f"{node.interface}.sock"))
        channel.sendall(question.encode())
        said = bytearray()
        while not said.endswith(b"\n\n"):
            said += channel.recv(65536)
    return said.decode()


def test_pods_reach_each_other_by_the_nodes_ranges_for_as_long_as_the_node_is_in() -> None:
    with Lab() as lab:
        operator = Operator(lab.folder / "operator")
        token = operator.token()
        one, two, three = nodes = lab.crowd(3)
        for node in nodes:
            node.start(token)
        together(nodes)
        ranged(*nodes)
        _own_range_without_a_bridge(one, two)
        first, second = make_pods(one), make_pods(two)
        for source, address in zip(first, second, strict=True):
            wait_until(partial(one.reaches, address), 30, f"{address} is reached")
            # As a pod would: from an address of the own range.
            assert " 0% packet loss" in one.ping(address, "-I", source)
        _source_of_the_node(one, two, second[0])
        _told_by_commands(one, two, second[0])
        _restart(one, two, second[0])
        _fixed(operator, one, two, three)
        _revoked(operator, one, two, second[0])


def _own_range_without_a_bridge(one: Node, two: Node) -> None:
    own, theirs = pod_range(one), pod_range(two)
    assert own is not None
    assert theirs is not None
    for family, kind in (("-4", "ipv4"), ("-6", "ipv6")):
        routes = one.ip(family, "route", "show")
        assert f"unreachable {own[kind]} " in routes
        assert theirs[kind] not in routes, "one route for all pods"
    assert f"10.244.0.0/16 dev {one.interface}" in one.ip("route", "show")
    assert allowed(one, two) >= set(theirs.values())
    assert not allowed(one, two) & set(own.values())


def _source_of_the_node(one: Node, two: Node, address: str) -> None:
    """What the node itself sends to pods comes from its overlay address."""
    found = json.loads(one.ip("-j", "route", "get", address))[0]
    assert (found["dev"], found["prefsrc"]) == (one.interface, one.overlay_addresses()[0])
    back = json.loads(two.ip("-j", "route", "get", one.overlay_addresses()[0], "from", address))
    assert back[0]["dev"] == two.interface


def _told_by_commands(one: Node, two: Node, address: str) -> None:
    way = one.api("GET", f"/v1/route?address={address}")
    found = pod_range(two)
    assert found is not None
    assert (way["owner"]["node_id"], way["pod_range"]) == (two.node_id(), found["ipv4"])
    assert one.api("GET", f"/v1/range?node={two.name}")["range"] == found
    assert one.status()["overlay"]["pod_range"] == list((pod_range(one) or {}).values())


def _restart(one: Node, two: Node, address: str) -> None:
    """A restart of the supervisor costs pods nothing, and the range is the same."""
    before = pod_range(one)
    with Pinger([one.namespace]) as pinger:
        path = pinger.add(one.namespace, address)
        with Stream(pinger):
            one.kill()
            one.start()
            wait_until(lambda: one.sees(two), 20, "it is back")
            assert pod_range(one) == before
            mark = path.got
            wait_until(lambda: path.got > mark + 50, 20, "pings went on")
        pinger.settle(path, 10)
        assert path.sent == path.got


def _fixed(operator: Operator, one: Node, two: Node, three: Node) -> None:
    operator.command(one, "node", "range", three.name, "10.244.77.0/24")
    wait_until(lambda: "10.244.77.0/24" in allowed(one, three), 30, "the fixed range is led there")
    wait_until(lambda: (pod_range(three) or {}).get("ipv4") == "10.244.77.0/24", 30, "and taken")
    routes = three.ip("route", "show")
    assert routes.count("unreachable") == 1
    assert "unreachable 10.244.77.0/24 " in routes
    listed = json.loads(operator.command(two, "node", "ls", "--json"))["nodes"]
    (row,) = [one for one in listed if one["name"] == three.name]
    assert (row["range"], row["range_fixed"]) == ("10.244.77.0/24", True)
    operator.command(one, "node", "range", three.name, "--auto")
    wait_until(lambda: "10.244.77.0/24" not in allowed(one, three), 30, "and given back")


def _revoked(operator: Operator, one: Node, two: Node, address: str) -> None:
    assert one.reaches(address)
    gone, key = set((pod_range(two) or {}).values()), two.node_id()
    operator.revoke(one, two)
    wait_until(lambda: not one.reaches(address), 30, "its pods are out with it")
    peers = read_peers(wireguard(one, "get=1\n\n"))
    assert not gone & {network for peer in peers.values() for network in peer.allowed}
    wait_until(
        lambda: key not in {member["node_id"] for member in cluster(one)["members"]},
        30,
        "it is no member",
    )
