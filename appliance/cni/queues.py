"""Which calls may run side by side: one at a time for a container, and a GC on its own.

Pure bookkeeping: what to start is returned, the caller starts it. First come, first served.
"""

from __future__ import annotations

from collections import deque

from appliance.cni.errors import CniError, Code

# A runtime sends one call per container; more than this is somebody retrying in a loop.
WAITING_MAX = 1024
PER_CONTAINER_MAX = 8


class Queues:
    """Calls by ticket (any number that is used once).

    A call without a container (GC) waits for all before it and holds back all behind it: else an
    ADD could finish between the runtime's list of valid attachments and what is removed by it.
    """

    def __init__(self) -> None:
        self._running: dict[int, str | None] = {}
        self._waiting: deque[tuple[int, str | None]] = deque()

    @property
    def running(self) -> frozenset[int]:
        """The tickets of calls that were started and not finished."""
        return frozenset(self._running)

    def submit(self, ticket: int, container: str | None) -> tuple[int, ...]:
        """Take a call in; return what may start now. Raises CniError (TRY_AGAIN) when full."""
        same = sum(one == container for _, one in self._waiting)
        if len(self._waiting) >= WAITING_MAX or same >= PER_CONTAINER_MAX:
            raise CniError(
                Code.TRY_AGAIN,
                f"{same} calls for the same container and {len(self._waiting)} in all are waiting",
            )
        self._waiting.append((ticket, container))
        return self._start()

    def finish(self, ticket: int) -> tuple[int, ...]:
        """Say that a call ended, or that its caller went while it waited; return what may start."""
        self._running.pop(ticket, None)
        self._waiting = deque(one for one in self._waiting if one[0] != ticket)
        return self._start()

    def _start(self) -> tuple[int, ...]:
        started = []
        left: deque[tuple[int, str | None]] = deque()
        busy = set(self._running.values())
        # A running GC is a None among the busy; a waiting one stops those behind it.
        shut = None in busy
        for ticket, container in self._waiting:
            free = not busy and not left if container is None else container not in busy
            if shut or not free:
                left.append((ticket, container))
            else:
                started.append(ticket)
                self._running[ticket] = container
                busy.add(container)
            shut = shut or container is None
        self._waiting = left
        return tuple(started)
