"""Handlers of ``skerry cluster found`` and ``skerry cluster servers``."""

from __future__ import annotations

import argparse

from appliance.cluster import cluster_entries, orders
from appliance.ledger.rules import ASSIGNED
from appliance.operator.errors import OperatorError
from appliance.operator.resolve import find_node, names_of
from appliance.operator.shared import finish, working
from appliance.operator.snapshot import Snapshot
from appliance.operator.statements import Desk
from provisioning.membership import Member

_SERVING = frozenset({"server", "auto"})


def cluster_found(arguments: argparse.Namespace) -> int:
    """Name the node that founds the cluster."""

    def whole(desk: Desk, _: Snapshot) -> tuple[str, Member]:
        member = find_node(arguments.node, desk.replica, desk.now_ms)
        name = names_of(desk.replica, desk.now_ms)[member.node_id]
        if member.roles.isdisjoint(_SERVING):
            raise OperatorError(
                f"{name} may not be a server: its grant has the role "
                f"{', '.join(sorted(member.roles))}",
                hint="name another node, or give the machine a token with --role auto",
            )
        _check_first(desk, member)
        desk.say(orders.FOUNDER, orders.founder_value(member.node_id))
        return f"{name} ({member.id_text}) is to found the cluster", member

    with working(arguments) as work:
        (words, member), report = work.do(whole)
    return finish(arguments, words, report, {"node_id": member.id_text})


def _check_first(desk: Desk, member: Member) -> None:
    """Raise OperatorError if somebody else founded the cluster, or may be about to."""
    names = names_of(desk.replica, desk.now_ms)
    said = cluster_entries.read(desk.replica.entries(cluster_entries.BUCKET, desk.now_ms))
    founders = {one.founder for one in said.founded.values()}
    earlier = desk.replica.get(ASSIGNED, orders.FOUNDER, desk.now_ms)
    if earlier is not None:
        founders.add(earlier.value)
    others = sorted(names[one] for one in founders if one in names and one != member.node_id)
    if others:
        raise OperatorError(
            f"{', '.join(others)} founded the cluster, or was named to: there is one founder",
            hint="if that machine is gone for good, put it out first (`skerry node remove "
            f"{others[0]}`): it must never come back with a cluster of its own",
        )


def cluster_servers(arguments: argparse.Namespace) -> int:
    """Say how many servers the cluster is to have."""

    def whole(desk: Desk, _: Snapshot) -> str:
        desk.say(orders.SERVERS, orders.servers_value(arguments.servers))
        able = [one for one in desk.replica.directory if not one.roles.isdisjoint(_SERVING)]
        lack = max(0, arguments.servers - len(able))
        more = f"; {lack} more nodes that may be servers are needed for it" if lack else ""
        return f"the cluster is to have {arguments.servers} server(s){more}"

    with working(arguments) as work:
        words, report = work.do(whole)
    return finish(arguments, words, report, {"servers": arguments.servers})
