"""What nodes say of the services they offer: bucket ``service`` of the ledger.

``{NODE}/{NAME}/{PROTOCOL}``: the name is what it is reached by, and several nodes may offer one
name. An offer carries no address: it is the node's own overlay address, which nobody else can
claim. Read strictly; what is malformed counts for nothing.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

import msgspec

from appliance.ledger.assigned import read_id
from appliance.ledger.said import Said
from provisioning import codec
from provisioning.errors import FormatError
from provisioning.keys import id_text
from provisioning.names import is_name

BUCKET = "service"
VERSION = 1
VALUE_MAX = 64
LEASE_SECONDS = 600
# Where services are reached: a range for tests of networks (RFC 2544) that the Internet does not
# carry. On every node all of it is local.
SERVICE_RANGE = ipaddress.IPv4Network("198.19.0.0/16")
_ADDRESS_LABEL = b"skerry service address v1"


class Protocol(Enum):
    """What a service speaks."""

    TCP = "tcp"
    UDP = "udp"


class OfferValue(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An offer as it is signed: the port on the node, and whether the service answers."""

    version: int
    port: int
    healthy: bool


@dataclass(frozen=True, slots=True, order=True)
class Offer:
    """A node's offer of a service."""

    name: str
    protocol: str
    node: bytes
    port: int
    healthy: bool

    @property
    def key(self) -> str:
        """Its key in the bucket."""
        return f"{id_text(self.node)}/{self.name}/{self.protocol}"

    @property
    def value(self) -> bytes:
        """Its value."""
        return codec.encode(OfferValue(VERSION, self.port, self.healthy))


def is_port(port: int) -> bool:
    """Say whether it is a port that a service may have."""
    return 0 < port < 65536


def read(said: Iterable[Said]) -> tuple[Offer, ...]:
    """Return the well-formed offers, in order."""
    return tuple(sorted(one for one in map(_read, said) if one is not None))


def _read(said: Said) -> Offer | None:
    node, _, rest = said.key.partition("/")
    name, _, protocol = rest.partition("/")
    known = protocol in {one.value for one in Protocol}
    if read_id(node) != said.owner or not known or not is_name(name):
        return None
    try:
        value = codec.decode(said.value, OfferValue, limit=VALUE_MAX)
    except FormatError:
        return None
    if value.version != VERSION or not is_port(value.port):
        return None
    return Offer(name, protocol, said.owner, value.port, value.healthy)


def service_address(network_id: bytes, name: str) -> ipaddress.IPv4Address:
    """Return where a service is reached on every node of a network; its name alone decides.

    Two names may have one address: 1 in 65,534 each, and then a node reaches one of them only.
    """
    drawn = hashlib.sha256(_ADDRESS_LABEL + network_id + name.encode()).digest()[:8]
    return SERVICE_RANGE[1 + int.from_bytes(drawn) % (SERVICE_RANGE.num_addresses - 2)]
