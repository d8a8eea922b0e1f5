"""What is ours among all names and addresses. Light: root units load it at every start."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Sequence
from dataclasses import dataclass

from skerry.errors import SkerryError

DOMAIN = "skerry.internal"
# Where the node answers: not 127.0.0.53 and .54, which are systemd-resolved's.
HOST = "127.0.0.153"


class NamesError(SkerryError):
    """Members' names can't be served."""


@dataclass(frozen=True, slots=True)
class Ranges:
    """The addresses of one network: its host range and its ULA prefix."""

    ipv4: ipaddress.IPv4Network
    ipv6: ipaddress.IPv6Network

    def reverse_zones(self) -> tuple[str, ...]:
        """Return the names of the zones in which the addresses are looked up.

        A zone ends at an octet (IPv4, RFC 1035, 3.5) or a nibble (IPv6, RFC 3596, 2.5); a range
        that does not is several zones, 128 at most.
        """
        octets = math.ceil(self.ipv4.prefixlen / 8)
        four = (
            _joined(str(one.network_address).split(".")[:octets], "in-addr")
            for one in self.ipv4.subnets(new_prefix=octets * 8)
        )
        nibbles = math.ceil(self.ipv6.prefixlen / 4)
        six = (
            _joined(one.network_address.packed.hex()[:nibbles], "ip6")
            for one in self.ipv6.subnets(new_prefix=nibbles * 4)
        )
        return (*four, *six)


def _joined(parts: Sequence[str], tree: str) -> str:
    return ".".join((*reversed(parts), tree, "arpa"))
