"""From token to all-pairs ping: real supervisors in namespaces on one bridge.

All of them run and wait; then each is handed the same token at the same moment, through the local
API. Measured until every node has seen every other one answer, and until every node has pinged all
others over the IPv4 overlay addresses. ``SKERRY_BENCH_SIZES`` ("2 8 32") and
``SKERRY_BENCH_PROFILE`` (a folder for cProfile's files, one node per size) change the run.
"""

from __future__ import annotations

import os
import re
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from skerry.console import note
from skerry.errors import SkerryError
from tests.bench.harness import Benchmark, Figure
from tests.bench.process import busy_seconds, cpu_seconds, percentile, thread_seconds
from tests.netns.lab import Lab, LabError, Network, Node, wait_until
from tests.netns.pinger import Pinger

GOALS = {2: 2.0, 8: 4.0, 32: 8.0}
DEADLINE = 120.0
LOOK = 0.02
_ANSWERS = re.compile(rb"(node\d+) answers \(")
_SILENT = re.compile(rb"(node\d+) does not answer")


@dataclass(slots=True)
class Follower:
    """Reads one supervisor's log as it grows; asking the API all the time would slow it down."""

    node: Node
    offset: int = 0
    up: set[bytes] = field(default_factory=set)

    def look(self) -> int:
        """Return how many members answer now."""
        with self.node.log.open("rb") as log:
            log.seek(self.offset)
            text = log.read()
        self.offset += text.rfind(b"\n") + 1
        for line in text[: text.rfind(b"\n") + 1].splitlines():
            if found := _ANSWERS.search(line):
                self.up.add(found[1])
            elif found := _SILENT.search(line):
                self.up.discard(found[1])
        return len(self.up)


def run() -> Sequence[Figure]:
    """Measure all sizes."""
    figures: list[Figure] = []
    for size in map(int, os.environ.get("SKERRY_BENCH_SIZES", "2 8 32").split()):
        try:
            figures += form(size)
        except LabError as error:
            raise SkerryError(f"{size} nodes: {error}") from error
    return figures


def form(size: int) -> list[Figure]:
    """Let ``size`` nodes form a network once."""
    folder = os.environ.get("SKERRY_BENCH_PROFILE")
    profile = Path(folder) / f"formation{size}.prof" if folder else None
    with Lab() as lab:
        nodes = lab.crowd(size)
        for place, node in enumerate(nodes):
            node.start(profile=profile if place == size // 2 else None)
        wait_until(lambda: all(node.status() for node in nodes), 60, "all supervisors wait")
        time.sleep(1.0)
        token = Network("formation").token()
        followers = [Follower(node) for node in nodes]
        busy, begun = busy_seconds(), time.monotonic()
        with ThreadPoolExecutor(size) as workers:
            given = [workers.submit(node.give, token) for node in nodes]
            seen = follow(followers, size - 1, begun)
            for one in given:
                one.result()
        reached = reach(nodes, begun)
        whole, busy = time.monotonic() - begun, busy_seconds() - busy
        threads = [thread_seconds(node.process.pid) for node in nodes if node.process]
        beside = statistics.median(sum(one[1:]) for one in threads)
        supervisors = sorted(cpu_seconds(node.process.pid) for node in nodes if node.process)
        tunnels = sorted(cpu_seconds(pid) for node in nodes for pid in node.wireguard_pids())
        if profile is not None:
            nodes[size // 2].stop()
    note(
        f"    {size} nodes: {whole:.2f} s, both cores {busy / whole / 2:.0%} busy; CPU per "
        f"supervisor {statistics.median(supervisors):.2f} s (with its start; {beside:.2f} "
        f"beside the main thread), per wireguard-go "
        f"{statistics.median(tunnels):.2f} s, everything else {busy - sum(tunnels):.2f} s"
    )
    return [
        Figure(f"{size}-seen-p50", round(percentile(seen, 50), 2), "s"),
        Figure(f"{size}-seen-p99", round(percentile(seen, 99), 2), "s"),
        Figure(f"{size}-ping-p50", round(percentile(reached, 50), 2), "s"),
        Figure(f"{size}-ping-p99", round(percentile(reached, 99), 2), "s", GOALS.get(size)),
        Figure(f"{size}-cpu-supervisor", round(statistics.median(supervisors), 2), "s"),
        Figure(f"{size}-cpu-wireguard", round(statistics.median(tunnels), 2), "s"),
    ]


def follow(followers: Sequence[Follower], others: int, begun: float) -> list[float]:
    """Return when each node had seen all others answer, in seconds since ``begun``."""
    waiting, seen = list(followers), []
    while waiting:
        now = time.monotonic() - begun
        if now > DEADLINE:
            missing = ", ".join(f"{one.node.name} {len(one.up)}/{others}" for one in waiting)
            raise LabError(f"not within {DEADLINE:g} s: {missing}")
        for one in tuple(waiting):
            if one.look() == others:
                waiting.remove(one)
                seen.append(now)
        time.sleep(LOOK)
    return seen


def reach(nodes: Sequence[Node], begun: float) -> list[float]:
    """Return when each node had pinged all others, in seconds since ``begun``."""
    addresses = {node.namespace: node.overlay_addresses()[0] for node in nodes}
    if len(set(addresses.values())) != len(nodes):
        raise LabError(f"a double address: {sorted(addresses.values())}")
    with Pinger(addresses) as pinger:
        for node in nodes:
            for other in nodes:
                if other is not node:
                    pinger.add(node.namespace, addresses[other.namespace])
        if missing := pinger.until_all(DEADLINE):
            raise LabError(f"{len(missing)} pairs do not ping: {missing[:5]}")
        return [
            max(one.first or 0 for one in pinger.paths if one.namespace == node.namespace) - begun
            for node in nodes
        ]


BENCHMARK = Benchmark("formation", "2, 8 and 32 nodes from token to all-pairs ping", run)
