"""What the overlay shows of itself."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.overlay.config import MTU
from appliance.overlay.peers import Peer
from appliance.overlay.refusals import Refusal
from appliance.problem import Problem


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """A member as it is now. ``rtt_ms`` and ``handshake_age_s``: None if not known."""

    node_id: bytes
    name: str
    addresses: tuple[str, ...]
    endpoint: str
    path: str
    rtt_ms: float | None
    handshake_age_s: float | None
    up: bool


@dataclass(frozen=True, slots=True)
class OverlayStatus:
    """The overlay as it is now; ``mode`` is ``kernel``, ``userspace`` or ``off``.

    ``uplink``: the first interface that leads to members; ``mtu``: of what carries pods' packets.
    ``pod_range``: IPv4 and IPv6, once pods may have it; ``no_pods``: why there can be none.
    """

    interface: str
    mode: str
    addresses: tuple[str, ...]
    listen_port: int
    peers: tuple[PeerStatus, ...]
    refusals: tuple[Refusal, ...]
    problems: tuple[Problem, ...]
    uplink: str = ""
    mtu: int = MTU
    pod_range: tuple[str, ...] = ()
    no_pods: str = ""


def peer_status(peer: Peer, unix: float) -> PeerStatus:
    """Return how a peer is at a Unix time."""
    own = [str(peer.ipv4)] if peer.ipv4 else []
    return PeerStatus(
        node_id=peer.node_id,
        name=peer.member.name,
        addresses=(*own, str(peer.ipv6)),
        endpoint=str(peer.endpoint) if peer.endpoint else "",
        path="lan" if peer.up else "",
        rtt_ms=peer.rtt * 1000 if peer.rtt is not None else None,
        handshake_age_s=max(unix - peer.handshake, 0.0) if peer.handshake else None,
        up=peer.up,
    )
