"""What time it is, for a node that may have no clock of its own.

A reading has a quality: SYNCED (the kernel is disciplined by a time server), KEPT (a real-time
clock that shows a possible time), GUESSED (no clock: the latest time known from disk, counting
on). Each node tells its peers its own reading, authenticated by the overlay. The median of those
with a clock counts, SYNCED ones twice; without any, the median of the guesses: a minority of wrong
clocks moves nobody. A SYNCED node listens to nobody.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from appliance.ledger.hlc import MS_MAX

# A report counts on with our monotonic clock for this long.
REPORT_SECONDS = 120.0
REPORTS_MAX = 64
# A difference below this is not worth a jump.
SLACK_MS = 2_000


class Quality(IntEnum):
    """How much a reading is worth."""

    GUESSED = 0
    KEPT = 1
    SYNCED = 2


@dataclass(frozen=True, slots=True)
class Reading:
    """A time in Unix milliseconds and its quality."""

    ms: int
    quality: Quality


@dataclass(frozen=True, slots=True)
class _Report:
    offset_ms: int
    quality: Quality
    heard: float


class Timekeeper:
    """Keeps the node's idea of the time.

    ``floor_ms`` is a time that is surely past (the certificate's issue): a wall clock that shows
    less is wrong, whatever it claims to be. ``guess_ms`` is the last time known, which may itself
    have been wrong: a node without a clock begins there.
    """

    def __init__(self, floor_ms: int, guess_ms: int, mono: float) -> None:
        self._floor_ms = min(max(floor_ms, 0), MS_MAX)
        self._guess_offset = min(max(floor_ms, guess_ms, 0), MS_MAX) - _ms(mono)
        self._own: _Report | None = None
        self._reports: dict[bytes, _Report] = {}
        self._offset = self._guess_offset
        self._quality = Quality.GUESSED

    def wall(self, wall_ms: int, *, synced: bool, mono: float) -> None:
        """Take a look at the machine's own clock."""
        if not self._floor_ms <= wall_ms <= MS_MAX:
            self._own = None
        else:
            quality = Quality.SYNCED if synced else Quality.KEPT
            self._own = _Report(wall_ms - _ms(mono), quality, mono)
        self._judge(mono)

    def report(self, peer: bytes, reading: Reading, mono: float) -> None:
        """Take note of what a peer (authenticated) says the time is."""
        if not 0 <= reading.ms <= MS_MAX:
            return
        if peer not in self._reports and len(self._reports) >= REPORTS_MAX:
            del self._reports[min(self._reports, key=lambda one: self._reports[one].heard)]
        self._reports[peer] = _Report(reading.ms - _ms(mono), reading.quality, mono)
        self._judge(mono)

    def forget(self, peer: bytes) -> None:
        """Drop a peer that is none any more."""
        self._reports.pop(peer, None)

    def now_ms(self, mono: float) -> int:
        """Return the time in Unix milliseconds."""
        return min(max(self._offset + _ms(mono), 0), MS_MAX)

    def own_reading(self, mono: float) -> Reading:
        """Return what to tell peers: the machine's own clock, not what was taken from others.

        So no rumour ever confirms itself. A node without a clock tells what it goes by, as GUESSED.
        """
        if self._own is None:
            return Reading(self.now_ms(mono), Quality.GUESSED)
        return Reading(min(max(self._own.offset_ms + _ms(mono), 0), MS_MAX), self._own.quality)

    @property
    def quality(self) -> Quality:
        """How good the present time is."""
        return self._quality

    def _judge(self, mono: float) -> None:
        own = self._own
        if own is not None and own.quality is Quality.SYNCED:
            self._offset, self._quality = own.offset_ms, Quality.SYNCED
            return
        voices = [one for one in self._reports.values() if mono - one.heard <= REPORT_SECONDS]
        voices.append(own or _Report(self._guess_offset, Quality.GUESSED, mono))
        clocks = [one for one in voices if one.quality is not Quality.GUESSED] or voices
        # A disciplined clock counts twice, not for everything: it may be a lie.
        offsets = sorted(
            one.offset_ms
            for one in clocks
            for _ in range(2 if one.quality is Quality.SYNCED else 1)
        )
        # Of an even number the later one: a clock that stopped is likelier than one that ran ahead.
        median = offsets[len(offsets) // 2]
        best = max(one.quality for one in clocks)
        if own is not None and abs(median - own.offset_ms) <= SLACK_MS:
            median = own.offset_ms
        self._offset = max(median, self._floor_ms - _ms(mono))
        self._quality = best
        if best is Quality.GUESSED:
            # Without a clock within sight, what was agreed upon is the node's guess from now on.
            self._guess_offset = self._offset


def _ms(mono: float) -> int:
    return int(mono * 1000)
