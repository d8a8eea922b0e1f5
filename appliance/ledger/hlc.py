"""Hybrid logical clock: stamps that follow causes, near to physical time.

A stamp is one integer: milliseconds since 1970 in the upper bits, a counter in the lower 16
(Kulkarni et al., "Logical Physical Clocks", 2014). Whoever has seen an entry stamps later than it.
What others send can pull a clock ahead of physical time by MAX_SKEW_MS at most: beyond that it is
"from the future", is not accepted and leaves the clock as it was.
"""

from __future__ import annotations

from typing import NewType

Stamp = NewType("Stamp", int)

COUNTER_BITS = 16
COUNTER_MAX = 2**COUNTER_BITS - 1
MS_MAX = 2**47 - 1
STAMP_MAX = (MS_MAX << COUNTER_BITS) | COUNTER_MAX
# More than RTCs drift between two looks at a neighbour's time, less than anybody gains by cheating.
MAX_SKEW_MS = 5 * 60 * 1000
# The high-water mark is written this far ahead, so that not every stamp costs a write.
RESERVE_MS = 60 * 1000


def stamp(ms: int, counter: int = 0) -> Stamp:
    """Return the stamp of a time in milliseconds; impossible times count as the nearest."""
    return Stamp(min(max(ms, 0), MS_MAX) << COUNTER_BITS | min(max(counter, 0), COUNTER_MAX))


def ms_of(value: int) -> int:
    """Return the physical part of a stamp in milliseconds."""
    return value >> COUNTER_BITS


def is_future(value: int, now_ms: int) -> bool:
    """Say whether a stamp is further ahead of ``now_ms`` than honest clocks are apart."""
    return ms_of(value) > now_ms + MAX_SKEW_MS


class Clock:
    """One node's clock; ``now_ms`` is always the `timekeeper.Timekeeper`'s reading.

    ``high_water`` is what the last run left in :attr:`reserved`: no stamp is ever given twice.
    """

    def __init__(self, high_water: int = 0) -> None:
        self._last = min(max(high_water, 0), STAMP_MAX)
        self.reserved = Stamp(self._last)

    @property
    def last(self) -> Stamp:
        """The latest stamp given or seen."""
        return Stamp(self._last)

    def tick(self, now_ms: int) -> Stamp:
        """Return a stamp later than all given and seen so far.

        Persist :attr:`reserved` before the stamp leaves the node if it has changed.
        """
        self._last = min(max(stamp(now_ms), self._last + 1), STAMP_MAX)
        if self._last >= self.reserved:
            self.reserved = stamp(ms_of(self._last) + RESERVE_MS)
        return Stamp(self._last)

    def observe(self, value: int, now_ms: int) -> bool:
        """Take note of a stamp from elsewhere. False: it is from the future, nothing changed."""
        if is_future(value, now_ms):
            return False
        self._last = max(self._last, value)
        return True

    def rebase(self, now_ms: int) -> bool:
        """Come back from a future that turned out wrong. True if the clock had been in one.

        Its entries from there were accepted by nobody with a right clock; they have to be written
        anew (`state.Replica.expel_future` drops them everywhere).
        """
        if not is_future(self._last, now_ms):
            return False
        self._last = stamp(now_ms)
        self.reserved = stamp(now_ms + RESERVE_MS)
        return True
