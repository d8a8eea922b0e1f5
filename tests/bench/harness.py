"""What every benchmark gives back, and how it is written down and drawn."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from skerry.console import table

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "build" / "bench"


class Better(StrEnum):
    """Which direction of a figure is the good one."""

    HIGHER = "higher"
    LOWER = "lower"


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number; ``goal`` is None where it is only information."""

    name: str
    value: float
    unit: str
    goal: float | None = None
    better: Better = Better.LOWER

    def met(self) -> bool | None:
        """Return whether the goal is reached, or None without a goal."""
        if self.goal is None:
            return None
        if self.better is Better.LOWER:
            return self.value <= self.goal
        return self.value >= self.goal


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A named measurement; ``run`` does it and returns its figures."""

    name: str
    what: str
    run: Callable[[], Sequence[Figure]]


def draw(figures: Sequence[Figure]) -> str:
    """Return the figures as a table that says plainly where a goal is missed."""
    verdicts = {None: "", True: "met", False: "MISSED"}
    signs = {Better.LOWER: "<=", Better.HIGHER: ">="}
    return table(
        ("figure", "value", "unit", "goal", ""),
        [
            (
                figure.name,
                f"{figure.value:.4g}",
                figure.unit,
                "" if figure.goal is None else f"{signs[figure.better]} {figure.goal:g}",
                verdicts[figure.met()],
            )
            for figure in figures
        ],
    )


def write(name: str, figures: Sequence[Figure], *, directory: Path = RESULTS) -> Path:
    """Write ``NAME.json`` and return its path."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.json"
    path.write_text(json.dumps([asdict(figure) for figure in figures], indent=2) + "\n")
    return path


def machine() -> str:
    """Return one line about the machine that the figures belong to."""
    return f"{os.cpu_count()} cores, {platform.machine()}, Linux {platform.release()}"
