"""A watcher's view of the ledger: the present state, then what changes, in bounded memory.

What a slow watcher has not taken yet is kept by key, the latest only: it misses values that were
replaced before it looked, never the one that stands. If more keys than QUEUE_MAX wait, it is told
to forget what it knows (RESYNC), and begins again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from appliance.ledger.entry import Entry
from appliance.ledger.rules import BUCKETS, Winner
from appliance.ledger.state import Change, Replica

QUEUE_MAX = 1024


class Kind(Enum):
    """What an event tells; READY: all that was there at the beginning has been told."""

    PUT = "put"
    DELETE = "delete"
    RESYNC = "resync"
    READY = "ready"


@dataclass(frozen=True, slots=True)
class Event:
    """A key's new value, or that it has none any more.

    ``entry`` is the value's, or the tombstone if that is what took the value away.
    """

    kind: Kind
    bucket: str = ""
    key: str = ""
    entry: Entry | None = None


class Subscription:
    """Made by `access.LedgerAccess.watch`. `take` until it gives None, then wait to be woken.

    An event may say again what is known already.
    """

    def __init__(
        self,
        buckets: tuple[str, ...],
        prefix: str,
        replica: Replica,
        now_ms: Callable[[], int],
        wake: Callable[[], None],
        closed: Callable[[Subscription], None],
    ) -> None:
        self.closed = False
        self._buckets = buckets
        self._prefix = prefix
        self._replica = replica
        self._now_ms = now_ms
        self._wake = wake
        self._on_close = closed
        self._pending: dict[tuple[str, str], Event] = {}
        self._resync = False
        self._ready = False
        self._left = deque(buckets)
        self._bucket = ""
        self._keys: deque[str] = deque()

    def take(self) -> Event | None:
        """Return the next event, None if there is none now (or no more: ``closed``)."""
        if self.closed:
            return None
        if self._resync:
            self._resync = self._ready = False
            self._left = deque(self._buckets)
            self._keys.clear()
            return Event(Kind.RESYNC)
        if self._pending:
            return self._pending.pop(next(iter(self._pending)))
        return self._next_present()

    def changed(self, change: Change, now_ms: int) -> None:
        """Take note of a change; the replica is in its new state already."""
        about = change.entry
        fits = about.bucket in self._buckets and about.key.startswith(self._prefix)
        if not fits or self._resync or self.closed:
            return
        current = self._replica.get(about.bucket, about.key, now_ms)
        if current is not None and current is not change.new and _outranks(current, change):
            return  # it was there before, and counted before
        slot = about.bucket, about.key
        # What was told of the key and is not taken yet is outdated, and so is its place.
        self._pending.pop(slot, None)
        if len(self._pending) >= QUEUE_MAX:
            self._pending.clear()
            self._resync = True
        elif current is not None:
            self._pending[slot] = Event(Kind.PUT, *slot, current)
        else:
            tombstone = change.new if change.new is not None and change.new.deleted else None
            self._pending[slot] = Event(Kind.DELETE, *slot, tombstone)
        self._wake()

    def close(self) -> None:
        """End it; who waits is woken."""
        if not self.closed:
            self.closed = True
            self._pending.clear()
            self._keys.clear()
            self._on_close(self)
            self._wake()

    def _next_present(self) -> Event | None:
        """Return what remains to be told of the present state, one bucket after the other."""
        while not self._ready:
            now_ms = self._now_ms()
            while self._keys:
                key = self._keys.popleft()
                # The value is looked up as late as this: it may have changed since.
                entry = self._replica.get(self._bucket, key, now_ms)
                if entry is not None:
                    return Event(Kind.PUT, self._bucket, key, entry)
            if self._left:
                self._bucket = self._left.popleft()
                present = self._replica.entries(self._bucket, now_ms, self._prefix)
                self._keys.extend(one.key for one in present)
            else:
                self._ready = True
                return Event(Kind.READY)
        return None


def _outranks(current: Entry, change: Change) -> bool:
    """Say whether ``current`` counted before the change as well, whichever side one looks at."""
    if BUCKETS[current.bucket].winner is not Winner.LATEST:
        return False
    sides = (one for one in (change.old, change.new) if one is not None)
    return all((current.stamp, current.owner) > (one.stamp, one.owner) for one in sides)
