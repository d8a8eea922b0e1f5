"""When to reconcile with whom, beyond the regular round: at once, again, or not just now."""

from __future__ import annotations

from dataclasses import dataclass, field

RESUME_SECONDS = 0.02
RETRY_SECONDS = 1.0
RETRIES_MAX = 4
# While one peer fills this replica the others' offers wait: they would send the same.
FILLING_SECONDS = 0.5
FILLING_SECONDS_MAX = 20.0
FILLING_ENTRIES = 8


@dataclass(slots=True)
class Exchanges:
    """A node's running exchanges. Times are monotonic seconds."""

    _due: dict[bytes, float] = field(default_factory=dict)
    _tried: dict[bytes, int] = field(default_factory=dict)
    _filler: bytes = b""
    _filled: int = 0
    _filling_since: float = 0.0
    _filling_until: float = 0.0

    def first(self, peer: bytes, at: float) -> None:
        """Begin with a new peer, unless there is one to go on with: two would send the same."""
        if not self._due:
            self._due[peer] = at

    def forget(self, peer: bytes) -> None:
        """Drop a peer that cannot be reached."""
        self._due.pop(peer, None)
        self._tried.pop(peer, None)

    def regular(self, peer: bytes) -> None:
        """Take note of a regular round with a peer: it may be retried again."""
        self._tried.pop(peer, None)

    def received(self, peer: bytes, entries: int, now: float) -> None:
        """Go on soon with a peer that has just sent something new."""
        self._due[peer] = now + RESUME_SECONDS
        self._tried.pop(peer, None)
        if self._filler != peer:
            self._filler, self._filled, self._filling_since = peer, 0, now
        self._filled += entries
        long = now - self._filling_since >= FILLING_SECONDS_MAX
        self._filling_until = 0.0 if long else now + FILLING_SECONDS

    def differs(self, peer: bytes, now: float) -> None:
        """Look again soon whether a difference is gone: any message of an exchange may be lost.

        A few times only: some differences stay, between releases that know different buckets.
        """
        tried = self._tried.get(peer, 0)
        if tried < RETRIES_MAX and peer not in self._due:
            self._tried[peer] = tried + 1
            self._due[peer] = now + RETRY_SECONDS * 2**tried

    def waits(self, peer: bytes, now: float) -> bool:
        """Say whether this peer has to wait, since another one fills this replica."""
        another = self._filler != peer and self._filled >= FILLING_ENTRIES
        return another and now < self._filling_until

    def take_due(self, now: float) -> list[bytes]:
        """Return the peers to open an exchange with now."""
        due = [peer for peer, at in self._due.items() if at <= now]
        for peer in due:
            del self._due[peer]
        return due

    def next_timer(self) -> float | None:
        """Return when `take_due` has something to return."""
        return min(self._due.values(), default=None)
