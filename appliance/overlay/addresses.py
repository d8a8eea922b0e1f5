"""Overlay addresses, derived from the node's identity.

IPv6: a unique local prefix (RFC 4193) from the network id, the rest from the node's key; it cannot
clash. IPv4: from the network's host range, at a place given by node id and an *attempt* number, so
that everybody can check a claim; who of several claimants has it is the ledger's rule
(`appliance.ledger.claims`). Formulas: docs/wire-format.md, "Addresses".
"""

from __future__ import annotations

import hashlib
import ipaddress
import math
import struct

from appliance.overlay.errors import OverlayError

# The highest attempt that a node may claim by.
ATTEMPT_MAX = 2**24
_ULA_LABEL = b"skerry ula v1"
_PODS_LABEL = b"skerry pod ula v1"
_CLAIM_LABEL = b"skerry ipv4 v1"
# Not given away: the network's own address, a gateway's usual place, the broadcast address.
_RESERVED = 3


class AddressesExhaustedError(OverlayError):
    """Every address of the range is taken."""


def ula_prefix(network_id: bytes) -> ipaddress.IPv6Network:
    """Return the network's /48."""
    start = b"\xfd" + hashlib.sha256(_ULA_LABEL + network_id).digest()[:5]
    return ipaddress.IPv6Network((start + bytes(10), 48))


def pods_prefix(network_id: bytes) -> ipaddress.IPv6Network:
    """Return the /48 of all pods; it has nothing in common with the nodes'."""
    start = b"\xfd" + hashlib.sha256(_PODS_LABEL + network_id).digest()[:5]
    return ipaddress.IPv6Network((start + bytes(10), 48))


def ula_address(network_id: bytes, node_key: bytes) -> ipaddress.IPv6Address:
    """Return the IPv6 overlay address of the node with this key."""
    prefix = ula_prefix(network_id).network_address.packed[:6]
    return ipaddress.IPv6Address(prefix + hashlib.sha256(_ULA_LABEL + node_key).digest()[:10])


def usable(host_range: ipaddress.IPv4Network) -> int:
    """Return how many nodes a range has room for."""
    return host_range.num_addresses - _RESERVED


def claimed_address(
    node_id: bytes, attempt: int, host_range: ipaddress.IPv4Network
) -> ipaddress.IPv4Address:
    """Return the address of a node's ``attempt``.

    A node's attempts step through the whole range, in an order of its own, before they repeat.
    """
    size = usable(host_range)
    start, step = struct.unpack(">QQ", hashlib.sha256(_CLAIM_LABEL + node_id).digest()[:16])
    step %= size
    while math.gcd(step, size) != 1:
        step += 1
    place = 2 + (start + attempt * step) % size
    return ipaddress.IPv4Address(int(host_range.network_address) + place)
