"""A CNI server on a node that has an overlay: what a cluster agent's would be told."""

from __future__ import annotations

from typing import Any

from tests.netns.cni import CniLab, CniNode
from tests.netns.lab import Node, wait_until


def cluster_of(node: Node) -> dict[str, Any]:
    """Return what a node's supervisor says of cluster and pods."""
    return node.api("GET", "/v1/cluster")


def with_pods(lab: CniLab, node: Node) -> CniNode:
    """Start the CNI server of a node with what its supervisor says."""
    wait_until(lambda: cluster_of(node)["range"], 30, "the node has a pod range", every=0.2)
    said = cluster_of(node)
    settings = said["settings"]
    return lab.node(
        node.namespace,
        ranges=(said["range"]["ipv4"], said["range"]["ipv6"]),
        direct=(settings["pod_cidr"], settings["host_range"], said["pods_ipv6"]),
        mtu=said["mtu"],
        interface=said["interface"],
    )
