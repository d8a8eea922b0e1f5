"""A CNI server for a machine of namespaces, from outside of its file system.

``python -m tests.conformance.cni_server RUN_DIR RANGE ROOT``: in the machine's network, with pods
of RANGE behind the gate; what the runtime calls /run/netns/... is below ROOT for us.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import signal
import sys
from pathlib import Path

import uvloop

from appliance.cluster.conflist import PodNetwork
from appliance.cni import namespaces
from appliance.cni.provider import Pods
from appliance.cni.service import CniService

POD_CIDR = "10.244.0.0/16"


def look_below(root: Path) -> None:
    """Have every path of a namespace lead into the machine's file system."""
    opened, exists = namespaces.open_namespace, namespaces.exists
    namespaces.open_namespace = lambda path: opened(f"{root}{path}")
    namespaces.exists = lambda path: exists(f"{root}{path}")


async def run(folder: Path, cidr: str) -> None:
    """Serve until told to end."""
    network = PodNetwork(
        ranges=(ipaddress.IPv4Network(cidr),),
        mtu=1280,
        routes=(ipaddress.IPv4Network("0.0.0.0/0"),),
        direct=(ipaddress.IPv4Network(POD_CIDR), ipaddress.IPv4Network("10.99.0.0/24")),
    )
    service = CniService(lambda: Pods(network, "eth0", gate=True), folder)
    await service.start()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await ended.wait()
    await service.stop()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    look_below(Path(sys.argv[3]))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(Path(sys.argv[1]), sys.argv[2]))
