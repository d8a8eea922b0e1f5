"""Overlay addresses as the ledger has them (`Core.set_addresses`): nothing is decided here."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass

from appliance.overlay import events
from appliance.overlay.peers import Peer
from appliance.overlay.wire import Body
from appliance.problem import Problem


@dataclass(slots=True)
class Assigned:
    """Who has which IPv4 address. It has the methods of `claims.Claims` and takes its place."""

    ipv6: ipaddress.IPv6Address
    peers: Mapping[bytes, Peer]
    ipv4: ipaddress.IPv4Address | None
    others: Mapping[bytes, ipaddress.IPv4Address]
    exhausted: Problem | None = None

    def begin(self) -> list[events.Action]:
        """Return what gives the interface its addresses."""
        return [events.SetAddresses(self.ipv4, self.ipv6)]

    def said(self) -> tuple[int, bytes]:
        """Return what handshakes say of our address: nothing."""
        return 0, b""

    def wrong(self, _node_id: bytes, _body: Body) -> str | None:
        """Say what is wrong with the address that a member claims: that it does counts nothing."""
        return None

    def note(self, peer: Peer, _body: Body) -> None:
        """Take no note of what a peer claims."""
        peer.attempt, peer.ipv4 = 0, self.others.get(peer.node_id)

    def lost_to(self, _peer: Peer) -> bool:
        """Say whether a peer's claim takes our address from us: none does."""
        return False

    def move(self) -> list[events.Action]:
        """Go nowhere."""
        return []

    def allowed(self) -> list[Peer]:
        """Update what each peer may send from; return the peers for which it changed."""
        changed = []
        for peer in self.peers.values():
            peer.ipv4 = self.others.get(peer.node_id)
            prefixes = [f"{peer.ipv6}/128", *peer.prefixes]
            if peer.ipv4 is not None and peer.ipv4 != self.ipv4:
                prefixes.insert(0, f"{peer.ipv4}/32")
            if tuple(prefixes) != peer.allowed:
                peer.allowed = tuple(prefixes)
                changed.append(peer)
        return changed
