"""The edge's queue: in order, but a peer's removal waits for nothing."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable

from appliance.overlay import events


class ActionQueue:
    """What is still to be done. What was to be set for a peer goes when the peer is removed."""

    def __init__(self) -> None:
        self._actions: deque[events.Action] = deque()
        self._some = asyncio.Event()

    def __len__(self) -> int:
        return len(self._actions)

    def put(self, actions: Iterable[events.Action]) -> None:
        """Add actions at the end, removals at the beginning."""
        for action in actions:
            if isinstance(action, events.RemovePeer):
                self._actions = deque(one for one in self._actions if not _sets(one, action.key))
                self._actions.appendleft(action)
            else:
                self._actions.append(action)
        if self._actions:
            self._some.set()

    async def take(self) -> events.Action:
        """Return the next action, when there is one."""
        await self._some.wait()
        action = self._actions.popleft()
        if not self._actions:
            self._some.clear()
        return action


def _sets(action: events.Action, key: bytes) -> bool:
    return isinstance(action, events.SetPeer) and action.key == key
