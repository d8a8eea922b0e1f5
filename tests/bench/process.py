"""What processes and interfaces cost, from /proc."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Usage:
    """One look at a process: bytes resident, bytes of its own, processor seconds so far."""

    resident: int
    private: int
    cpu: float


def usage(pid: int) -> Usage:
    """Look at a process (proc(5): smaps_rollup)."""
    rollup = parse_rollup(Path(f"/proc/{pid}/smaps_rollup").read_text())
    return Usage(
        resident=rollup["Rss"],
        private=rollup["Private_Clean"] + rollup["Private_Dirty"],
        cpu=cpu_seconds(pid),
    )


def parse_rollup(text: str) -> dict[str, int]:
    """Return smaps_rollup's figures in bytes."""
    rows = (line.split() for line in text.splitlines()[1:])
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if len(row) == 3}


def cpu_seconds(pid: int) -> float:
    """Return a process's processor time so far (proc(5): task/*/schedstat)."""
    # The scheduler's own nanoseconds: ticks (utime, stime) miss work that is shorter than a tick.
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def thread_seconds(pid: int) -> list[float]:
    """Return the processor time of each thread so far, the main thread's first."""
    tasks = sorted(Path(f"/proc/{pid}/task").iterdir(), key=lambda task: int(task.name))
    return [int((task / "schedstat").read_text().split()[0]) / 1e9 for task in tasks]


def busy_seconds() -> float:
    """Return the processor time of all cores so far that was not idle."""
    words = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    user, nice, system, _, _, irq, softirq, steal = map(int, words)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that at least so many percent do not exceed."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * percent / 100), len(ordered) - 1)]
