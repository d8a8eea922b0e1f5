"""How much a node writes to the medium that holds its data: a pure reckoning.

It is fed with the kernel's counter and a clock, and says what was written since the start, how much
that is a day at the present rate, and when a flash card would not bear it for long.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from appliance.problem import Problem

SECTOR = 512
"""What the kernel counts in, whatever the medium's own blocks are."""
DAY = 86400.0
MEGABYTE = 1_000_000
GIGABYTE = 1000 * MEGABYTE

SAMPLE_SECONDS = 60.0
"""So often a figure changes."""
SHOWN_SECONDS = 600.0
"""A rate is that of the last ten minutes: a start, which writes much, is soon forgotten."""
JUDGED_SECONDS = 6 * 3600.0
"""A card is worn by what goes on for days: images that are brought in, or a restart, are not it."""
CARD_BYTES_PER_DAY = 10 * GIGABYTE
"""What a card of 32 GB bears for some five years: about 600 times its size, with each byte that is
written costing it no more than one. Small and scattered writes cost more, so this is the end of
what can go well, not what is good."""


@dataclass(frozen=True, slots=True)
class Counter:
    """What the kernel says of the medium; ``card``: flash of the simple kind (SD, eMMC, USB)."""

    device: str
    written: int
    card: bool


@dataclass(frozen=True, slots=True)
class Writes:
    """What a node reports. ``seconds``: over how long the rate was measured."""

    device: str
    since_boot: int
    seconds: int
    per_day: int | None


@dataclass(frozen=True, slots=True)
class _Sample:
    at: float
    written: int


class Wear:
    """Remembers enough of the past for a rate; never more than six hours of it."""

    def __init__(self) -> None:
        self._samples: deque[_Sample] = deque()
        self._device = ""
        self._card = False
        self._writes: Writes | None = None

    def due(self, now: float) -> bool:
        """Say whether it is time to look at the counter."""
        return not self._samples or now - self._samples[-1].at >= SAMPLE_SECONDS

    def take(self, now: float, counter: Counter | None) -> None:
        """Take what the kernel said at a time; None: there is no medium, or no word of it."""
        if counter is None:
            self._samples.clear()
            self._writes = None
            return
        last = self._samples[-1] if self._samples else None
        if counter.device != self._device or (last and counter.written < last.written):
            self._samples.clear()
        self._device, self._card = counter.device, counter.card
        self._samples.append(_Sample(now, counter.written))
        while len(self._samples) > 2 and now - self._samples[1].at >= JUDGED_SECONDS:
            self._samples.popleft()
        begun = next(one for one in self._samples if now - one.at <= SHOWN_SECONDS)
        seconds = now - begun.at
        rate = _per_day(begun, self._samples[-1]) if seconds >= SAMPLE_SECONDS else None
        self._writes = Writes(counter.device, counter.written, round(seconds), rate)

    @property
    def writes(self) -> Writes | None:
        """What there is to report; None where nothing is known."""
        return self._writes

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Say whether a card is being worn out."""
        if not self._card or len(self._samples) < 2:
            return ()
        first, last = self._samples[0], self._samples[-1]
        if last.at - first.at < JUDGED_SECONDS:
            return ()
        rate = _per_day(first, last)
        if rate <= CARD_BYTES_PER_DAY:
            return ()
        return (
            Problem(
                "card-writes",
                f"{size(rate)} a day are written to the card {self._device} (over the last "
                f"{JUDGED_SECONDS / 3600:.0f} hours): it bears about {size(CARD_BYTES_PER_DAY)}",
                "See which pods write to volumes and logs (kubectl get pods -A -o wide), move what "
                "writes much to another node, or take a medium made for it (SSD).",
            ),
        )


def _per_day(first: _Sample, last: _Sample) -> int:
    return round((last.written - first.written) / (last.at - first.at) * DAY)


def size(count: float) -> str:
    """Return a number of bytes as on a card's label: powers of ten."""
    for unit, name in ((GIGABYTE, "GB"), (MEGABYTE, "MB")):
        if count >= unit:
            return f"{count / unit:.{1 if count < 10 * unit else 0}f} {name}"
    return f"{count / 1000:.0f} kB"


def words(writes: Writes) -> str:
    """Return a report's figures as a line."""
    said = f"{size(writes.since_boot)} since boot to {writes.device}"
    if writes.per_day is None:
        return said
    minutes = max(1, round(writes.seconds / 60))
    rate = f"{size(writes.per_day / 1440)} a minute, {size(writes.per_day)} a day"
    return f"{said}; {rate} (over the last {minutes} min)"


def read_words(document: object) -> str:
    """Return the line for the ``writes`` of a ``status.json``, whatever stands there."""
    match document:
        case {
            "device": str(device),
            "since_boot": int(since_boot),
            "seconds": int(seconds),
            "per_day": int() | None as per_day,
        }:
            return words(Writes(device, since_boot, seconds, per_day))
        case _:
            return "-"
