"""What comes in: opened, put together, and judged by how it was sealed and who sent it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from appliance.ledger.epochs import Reading
from appliance.overlay import wire
from appliance.overlay.clock import Now
from appliance.overlay.courier import Courier
from appliance.overlay.endpoint import Endpoint
from appliance.overlay.errors import WireError
from appliance.overlay.peers import Peer
from appliance.overlay.post import Letter, Post


@dataclass(frozen=True, slots=True)
class Proven:
    """Something that a peer, and nobody else, sent; ``epoch`` is the one it spoke in."""

    kind: wire.Kind
    peer: Peer
    payload: wire.Probe | wire.Carried
    epoch: int


@dataclass(frozen=True, slots=True)
class Stray:
    """A message in a session that this node has not: it may have started anew since."""

    peer: Peer


@dataclass(frozen=True, slots=True)
class Inbox:
    """Reads datagrams. ``usable`` says whether an endpoint may lead to a member."""

    post: Post
    courier: Courier
    peers: Mapping[bytes, Peer]
    usable: Callable[[Endpoint], bool]
    vpn: bool

    def outside(self, data: bytes, source: Endpoint, now: Now) -> Letter | Proven | Stray | None:
        """Return what a datagram on the control port brought; None: nothing, or not yet.

        Raises WireError for what is refused.
        """
        usable = self.usable(source)
        if not usable and "%" not in source.host:
            return None  # our own echo, or a tunnel inside itself
        letter = self.post.read(data, source, now)
        # Link-local addresses are good for an answer, not for a path.
        if letter is None or not (usable or letter.timeless):
            return None
        kind, payload, epoch = letter.kind, letter.payload, letter.epoch
        if letter.timeless != (kind in wire.TIMES):
            raise WireError("misplaced", f"{kind.name} under a key that is not for it")
        self._check_epoch(kind, epoch, now)
        if isinstance(payload, wire.Probe):
            if self.vpn:
                raise WireError("misplaced", "a probe outside the tunnel")
            peer = self.peers.get(payload.sender)
            return Proven(kind, peer, payload, epoch) if peer else None
        if isinstance(payload, wire.Carried):
            return self._carried(kind, payload, source, epoch)
        return letter

    def inside(self, data: bytes, source: str, now: Now) -> Proven | None:
        """Return what came through the tunnel: WireGuard vouches for its source address."""
        letter = self.post.read(data, Endpoint(source, 1), now)
        if letter is None or letter.timeless:
            return None
        payload = letter.payload
        if not isinstance(payload, wire.Probe | wire.Carried):
            return None
        peer = self.peers.get(payload.sender)
        if peer is None or str(peer.ipv6) != source:
            raise WireError("misplaced", "a message in another node's name")
        if isinstance(payload, wire.Carried) and payload.session:
            raise WireError("misplaced", "a session inside the tunnel")
        self._check_epoch(letter.kind, letter.epoch, now)
        return Proven(letter.kind, peer, payload, letter.epoch)

    def _carried(
        self, kind: wire.Kind, carried: wire.Carried, source: Endpoint, epoch: int
    ) -> Proven | Stray | None:
        peer = self.courier.open(kind, carried, epoch)
        if peer is not None:
            return Proven(kind, peer, carried, epoch)
        sender = self.peers.get(carried.sender)
        if sender is None:
            return None
        if source == sender.endpoint and self.courier.sessions.find(carried.session) is None:
            return Stray(sender)
        raise WireError("unproven", "a message in a member's name, or one that came before")

    def _check_epoch(self, kind: wire.Kind, epoch: int, now: Now) -> None:
        reading = self.post.keyring.reading(epoch, now.unix)
        catching_up = reading is Reading.CATCH_UP and kind in wire.CATCHING_UP
        if reading is not Reading.ALL and not catching_up:
            raise WireError("old-epoch", f"{kind.name} in epoch {epoch}, which is over")
