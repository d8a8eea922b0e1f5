"""What part this node plays in the cluster: `appliance.cluster.roles`, asked and understood."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from appliance.api.answers import MemberFacts
from appliance.cluster import cluster_entries
from appliance.cluster.cluster_entries import Entries, Promises, RunsAs
from appliance.cluster.growth import Engine, latest
from appliance.cluster.model import CLUSTER_LABEL, Decision, Member, Memory, Orders, View, Wanted
from appliance.cluster.model import Kind as Decided
from appliance.kubernetes.observing import Observed
from appliance.ledger.assigned import read_id
from appliance.problem import Problem

_DOWN = "down"


class Kind(Enum):
    """What runs here. WAIT: not decided yet; whatever runs goes on."""

    WAIT = "wait"
    NONE = "none"
    SERVER = "server"
    AGENT = "agent"


@dataclass(frozen=True, slots=True)
class Part:
    """A decision: ``why`` and ``hint`` are for people.

    ``founds``: this server makes the cluster if there is none on its disk. ``join`` is the address
    of a server's API (an IP address), for everybody else. ``reset``: what the engine has on its
    disk has to be moved away first.
    """

    kind: Kind
    why: str
    hint: str = ""
    founds: bool = False
    join: str | None = None
    embedded: bool = False
    reset: bool = False
    problems: tuple[Problem, ...] = ()

    @property
    def shared(self) -> bool:
        """Say whether other servers may take over from this one: who leads is to be seen soon."""
        return self.kind is Kind.SERVER and (self.embedded or not self.founds)


def expects_cluster(observed: Observed) -> bool:
    """Say whether there is a cluster, or is going to be one: somebody may found it."""
    document = observed.cluster.document
    founder = document.founder or any(one.founder for one in document.members)
    return bool(observed.said) or founder or document.settings.expected_nodes is not None


def view_of(
    observed: Observed,
    now: float,
    now_ms: int,
    *,
    kept: Promises,
    engine: Engine,
    memory: Memory,
    orders: Orders,
) -> View:
    """Return what the roles' decision is asked with."""
    document = observed.cluster.document
    own = read_id(document.node_id) or b""
    members = {node: one for node, one in map(_member, document.members) if node}
    if own not in members:
        members[own] = Member(
            own,
            document.name,
            frozenset(document.roles),
            document.founder,
            addresses=document.addresses,
        )
    return View(
        own,
        observed.cluster.plan.network_id,
        members,
        Wanted(document.settings.servers, document.settings.expected_nodes),
        cluster_entries.read(observed.said),
        now,
        now_ms,
        kept,
        engine,
        orders,
        memory,
    )


def _member(one: MemberFacts) -> tuple[bytes, Member]:
    node_id = read_id(one.node_id) or b""
    return node_id, Member(
        node_id,
        one.name,
        frozenset(one.roles),
        one.founder,
        one.state != _DOWN,
        one.addresses,
        one.labels.get(CLUSTER_LABEL, ""),
    )


def part_of(decision: Decision, joined: str | None, *, inside: bool = False) -> Part:
    """Return the engine's part in a decision; ``joined`` is the server it joined through so far.

    ``inside``: it is in the cluster. A server that is asks nobody any more: it does not restart
    because the one that let it in is gone.
    """
    kinds = {
        Decided.WAIT: Kind.WAIT,
        Decided.NONE: Kind.NONE,
        Decided.FOUND: Kind.SERVER,
        Decided.SERVER: Kind.SERVER,
        Decided.AGENT: Kind.AGENT,
    }
    join = None if decision.kind is Decided.FOUND else stay_with(joined, decision.join)
    if decision.kind is Decided.SERVER and inside and joined is not None and not decision.reset:
        join = joined
    return Part(
        kinds[decision.kind],
        decision.why,
        decision.hint,
        founds=decision.kind is Decided.FOUND,
        join=join,
        embedded=decision.cluster_init,
        reset=decision.reset,
        problems=decision.problems,
    )


def stay_with(current: str | None, servers: Sequence[str]) -> str | None:
    """Return which server to join through: the current one as long as no other is called for.

    A change restarts the engine, so nothing changes without need.
    """
    if current in servers or not servers:
        return current
    return servers[0]


def one_after(current: str, servers: Sequence[str]) -> str:
    """Return the server that is to be tried after one that was in vain."""
    if current not in servers:
        return current
    return servers[(servers.index(current) + 1) % len(servers)]


def turn_of(entries: Entries, own: bytes, *, leads: bool) -> int:
    """Return how many servers restart for a new configuration before this one does.

    They take turns, so that the others carry on; the leader is the last, so that it changes once.
    """
    role = entries.roles.get(own)
    plan = None if role is None else latest(entries.plans.values(), role.cluster_id)
    if plan is None or own not in plan.servers:
        return 0
    led = {node for node, one in entries.plans.items() if one == plan}
    others = sorted(set(plan.servers) - led - {own})
    return len(others) if leads or own in led else sum(one < own for one in others)


def was_removed(entries: Entries, own: bytes) -> bool:
    """Say whether the others took this server out: their latest plan does without it.

    Asked only of a server whose engine does not come up.
    """
    role = entries.roles.get(own)
    if role is None or role.role != RunsAs.SERVER.value:
        return False
    plan = latest(entries.plans.values(), role.cluster_id)
    return plan is not None and own not in plan.servers and plan.joining != own
