"""Which members answer: probes, sealed like everything, inside the tunnel if there is one.

The inside of the tunnel is what counts: a path may look fine from outside while nothing passes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from appliance.overlay import wire
from appliance.overlay.peers import Peer

PROBE_SECONDS = 10.0
# Of a member that answers: with many of them, so seldom that their number costs nothing. Who is
# suspected of being gone is probed at once (`doubt`).
PROBE_SECONDS_PER_PEER = 5.0
PROBE_DOWN_SECONDS = 60.0
# A member that was just accepted is probed faster until it answers.
PROBE_FIRST_SECONDS = (0.3, 0.5, 1.0, 2.0, 5.0)
MISSES_MAX = 3
# An answer to one of that many probes before the last one counts too: a busy machine is slow.
OLDER_TOKENS = 4


class Change(Enum):
    """What became of a member."""

    NONE = "none"
    UP = "up"
    DOWN = "down"


@dataclass(slots=True)
class Liveness:
    """Probes the peers; times are seconds of the monotonic clock."""

    own_id: bytes
    peers: Mapping[bytes, Peer]
    random: Callable[[int], bytes]

    def next_timer(self) -> float | None:
        """Return when the next probe is due."""
        return min((peer.probe_at for peer in self.peers.values()), default=None)

    def hurry(self, peer: Peer, now: float, wait: float) -> None:
        """Probe a peer after ``wait``, and quickly until it answers."""
        peer.hurry, peer.misses, peer.token, peer.older_tokens = 0, 0, b"", ()
        peer.probe_at = now + wait

    def doubt(self, peer: Peer, now: float, wait: float) -> None:
        """Probe a peer after ``wait``; if it does not answer that one, it is down."""
        if peer.token and peer.misses >= MISSES_MAX - 1:
            return  # it is doubted already
        peer.hurry, peer.misses, peer.token, peer.older_tokens = 0, MISSES_MAX - 1, b"", ()
        peer.probe_at = now + wait

    def due(self, now: float) -> list[tuple[Peer, Change, wire.Probe]]:
        """Return the probes to send now, and what their absence of answers so far means."""
        found = []
        for peer in self.peers.values():
            if peer.probe_at <= now:
                change = self._judge(peer)
                self._plan(peer, now)
                if peer.token:
                    older = (peer.token, peer.token_sent), *peer.older_tokens
                    peer.older_tokens = older[:OLDER_TOKENS]
                peer.token, peer.token_sent = self.random(wire.PROBE_TOKEN_SIZE), now
                found.append((peer, change, wire.Probe(self.own_id, peer.token)))
        return found

    def answered(self, peer: Peer, token: bytes, now: float) -> Change:
        """Note an answer; an unknown token changes nothing."""
        waiting = (peer.token, peer.token_sent), *peer.older_tokens
        sent = next((at for one, at in waiting if one and one == token), None)
        if sent is None:
            return Change.NONE
        peer.rtt, peer.token, peer.older_tokens, peer.misses = now - sent, b"", (), 0
        if peer.up:
            return Change.NONE
        peer.up = True
        self._plan(peer, now)
        return Change.UP

    @staticmethod
    def _judge(peer: Peer) -> Change:
        if peer.token:
            peer.misses += 1
        if not peer.up or peer.misses < MISSES_MAX:
            return Change.NONE
        peer.up, peer.rtt = False, None
        return Change.DOWN

    def _plan(self, peer: Peer, now: float) -> None:
        urgent = peer.misses or not peer.up
        if urgent and peer.hurry < len(PROBE_FIRST_SECONDS):
            peer.probe_at = now + PROBE_FIRST_SECONDS[peer.hurry]
            peer.hurry += 1
            return
        # On whole multiples, so that all peers share one wake-up.
        every = PROBE_DOWN_SECONDS
        if peer.up:
            every = max(PROBE_SECONDS, PROBE_SECONDS_PER_PEER * len(self.peers))
        peer.probe_at = (now // every + 1) * every
