"""Who was not let in, and why: a short memory, and log lines that cannot be flooded."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from appliance.overlay.clock import Now
from appliance.overlay.endpoint import Endpoint
from appliance.overlay.events import Log

KEPT = 64
QUIET_SECONDS = 60.0
# Lines in all, whatever the number of sources: a bucket that refills.
BURST = 20.0
PER_SECOND = 0.2


@dataclass(frozen=True, slots=True)
class Refusal:
    """Messages from one host that were refused for one reason; ``at``: the last, monotonic."""

    cause: str
    detail: str
    source: str
    count: int
    at: float


@dataclass(slots=True)
class _Entry:
    refusal: Refusal
    logged_at: float
    unsaid: int = 0


@dataclass(slots=True)
class Refusals:
    """The newest refusals by host and cause."""

    _entries: OrderedDict[tuple[str, str], _Entry] = field(default_factory=OrderedDict)
    _credit: float = BURST
    _credited_at: float = 0.0

    def __iter__(self) -> Iterator[Refusal]:
        """Iterate over the refusals, the newest last."""
        return (entry.refusal for entry in self._entries.values())

    def note(self, cause: str, detail: str, source: Endpoint, now: Now) -> Log | None:
        """Remember a refusal; return a log line unless one was written just now."""
        key = source.host, cause
        entry = self._entries.pop(key, None)
        count = entry.refusal.count + 1 if entry else 1
        refusal = Refusal(cause, detail, str(source), count, now.mono)
        if entry is None:
            entry = _Entry(refusal, float("-inf"))
        entry.refusal = refusal
        self._entries[key] = entry
        if len(self._entries) > KEPT:
            self._entries.popitem(last=False)
        if now.mono - entry.logged_at < QUIET_SECONDS or not self._take_credit(now):
            entry.unsaid += 1
            return None
        again = f" ({entry.unsaid} more since the last line)" if entry.unsaid else ""
        entry.logged_at, entry.unsaid = now.mono, 0
        return Log(
            logging.WARNING,
            f"refused {source}: {detail}{again}",
            {"event": "refused", "cause": cause, "source": str(source), "count": count},
        )

    def _take_credit(self, now: Now) -> bool:
        passed = max(now.mono - self._credited_at, 0.0)
        self._credited_at = now.mono
        self._credit = min(self._credit + passed * PER_SECOND, BURST)
        if self._credit < 1:
            return False
        self._credit -= 1
        return True
