"""What this node is in the Kubernetes cluster: a pure decision (docs/cluster.md, "Roles").

`decide` is called with what the node sees, again and again. The caller does what the decision says
in this order: store ``keep`` durably, put ``writes`` into the ledger, then act. It hands
``memory`` back with the next call.

What a node has promised or become stands in its own file and in its ledger entries. Neither takes
back what the other has; a node acts by what is in both.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TypeVar

import msgspec

from appliance.cluster import electing, growth, vip
from appliance.cluster.cluster_entries import (
    BALLOT,
    FOUNDED,
    PLAN,
    ROLE,
    SERVER,
    VERSION,
    VIP,
    Entries,
    Founded,
    Plan,
    Promises,
    Role,
    RunsAs,
    Server,
    Vip,
    Vote,
    key_of,
    merged,
    value_of,
)
from appliance.cluster.model import Decision, Kind, Member, Orders, View, order_of
from appliance.problem import Problem
from provisioning.keys import id_text

T = TypeVar("T")
Problems = tuple[Problem, ...]
Saying = Vote | Founded | Role | Server | Plan | Vip


def decide(view: View) -> Decision:
    """Return what this node is to be, and what it has to say and keep for it."""
    own = view.members.get(view.own)
    memory = view.memory
    if memory.started is None:
        memory = replace(memory, started=view.now)
    view = replace(view, memory=memory)
    if own is None:
        return Decision(Kind.WAIT, "this node is no member of its network yet", memory=memory)
    if not own.may_serve and not own.may_work:
        return Decision(Kind.NONE, "its grant has the role none", memory=memory)
    view = _within(view, own.cluster)
    if own.may_serve and (brought := _bring_together(view)) is not None:
        return brought
    found = electing.founding(view, own.cluster)
    if isinstance(found, Decision):
        return found
    return _Place(view, own, found.founded, found.problems).decide()


def _within(view: View, cluster: str) -> View:
    """Return the view of one cluster: its members, and what those say who may."""
    members = {node: one for node, one in view.members.items() if one.cluster == cluster}
    serving = {node for node, one in members.items() if one.may_serve}
    said = view.entries
    entries = Entries(
        _of(serving, said.votes),
        _of(serving, said.founded),
        _of(serving, said.roles),
        _of(serving, said.servers),
        _of(serving, said.plans),
        _of(serving, said.vips),
    )
    # What the operator orders is for the network's main cluster; others have founder's grants.
    orders = Orders() if cluster else view.orders
    return replace(view, members=members, entries=entries, orders=orders)


def _of(nodes: Collection[bytes], said: Mapping[bytes, T]) -> dict[bytes, T]:
    return {node: one for node, one in said.items() if node in nodes}


def _bring_together(view: View) -> Decision | None:
    """Return what makes the file and the ledger say the same of this node's vote."""
    told = view.entries.votes.get(view.own, Vote())
    whole = merged(view.kept.vote, told)
    if whole == told == view.kept.vote:
        return None
    keep = msgspec.structs.replace(view.kept, vote=whole)
    writes = () if whole == told else ((key_of(view.own, BALLOT), value_of(whole)),)
    why = "putting what this node promised back into its file and the ledger"
    return Decision(Kind.WAIT, why, keep=keep, writes=writes, memory=view.memory)


class _Place:
    """A node's place in a cluster that is founded."""

    def __init__(self, view: View, own: Member, founded: Founded, problems: Problems) -> None:
        self.view = view
        self.own = own
        self.founded = founded
        self.problems = list(problems)
        self.writes: list[tuple[str, bytes]] = []
        self.role = self._role_so_far()
        self.plan = growth.latest(view.entries.plans.values(), founded.cluster_id)

    def decide(self) -> Decision:
        """Return the decision with all that belongs to it."""
        decision = self._be()
        keep = self._keep()
        decision = replace(decision, cluster_id=self.founded.cluster_id, keep=keep)
        decision = self._lead(decision)
        return replace(
            decision,
            writes=tuple(self.writes),
            problems=(*self.problems, *decision.problems),
        )

    # What it is

    def _role_so_far(self) -> Role | None:
        mine = self.founded.cluster_id
        for one in (self.view.kept.role, self.view.entries.roles.get(self.view.own)):
            if one is not None and one.cluster_id == mine:
                return one
        return None

    def _be(self) -> Decision:
        if self.view.engine.removed:
            return self._replaced()
        if self.founded.founder == self.view.own:
            return self._founder()
        # Who was replaced joins as a server only if it is taken in again.
        if self._runs_as(RunsAs.SERVER) and (self.view.engine.has_data or not self._is_outside()):
            return self._server("this node is a server of the cluster")
        if self._runs_as(RunsAs.AGENT) and self.view.engine.has_data and self._is_outside():
            # Before anything else: as a server anew it would start with what nobody knows any more.
            return replace(self._work(), reset=True)
        if self.own.may_serve and self.plan is not None and self.plan.joining == self.view.own:
            self._become(RunsAs.SERVER)
            return self._server("the cluster's leader takes this node in as a server")
        return self._work()

    def _work(self) -> Decision:
        if not self.own.may_work:
            return self._wait(
                "this node may be a server only, and the cluster has all that it wants",
                "`skerry cluster servers 3` on the operator's machine makes it grow.",
            )
        join = self._join()
        if not join:
            return self._wait(
                f"{self._founder_name()} founds the cluster; its API does not answer yet"
            )
        self._become(RunsAs.AGENT)
        return self._decision(Kind.AGENT, "this node carries work of the cluster", join=join)

    def _founder(self) -> Decision:
        begun = self.role is not None and self.role.begun
        if begun and not self.view.engine.has_data:
            return self._lost()
        self._become(RunsAs.SERVER)
        return replace(
            self._decision(Kind.FOUND, "this node founded the cluster"),
            cluster_init=self._wanted() > 1,
        )

    def _lost(self) -> Decision:
        """Return what a founder does whose state is gone: anything but to found again."""
        if join := self._join():
            return self._decision(
                Kind.SERVER, "this node founded the cluster, lost its state and joins again", join
            )
        problem = Problem(
            "cluster-state-lost",
            "this node founded the cluster, and its Kubernetes state is gone; no other server is "
            "there to have it from",
            "Put the data partition's `kubernetes` folder back from a backup. Without one the "
            "cluster is lost: `skerry node remove` this node, and found a new one.",
        )
        return replace(self._wait(problem.message, problem.hint), problems=(problem,))

    def _server(self, why: str) -> Decision:
        # It waits for the one it asks: so not for the one whose place it takes.
        join = self._join(counted=True) or self._join()
        if not join and not self.view.engine.has_data:
            return self._wait("no server of the cluster can be asked yet; this node is to be one")
        self._become(RunsAs.SERVER)
        return self._decision(Kind.SERVER, why, join)

    def _replaced(self) -> Decision:
        """Return what a server does that was away for long, and was replaced meanwhile."""
        self.role = None
        join = self._join()
        again = self.plan is not None and self.plan.joining == self.view.own
        if join and again:
            self._become(RunsAs.SERVER)
            return replace(self._decision(Kind.SERVER, "taken in anew", join), reset=True)
        if join and self.own.may_work:
            self._become(RunsAs.AGENT)
            why = "the others replaced this server while it was away; it is an agent now"
            return replace(self._decision(Kind.AGENT, why, join), reset=True)
        return replace(self._wait("the others replaced this server while it was away"), reset=True)

    def _runs_as(self, what: RunsAs) -> bool:
        return self.role is not None and self.role.role == what.value

    def _is_outside(self) -> bool:
        """Say whether the servers do without this node: it never was one, or was replaced."""
        return self.plan is not None and self.view.own not in self.plan.servers

    def _become(self, what: RunsAs) -> None:
        begun = bool(self.role and self.role.begun) or bool(
            what is RunsAs.SERVER and self.view.engine.addresses
        )
        self.role = Role(VERSION, self.founded.cluster_id, what.value, begun)

    # Who else is there

    def _join(self, *, counted: bool = False) -> tuple[str, ...]:
        """Return where the API of other servers is, those that are alive first.

        ``counted``: no others than these, and none that was replaced.
        """
        mine = self.founded.cluster_id
        found = [
            (node, one)
            for node, one in self.view.entries.servers.items()
            if node != self.view.own
            and one.cluster_id == mine
            and (self._counts(node) or not counted)
        ]
        found.sort(key=lambda pair: (not self._alive(pair[0]), order_of(mine, pair[0])))
        return tuple(one.addresses[0] for _, one in found)

    def _counts(self, node: bytes) -> bool:
        """Say whether a server is there, and one that the others still count."""
        return self._alive(node) and (self.plan is None or node in self.plan.servers)

    def _serving(self) -> frozenset[bytes]:
        mine = self.founded.cluster_id
        said = self.view.entries.servers.items()
        return frozenset(node for node, one in said if one.cluster_id == mine)

    def _alive(self, node: bytes) -> bool:
        member = self.view.members.get(node)
        return node == self.view.own or (member is not None and member.alive)

    def _wanted(self) -> int:
        ordered = self.view.orders.servers
        return self.view.wanted.servers if ordered is None else ordered

    def _founder_name(self) -> str:
        member = self.view.members.get(self.founded.founder)
        return id_text(self.founded.founder) if member is None else member.name

    # What it says

    def _keep(self) -> Promises | None:
        kept = self.view.kept
        founded = self.founded if self.founded.founder else kept.founded
        keep = msgspec.structs.replace(kept, founded=founded, role=self.role)
        if self.own.may_serve:
            self._say(FOUNDED, founded, self.view.entries.founded.get(self.view.own))
            self._say(ROLE, self.role, self.view.entries.roles.get(self.view.own))
            self._say_serving()
        return None if keep == kept else keep

    def _say(self, kind: str, what: Saying | None, before: Saying | None) -> None:
        if what is not None and what != before:
            self.writes.append((key_of(self.view.own, kind), value_of(what)))

    def _say_serving(self) -> None:
        addresses = self.view.engine.addresses
        before = self.view.entries.servers.get(self.view.own)
        mine = self.founded.cluster_id
        same = before is not None and (before.cluster_id, before.addresses) == (mine, addresses)
        if addresses and not same:
            self._say(SERVER, Server(VERSION, mine, addresses, self.view.now_ms), before)

    def _lead(self, decision: Decision) -> Decision:
        engine = self.view.engine
        if not engine.leader or decision.kind not in {Kind.FOUND, Kind.SERVER}:
            return decision
        mine = self.founded.cluster_id
        able = [one for one in self.view.members.values() if one.may_serve]
        able.sort(key=lambda one: (one.may_work, order_of(mine, one.node_id)))
        grown = growth.grow(
            growth.Leader(self.view.own, mine, engine, self._wanted(), self._serving()),
            [one.node_id for one in able],
            self._alive,
            self.view.members,
            self.plan,
            self.view.memory.waiting,
            self.view.now,
        )
        self._say(PLAN, grown.plan, self.view.entries.plans.get(self.view.own))
        if engine.addresses:
            claims = self.view.entries.vips
            said = vip.claim(self.view.own, mine, engine.term, claims, self.view.now_ms)
            self._say(VIP, said, claims.get(self.view.own))
        if self.plan is not None and self.plan.term > engine.term:
            self.problems.append(self._outranked(self.plan))
        memory = replace(self.view.memory, waiting=grown.waiting)
        return replace(decision, memory=memory, remove=grown.remove)

    def _outranked(self, plan: Plan) -> Problem:
        who = sorted(
            member.name
            for node, member in self.view.members.items()
            if self.view.entries.plans.get(node) == plan
        )
        return Problem(
            "cluster-plan-outranked",
            f"{', '.join(who)} speaks as the cluster's leader of a later term than the one that "
            "this node's engine leads in",
            "It passes by itself after a change of leaders. If it stays, that node is not to be "
            "trusted: `skerry revoke node`.",
        )

    def _decision(self, kind: Kind, why: str, join: tuple[str, ...] = ()) -> Decision:
        return Decision(kind, why, join=join, memory=self.view.memory)

    def _wait(self, why: str, hint: str = "") -> Decision:
        return Decision(Kind.WAIT, why, hint, memory=self.view.memory)
