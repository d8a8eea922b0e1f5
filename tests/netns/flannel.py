"""Flannel in the lab: its daemon on nodes, over the overlay, with etcd in Kubernetes' place.

In a cluster, Flannel takes each node's range from its Node object. Here it is its own keeper of
ranges, one of the two that it has.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import subprocess
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path

from image.flannel_programs import ETCD, FLANNELD, TOOLS
from image.golang import build
from tests.netns.lab import Lab, LabError, Network, Node, wait_until
from tests.netns.pinger import inside
from tests.netns.pods import Bridge, link_mtu

KEY = "/coreos.com/network/config"
RANGE = "10.200.0.0/16"
DEVICE = "flannel.1"
BRIDGE = "flannel-pods"


class Flannel:
    """Flannel's daemon on nodes that have their overlay addresses; etcd runs on the first."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = nodes
        self.program = build(FLANNELD, "amd64")
        self._etcd = f"http://{nodes[0].overlay_addresses()[0]}:2379"
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._start_etcd()
        settings = {"Network": RANGE, "SubnetLen": 24, "EnableNFTables": True}
        self._put(json.dumps(settings | {"Backend": {"Type": "vxlan"}}))
        for node in nodes:
            self.start(node)
        for node in nodes:
            wait_until(self._file(node).exists, 30, f"Flannel is ready on {node.name}")

    def start(self, node: Node) -> None:
        """Start the daemon on a node."""
        words = [f"PATH={TOOLS}:/usr/sbin:/usr/bin:/sbin:/bin", str(self.program)]
        words += [f"--etcd-endpoints={self._etcd}", f"--iface={node.interface}"]
        words += ["--ip-masq=false", "--iptables-forward-rules=false"]
        words += [f"--subnet-file={self._file(node)}"]
        self._daemons[node.name] = node.lab.program(node, "flannel", "env", *words)

    def kill(self, node: Node) -> None:
        """SIGKILL the daemon on a node."""
        daemon = self._daemons.pop(node.name)
        daemon.kill()
        daemon.wait(10)

    def said(self, node: Node) -> str:
        """Return what the daemon on a node logged."""
        return (node.folder / "flannel.log").read_text()

    def bridge(self, node: Node) -> Bridge:
        """Make the bridge of Flannel's pods, as its environment file wants it."""
        return Bridge(
            node, BRIDGE, self.bridge_range(node), int(self._variables(node)["FLANNEL_MTU"])
        )

    def bridge_range(self, node: Node) -> str:
        """Return the range of a node's pods."""
        gateway = ipaddress.ip_interface(self._variables(node)["FLANNEL_SUBNET"])
        return str(gateway.network)

    def _variables(self, node: Node) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self._file(node).read_text().split())

    @staticmethod
    def _file(node: Node) -> Path:
        return node.folder / "subnet.env"

    def _start_etcd(self) -> None:
        first = self.nodes[0]
        words = ["--data-dir", str(first.folder / "etcd"), "--unsafe-no-fsync"]
        words += ["--listen-client-urls", self._etcd, "--advertise-client-urls", self._etcd]
        words += ["--listen-peer-urls", "http://127.0.0.1:2380"]
        first.lab.program(first, "etcd", str(build(ETCD, "amd64")), *words)

    def _put(self, value: str) -> None:
        coded = {"key": base64.b64encode(KEY.encode()), "value": base64.b64encode(value.encode())}
        body = json.dumps({name: text.decode() for name, text in coded.items()}).encode()

        def answered() -> bool:
            try:
                with (
                    inside(self.nodes[0].namespace),
                    closing(HTTPConnection(self._etcd.removeprefix("http://"))) as there,
                ):
                    there.request("POST", "/v3/kv/put", body)
                    return there.getresponse().status == HTTPStatus.OK
            except OSError:
                return False

        wait_until(answered, 30, "etcd answers")


def overlay_of_two(lab: Lab) -> tuple[Node, Node]:
    """Start two nodes, and wait until they see each other and have their pod ranges."""
    network = Network("podnet")
    one, two = lab.node(), lab.node()
    for node in (one, two):
        node.start(network.token())
    wait_until(lambda: one.sees(two) and two.sees(one), 30, "the nodes meet")
    for node, other in ((one, two), (two, one)):
        wait_until(partial(node.reaches, other.overlay_addresses()[0]), 20, "they ping")
    return one, two


def check_mtu(node: Node) -> None:
    """Raise LabError unless the pods' MTU leaves room for both encapsulations."""
    overlay, device = link_mtu(node, node.interface), link_mtu(node, DEVICE)
    if device != overlay - 50:
        raise LabError(f"{DEVICE} has MTU {device} on an overlay of {overlay}")
