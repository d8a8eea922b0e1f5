"""Carries messages between accepted members: inside the tunnel, or outside in a session."""

from __future__ import annotations

from collections.abc import Mapping

from appliance.ledger.epochs import Reading
from appliance.overlay import events, wire
from appliance.overlay.clock import Now
from appliance.overlay.peers import Peer
from appliance.overlay.post import Post
from appliance.overlay.sessions import Sessions


class Courier:
    """Knows the sessions, and which way to a member is open."""

    def __init__(
        self, own_id: bytes, peers: Mapping[bytes, Peer], post: Post, *, vpn: bool
    ) -> None:
        self.sessions = Sessions()
        self._own_id = own_id
        self._peers = peers
        self._post = post
        self._vpn = vpn

    def reaches(self, peer: Peer, unix: float) -> bool:
        """Say whether gossip can be sent to a peer at a Unix time."""
        way = self._through_tunnel(peer) or self._has_session(peer)
        return way and self._open_to_gossip(peer, unix)

    def send(self, kind: wire.Kind, peer: Peer, data: bytes, now: Now) -> list[events.Action]:
        """Return what brings data to a peer; nothing if there is no way."""
        if kind is wire.Kind.GOSSIP and not self._open_to_gossip(peer, now.unix):
            return []
        epoch = self._epoch_of(peer)
        if self._through_tunnel(peer):
            carried = wire.Carried(self._own_id, b"", 0, b"", data)
            message = wire.encode_message(kind, carried)
            return self._post.inside(message, str(peer.ipv6), epoch, now)
        session = self.sessions.latest(peer.node_id)
        if session is None or peer.endpoint is None:
            return []
        carried = session.seal(kind, self._own_id, epoch, data)
        message = wire.encode_message(kind, carried)
        return self._post.outside(message, peer.endpoint, epoch, now)

    def open(self, kind: wire.Kind, carried: wire.Carried, epoch: int) -> Peer | None:
        """Return the peer that sent this outside the tunnel, None if that is not proven."""
        session = self.sessions.find(carried.session)
        if session is None or not session.open(kind, epoch, carried):
            return None
        return self._peers.get(session.peer)

    def _epoch_of(self, peer: Peer) -> int:
        return peer.epoch if peer.epoch in self._post.keyring else self._post.keyring.current

    def _open_to_gossip(self, peer: Peer, unix: float) -> bool:
        """Say whether the epoch of a peer is not over: who is out may read what is sealed in it."""
        return self._post.keyring.reading(self._epoch_of(peer), unix) is Reading.ALL

    def _through_tunnel(self, peer: Peer) -> bool:
        return self._vpn and peer.up

    def _has_session(self, peer: Peer) -> bool:
        has = self.sessions.latest(peer.node_id) is not None
        return has and peer.endpoint is not None and not peer.silent
