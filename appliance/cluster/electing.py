"""Which cluster there is; and as long as there is none, who may found it (docs/cluster.md).

Four rules, the first that fits: a founding that is known; the operator's order; a majority of the
declared ``expected_nodes``; whoever has a founder's grant. There is no fifth: else a node waits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec

from appliance.cluster.cluster_entries import (
    BALLOT,
    VERSION,
    Founded,
    Vote,
    cluster_id,
    key_of,
    value_of,
)
from appliance.cluster.founding import Electorate, step
from appliance.cluster.model import Decision, Kind, View, order_of
from appliance.problem import Problem
from provisioning.keys import id_text

# How long a node looks around before it proposes anything: who else is there, what is founded.
SETTLE_SECONDS = 5.0
# A founder by its grant alone asks nobody else, so it listens for longer.
ALONE_SECONDS = 15.0
_TO_FOUND = (
    "On the operator's machine, `skerry cluster found NODE` names the node that founds the cluster."
)


@dataclass(frozen=True, slots=True)
class Known:
    """The founding that counts for this node."""

    founded: Founded
    problems: tuple[Problem, ...] = ()


def founding(view: View, cluster: str) -> Known | Decision:
    """Return the founding that counts, or what to do as long as there is none.

    ``view`` holds one cluster's members and entries only.
    """
    said = _said(view, cluster)
    if view.kept.role is not None:
        return _joined(view, said, view.kept.role.cluster_id)
    if (role := view.entries.roles.get(view.own)) is not None:
        return _joined(view, said, role.cluster_id)
    standing = [one for one in said if _stands(view, one)]
    if len(standing) > 1:
        return _contradiction(view, standing)
    if standing:
        return Known(standing[0])
    if said and view.orders.founder not in view.members:
        gone = ", ".join(id_text(one.founder) for one in said)
        problem = Problem(
            "cluster-founder-gone",
            f"the node that founded the cluster ({gone}) was removed, and no other server is left",
            f"What the cluster held is lost with its servers. {_TO_FOUND}",
        )
        return _wait(view, problem.message, problem.hint, (problem,))
    return _elect(view, cluster)


def _said(view: View, cluster: str) -> list[Founded]:
    """Return the different foundings that members and this node's file know of."""
    told = {one for one in (view.kept.founded, *view.entries.founded.values()) if one is not None}
    return sorted(
        (
            one
            for one in told
            if one.cluster_id == cluster_id(view.network_id, cluster, one.founder)
        ),
        key=lambda one: one.cluster_id,
    )


def _stands(view: View, one: Founded) -> bool:
    served = view.entries.servers.values()
    return one.founder in view.members or any(srv.cluster_id == one.cluster_id for srv in served)


def _joined(view: View, said: list[Founded], joined: bytes) -> Known | Decision:
    """Return the founding of the cluster that this node is in: it stays in it for life."""
    mine = next((one for one in said if one.cluster_id == joined), None)
    others = [one for one in said if one.cluster_id != joined and _stands(view, one)]
    problems: tuple[Problem, ...] = ()
    if others:
        problems = (_two(view, others[0]),)
    if mine is None:
        # Its file says what it is; who founded it is nobody's business any more.
        mine = Founded(VERSION, joined, b"")
    return Known(mine, problems)


def _two(view: View, other: Founded) -> Problem:
    who = sorted(_name(view, node) for node, one in view.entries.founded.items() if one == other)
    return Problem(
        "cluster-two-foundings",
        f"this node is in one cluster, and {', '.join(who) or 'its own file'} says that "
        f"{_name(view, other.founder)} founded another one",
        "One of the two has to go: look at both (`skerry cluster status` on each server), then "
        "remove the nodes of the wrong one (`skerry node remove`) and give them a new token.",
    )


def _contradiction(view: View, standing: list[Founded]) -> Decision:
    founders = ", ".join(_name(view, one.founder) for one in standing)
    problem = Problem(
        "cluster-two-foundings",
        f"members disagree on who founded the cluster: {founders}",
        "One of them has to go: look at each (`skerry cluster status` there), then remove the "
        "wrong one with `skerry node remove` on the operator's machine.",
    )
    return _wait(view, problem.message, problem.hint, (problem,))


# Electing


def _elect(view: View, cluster: str) -> Known | Decision:
    expected = view.wanted.expected_nodes if not cluster else None
    voters = {node: one for node, one in view.members.items() if one.may_serve}
    founders = {node: one for node, one in voters.items() if one.founder}
    if view.orders.founder is not None:
        return _ordered(view, cluster, view.orders.founder)
    if expected is not None and expected > 1:
        quorum, settle = expected // 2 + 1, SETTLE_SECONDS
        if len(voters) > expected:
            return _too_many(view, expected, len(voters))
    elif founders:
        # More than one founder's grant: then all of them have to agree.
        voters, quorum = founders, len(founders)
        settle = ALONE_SECONDS if quorum == 1 else SETTLE_SECONDS
    else:
        return _nobody(view, expected)
    alive = {node for node, one in voters.items() if one.alive or node == view.own}
    order = sorted(alive, key=lambda node: (node not in founders, order_of(b"founder", node)))
    electorate = Electorate(frozenset(voters), quorum, tuple(order))
    began = view.memory.started if view.memory.started is not None else view.now
    ready = view.now >= began + settle
    done = step(
        view.own,
        view.entries.votes,
        electorate,
        view.now,
        view.memory.quiet,
        may_propose=ready and len(alive) >= quorum,
    )
    view = replace(view, memory=replace(view.memory, quiet=done.quiet))
    if done.chosen is not None:
        return _by(view, cluster, done.chosen)
    here = ", ".join(sorted(one.name for node, one in voters.items() if node in alive))
    if done.vote is not None:
        return replace(_voting(view, done.vote), why=f"agreeing on the founder with {here}")
    if len(alive) < quorum:
        return _few(view, expected, quorum, here, len(voters))
    wake = done.wake if ready else began + settle
    return replace(_wait(view, f"agreeing on who founds the cluster ({here})"), wake=wake)


def _by(view: View, cluster: str, founder: bytes) -> Known:
    return Known(Founded(VERSION, cluster_id(view.network_id, cluster, founder), founder))


def _ordered(view: View, cluster: str, founder: bytes) -> Known | Decision:
    """Return what the operator's order means: the named node founds, the others wait for it."""
    named = view.members.get(founder)
    if named is None or not named.may_serve:
        return _wait(
            view,
            f"the operator named {id_text(founder)} as the cluster's founder, which "
            + ("is no member" if named is None else "may not be a server by its grant"),
            _TO_FOUND,
        )
    if founder == view.own and view.now < (view.memory.ordered or view.now) + SETTLE_SECONDS:
        # The order may have arrived before the news that it was carried out long ago.
        ordered = view.now if view.memory.ordered is None else view.memory.ordered
        view = replace(view, memory=replace(view.memory, ordered=ordered))
        waiting = _wait(view, "looking for a cluster before it founds one, as the operator said")
        return replace(waiting, wake=ordered + SETTLE_SECONDS)
    if founder != view.own:
        return _wait(view, f"waiting for {named.name} to found the cluster")
    return _by(view, cluster, founder)


def _voting(view: View, vote: Vote) -> Decision:
    keep = msgspec.structs.replace(view.kept, vote=vote)
    write = key_of(view.own, BALLOT), value_of(vote)
    return replace(_wait(view, ""), keep=keep, writes=(write,))


def _few(view: View, expected: int | None, quorum: int, here: str, known: int) -> Decision:
    if expected is None or expected < 2:
        return _wait(
            view,
            f"{known} nodes have founder's grants and have to agree, but only these are here: "
            f"{here}",
            "Start the others; or remove those that are gone (`skerry node remove`).",
        )
    missing = quorum - len([one for one in view.members.values() if one.alive and one.may_serve])
    return _wait(
        view,
        f"waiting for {max(missing, 1)} more of the {expected} nodes that the network was declared "
        f"with: {quorum} have to agree on the founder, here are {here}",
        f"Start more nodes. If there will never be so many: {_TO_FOUND}",
    )


def _too_many(view: View, expected: int, seen: int) -> Decision:
    problem = Problem(
        "cluster-too-many-nodes",
        f"the network was declared with {expected} nodes, and {seen} that may be servers have "
        "joined before the cluster was founded: a majority of them is no safe one",
        _TO_FOUND,
    )
    return _wait(view, problem.message, problem.hint, (problem,))


def _nobody(view: View, expected: int | None) -> Decision:
    why = (
        "no node has a founder's grant, and the network's settings do not say how many nodes "
        "to expect"
        if expected is None
        else "no node has a founder's grant, and a majority takes two expected nodes or more"
    )
    return _wait(
        view,
        f"nobody may found the cluster: {why}",
        f"{_TO_FOUND} For a next network: `skerry network new NAME --expected-nodes 4`, or one "
        "token by `skerry token new --founder`.",
    )


def _name(view: View, node: bytes) -> str:
    member = view.members.get(node)
    return id_text(node) if member is None else member.name


def _wait(view: View, why: str, hint: str = "", problems: tuple[Problem, ...] = ()) -> Decision:
    return Decision(Kind.WAIT, why, hint, problems=problems, memory=view.memory)
