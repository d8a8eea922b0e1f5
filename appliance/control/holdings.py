"""What nodes hold for life: overlay addresses and pod ranges, this node's and those of the others.

The rules are `addressing.places` and `cluster.ranges.ranges`. Both are worked out anew from the
ledger each time; what is remembered here is only since when this node has its range.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from appliance.cluster.ranges import NodeRange, Ranges, carries_pods, plan_for, range_view, ranges
from appliance.control.addressing import Places, Write, places
from appliance.control.api_addresses import api_routes
from appliance.ledger.claims import (
    ADDRESS_KIND,
    RANGE_KIND,
    View,
    address_view,
    claim_value,
)
from appliance.ledger.rules import RANGE
from appliance.ledger.state import Replica
from provisioning.clusters import api_addresses_kept
from provisioning.identity import Identity
from provisioning.keys import id_text
from provisioning.membership import Member

# A node that is new does not know yet what is taken. Pods outlive the mistake of a first second:
# Kubernetes never lets a range that it has recorded be changed. So the node waits until it has
# heard from members, or for a while where there is nobody.
HEARD_SECONDS = 3.0
ALONE_SECONDS = 10.0
# A claim that was just made may still lose against one made at the same time.
STANDS_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Moved:
    """This node leaves what it had to another: in words, and who holds it."""

    what: str
    event: str
    winner: bytes


class Holdings:
    """Who holds what, as of the last `settle`."""

    def __init__(self, identity: Identity, *, vpn: bool) -> None:
        network = identity.network
        self.places = Places(None, {})
        self.ranges = Ranges(None, {})
        self.views: dict[str, View] = {ADDRESS_KIND: View({}), RANGE_KIND: View({})}
        self._own = identity.node_id
        self._carries = carries_pods(identity.member())
        self._vpn = vpn
        self._settings = network.settings
        self._kept = api_addresses_kept(network.settings)
        self._host_range = ipaddress.IPv4Network(network.settings.host_range)
        self._plan = plan_for(network.network_id, network.settings)
        self._carriers: Collection[bytes] = frozenset()
        self._networks: dict[bytes, tuple[str, ...]] = {}
        self._api_routes: dict[bytes, str] = {}
        # When a range may be claimed, None: now; and since when this node has one.
        self._claim_at: float | None = None
        self._met = False
        self._since = float("-inf")

    # When

    def begin(self, mono: float, *, known: bool) -> None:
        """Begin; ``known``: what this node wrote earlier is here, and so what others did."""
        self._claim_at = mono + ALONE_SECONDS if self._carries and not known else None

    def hear(self, mono: float, *, contact: bool) -> bool:
        """Take note of whether anybody answers; true once: the range may be claimed now."""
        if self._claim_at is None:
            return False
        if contact and not self._met:
            self._met = True
            self._claim_at = min(self._claim_at, mono + HEARD_SECONDS)
        if self._claim_at > mono:
            return False
        self._claim_at = None
        return True

    @property
    def due(self) -> float | None:
        """When to call `hear` at the latest; None once the range may be claimed."""
        return self._claim_at

    # What

    def settle(
        self, replica: Replica, members: Collection[Member], *, now_ms: int, mono: float
    ) -> Iterator[Write | Moved]:
        """Work out who holds what; yield what this node has to write for its own."""
        if self._vpn:
            yield from self._settle_places(replica, members, now_ms)
            own = self.places.own
            taken = {*self.places.others.values(), *(() if own is None else (own,))}
            self._api_routes = api_routes(self._settings, members, replica, taken, now_ms)
        yield from self._settle_ranges(replica, members, now_ms, mono)

    def _settle_places(
        self, replica: Replica, members: Collection[Member], now_ms: int
    ) -> Iterator[Write | Moved]:
        view = self.views[ADDRESS_KIND] = address_view(replica, self._host_range, now_ms)
        inside = {one.node_id for one in members}
        found = places(self._own, view, self._host_range, inside, kept=self._kept)
        before, self.places = self.places, found
        if found.write is not None:
            yield found.write
        if found.moved_for is not None and before.own not in {None, found.own}:
            words = f"{before.own}, this node moves to {found.own}"
            yield Moved(words, "address-moved", found.moved_for)

    def _settle_ranges(
        self, replica: Replica, members: Collection[Member], now_ms: int, mono: float
    ) -> Iterator[Write | Moved]:
        view = self.views[RANGE_KIND] = range_view(replica, self._plan, now_ms)
        carriers = self._carriers = {one.node_id for one in members if carries_pods(one)}
        mine = self._own in view.claims
        carries = self._carries and (mine or self._claim_at is None)
        found = ranges(self._own, view, self._plan, carriers, carries=carries)
        before, self.ranges = self.ranges, found
        if found.own != before.own:
            # What was claimed by an earlier run stood for long enough.
            fresh = found.claim is not None or before.own is not None
            self._since = mono if fresh else float("-inf")
        if found.own != before.own or found.others != before.others:
            self._networks = {node: _networks(one) for node, one in found.others.items()}
        if found.claim is not None:
            yield Write(RANGE, id_text(self._own), claim_value(found.claim))
        if found.moved_for is not None and before.own not in {None, found.own}:
            old, new = _words(before.own), _words(found.own)
            yield Moved(f"{old}, this node's pods move to {new}", "range-moved", found.moved_for)

    # What is shown

    @property
    def networks(self) -> Mapping[bytes, tuple[str, ...]]:
        """What is behind each of the others: its pods' networks, and its cluster's API."""
        others = {node: one for node, one in self._api_routes.items() if node != self._own}
        if not others:
            return self._networks
        apis = {node: (*self._networks.get(node, ()), one) for node, one in others.items()}
        return {**self._networks, **apis}

    @property
    def own_networks(self) -> tuple[str, ...]:
        """The networks of this node's pods."""
        return () if self.ranges.own is None else _networks(self.ranges.own)

    def claims(self, members: Collection[bytes]) -> Mapping[str, View]:
        """Return by kind what those who are in claim: what others may bear witness of."""
        inside = {ADDRESS_KIND: members, RANGE_KIND: self._carriers}
        return {
            kind: View({node: one for node, one in view.claims.items() if node in inside[kind]})
            for kind, view in self.views.items()
        }

    def range_of(self, node_id: bytes) -> NodeRange | None:
        """Return a node's range, if it holds one."""
        return self.ranges.own if node_id == self._own else self.ranges.others.get(node_id)

    def standing_range(self, mono: float) -> NodeRange | None:
        """Return this node's range once it may be given to pods."""
        return self.ranges.own if mono >= self._since + STANDS_SECONDS else None


def _networks(one: NodeRange) -> tuple[str, ...]:
    return str(one.ipv4), str(one.ipv6)


def _words(one: NodeRange | None) -> str:
    return "none" if one is None else str(one.ipv4)
