"""Underlay addresses: what they look like, and which may be used as a way to a member."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from appliance.overlay.errors import WireError

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
PackedEndpoint = tuple[bytes, int]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A UDP endpoint; ``host`` is an address in its canonical text form."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_ipv6(self) -> bool:
        """Say which family it is."""
        return ":" in self.host

    def pack(self) -> PackedEndpoint:
        """Return the form on the wire: 4 or 16 address bytes, port."""
        family = socket.AF_INET6 if self.is_ipv6 else socket.AF_INET
        return socket.inet_pton(family, self.host), self.port


def unpack_endpoint(packed: PackedEndpoint) -> Endpoint:
    """Return the endpoint of its wire form. Raises WireError."""
    address, port = packed
    if len(address) not in {4, 16} or not 0 < port < 65536:
        raise WireError("malformed", "an endpoint has a wrong size")
    family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
    return Endpoint(socket.inet_ntop(family, address), port)


def parse_endpoint(text: str) -> Endpoint | None:
    """Return the endpoint in ``1.2.3.4:5`` or ``[2001:db8::1]:5``; None if it names a host."""
    host, _, port = text.rpartition(":")
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None
    return Endpoint(str(address), int(port))


def is_candidate(host: str, *, own: Collection[str], refused: Iterable[IPNetwork]) -> bool:
    """Say whether an address may lead to another member.

    Not one of our own (under QEMU's user networking every machine is 10.0.2.15), and none inside
    ``refused`` (overlay, pods, services): a tunnel inside itself never works. Link-local IPv6 is
    left out as well, since it means nothing without an interface.
    """
    if host in own:
        return False
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    if (
        address.is_unspecified
        or address.is_loopback
        or address.is_multicast
        or (address.version == 4 and address.is_reserved)
        or (address.version == 6 and (address.is_link_local or address.ipv4_mapped is not None))
    ):
        return False
    return not any(address in network for network in refused if network.version == address.version)
