"""The node's own IPv4 overlay address, and which peer WireGuard may hear under which."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass

from appliance.overlay import addresses, events
from appliance.overlay.addresses import AddressesExhaustedError, Claim
from appliance.overlay.peers import CLAIM_KEY, Holders, Peer, attempt_from_record, claim_record
from appliance.overlay.wire import Body
from appliance.problem import Problem


@dataclass(slots=True)
class Claims:
    """Claims of this node and of its peers; of several claimants the lowest node id holds."""

    node_id: bytes
    ipv6: ipaddress.IPv6Address
    host_range: ipaddress.IPv4Network
    peers: Mapping[bytes, Peer]
    own: Claim | None = None
    exhausted: Problem | None = None

    @property
    def ipv4(self) -> ipaddress.IPv4Address | None:
        """The node's own address."""
        return self.own.address if self.own else None

    def said(self) -> tuple[int, bytes]:
        """Return what handshakes say of our claim."""
        return (self.own.attempt, self.own.address.packed) if self.own else (0, b"")

    def load(self, record: bytes | None) -> None:
        """Take up the claim of an earlier run: an address is kept for life."""
        attempt = attempt_from_record(record, self.node_id, self.host_range)
        if attempt is not None:
            address = addresses.claimed_address(self.node_id, attempt, self.host_range)
            self.own = Claim(attempt, address)

    def begin(self) -> list[events.Action]:
        """Return what gives the interface its addresses at the start."""
        if self.own is not None and not any(self.lost_to(peer) for peer in self.peers.values()):
            return [events.SetAddresses(self.own.address, self.ipv6)]
        return self._choose(self.own.attempt if self.own else 0)

    def lost_to(self, peer: Peer) -> bool:
        """Say whether a peer's claim takes our address from us."""
        return (
            self.own is not None
            and peer.ipv4 == self.own.address
            and addresses.keeps(peer.node_id, self.node_id)
        )

    def move(self) -> list[events.Action]:
        """Claim the next address that nobody is known to have."""
        return self._choose(self.own.attempt + 1 if self.own else 0)

    def wrong(self, node_id: bytes, body: Body) -> str | None:
        """Say what is wrong with the address that a member claims."""
        if not body.address:
            return None
        address = ipaddress.IPv4Address(body.address)
        if address == addresses.claimed_address(node_id, body.attempt, self.host_range):
            return None
        return (
            f"claims {address}, not its place in {self.host_range}: was its token made with "
            "another host_range?"
        )

    def note(self, peer: Peer, body: Body) -> None:
        """Take note of what a peer claims."""
        peer.attempt = body.attempt
        peer.ipv4 = ipaddress.IPv4Address(body.address) if body.address else None

    def allowed(self) -> list[Peer]:
        """Update what each peer may send from; return the peers for which it changed."""
        claims = {peer.node_id: peer.ipv4 for peer in self.peers.values()}
        claims[self.node_id] = self.own.address if self.own else None
        holders = Holders.of(claims)
        changed = []
        for peer in self.peers.values():
            allowed = [f"{peer.ipv6}/128"]
            if peer.ipv4 is not None and holders.holder(peer.ipv4) == peer.node_id:
                allowed.insert(0, f"{peer.ipv4}/32")
            if tuple(allowed) != peer.allowed:
                peer.allowed = tuple(allowed)
                changed.append(peer)
        return changed

    def _choose(self, attempt: int) -> list[events.Action]:
        taken = {peer.ipv4 for peer in self.peers.values() if peer.ipv4 is not None}
        self.exhausted = None
        try:
            self.own = addresses.first_free(self.node_id, self.host_range, taken, attempt=attempt)
        except AddressesExhaustedError as error:
            self.own = None
            self.exhausted = Problem("addresses-exhausted", str(error), error.hint or "")
            return [events.SetAddresses(None, self.ipv6)]
        record = claim_record(self.node_id, self.host_range, self.own.attempt)
        return [
            events.Remember(CLAIM_KEY, record),
            events.SetAddresses(self.own.address, self.ipv6),
        ]
