"""Probes on their way: `liveness` says when, this sends and answers them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from appliance.overlay import events, wire
from appliance.overlay.clock import Now
from appliance.overlay.endpoint import Endpoint
from appliance.overlay.inbox import Proven
from appliance.overlay.liveness import Change, Liveness
from appliance.overlay.peers import Peer, peer_log
from appliance.overlay.post import Post

# Two WireGuard handshakes that cross cost both sides five seconds. So the lower node id speaks
# first inside the tunnel, an initiator once its confirmation had time to arrive; the other waits.
LOWER_WAITS = 0.25
HIGHER_WAITS = 1.5


class Watch:
    """Watches the peers, inside the tunnel if there is one."""

    def __init__(
        self,
        own_id: bytes,
        peers: Mapping[bytes, Peer],
        post: Post,
        random: Callable[[int], bytes],
        *,
        vpn: bool,
    ) -> None:
        self._own_id = own_id
        self._liveness = Liveness(own_id, peers, random)
        self._post = post
        self._vpn = vpn

    def next_timer(self) -> float | None:
        """Return the monotonic time of the next probe."""
        return self._liveness.next_timer()

    def hurry(self, peer: Peer, now: Now, *, ready: bool = False) -> None:
        """Probe a peer soon; ``ready``: it expects us."""
        wait = HIGHER_WAITS if self._own_id > peer.node_id else 0.0 if ready else LOWER_WAITS
        self._liveness.hurry(peer, now.mono, wait)

    def doubt(self, peer: Peer, now: Now, wait: float = 0.0) -> None:
        """Probe a peer that may be gone."""
        self._liveness.doubt(peer, now.mono, wait)

    def received(
        self, got: Proven, probe: wire.Probe, source: Endpoint | None, now: Now
    ) -> tuple[Change, list[events.Action]]:
        """Answer a probe or take note of an answer; ``source`` is None inside the tunnel."""
        peer = got.peer
        if got.kind is wire.Kind.PROBE:
            echo = wire.Probe(self._own_id, probe.token)
            actions = self._send(wire.Kind.ECHO, echo, peer, source, got.epoch, now)
            if not peer.up and not peer.token:
                # The tunnel works, then. Never while an answer is awaited: two that do so for each
                # other would go on for ever.
                peer.probe_at = min(peer.probe_at, now.mono)
            return Change.NONE, actions
        change = self._liveness.answered(peer, probe.token, now.mono)
        if change is not Change.UP:
            return change, []
        message = f"{peer.member.name} answers ({(peer.rtt or 0.0) * 1000:.1f} ms)"
        return change, [peer_log(logging.INFO, message, peer, "peer-up")]

    def due(self, now: Now) -> tuple[list[Peer], list[events.Action]]:
        """Return who is down since now, and the probes that are due."""
        down: list[Peer] = []
        actions: list[events.Action] = []
        for peer, change, probe in self._liveness.due(now.mono):
            if change is Change.DOWN:
                down.append(peer)
                message = f"{peer.member.name} does not answer any more"
                actions.append(peer_log(logging.WARNING, message, peer, "peer-down"))
            keyring = self._post.keyring
            epoch = peer.epoch if peer.epoch in keyring else keyring.current
            actions += self._send(wire.Kind.PROBE, probe, peer, None, epoch, now)
        return down, actions

    def _send(
        self,
        kind: wire.Kind,
        probe: wire.Probe,
        peer: Peer,
        source: Endpoint | None,
        epoch: int,
        now: Now,
    ) -> list[events.Action]:
        message = wire.encode_message(kind, probe)
        if self._vpn:
            return self._post.inside(message, str(peer.ipv6), epoch, now)
        where = source or peer.endpoint
        return self._post.outside(message, where, epoch, now) if where else []
