"""Visitors: an operator's machine that looks in with a grant of its own (`operator.visitor`).

It speaks for the ledger, in a session, and is no member: WireGuard does not hear of it, it has no
address, nobody looks for it or remembers it, and it is gone when it is silent.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field

from appliance.overlay import events
from appliance.overlay.clock import Now
from appliance.overlay.endpoint import Endpoint
from appliance.overlay.peers import Peer, peer_log
from appliance.overlay.sessions import Sessions

# Of the labels that only a grant can give (`ledger.assigned.RESERVED_LABELS`).
OPERATOR_LABEL = "skerry.internal/operator"
SILENT_SECONDS = 60.0


def is_visitor(labels: Mapping[str, str]) -> bool:
    """Say whether these are the labels of a visitor's grant."""
    return OPERATOR_LABEL in labels


@dataclass(slots=True)
class Visitors:
    """Those among the peers that only visit. Times are seconds of the monotonic clock."""

    peers: MutableMapping[bytes, Peer]
    sessions: Sessions
    _heard: dict[bytes, float] = field(default_factory=dict)

    def welcome(self, peer: Peer, source: Endpoint, now: Now, out: list[events.Action]) -> bool:
        """Take up who was just let in if it is a visitor, and say whether it is one."""
        if not is_visitor(peer.member.labels):
            return False
        peer.endpoint, peer.probe_at = source, math.inf
        if peer.node_id not in self._heard:
            out.append(peer_log(logging.INFO, "an operator looks in", peer, "visit"))
        self._heard[peer.node_id] = now.mono
        return True

    def heard(self, peer: Peer, now: Now) -> None:
        """Note that a peer spoke."""
        if peer.node_id in self._heard:
            self._heard[peer.node_id] = now.mono

    def leave(self, mono: float) -> bool:
        """Forget who is silent, and say whether there was any."""
        gone = [node for node, at in self._heard.items() if at + SILENT_SECONDS <= mono]
        for node in gone:
            del self._heard[node]
            self.peers.pop(node, None)
            self.sessions.forget(node)
        return bool(gone)

    def next_timer(self) -> float | None:
        """Return the monotonic time at which `leave` has something to do."""
        return min((at + SILENT_SECONDS for at in self._heard.values()), default=None)
