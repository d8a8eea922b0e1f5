"""Flannel in the lab: its daemon on nodes, over the overlay, started as its unit starts it.

The API server is a real one, the Node objects are made by us: they say which node has which range.
"""

from __future__ import annotations

import ipaddress
import json
import os
import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Self

from image.flannel_programs import FLANNELD, TOOLS
from image.golang import build
from tests.netns.kube_api import KubeApi
from tests.netns.lab import Lab, LabError, Network, Node, wait_until
from tests.netns.pods import Bridge, link_mtu

RANGE = "10.200.0.0/16"
DEVICE = "flannel.1"
BRIDGE = "flannel-pods"


class Flannel:
    """Flannel's daemon on nodes that have their overlay addresses; the API runs on the first."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = nodes
        self.program = build(FLANNELD, "amd64")
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        address = nodes[0].overlay_addresses()[0]
        self.api = KubeApi(nodes[0].namespace, name=address)
        try:
            text = self.api.kubeconfig.read_text().replace("127.0.0.1", address)
            self._kubeconfig = self.api.folder / "kubeconfig-of-nodes"
            self._kubeconfig.touch(0o600)
            self._kubeconfig.write_text(text)
            for number, node in enumerate(nodes, 1):
                self.api.node(node.name, pod_cidr=f"10.200.{number}.0/24")
                self.start(node)
            for node in nodes:
                wait_until(self._file(node).exists, 30, f"Flannel is ready on {node.name}")
        except LabError as error:
            said = "".join(self.said(node)[-1500:] for node in nodes)
            self.api.close()
            raise LabError(f"{error}\n{said}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.api.close()

    def start(self, node: Node) -> None:
        """Start the daemon on a node."""
        settings = {"Network": RANGE, "EnableNFTables": True, "Backend": {"Type": "vxlan"}}
        (node.folder / "net-conf.json").write_text(json.dumps(settings))
        words = [f"PATH={TOOLS}:{os.environ['PATH']}", f"NODE_NAME={node.name}"]
        words += [str(self.program), "--kube-subnet-mgr", f"--iface={node.interface}"]
        words += [f"--kubeconfig-file={self._kubeconfig}"]
        words += [f"--net-config-path={node.folder / 'net-conf.json'}"]
        words += ["--ip-masq=false", "--iptables-forward-rules=false"]
        words += ["--set-node-network-unavailable=false", f"--subnet-file={self._file(node)}"]
        self._daemons[node.name] = node.lab.program(node, "flannel", "env", *words)

    def kill(self, node: Node) -> None:
        """SIGKILL the daemon on a node."""
        daemon = self._daemons.pop(node.name)
        daemon.kill()
        daemon.wait(10)

    def said(self, node: Node) -> str:
        """Return what the daemon on a node logged."""
        log = node.folder / "flannel.log"
        return log.read_text() if log.exists() else ""

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


def overlay_of_two(lab: Lab) -> tuple[Node, Node]:
    """Start two nodes, and wait until they see and reach each other."""
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
