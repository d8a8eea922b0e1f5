"""Pods made by hand: a bridge on a node, and namespaces that hang on it.

For what concerns the way between nodes only, and for measuring without what is not asked about.
What makes real pods is in `appliance/cni/`.
"""

from __future__ import annotations

import ipaddress

from tests.netns.lab import LabError, Node, run


class Bridge:
    """A bridge on a node, with the first address of a range; the others are for pods."""

    def __init__(self, node: Node, name: str, cidr: str, mtu: int) -> None:
        self.node = node
        self.name = name
        self.mtu = mtu
        self.range = ipaddress.ip_network(cidr)
        self._hosts = self.range.hosts()
        self.gateway = str(next(self._hosts))
        node.ip("link", "add", name, "mtu", str(mtu), "type", "bridge", "mcast_snooping", "0")
        self.node.ip("addr", "add", f"{self.gateway}/{self.range.prefixlen}", "dev", name)
        node.ip("link", "set", name, "up")
        forward(node)

    def pod(self) -> Pod:
        """Add a pod."""
        return Pod(self, str(next(self._hosts)))


class Pod:
    """A namespace on a bridge; it goes with the lab, as its node does."""

    def __init__(self, bridge: Bridge, address: str) -> None:
        self.address = address
        self.bridge = bridge
        node = bridge.node
        self.namespace = f"{node.namespace}-{address.replace('.', '-')}"
        end = f"v{address.replace('.', '')}"
        node.lab.namespace(self.namespace)
        run(
            *("ip", "-n", node.namespace, "link", "add", end, "mtu", str(bridge.mtu)),
            *("type", "veth", "peer", "name", "eth0"),
            *("mtu", str(bridge.mtu), "netns", self.namespace),
        )
        node.ip("link", "set", end, "master", bridge.name, "up")
        for words in (
            ("link", "set", "lo", "up"),
            ("addr", "add", f"{address}/{bridge.range.prefixlen}", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("route", "add", "default", "via", bridge.gateway),
        ):
            run("ip", "-n", self.namespace, *words)

    def command(self, *words: str) -> list[str]:
        """Return the command that runs in the pod."""
        return ["ip", "netns", "exec", self.namespace, *words]

    def reaches(self, address: str) -> bool:
        """Say whether a ping came back."""
        words = self.command("ping", "-n", "-c", "1", "-W", "1", address)
        return " 0% packet loss" in run(*words, check=False)


def forward(node: Node) -> None:
    """Let a node pass on what is not for itself, as the image does."""
    run(*node.command("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"))


def pod_range(node: Node) -> str:
    """Return the IPv4 range that the node claimed for its pods; empty while it has none."""
    found = (node.api("GET", "/v1/cluster").get("range") or {}).get("ipv4", "")
    return str(found)


def link_mtu(node: Node, interface: str) -> int:
    """Return the MTU of a node's interface."""
    words = node.ip("-o", "link", "show", interface).split()
    try:
        return int(words[words.index("mtu") + 1])
    except ValueError as error:
        raise LabError(f"{interface} has no MTU: {' '.join(words)}") from error
