"""WireGuard's peer table, kept as the core has its peers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from appliance.overlay import events
from appliance.overlay.peers import Peer
from appliance.overlay.visitors import is_visitor

# Peers that WireGuard has from an earlier run and nobody vouched for since are removed after this.
ADOPTION_SECONDS = 90.0
# WireGuard is asked where its peers are and when it last spoke with them.
STATS_SECONDS = 60.0
STATS_SOON = 1.0


@dataclass(slots=True)
class Upkeep:
    """Says what WireGuard's table has to be; without a tunnel it says nothing."""

    peers: Mapping[bytes, Peer]
    vpn: bool
    _prune_at: float | None = None
    _stats_at: float | None = None

    def begin(self, mono: float) -> None:
        """Begin with a table that an earlier run may have left."""
        if self.vpn:
            self._prune_at, self._stats_at = mono + ADOPTION_SECONDS, mono + STATS_SOON

    def look_soon(self, mono: float) -> None:
        """Have the table read soon: something has changed."""
        if self._stats_at is not None:
            self._stats_at = min(self._stats_at, mono + STATS_SOON)

    def next_timer(self) -> float | None:
        """Return the monotonic time at which `due` has something to do."""
        times = [one for one in (self._prune_at, self._stats_at) if one is not None]
        return min(times, default=None)

    def due(self, mono: float) -> list[events.Action]:
        """Return what is due by now."""
        actions: list[events.Action] = []
        if self._stats_at is not None and self._stats_at <= mono:
            self._stats_at = mono + STATS_SECONDS
            actions.append(events.ReadStats())
        if self._prune_at is not None and self._prune_at <= mono:
            self._prune_at = None
            known = frozenset(peer.member.wg_key for peer in self.peers.values())
            actions.append(events.KeepOnlyPeers(known))
        return actions

    def take(self, found: Mapping[bytes, events.TunnelPeer]) -> None:
        """Take note of what the table says."""
        for peer in self.peers.values():
            seen = found.get(peer.member.wg_key)
            if seen is None:
                continue
            peer.handshake = seen.handshake
            if not peer.allowed:
                # It was let send from there by an earlier run.
                peer.allowed = tuple(sorted(seen.allowed))
            # WireGuard follows a member that roams; a member is where its packets come from.
            if seen.endpoint is not None and seen.handshake is not None:
                peer.endpoint = seen.endpoint

    def set(self, changed: list[Peer]) -> list[events.Action]:
        """Return what sets these peers as they are now."""
        if not self.vpn:
            return []
        members = [one for one in changed if not is_visitor(one.member.labels)]
        return [events.SetPeer(one.member.wg_key, one.endpoint, one.allowed) for one in members]

    def remove(self, peer: Peer) -> list[events.Action]:
        """Return what removes a peer and the connections with it."""
        if not self.vpn:
            return []
        places = tuple(dict.fromkeys((f"{peer.ipv6}/128", *peer.allowed)))
        return [events.RemovePeer(peer.member.wg_key), events.FlushConntrack(places)]
