"""What the core is fed, and what it wants done."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass

from appliance.overlay.endpoint import Endpoint

# Events


@dataclass(frozen=True, slots=True)
class DatagramReceived:
    """A datagram came in on the control socket."""

    data: bytes
    source: Endpoint


@dataclass(frozen=True, slots=True)
class ProbeReceived:
    """A datagram came in through the tunnel, from an IPv6 overlay address."""

    data: bytes
    source: str


@dataclass(frozen=True, slots=True)
class Discovered:
    """A member may be at these endpoints; empty: no longer. ``wait`` seconds before trying.

    ``epoch``: under whose names it was found; None: the current one. ``node_id``: who it is, if
    that is known: then nobody is greeted there while that member is up.
    """

    key: str
    endpoints: tuple[Endpoint, ...]
    wait: float = 0.0
    epoch: int | None = None
    node_id: bytes | None = None


@dataclass(frozen=True, slots=True)
class LocalAddresses:
    """The node's own underlay addresses, as they are now."""

    hosts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TunnelPeer:
    """What WireGuard says of a peer; ``handshake`` is Unix seconds, None: never.

    ``allowed``: the networks that it may send from.
    """

    endpoint: Endpoint | None
    handshake: float | None
    received: int
    sent: int
    allowed: frozenset[str]


@dataclass(frozen=True, slots=True)
class TunnelStats:
    """WireGuard's peers by public key."""

    peers: Mapping[bytes, TunnelPeer]


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = DatagramReceived | ProbeReceived | Discovered | LocalAddresses | TunnelStats | Tick

# Actions


@dataclass(frozen=True, slots=True)
class Send:
    """Send a datagram from the control socket."""

    data: bytes
    destination: Endpoint


@dataclass(frozen=True, slots=True)
class SendInside:
    """Send a datagram through the tunnel to an IPv6 overlay address."""

    data: bytes
    destination: str


@dataclass(frozen=True, slots=True)
class SetPeer:
    """Make WireGuard's peer be like this; no endpoint: leave the one it has."""

    key: bytes
    endpoint: Endpoint | None
    allowed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class KeepOnlyPeers:
    """Remove WireGuard's peers with any other key."""

    keys: frozenset[bytes]


@dataclass(frozen=True, slots=True)
class SetAddresses:
    """Make the interface's addresses be these.

    ``networks``: behind this node itself, so that nothing for them goes into the tunnel.
    """

    ipv4: ipaddress.IPv4Address | None
    ipv6: ipaddress.IPv6Address
    networks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ReadStats:
    """Feed back TunnelStats."""


@dataclass(frozen=True, slots=True)
class Remember:
    """Keep a value in the node's store; None forgets it."""

    key: str
    value: bytes | None


@dataclass(frozen=True, slots=True)
class Log:
    """Write a log line; ``fields`` are for machines."""

    level: int
    message: str
    fields: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class RemovePeer:
    """Remove WireGuard's peer before anything else, and forget what was still to be set for it."""

    key: bytes


@dataclass(frozen=True, slots=True)
class FlushConntrack:
    """Forget the connections from and to these overlay addresses or networks."""

    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Broadcast:
    """Send a datagram to everybody on the uplinks, to the control port."""

    data: bytes


@dataclass(frozen=True, slots=True)
class EpochsChanged:
    """The core's keyring has changed: announce the node under its names from now on."""


@dataclass(frozen=True, slots=True)
class Other:
    """What something around the core wants done: the edge hands it on (`Overlay.perform_other`)."""


# What the core tells its owner


@dataclass(frozen=True, slots=True)
class Delivered:
    """A member sent this by `Core.carry`."""

    peer: bytes
    data: bytes


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """A member sent this by `Core.catch_up`."""

    peer: bytes
    data: bytes


@dataclass(frozen=True, slots=True)
class Behind:
    """A member spoke in an epoch before ours: it lacks the newer secrets."""

    peer: bytes
    epoch: int


@dataclass(frozen=True, slots=True)
class RefusedBy:
    """A member said, signed, that it does not let this node in."""

    node_id: bytes
    name: str
    cause: str
    detail: str


@dataclass(frozen=True, slots=True)
class TimeTold:
    """A member said, signed and just now, what its clock shows; `timekeeper.Quality` of it."""

    node_id: bytes
    ms: int
    quality: int


Action = (
    Send
    | SendInside
    | SetPeer
    | RemovePeer
    | KeepOnlyPeers
    | FlushConntrack
    | SetAddresses
    | ReadStats
    | Remember
    | Broadcast
    | EpochsChanged
    | Log
    | Delivered
    | CaughtUp
    | Behind
    | RefusedBy
    | TimeTold
    | Other
)
