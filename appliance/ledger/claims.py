"""Who has what, when several claim it: addresses, pod ranges, places under a grant's count.

A claim's own stamp proves nothing: a clock that is behind, or lies, would win every contest. So
claims rank by what *others* say: up to WITNESSES members write down that they have seen a claim
uncontested, and the earliest of these stamps is the claim's age. A witness without a clock
(GUESSED) counts after those with one; a claim without witnesses counts last; ties go to the lower
node id. The rank is a function of the ledger's entries alone, hence the same on every node that
has them. One member alone, whatever its clock, can take an address in use from nobody; two that
conspire can, and are to be revoked.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import Protocol
from weakref import WeakKeyDictionary

import msgspec

from appliance.ledger.rules import ADDRESS, ASSIGNED, RANGE, WITNESS
from appliance.ledger.state import Change, Replica
from appliance.ledger.timekeeper import Quality
from appliance.overlay.addresses import (
    ATTEMPT_MAX,
    AddressesExhaustedError,
    claimed_address,
    usable,
)
from provisioning import codec
from provisioning.errors import FormatError
from provisioning.keys import ID_SIZE, id_text
from provisioning.membership import Member
from skerry.errors import SkerryError

WITNESSES = 3
# A kind that nodes claim has the name of its bucket, and of the root key's statement about it.
ADDRESS_KIND = ADDRESS
RANGE_KIND = RANGE
GRANT_KIND = "grant"
_VALUE_MAX = 64
_WITNESS_LABEL = b"skerry witness v1"

Rank = tuple[int, int, int, bytes]
# No claim ranks below it.
BEST_RANK: Rank = (0, 0, 0, b"")


class ClaimValue(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A node's claim; ``attempt`` is None for one that the operator fixed."""

    attempt: int | None
    what: bytes


class WitnessValue(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a witness has seen claimed, and how good its clock was."""

    what: bytes
    quality: int


@dataclass(frozen=True, slots=True)
class Claim:
    """A node wants ``what``: a packed IPv4 address, a packed pod range, or a grant's id."""

    node: bytes
    what: bytes
    attempt: int | None = None


@dataclass(frozen=True, slots=True, order=True)
class Sighting:
    """When a claim was seen by another; the lower, the better."""

    guessed: bool
    stamp: int


@dataclass(frozen=True, slots=True)
class View:
    """What the ledger says about claims of one kind.

    ``sightings`` is by claimant and claimed thing, the best of its witnesses; ``fixed`` are the
    operator's words (not for grants).
    """

    claims: Mapping[bytes, Claim]
    sightings: Mapping[tuple[bytes, bytes], Sighting] = field(default_factory=dict)
    fixed: Mapping[bytes, bytes] = field(default_factory=dict)

    def rank(self, claim: Claim) -> Rank:
        """Return a claim's rank; the lowest one holds."""
        fixed = 0 if self.fixed.get(claim.node) == claim.what else 1
        seen = self.sightings.get((claim.node, claim.what))
        if seen is None:
            return fixed, 2, 0, claim.node
        return fixed, int(seen.guessed), seen.stamp, claim.node

    def holders(self) -> dict[bytes, bytes]:
        """Return the node that holds each claimed thing."""
        best: dict[bytes, Claim] = {}
        for claim in self.claims.values():
            rival = best.get(claim.what)
            if rival is None or self.rank(claim) < self.rank(rival):
                best[claim.what] = claim
        return {what: claim.node for what, claim in best.items()}

    def contested(self) -> dict[bytes, tuple[bytes, ...]]:
        """Return what more than one node claims, and who, the holder first."""
        found: dict[bytes, list[Claim]] = {}
        for claim in self.claims.values():
            found.setdefault(claim.what, []).append(claim)
        return {
            what: tuple(one.node for one in sorted(rivals, key=self.rank))
            for what, rivals in found.items()
            if len(rivals) > 1
        }


# What a node claims for life: an address, a pod range


class Plan(Protocol):
    """What there is of one kind, and which of it a node may claim at which attempt.

    Equal plans are one: a frozen dataclass.
    """

    def __hash__(self) -> int: ...

    @property
    def kind(self) -> str:
        """The bucket of the claims; also in witnesses' keys and the root key's statements."""

    @property
    def places(self) -> int:
        """How many nodes there is enough for."""

    def at(self, node: bytes, attempt: int) -> bytes:
        """Return what a node may claim; its first ``places`` attempts lead to everything."""

    def fixable(self, what: bytes) -> bool:
        """Say whether the operator can give this to a node."""

    def withheld(self, what: bytes) -> bool:
        """Say whether no node is to begin to claim this; who has it by now keeps it."""

    def exhausted(self) -> SkerryError:
        """Return what to raise when everything is claimed."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """The plan of the nodes' IPv4 overlay addresses.

    ``kept``: so many behind the range's first are for the APIs of clusters
    (`provisioning.clusters`). Networks had nodes there before they were: these stay.
    """

    host_range: ipaddress.IPv4Network
    kept: int = 1

    @property
    def kind(self) -> str:
        """Return the addresses' kind."""
        return ADDRESS_KIND

    @property
    def places(self) -> int:
        """Return how many addresses there are."""
        return usable(self.host_range)

    def at(self, node: bytes, attempt: int) -> bytes:
        """Return the address of a node's attempt, packed."""
        return claimed_address(node, attempt, self.host_range).packed

    def fixable(self, what: bytes) -> bool:
        """Say whether this is an address of the range that may be given away."""
        return in_range(what, self.host_range)

    def withheld(self, what: bytes) -> bool:
        """Say whether this is one of the APIs' addresses."""
        return 1 <= int.from_bytes(what) - int(self.host_range.network_address) <= self.kept

    def exhausted(self) -> AddressesExhaustedError:
        """Return what to raise when all addresses are claimed."""
        return AddressesExhaustedError(
            f"all {self.places + 1 - self.kept} addresses of {self.host_range} are claimed",
            hint="remove nodes that are gone (`skerry node remove`), or make a network with a "
            "larger host_range; this node is reachable by its IPv6 overlay address meanwhile",
        )


@dataclass(frozen=True, slots=True)
class Decision:
    """What a node should claim now, None for what it claims already; and why it moves."""

    claim: Claim | None
    lost_to: bytes | None = None


def decide(own: bytes, view: View, host_range: ipaddress.IPv4Network, *, kept: int = 1) -> Decision:
    """Return what to do about this node's address.

    :raises AddressesExhaustedError: every address is taken.
    """
    return settle(own, view, Addresses(host_range, kept))


def settle(own: bytes, view: View, plan: Plan) -> Decision:
    """Return what a node should claim of a plan: it keeps what it has unless it is outranked.

    :raises SkerryError: everything is taken (`Plan.exhausted`).
    """
    mine = view.claims.get(own)
    fixed = view.fixed.get(own)
    rival = None if fixed is None else _given_twice(own, fixed, view)
    if fixed is not None and rival is None:
        keep = mine is not None and mine.what == fixed
        return Decision(None if keep else Claim(own, fixed))
    if mine is not None:
        if _acceptable(mine, view, plan):
            holder = view.holders()[mine.what]
            if holder == own:
                return Decision(None)
            return Decision(_next_free(own, (mine.attempt or 0) + 1, view, plan), holder)
        fixed_for = next((node for node, one in view.fixed.items() if one == mine.what), None)
        attempt = 0 if mine.attempt is None else mine.attempt + 1
        return Decision(_next_free(own, attempt, view, plan), rival or fixed_for)
    return Decision(_next_free(own, 0, view, plan))


def _given_twice(own: bytes, fixed: bytes, view: View) -> bytes | None:
    """Return who has what the operator fixed for this node, by mistake for it too."""
    rank = view.rank(Claim(own, fixed))
    rivals = (
        one
        for one in view.claims.values()
        if one.node != own and one.what == fixed and view.fixed.get(one.node) == fixed
    )
    return next((one.node for one in rivals if view.rank(one) < rank), None)


def is_derived(claim: Claim, plan: Plan) -> bool:
    """Say whether a claim is for what its node may try at that attempt.

    So nobody can go for a certain one: a node gets what its id leads to.
    """
    return claim.attempt is not None and _derived(claim, claim.attempt, plan)


@lru_cache(maxsize=8192)
def _derived(claim: Claim, attempt: int, plan: Plan) -> bool:
    return plan.at(claim.node, attempt) == claim.what


def _acceptable(claim: Claim, view: View, plan: Plan) -> bool:
    others = (one for node, one in view.fixed.items() if node != claim.node)
    return is_derived(claim, plan) and claim.what not in others


def taken_from(own: bytes, view: View) -> frozenset[bytes]:
    """Return what others claim, or were given by the operator."""
    given = (one for node, one in view.fixed.items() if node != own)
    return frozenset(one.what for node, one in view.claims.items() if node != own).union(given)


def _next_free(own: bytes, attempt: int, view: View, plan: Plan) -> Claim:
    taken, places = taken_from(own, view), plan.places
    if len(taken) < places:
        for one in range(attempt, min(attempt + places, ATTEMPT_MAX)):
            what = plan.at(own, one)
            if what not in taken and not plan.withheld(what):
                return Claim(own, what, one)
    raise plan.exhausted()


# Witnesses


def is_witness(own: bytes, claimant: bytes, alive: Iterable[bytes]) -> bool:
    """Say whether this node is one of those that write down what ``claimant`` claims.

    By rendezvous hashing among the members thought alive: few do, and not always the same.
    """
    if own == claimant:
        return False

    def score(node: bytes) -> bytes:
        return hashlib.sha256(_WITNESS_LABEL + claimant + node).digest()

    mine = score(own)
    better = (one for one in alive if one not in {own, claimant} and score(one) < mine)
    # Most are far down: a few hashes show that, however many members there are.
    return len(list(islice(better, WITNESSES))) < WITNESSES


def bears_witness(claim: Claim, view: View, said: bytes | None) -> bool:
    """Say whether a witness that ``said`` (None: nothing yet) should write this claim down now.

    Never while it is contested: then the rank that is there decides.
    """
    if said == claim.what:
        return False
    return all(
        other.node == claim.node or other.what != claim.what for other in view.claims.values()
    )


# Grants


def admitted(view: View, grant_id: bytes, count: int | None) -> frozenset[bytes]:
    """Return the nodes that are in under a grant that is good for ``count`` (None: any number)."""
    claims = sorted((one for one in view.claims.values() if one.what == grant_id), key=view.rank)
    return frozenset(one.node for one in (claims if count is None else claims[:count]))


def grant_view(replica: Replica, members: Iterable[Member]) -> View:
    """Return the view of the grants that members came in under."""
    claims = {one.node_id: Claim(one.node_id, one.grant_id) for one in members}
    return View(claims, said_of(replica).best(GRANT_KIND))


# In the ledger


class Said:
    """What claimants and witnesses say, kept up with a replica (`said_of`).

    What is malformed counts for nothing. A network of n members has some 6 n sightings: they are
    read once each, not with every change.
    """

    def __init__(self, replica: Replica) -> None:
        # By kind and node; each kind has a bucket of its own.
        self._claims: dict[str, dict[bytes, Claim]] = {ADDRESS_KIND: {}, RANGE_KIND: {}}
        # Whom each member says to have seen come in.
        self.saw: dict[bytes, set[bytes]] = {}
        self._seen: dict[str, dict[tuple[bytes, bytes], dict[bytes, Sighting]]] = {}
        self._best: dict[str, dict[tuple[bytes, bytes], Sighting]] = {}
        for kind in self._claims:
            replica.follow(kind, self._claim)
        replica.follow(WITNESS, self._witness)

    @property
    def claims(self) -> Mapping[bytes, Claim]:
        """Return the claims of addresses by node."""
        return self.claimed(ADDRESS_KIND)

    def claimed(self, kind: str) -> Mapping[bytes, Claim]:
        """Return the well-formed claims of a kind by node, whatever they are for."""
        return self._claims[kind]

    def witnesses(self, kind: str, claim: Claim) -> Collection[bytes]:
        """Return who says to have seen a claim."""
        return self._seen.get(kind, {}).get((claim.node, claim.what), {}).keys()

    def best(self, kind: str) -> dict[tuple[bytes, bytes], Sighting]:
        """Return the best sighting by claimant and what was claimed."""
        return dict(self._best.get(kind, {}))

    def _claim(self, change: Change) -> None:
        entry = change.entry
        claims = self._claims[entry.bucket]
        claims.pop(entry.owner, None)
        if change.new is None or entry.deleted:
            return
        try:
            value = codec.decode(entry.value, ClaimValue, limit=_VALUE_MAX)
        except FormatError:
            return
        if value.attempt is None or 0 <= value.attempt <= ATTEMPT_MAX:
            claims[entry.owner] = Claim(entry.owner, value.what, value.attempt)

    def _witness(self, change: Change) -> None:
        entry, here = change.entry, change.new is not None
        parts = entry.key.split("/")
        claimant = _id_of(parts[2]) if len(parts) == 3 else None
        if claimant is None or claimant == entry.owner or entry.deleted:
            return
        kind = parts[1]
        if kind == GRANT_KIND:
            saw = self.saw.setdefault(entry.owner, set())
            (saw.add if here else saw.discard)(claimant)
            if not saw:
                del self.saw[entry.owner]
        try:
            value = codec.decode(entry.value, WitnessValue, limit=_VALUE_MAX)
        except FormatError:
            return
        about = claimant, value.what
        seen = self._seen.setdefault(kind, {}).setdefault(about, {})
        if here:
            seen[entry.owner] = Sighting(value.quality <= Quality.GUESSED, entry.stamp)
        else:
            seen.pop(entry.owner, None)
        if seen:
            self._best.setdefault(kind, {})[about] = min(seen.values())
        else:
            del self._seen[kind][about]
            self._best.get(kind, {}).pop(about, None)


_SAID: WeakKeyDictionary[Replica, Said] = WeakKeyDictionary()


def said_of(replica: Replica) -> Said:
    """Return what claimants and witnesses say in a replica; it is kept up from now on."""
    found = _SAID.get(replica)
    if found is None:
        found = _SAID[replica] = Said(replica)
    return found


def address_view(replica: Replica, host_range: ipaddress.IPv4Network, now_ms: int) -> View:
    """Return the claims of addresses in the ledger; what is malformed counts for nothing."""
    return view_of(replica, Addresses(host_range), now_ms)


def view_of(replica: Replica, plan: Plan, now_ms: int) -> View:
    """Return the ledger's claims of a plan's kind; what is malformed counts for nothing."""
    fixed: dict[bytes, bytes] = {}
    for entry in replica.entries(ASSIGNED, now_ms):
        node, _, kind = entry.key.partition("/")
        if kind == plan.kind and plan.fixable(entry.value):
            owner = _id_of(node)
            if owner is not None:
                fixed[owner] = entry.value
    said = said_of(replica)
    claims = {
        node: claim
        for node, claim in said.claimed(plan.kind).items()
        if fixed.get(node) == claim.what or is_derived(claim, plan)
    }
    return View(claims, said.best(plan.kind), fixed)


def claim_value(claim: Claim) -> bytes:
    """Return what a node writes into the bucket of a kind under its own id."""
    return codec.encode(ClaimValue(claim.attempt, claim.what))


def witness_value(what: bytes, quality: Quality) -> bytes:
    """Return what a witness writes under `witness_key`."""
    return codec.encode(WitnessValue(what, int(quality)))


def witness_key(witness: bytes, kind: str, claimant: bytes) -> str:
    """Return the key in the witness bucket."""
    return f"{id_text(witness)}/{kind}/{id_text(claimant)}"


def in_range(address: bytes, host_range: ipaddress.IPv4Network) -> bool:
    """Say whether packed bytes are an address of the range that may be given away."""
    if len(address) != 4:
        return False
    place = int.from_bytes(address) - int(host_range.network_address)
    return 0 < place < host_range.num_addresses - 1


def _id_of(text: str) -> bytes | None:
    """Return the id that `id_text` wrote so, or None."""
    try:
        found = _unbase32(text)
    except ValueError:
        return None
    return found if len(found) == ID_SIZE and id_text(found) == text else None


def _unbase32(text: str) -> bytes:
    return base64.b32decode(text.upper() + "=" * (-len(text) % 8))
