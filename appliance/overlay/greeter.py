"""Whom to greet, when, and in which epoch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from appliance.overlay.clock import Now
from appliance.overlay.endpoint import Endpoint
from appliance.overlay.events import Discovered
from appliance.overlay.handshake import Handshakes
from appliance.overlay.keyring import Keyring
from appliance.overlay.leads import Leads
from appliance.overlay.outcomes import Outcome
from appliance.overlay.peers import Peer
from provisioning.keys import id_text

# A peer that speaks in a session that is lost here is greeted, but not more often.
STRAY_SECONDS = 5.0
# Peers greeted at a time in a new epoch, and the pause between.
RENEWED_AT_ONCE = 16
RENEW_SECONDS = 0.2
# Who was accepted has this long to answer inside the tunnel, before it is greeted again.
SETTLED_SECONDS = 10.0
# How often to look whether more may be greeted, while as many as may be are.
FULL_SECONDS = 0.05


@dataclass(slots=True)
class Greeter:
    """Begins handshakes: with whom leads show, with peers that moved, in new epochs."""

    handshakes: Handshakes
    keyring: Keyring
    peers: Mapping[bytes, Peer]
    leads: Leads = field(default_factory=Leads)
    _renew_at: float | None = None
    _to_renew: list[bytes] = field(default_factory=list)
    _full_until: float | None = None

    def next_timer(self) -> float | None:
        """Return the monotonic time at which `due` has something to do."""
        lead = self.leads.next_timer(self._satisfied())
        if lead is not None and self._full_until is not None:
            lead = max(lead, self._full_until)
        times = (self.handshakes.next_timer(), lead, self._renew_at)
        return min((one for one in times if one is not None), default=None)

    def due(self, now: Now) -> list[Outcome]:
        """Repeat and begin what is due by now."""
        outcomes = list(self.handshakes.tick(now))
        room = self.handshakes.room(now)
        for endpoint, found_in in self.leads.take_due(now.mono, self._satisfied(), room):
            epoch = found_in if found_in in self.keyring else None
            outcomes += self._begin(endpoint, epoch, now)
        full = self.handshakes.room(now) == 0
        self._full_until = now.mono + FULL_SECONDS if full else None
        if self._renew_at is not None and self._renew_at <= now.mono:
            outcomes += self._renew(now)
        return outcomes

    def greet(self, peers: Iterable[Peer], now: Now) -> list[Outcome]:
        """Greet peers where they are, in the epoch that they are known to have."""
        outcomes: list[Outcome] = []
        for peer in peers:
            if peer.endpoint is not None:
                epoch = peer.epoch if peer.epoch in self.keyring else None
                outcomes += self._begin(peer.endpoint, epoch, now)
        return outcomes

    def stray(self, peer: Peer, now: Now) -> list[Outcome]:
        """Greet a peer whose session is lost here, unless that was done just now."""
        if now.mono < peer.greeted + STRAY_SECONDS:
            return []
        peer.greeted = now.mono
        return self.greet([peer], now)

    def discovered(
        self, key: str, places: tuple[Endpoint, ...], found: Discovered, now: Now
    ) -> None:
        """Learn that a member may be at these places."""
        here = (one for one in self.peers.values() if one.endpoint in places)
        peer = self.peers.get(found.node_id) if found.node_id else next(here, None)
        node_id, due = found.node_id, now.mono + found.wait
        if peer is not None:
            node_id, due = peer.node_id, max(due, peer.accepted_at + SETTLED_SECONDS)
        self.leads.set(key, places, due, node_id, found.epoch)

    def follow(self, peer: Peer, now: Now) -> None:
        """Keep what leads to a peer of an earlier run as a lead."""
        self.leads.set(f"peer:{id_text(peer.node_id)}", peer.candidates, now.mono, peer.node_id)

    def accepted(self, peer: Peer, source: Endpoint, now: Now, *, new: bool) -> None:
        """Leave a peer that was just accepted at ``source`` the time to answer in the tunnel."""
        if new:
            self.handshakes.settle(source)
        self.follow(peer, now)
        self.leads.bind(source, peer.node_id)
        self.leads.defer(peer.node_id, now.mono + SETTLED_SECONDS)

    def forget(self, peer: Peer, now: Now) -> None:
        """Look seldom for a node that is no peer any more."""
        self.leads.drop(f"peer:{id_text(peer.node_id)}")
        for one in {*peer.candidates, *([peer.endpoint] if peer.endpoint else [])}:
            self.leads.rest(one, now.mono)

    def unlearn(self, changed: set[int]) -> None:
        """Forget that peers have the secrets of these epochs: it is others that they had."""
        known = [one.epoch for one in self.keyring.seeds()]
        for peer in self.peers.values():
            if peer.epoch in changed:
                peer.epoch = max((one for one in known if one < min(changed)), default=-1)

    def begin_epoch(self) -> None:
        """Greet all peers in the epoch that is now the current one, at once."""
        self._to_renew = list(self.peers)
        self._renew_at = -math.inf

    def _renew(self, now: Now) -> list[Outcome]:
        """Greet a few of the peers; who has been heard in the new epoch needs no greeting."""
        current = self.keyring.current
        waiting = [
            one for one in self._to_renew if one in self.peers and self.peers[one].epoch < current
        ]
        outcomes: list[Outcome] = []
        for node_id in waiting[:RENEWED_AT_ONCE]:
            if (endpoint := self.peers[node_id].endpoint) is not None:
                outcomes += self._begin(endpoint, current, now)
        self._to_renew = waiting[RENEWED_AT_ONCE:]
        self._renew_at = now.mono + RENEW_SECONDS if self._to_renew else None
        return outcomes

    def _begin(self, endpoint: Endpoint, epoch: int | None, now: Now) -> tuple[Outcome, ...]:
        which = self.keyring.current if epoch is None else epoch
        return self.handshakes.initiate(endpoint, now, which)

    def _satisfied(self) -> frozenset[bytes]:
        return frozenset(peer.node_id for peer in self.peers.values() if peer.up)
