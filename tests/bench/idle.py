"""What a network costs in which nothing happens: traffic, memory and processor time per node.

Traffic is counted on the uplink, IP headers included, received and sent together.
``SKERRY_BENCH_SIZES`` ("2 8 32") and ``SKERRY_BENCH_SECONDS`` (60) change the run.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence

from skerry.console import note
from skerry.errors import SkerryError
from tests.bench.harness import Benchmark, Figure
from tests.bench.process import cpu_seconds, usage
from tests.netns import counters
from tests.netns.lab import Lab, LabError, Network, wait_until

GOAL_MEMORY = 60
GOAL_CPU = 0.5
FORMING_SECONDS = 60.0  # and more for many
SETTLE_SECONDS = 20.0
DAY = 86400


def run() -> Sequence[Figure]:
    """Measure all sizes."""
    os.environ |= {"MALLOC_ARENA_MAX": "1", "PYTHONNODEBUGRANGES": "1"}  # as skerry.service has it
    figures: list[Figure] = []
    for size in map(int, os.environ.get("SKERRY_BENCH_SIZES", "2 8 32").split()):
        try:
            figures += idle(size, float(os.environ.get("SKERRY_BENCH_SECONDS", "60")))
        except LabError as error:
            raise SkerryError(f"{size} nodes: {error}") from error
    return figures


def idle(size: int, seconds: float) -> list[Figure]:
    """Let a network of ``size`` nodes rest."""
    with Lab() as lab:
        nodes, token = lab.crowd(size), Network("idle").token()
        for node in nodes:
            counters.install(node)
            node.start(token)

        def formed() -> bool:
            return all(
                len([one for one in node.peers() if one["up"]]) == size - 1 for node in nodes
            )

        wait_until(formed, FORMING_SECONDS + 3 * size, "they form a network", every=1.0)
        time.sleep(SETTLE_SECONDS)
        supervisors = [node.process.pid for node in nodes if node.process]
        tunnels = [pid for node in nodes for pid in node.wireguard_pids()]
        bytes_before = [counters.read(node) for node in nodes]
        pids = supervisors + tunnels
        cpu_before, begun = [cpu_seconds(pid) for pid in pids], time.monotonic()
        time.sleep(seconds)
        took = time.monotonic() - begun
        load = [
            (cpu_seconds(pid) - old) / took * 100 for pid, old in zip(pids, cpu_before, strict=True)
        ]
        spent = [
            {kind: late - old[kind] for kind, late in counters.read(node).items()}
            for node, old in zip(nodes, bytes_before, strict=True)
        ]
        resident = [usage(pid).resident for pid in supervisors]
    daily = {
        kind: statistics.mean(one[kind] for one in spent) / took * DAY / 1e6
        for kind in counters.KINDS
    }
    busiest = max(sum(one.values()) for one in spent) / took * DAY / 1e6
    note(f"    {size} nodes at rest for {took:.0f} s; a day is that, scaled")
    return [
        *(Figure(f"{size}-{kind}", round(daily[kind], 2), "MB/day") for kind in counters.KINDS),
        Figure(f"{size}-all", round(sum(daily.values()), 2), "MB/day"),
        Figure(f"{size}-all-busiest", round(busiest, 2), "MB/day"),
        Figure(f"{size}-rss-max", round(max(resident) / 1e6, 1), "MB", GOAL_MEMORY),
        Figure(f"{size}-cpu-mean", round(statistics.mean(load[:size]), 3), "% of a core"),
        Figure(f"{size}-cpu-max", round(max(load[:size]), 3), "% of a core", GOAL_CPU),
        Figure(f"{size}-cpu-wireguard", round(max(load[size:]), 3), "% of a core"),
    ]


BENCHMARK = Benchmark(
    "idle", "traffic, memory and processor time of 2, 8 and 32 nodes at rest", run
)
