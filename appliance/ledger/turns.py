"""Who does a job that several could do: one at once, the others later and only if it is not done.

Rendezvous hashing gives every job an order of those who can do it, the same on all nodes; each
place further down waits STEP_SECONDS longer. A job is done when it is no longer asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
STEP_SECONDS = 2.0
# Places that are worked out in one call: a hash for each of those who can.
PLACES_AT_ONCE = 64
AGAIN_SECONDS = 0.05
_LABEL = b"skerry turn v1"


@dataclass(frozen=True, slots=True)
class Job(Generic[T]):
    """Something that one of several should do; ``make`` is asked only if it is this node.

    ``about`` tells it from others, on all nodes alike. ``first``: who is asked before all others;
    ``wait``: seconds that even the first one waits.
    """

    about: bytes
    make: Callable[[], T]
    first: Collection[bytes] = ()
    wait: float = 0.0


@dataclass(slots=True)
class _Noticed:
    since: float
    place: int | None = None


class Turns:
    """One node's turns. ``mono`` is a monotonic clock in seconds."""

    def __init__(self, own: bytes) -> None:
        self._own = own
        self._noticed: dict[bytes, _Noticed] = {}
        self.due: float | None = None

    def take(
        self,
        jobs: Iterable[Job[T]],
        able: Collection[bytes],
        mono: float,
        *,
        alive: Collection[bytes] | None = None,
        most: int = PLACES_AT_ONCE,
    ) -> list[T]:
        """Return what this node should do now, at most ``most``; ``jobs`` are all that there are.

        ``able``: who can do them; ``alive``: whom one may count on, None: everybody. ``due`` says
        when to ask again.
        """
        noticed: dict[bytes, _Noticed] = {}
        taken: list[T] = []
        self.due = None
        places = PLACES_AT_ONCE
        for job in jobs:
            one = noticed[job.about] = self._noticed.get(job.about) or _Noticed(mono)
            at = one.since + job.wait
            if one.place is None and mono >= at and places > 0:
                places -= 1
                one.place = place(self._own, job, able, alive)
            if mono < at:
                self._wake(at)
            elif one.place is None:
                self._wake(mono + AGAIN_SECONDS)
            elif mono < at + STEP_SECONDS * one.place:
                self._wake(at + STEP_SECONDS * one.place)
            elif len(taken) < most:
                taken.append(job.make())
            else:
                self._wake(mono + AGAIN_SECONDS)
        self._noticed = noticed
        return taken

    def _wake(self, at: float) -> None:
        self.due = at if self.due is None else min(self.due, at)


def place(
    own: bytes, job: Job[T], able: Iterable[bytes], alive: Collection[bytes] | None = None
) -> int:
    """Return how many of ``able`` come before ``own`` for a job."""

    def rank(node: bytes) -> tuple[bool, bool, bytes]:
        asleep = alive is not None and node != own and node not in alive
        return asleep, node not in job.first, hashlib.sha256(_LABEL + job.about + node).digest()

    mine = rank(own)
    return sum(rank(one) < mine for one in able)
