"""What one peer may cost: a rate, a queue, and a standing that misbehaviour wears out."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum


class Offence(Enum):
    """What a peer did; the value is its weight against MUTED_AT."""

    MALFORMED = 4
    AGAINST_RULES = 2
    FORGED = 10


MUTED_AT = 20.0
FORGIVEN_PER_SECOND = 0.1
MUTE_SECONDS = 60.0
MUTE_SECONDS_MAX = 3600.0
# Above what an honest peer sends while it fills an empty replica: its BYTES in messages of 1 kB.
MESSAGES_PER_SECOND = 1500.0
MESSAGES_BURST = 500.0
BYTES_PER_SECOND = 1024.0 * 1024
BYTES_BURST = 256.0 * 1024
QUEUE_MAX = 256


@dataclass(slots=True)
class Allowance:
    """A token bucket."""

    rate: float
    burst: float
    tokens: float
    filled: float

    def take(self, amount: float, now: float) -> bool:
        """Take ``amount`` if it is there."""
        self.tokens = min(self.burst, self.tokens + max(now - self.filled, 0.0) * self.rate)
        self.filled = now
        if self.tokens < amount:
            return False
        self.tokens -= amount
        return True


@dataclass(slots=True)
class PeerAccount:
    """One peer's rate, queue and standing. Times are monotonic seconds."""

    now: float
    queue: deque[bytes] = field(default_factory=deque)
    dropped: int = 0
    muted_until: float = 0.0
    _score: float = 0.0
    _judged: float = 0.0
    _mutes: int = 0
    _incoming: Allowance = field(init=False)
    _outgoing: Allowance = field(init=False)

    def __post_init__(self) -> None:
        self._incoming = Allowance(MESSAGES_PER_SECOND, MESSAGES_BURST, MESSAGES_BURST, self.now)
        self._outgoing = Allowance(BYTES_PER_SECOND, BYTES_BURST, BYTES_BURST, self.now)

    def admit(self, data: bytes, now: float) -> bool:
        """Queue a datagram, or drop it unread: muted, too many, or too many waiting."""
        if now < self.muted_until or len(self.queue) >= QUEUE_MAX:
            self.dropped += 1
            return False
        if not self._incoming.take(1.0, now):
            self.dropped += 1
            return False
        self.queue.append(data)
        return True

    def may_send(self, size: int, now: float) -> bool:
        """Say whether an answer of ``size`` bytes is within what this peer may cost."""
        return self._outgoing.take(size, now)

    def offence(self, offence: Offence, now: float) -> bool:
        """Count an offence. True: the peer is muted from now on, each time for longer."""
        self._score = max(0.0, self._score - (now - self._judged) * FORGIVEN_PER_SECOND)
        self._judged = now
        self._score += offence.value
        if self._score < MUTED_AT:
            return False
        self.muted_until = now + min(MUTE_SECONDS * 2**self._mutes, MUTE_SECONDS_MAX)
        self._mutes = min(self._mutes + 1, 16)
        self._score = 0.0
        self.queue.clear()
        return True
