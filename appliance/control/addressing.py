"""This node's overlay address, and what it writes down of others' claims of any kind.

The rules are `appliance.ledger.claims`; here they become entries to write. Nothing is remembered
but when a claim was seen first: the rest follows from the ledger each time.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from appliance.ledger import claims
from appliance.ledger.claims import GRANT_KIND, WITNESSES, Claim, View
from appliance.ledger.rules import ADDRESS, WITNESS
from appliance.ledger.state import Replica
from appliance.ledger.timekeeper import Quality
from appliance.overlay.addresses import AddressesExhaustedError
from appliance.problem import Problem
from provisioning.keys import id_text
from provisioning.membership import Member

# A claim is witnessed once it stood for this long: rivals that begin at the same time show up, and
# a network that forms has other things to do.
STANDS_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Write:
    """An entry that this node should write."""

    bucket: str
    key: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Places:
    """Who has which overlay address; ``own`` is this node's."""

    own: ipaddress.IPv4Address | None
    others: Mapping[bytes, ipaddress.IPv4Address]
    moved_for: bytes | None = None
    problem: Problem | None = None
    write: Write | None = None


def places(
    own: bytes,
    view: View,
    host_range: ipaddress.IPv4Network,
    members: Collection[bytes],
    *,
    kept: int = 1,
) -> Places:
    """Return who has which address, and what this node has to claim for it.

    Claims of nodes that are not in ``members`` count for nothing. ``kept`` addresses at the
    bottom are not for nodes (`claims.Addresses`).
    """
    inside = {node: one for node, one in view.claims.items() if node in members or node == own}
    view = View(inside, view.sightings, view.fixed)
    try:
        decision = claims.decide(own, view, host_range, kept=kept)
    except AddressesExhaustedError as error:
        problem = Problem("addresses-exhausted", str(error), error.hint or "")
        return Places(None, _held(view, own), problem=problem)
    mine = decision.claim or inside.get(own)
    write = None
    if decision.claim is not None:
        write = Write(ADDRESS, id_text(own), claims.claim_value(decision.claim))
    address = ipaddress.IPv4Address(mine.what) if mine is not None else None
    others = {node: held for node, held in _held(view, own).items() if held != address}
    return Places(address, others, decision.lost_to, _given_twice(own, view, address), write)


def _given_twice(own: bytes, view: View, address: ipaddress.IPv4Address | None) -> Problem | None:
    fixed = view.fixed.get(own)
    if fixed is None or address is None or address.packed == fixed:
        return None
    return Problem(
        "address-given-twice",
        f"{ipaddress.IPv4Address(fixed)} was fixed for this node and for another one, which has "
        f"it; this node has {address}",
        "Give one of them another address: `skerry node address` on the operator's machine.",
    )


def _held(view: View, own: bytes) -> dict[bytes, ipaddress.IPv4Address]:
    return {
        node: ipaddress.IPv4Address(what) for what, node in view.holders().items() if node != own
    }


@dataclass(slots=True)
class Witness:
    """What this node writes down of others' claims, and of places under a grant."""

    own: bytes
    _since: dict[tuple[str, bytes, bytes], float] = field(default_factory=dict)
    due: float | None = None
    _alive: frozenset[bytes] = frozenset()
    _chosen: dict[bytes, bool] = field(default_factory=dict)

    def writes(
        self,
        replica: Replica,
        views: Mapping[str, View],
        newcomers: Collection[Member],
        alive: Collection[bytes],
        *,
        quality: Quality,
        mono: float,
    ) -> list[Write]:
        """Return what to write now; ``due`` is then when to ask again (None: when things change).

        ``views``: by kind, what those who are in claim. ``newcomers`` are members whose grant is
        open.
        """
        said = claims.said_of(replica)
        grants = {one.node_id: Claim(one.node_id, one.grant_id) for one in newcomers}
        wanted = [(kind, one, view) for kind, view in views.items() for one in view.claims.values()]
        wanted += [(GRANT_KIND, one, View({})) for one in grants.values()]
        known, out = {}, []
        self.due = None
        for kind, claim, view in wanted:
            about = kind, claim.node, claim.what
            witnesses = said.witnesses(kind, claim)
            # What this node said before is not said again, and what is contested not at all.
            if claim.node == self.own or self.own in witnesses or len(witnesses) >= WITNESSES:
                continue
            if not self._is_witness(claim.node, alive):
                continue
            if not claims.bears_witness(claim, view, None):
                continue
            known[about] = since = self._since.get(about, mono)
            if since + STANDS_SECONDS > mono:
                at = since + STANDS_SECONDS
                self.due = at if self.due is None else min(self.due, at)
                continue
            key = claims.witness_key(self.own, kind, claim.node)
            out.append(Write(WITNESS, key, claims.witness_value(claim.what, quality)))
        self._since = known
        return out

    def _is_witness(self, claimant: bytes, alive: Collection[bytes]) -> bool:
        """Ask `claims.is_witness` once for the same members."""
        if alive != self._alive:
            self._alive = frozenset(alive)
            self._chosen.clear()
        found = self._chosen.get(claimant)
        if found is None:
            found = self._chosen[claimant] = claims.is_witness(self.own, claimant, alive)
        return found
