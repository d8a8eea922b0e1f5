"""Which overlay addresses and networks this node and its peers have: the ledger decides."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from appliance.overlay import events
from appliance.overlay.peers import Peer


@dataclass(slots=True)
class AddressPlan:
    """Who has which address, and so from which WireGuard may hear a peer.

    The IPv6 addresses follow from the keys. Nobody has an IPv4 address before it is assigned.
    """

    ipv6: ipaddress.IPv6Address
    peers: Mapping[bytes, Peer]
    ipv4: ipaddress.IPv4Address | None = None
    _others: Mapping[bytes, ipaddress.IPv4Address] = field(default_factory=dict)
    _networks: Mapping[bytes, tuple[str, ...]] = field(default_factory=dict)
    _own_networks: tuple[str, ...] = ()

    def assign(
        self,
        own: ipaddress.IPv4Address | None,
        others: Mapping[bytes, ipaddress.IPv4Address],
        own_networks: tuple[str, ...] = (),
        networks: Mapping[bytes, tuple[str, ...]] = MappingProxyType({}),
    ) -> bool:
        """Take up IPv4 addresses and networks, others' by node id; say if our own have changed."""
        changed = (own, own_networks) != (self.ipv4, self._own_networks)
        self.ipv4, self._others = own, dict(others)
        self._own_networks, self._networks = own_networks, networks
        return changed

    def own(self) -> events.SetAddresses:
        """Return what gives the interface its addresses."""
        return events.SetAddresses(self.ipv4, self.ipv6, self._own_networks)

    def update(self) -> list[Peer]:
        """Update the addresses of each peer; return those that may now send from others."""
        changed = []
        for peer in self.peers.values():
            peer.ipv4 = self._others.get(peer.node_id)
            peer.prefixes = self._networks.get(peer.node_id, ())
            allowed = [f"{peer.ipv6}/128", *peer.prefixes]
            if peer.ipv4 is not None and peer.ipv4 != self.ipv4:
                allowed.insert(0, f"{peer.ipv4}/32")
            if tuple(allowed) != peer.allowed:
                peer.allowed = tuple(allowed)
                changed.append(peer)
        return changed
