"""The two clocks that the core is fed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Now:
    """One moment: ``mono`` counts seconds for timers, ``unix`` is the time of day in seconds."""

    mono: float
    unix: float
