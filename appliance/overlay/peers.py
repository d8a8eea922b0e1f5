"""What the core knows of a member, and how it is remembered."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from appliance.overlay import addresses
from appliance.overlay.endpoint import Endpoint, PackedEndpoint, unpack_endpoint
from appliance.overlay.errors import WireError
from appliance.overlay.events import Log
from appliance.overlay.wire import CANDIDATES_MAX
from provisioning import codec
from provisioning.errors import FormatError
from provisioning.identity import Identity
from provisioning.keys import id_text
from provisioning.membership import CertificateError, Member, verify_certificate
from provisioning.network import NetworkInfo

RECORD_VERSION = 1
RECORD_LIMIT = 8192
PEER_PREFIX = "overlay/peer/"


class PeerRecord(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How a peer is kept in the store."""

    version: int
    certificate: bytes
    endpoints: tuple[PackedEndpoint, ...]


@dataclass(slots=True)
class Peer:
    """A member. Times are seconds of the monotonic clock, `handshake` Unix seconds."""

    member: Member
    certificate: bytes
    ipv6: ipaddress.IPv6Address
    ipv4: ipaddress.IPv4Address | None = None
    endpoint: Endpoint | None = None
    candidates: tuple[Endpoint, ...] = ()
    boot: bytes = b""
    serial: int = 0
    accepted_at: float = float("-inf")
    handshake: float | None = None
    # Probing: the token on its way, when the next one goes out.
    token: bytes = b""
    token_sent: float = 0.0
    # Tokens before it that are not answered, and when they were sent: answers may be slow.
    older_tokens: tuple[tuple[bytes, float], ...] = ()
    misses: int = 0
    hurry: int = 0
    probe_at: float = 0.0
    up: bool = False
    rtt: float | None = None
    allowed: tuple[str, ...] = ()
    # The networks of its pods.
    prefixes: tuple[str, ...] = ()
    # The latest epoch in which it is known to speak; -1: not known.
    epoch: int = -1
    behind_said: float = float("-inf")
    greeted: float = float("-inf")
    # Nobody answered at its endpoint lately.
    silent: bool = False

    @property
    def node_id(self) -> bytes:
        """The member's id."""
        return self.member.node_id

    @property
    def store_key(self) -> str:
        """Where it is remembered."""
        return PEER_PREFIX + id_text(self.node_id)

    def locate(self, source: Endpoint, listed: tuple[Endpoint, ...]) -> None:
        """Decide where it is: a path that works is kept as long as the member has it."""
        if not (self.up and self.endpoint in listed):
            self.endpoint = source
        self.candidates = (source, *(one for one in listed if one != source))

    def record(self) -> bytes:
        """Return the form in the store."""
        known = [self.endpoint] if self.endpoint else []
        known += [one for one in self.candidates if one != self.endpoint]
        return codec.encode(
            PeerRecord(
                RECORD_VERSION,
                self.certificate,
                tuple(one.pack() for one in known[: CANDIDATES_MAX + 1]),
            )
        )


def peer_from_record(data: bytes, network: NetworkInfo) -> Peer | None:
    """Return the remembered peer; None for a record that is damaged or of another network.

    Who was let in stays in, whatever its grant's expiry.
    """
    try:
        record = codec.decode(data, PeerRecord, limit=RECORD_LIMIT)
        if record.version != RECORD_VERSION:
            return None
        member = verify_certificate(
            record.certificate, network=network, now=0, admitted=lambda _: True
        )
        endpoints = tuple(unpack_endpoint(one) for one in record.endpoints)
    except (FormatError, CertificateError, WireError):
        return None
    return Peer(
        member,
        record.certificate,
        addresses.ula_address(network.network_id, member.node_key),
        endpoint=endpoints[0] if endpoints else None,
        candidates=endpoints,
    )


def load_peers(remembered: Mapping[str, bytes], identity: Identity) -> dict[bytes, Peer]:
    """Return the remembered peers by node id; of two with one WireGuard key the first."""
    peers: dict[bytes, Peer] = {}
    for key, value in remembered.items():
        if not key.startswith(PEER_PREFIX):
            continue
        peer = peer_from_record(value, identity.network)
        if peer is not None and owner_of(peer.member.wg_key, identity.member(), peers) is None:
            peers[peer.node_id] = peer
    return peers


def owner_of(wg_key: bytes, own: Member, peers: Mapping[bytes, Peer]) -> bytes | None:
    """Return the node that a WireGuard key belongs to, as far as it is known."""
    if wg_key == own.wg_key:
        return own.node_id
    return next((one.node_id for one in peers.values() if one.member.wg_key == wg_key), None)


def fall_silent(peers: Iterable[Peer], endpoint: Endpoint) -> int:
    """Note that nobody answers at an endpoint; return for how many peers that is news."""
    found = [one for one in peers if one.endpoint == endpoint and not one.up and not one.silent]
    for one in found:
        one.silent = True
    return len(found)


def peer_log(level: int, message: str, peer: Peer, event: str) -> Log:
    """Return a log line about a peer."""
    fields = {
        "event": event,
        "peer": id_text(peer.node_id),
        "peer_name": peer.member.name,
        "endpoint": str(peer.endpoint) if peer.endpoint else "",
    }
    return Log(level, message, fields)
