"""How long a write takes to reach every node, and a revocation to stop the last packet.

Real supervisors in namespaces on one bridge. Writes go to one node after the other through the
local API; every node's ``?watch=1`` is followed, so a figure includes both ends' API. The revoked
node and all others ping each other every 20 ms the while. ``SKERRY_BENCH_SIZES`` ("8 32") changes
the run.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from skerry.console import note
from skerry.errors import SkerryError
from tests.bench.harness import Benchmark, Figure
from tests.bench.process import busy_seconds, percentile
from tests.netns.lab import Lab, LabError, Node
from tests.netns.ledger import Watchers, put, together
from tests.netns.operators import Operator
from tests.netns.pinger import Pinger, Stream

UPDATES = 30
GOAL_UPDATE = 1.0
GOAL_REVOCATION = 3.0
WAIT_SECONDS = 30.0


def run() -> Sequence[Figure]:
    """Measure all sizes."""
    figures: list[Figure] = []
    for size in map(int, os.environ.get("SKERRY_BENCH_SIZES", "8 32").split()):
        try:
            figures += measure(size)
        except LabError as error:
            raise SkerryError(f"{size} nodes: {error}") from error
    return figures


def measure(size: int) -> list[Figure]:
    """Measure updates and one revocation in a network of ``size`` nodes."""
    with Lab() as lab:
        operator = Operator(lab.folder / "operator")
        token, nodes = operator.token(), lab.crowd(size)
        for node in nodes:
            node.start(token)
        together(nodes, 60 + 3 * size)
        time.sleep(5)
        return [*updates(nodes), *revocation(operator, nodes)]


def updates(nodes: Sequence[Node]) -> list[Figure]:
    """Write on one node after the other; wait each time until all have said so."""
    size, times, last = len(nodes), [], []
    busy, began = busy_seconds(), time.monotonic()
    with Watchers(nodes, "shared") as watchers:
        watchers.settle()
        for number in range(UPDATES):
            word, begun = f"bench-{number:04}-end", time.monotonic()
            put(nodes[number % size], "shared", "bench", word.encode())
            seen = watchers.until(word, WAIT_SECONDS)
            if len(seen) < size:
                raise LabError(f"{word}: only {len(seen)} of {size} in {WAIT_SECONDS:g} s")
            times += [one - begun for one in seen.values()]
            last.append(max(seen.values()) - begun)
    took = time.monotonic() - began
    note(
        f"    {size} nodes: {UPDATES} updates in {took:.1f} s, "
        f"both cores {(busy_seconds() - busy) / took / 2:.0%} busy"
    )
    return [
        Figure(f"{size}-update-p50", round(percentile(times, 50), 3), "s"),
        Figure(f"{size}-update-p99", round(percentile(times, 99), 3), "s", GOAL_UPDATE),
        Figure(f"{size}-update-all-p50", round(percentile(last, 50), 3), "s"),
        Figure(f"{size}-update-all-max", round(max(last), 3), "s"),
    ]


def revocation(operator: Operator, nodes: Sequence[Node]) -> list[Figure]:
    """Revoke the last node; return how long packets from and to it still got through."""
    size, (*rest, bad) = len(nodes), nodes
    with Pinger(node.namespace for node in nodes) as pinger:
        for node in rest:
            pinger.add(bad.namespace, node.overlay_addresses()[0])
            pinger.add(node.namespace, bad.overlay_addresses()[0])
        with Stream(pinger):
            time.sleep(2)
            silent = [one for one in pinger.paths if not one.got]
            if silent:
                raise LabError(f"{len(silent)} of {len(pinger.paths)} paths do not ping")
            begun = time.monotonic()
            operator.revoke(rest[0], bad)
            published = time.monotonic()
            time.sleep(GOAL_REVOCATION + 5)
        lasts = [(one.last or begun) - begun for one in pinger.paths]
    return [
        Figure(f"{size}-revocation-command", round(published - begun, 2), "s"),
        Figure(f"{size}-revocation-p50", round(percentile(lasts, 50), 2), "s"),
        Figure(f"{size}-revocation-last-packet", round(max(lasts), 2), "s", GOAL_REVOCATION),
    ]


BENCHMARK = Benchmark("ledger", "an update to all nodes; a revocation to the last packet", run)
