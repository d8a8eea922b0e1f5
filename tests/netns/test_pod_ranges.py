"""Pod ranges of real supervisors: claimed, routed, reached, and gone with their node."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from tests.netns.lab import Lab, Network, Node, wait_until
from tests.netns.ledger import together

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


def test_pods_of_two_nodes_reach_each_other_by_the_nodes_ranges() -> None:
    with Lab() as lab:
        token = Network().token()
        one, two = lab.crowd(2)
        for node in (one, two):
            node.start(token)
        together([one, two])
        ranged(one, two)
        first, second = make_pods(one), make_pods(two)
        assert not set(first) & set(second)
        for address in second:
            wait_until(lambda: one.reaches(address), 10, f"{address} is reached")  # noqa: B023
        # As a pod would: from an address of the own range.
        for source, address in zip(first, second, strict=True):
            assert " 0% packet loss" in one.ping(address, "-I", source)
