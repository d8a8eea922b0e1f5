"""What the overlay shows of itself."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.overlay.config import MTU
from appliance.overlay.peers import Peer
from appliance.overlay.refusals import Refusal
from appliance.problem import Problem
from provisioning.keys import id_text


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """A member as it is now; its id is in base32.

    ``rtt_ms`` and ``handshake_age_s``: None if not known.
    """

    node_id: str
    name: str
    addresses: tuple[str, ...]
    endpoint: str
    path: str
    rtt_ms: float | None
    handshake_age_s: float | None
    up: bool


@dataclass(frozen=True, slots=True)
class RefusalStatus:
    """Somebody who was not let in, and why."""

    cause: str
    detail: str
    who: str
    count: int
    age_s: float


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
    refusals: tuple[RefusalStatus, ...]
    problems: tuple[Problem, ...]
    uplink: str = ""
    mtu: int = MTU
    pod_range: tuple[str, ...] = ()
    no_pods: str = ""


def peer_status(peer: Peer, unix: float) -> PeerStatus:
    """Return how a peer is at a Unix time."""
    own = [str(peer.ipv4)] if peer.ipv4 else []
    return PeerStatus(
        node_id=id_text(peer.node_id),
        name=peer.member.name,
        addresses=(*own, str(peer.ipv6)),
        endpoint=str(peer.endpoint) if peer.endpoint else "",
        path="lan" if peer.up else "",
        rtt_ms=peer.rtt * 1000 if peer.rtt is not None else None,
        handshake_age_s=max(unix - peer.handshake, 0.0) if peer.handshake else None,
        up=peer.up,
    )


def refusal_status(refusal: Refusal, mono: float) -> RefusalStatus:
    """Return a refusal as it is at a monotonic time, whatever the clocks of day say."""
    age = round(max(mono - refusal.at, 0), 1)
    return RefusalStatus(refusal.cause, refusal.detail, refusal.source, refusal.count, age)
