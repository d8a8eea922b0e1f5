"""What a node costs: sizes of the image, memory and idle processor time of the supervisor.

The supervisor is measured natively, as one of two nodes that have found each other, in namespaces
of our own. Emulated processor time would say nothing about a real one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from image.artifacts import Artifacts
from skerry.console import note
from skerry.errors import SkerryError
from tests.bench.harness import Benchmark, Figure
from tests.bench.process import usage
from tests.netns.lab import Lab, LabError, Network, wait_until

IDLE_SECONDS = 60.0
SETTLE_SECONDS = 15.0
MEETING_SECONDS = 60.0
_MIB = 1 << 20


def run() -> Sequence[Figure]:
    """Measure sizes of what was built, and a supervisor at rest."""
    figures = [*sizes(Artifacts.of("x86_64")), *supervisor()]
    if not figures:
        raise SkerryError("nothing could be measured")
    return tuple(figures)


def sizes(artifacts: Artifacts) -> list[Figure]:
    """Return the sizes of an image's files, as far as they were built."""
    found = []
    for name, path in (
        ("root", artifacts.root),
        ("boot", artifacts.boot),
        ("disk-written", artifacts.disk),
        ("bundle", artifacts.bundle),
    ):
        if not path.exists():
            note(f"    {path} was not built: no size of it")
            continue
        # A disk image is mostly holes; what counts is what a medium really gets.
        found.append(Figure(f"{name}-size", round(path.stat().st_blocks * 512 / _MIB, 1), "MiB"))
    return found


def supervisor() -> list[Figure]:
    """Return memory and idle processor time of one of two nodes at rest."""
    # As the unit has it (skerry.service).
    os.environ |= {"MALLOC_ARENA_MAX": "1", "PYTHONNODEBUGRANGES": "1"}
    with Lab() as lab:
        network = Network("footprint")
        one, two = lab.node(), lab.node()
        for node in (one, two):
            node.start(network.token())
        try:
            wait_until(lambda: one.sees(two) and two.sees(one), MEETING_SECONDS, "the nodes meet")
        except LabError as error:
            raise SkerryError(str(error)) from error
        time.sleep(SETTLE_SECONDS)
        if one.process is None or two.process is None:
            raise SkerryError("a supervisor has gone")
        pids = (one.process.pid, two.process.pid)
        before, begun = [usage(pid) for pid in pids], time.monotonic()
        time.sleep(IDLE_SECONDS)
        after, seconds = [usage(pid) for pid in pids], time.monotonic() - begun
    # The worse of the two: a goal is for every node.
    cpu = max(late.cpu - early.cpu for early, late in zip(before, after, strict=True))
    return [
        Figure("supervisor-rss", megabytes(max(one.resident for one in after)), "MB", goal=60),
        Figure("supervisor-private", megabytes(max(one.private for one in after)), "MB"),
        Figure("supervisor-idle-cpu", round(cpu / seconds * 100, 3), "% of a core", goal=0.5),
    ]


def megabytes(size: int) -> float:
    """Return bytes as MB (10^6)."""
    return round(size / 1_000_000, 1)


BENCHMARK = Benchmark("footprint", "image sizes, memory and idle load of the supervisor", run)
