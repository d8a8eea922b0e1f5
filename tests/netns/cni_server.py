"""A CNI server without a cluster agent around it, that can be ended at any of its actions.

``python -m tests.netns.cni_server RUN_DIR``: serves with what RUN_DIR/pods.json says, read anew at
each call: ``ranges``, ``mtu``, ``direct``, ``interface``, ``gate``, ``masquerade``, ``bridge``.
Without the file there are no pods. While RUN_DIR/fuse holds a number, that many actions are
performed, then it kills itself.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import os
import signal
import sys
from pathlib import Path

import uvloop

from appliance.cluster.conflist import PodNetwork
from appliance.cni.plan import Action
from appliance.cni.service import CniService, NoPods, Pods, operations_in

READY = "ready"


def provider(file: Path) -> Pods | NoPods:
    try:
        given = json.loads(file.read_text())
    except FileNotFoundError:
        return NoPods("this node has no pod range yet")
    network = PodNetwork(
        ranges=tuple(map(ipaddress.ip_network, given["ranges"])),
        mtu=given.get("mtu", 1380),
        direct=tuple(map(ipaddress.ip_network, given.get("direct", ()))),
        masquerade=given.get("masquerade", True),
        bridge=given.get("bridge", "skerry-pods"),
    )
    return Pods(network, given.get("interface", ""), given.get("gate", False))


def burn(file: Path, action: Action) -> None:
    try:
        left = int(file.read_text())
    except FileNotFoundError:
        return
    if left == 0:
        file.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    file.write_text(str(left - 1))
    logging.info("fuse %d: %s", left, action)


async def run(folder: Path) -> None:
    operations = operations_in(
        folder,
        lambda: provider(folder / "pods.json"),
        before=lambda action: burn(folder / "fuse", action),
    )
    service = CniService(lambda: provider(folder / "pods.json"), folder, operations=operations)
    await service.start()
    (folder / READY).touch()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await ended.wait()
    await service.stop()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(Path(sys.argv[1])))
