"""Which pod range a node has.

``pod_cidr`` is cut into 2^``node_bits`` equal ranges. Nodes claim them in the ledger as they claim
addresses, by the same rules (`appliance.ledger.claims`): a node gets what its id leads to, keeps it
for life, and everybody comes to the same result. Kubernetes is told (`appliance.cluster.recorded`)
and never asked: pods have a range before there is an API server.

The IPv6 range follows from the IPv4 one, so it needs no claim. Formulas: docs/cluster.md.
"""

from __future__ import annotations

import hashlib
import ipaddress
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache

from appliance.cluster.errors import ClusterError, RangesExhaustedError
from appliance.ledger import claims
from appliance.ledger.claims import RANGE_KIND, Claim, View
from appliance.ledger.state import Replica
from appliance.overlay.addresses import pods_prefix
from appliance.problem import Problem
from provisioning.membership import Member
from provisioning.settings import Settings

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_CLAIM_LABEL = b"skerry pod range v1"
# Not for pods: the network's own address, the gateway, the broadcast address.
_RESERVED = 3
# The pods' /48, and behind it the 32 bits of the IPv4 range's first address.
_IPV6_BITS = 80
_PACKED = 5
_NO_PODS = frozenset({"none"})


@dataclass(frozen=True, slots=True)
class NodeRange:
    """What one node gives its pods; the gateway is the first address of each."""

    ipv4: ipaddress.IPv4Network
    ipv6: ipaddress.IPv6Network

    @property
    def gateways(self) -> tuple[ipaddress.IPv4Address, ipaddress.IPv6Address]:
        """Return the addresses of the node's bridge."""
        return self.ipv4[1], self.ipv6[1]

    @property
    def pods(self) -> int:
        """Return how many pods fit: as many as there are IPv4 addresses for."""
        return self.ipv4.num_addresses - _RESERVED


@dataclass(frozen=True, slots=True)
class RangePlan:
    """The ranges of a network: a `claims.Plan`. They are packed as address and prefix length.

    The settings hold for a network's life: a range of another cut is none of this plan's.
    """

    network_id: bytes
    pod_cidr: ipaddress.IPv4Network
    node_bits: int

    def __post_init__(self) -> None:
        """Refuse a cut that leaves no room for a pod (`Settings` is stricter)."""
        if self.node_bits < 0 or self.prefix > 30:
            raise ClusterError(f"{self.pod_cidr} can't be cut into 2^{self.node_bits} ranges")

    @property
    def prefix(self) -> int:
        """Return the prefix length of a node's range."""
        return self.pod_cidr.prefixlen + self.node_bits

    @property
    def kind(self) -> str:
        """Return the ranges' kind."""
        return RANGE_KIND

    @property
    def places(self) -> int:
        """Return how many nodes there are ranges for."""
        return 1 << self.node_bits

    def at(self, node: bytes, attempt: int) -> bytes:
        """Return the range of a node's attempt: an order of its own through all of them."""
        start, step = _order(node)
        first = self._first((start + attempt * step) % self.places)
        return first.to_bytes(4) + bytes([self.prefix])

    def claim_for(self, node: bytes, wanted: ipaddress.IPv4Network) -> Claim:
        """Return the claim by which a node gets a certain range of this plan."""
        start, step = _order(node)
        attempt = (self.number_of(wanted) - start) * pow(step, -1, self.places) % self.places
        return Claim(node, pack(wanted), attempt)

    def fixable(self, what: bytes) -> bool:
        """Say whether this is one of the ranges."""
        return self.read(what) is not None

    def withheld(self, _what: bytes) -> bool:
        """Say that all ranges are for nodes."""
        return False

    def exhausted(self) -> RangesExhaustedError:
        """Return what to raise when all ranges are claimed."""
        return RangesExhaustedError(
            f"all {self.places} pod ranges of {self.pod_cidr} are claimed: no node more can carry "
            "pods",
            hint="remove nodes that are gone (`skerry node remove`), or make a network with more "
            "node_bits or a larger pod_cidr",
        )

    def numbered(self, number: int) -> ipaddress.IPv4Network:
        """Return a range by its number, counted from the start of ``pod_cidr``."""
        return ipaddress.IPv4Network((self._first(number), self.prefix))

    def number_of(self, one: ipaddress.IPv4Network) -> int:
        """Return the number of a range. Raises ClusterError if it is none of this plan."""
        if not self.has(one):
            raise ClusterError(
                f"{one} is no node's range: they are /{self.prefix} of {self.pod_cidr}"
            )
        return int(one.network_address) - int(self.pod_cidr.network_address) >> 32 - self.prefix

    def has(self, one: Network) -> bool:
        """Say whether this is one of the ranges."""
        return (
            isinstance(one, ipaddress.IPv4Network)
            and one.prefixlen == self.prefix
            and one.subnet_of(self.pod_cidr)
        )

    def around(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bytes | None:
        """Return the packed range that a pod's address is in; None if it is no pod's."""
        if isinstance(address, ipaddress.IPv6Address):
            if address not in pods_prefix(self.network_id):
                return None
            packed = address.packed[6:10] + bytes([self.prefix])
            return packed if self.read(packed) else None
        if address not in self.pod_cidr:
            return None
        return pack(ipaddress.IPv4Network((address, self.prefix), strict=False))

    def read(self, what: bytes) -> ipaddress.IPv4Network | None:
        """Return the range in packed bytes, if it is one of this plan."""
        found = unpack(what)
        return found if found is not None and self.has(found) else None

    def _first(self, number: int) -> int:
        return int(self.pod_cidr.network_address) + (number << 32 - self.prefix)

    def pod_range(self, ipv4: ipaddress.IPv4Network) -> NodeRange:
        """Return a range together with its IPv6 side."""
        return NodeRange(ipv4, ipv6_range(self.network_id, ipv4))


def plan_for(network_id: bytes, settings: Settings) -> RangePlan:
    """Return the plan of a network."""
    return RangePlan(network_id, ipaddress.IPv4Network(settings.pod_cidr), settings.node_bits)


def pack(one: ipaddress.IPv4Network) -> bytes:
    """Return the 5 bytes of a range, as claims and the operator's statements hold it."""
    return one.network_address.packed + bytes([one.prefixlen])


def unpack(what: bytes) -> ipaddress.IPv4Network | None:
    """Return the range that `pack` wrote, or None for any other bytes."""
    if len(what) != _PACKED:
        return None
    try:
        return ipaddress.IPv4Network((what[:4], what[4]))
    except ValueError:
        return None


def ipv6_range(network_id: bytes, ipv4: ipaddress.IPv4Network) -> ipaddress.IPv6Network:
    """Return the /80 that belongs to an IPv4 range: disjoint ones have disjoint ones."""
    prefix = pods_prefix(network_id).network_address.packed[:6]
    return ipaddress.IPv6Network((prefix + ipv4.network_address.packed + bytes(6), _IPV6_BITS))


def _order(node: bytes) -> tuple[int, int]:
    """Return where a node starts, and its step: odd, hence through all of a power of two."""
    start, step = struct.unpack(">QQ", hashlib.sha256(_CLAIM_LABEL + node).digest()[:16])
    return start, step | 1


# Who has which


def carries_pods(member: Member) -> bool:
    """Say whether a member's grant lets it be more than a node of the overlay."""
    return member.roles != _NO_PODS


@dataclass(frozen=True, slots=True)
class Ranges:
    """Who has which range; ``own`` is this node's, ``claim`` what it has to write for it."""

    own: NodeRange | None
    others: Mapping[bytes, NodeRange]
    claim: Claim | None = None
    moved_for: bytes | None = None
    problem: Problem | None = None


def range_view(replica: Replica, plan: RangePlan, now_ms: int) -> View:
    """Return the claims of ranges in the ledger; what is malformed counts for nothing."""
    return claims.view_of(replica, plan, now_ms)


def ranges(
    own: bytes,
    view: View,
    plan: RangePlan,
    members: Collection[bytes],
    *,
    carries: bool = True,
    recorded: ipaddress.IPv4Network | None = None,
) -> Ranges:
    """Return who has which range, and what this node has to claim for its own.

    ``members``: the nodes that may carry pods. Claims of others count for nothing: a removed
    node's range is free. ``carries``: this node wants a range of its own, now.
    A node that has no claim yet goes for the range that Kubernetes has ``recorded`` for it
    (`recorded.Reconciled.adopt`), if it is free.
    """
    inside = {node: one for node, one in view.claims.items() if node in members or node == own}
    fixed = {node: one for node, one in view.fixed.items() if node in members or node == own}
    view = View(inside, view.sightings, fixed)
    others = {node: one for node, one in holders_of(plan, view).items() if node != own}
    if not carries:
        return Ranges(None, others)
    try:
        decision = claims.settle(own, view, plan)
    except RangesExhaustedError as error:
        problem = Problem("pod-ranges-exhausted", str(error), error.hint or "")
        return Ranges(None, others, problem=problem)
    claim = decision.claim
    if claim is not None and own not in inside and own not in fixed and recorded is not None:
        claim = _recorded_claim(own, recorded, view, plan) or claim
    mine = claim or inside.get(own)
    held = None if mine is None else _held_range(plan, mine.what)
    return Ranges(
        held,
        {node: one for node, one in others.items() if one != held},
        claim,
        decision.lost_to,
        _given_twice(own, view, held),
    )


def holders_of(
    plan: RangePlan, view: View, members: Collection[bytes] | None = None
) -> dict[bytes, NodeRange]:
    """Return who holds which range, of those in ``members`` (None: whoever claims)."""
    if members is not None:
        claimed = {node: one for node, one in view.claims.items() if node in members}
        view = View(claimed, view.sightings, view.fixed)
    found = ((node, _held_range(plan, what)) for what, node in view.holders().items())
    return {node: one for node, one in found if one is not None}


@lru_cache(maxsize=4096)
def _held_range(plan: RangePlan, what: bytes) -> NodeRange | None:
    """Remember what is read anew with every change of the ledger."""
    found = plan.read(what)
    return None if found is None else plan.pod_range(found)


def _recorded_claim(
    own: bytes, recorded: ipaddress.IPv4Network, view: View, plan: RangePlan
) -> Claim | None:
    if not plan.has(recorded) or pack(recorded) in claims.taken_from(own, view):
        return None
    return plan.claim_for(own, recorded)


def _given_twice(own: bytes, view: View, held: NodeRange | None) -> Problem | None:
    fixed = view.fixed.get(own)
    if fixed is None or held is None or pack(held.ipv4) == fixed:
        return None
    return Problem(
        "pod-range-given-twice",
        f"{unpack(fixed)} was fixed for this node and for another one, which has it; this node "
        f"has {held.ipv4}",
        "Give one of them another pod range: `skerry node range` on the operator's machine.",
    )
