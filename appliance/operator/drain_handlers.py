"""``skerry node drain``: has a node's pods go elsewhere before it is taken out."""

from __future__ import annotations

import argparse

from appliance.cluster import cluster_entries, orders
from appliance.cluster.ranges import carries_pods
from appliance.ledger.rules import ASSIGNED
from appliance.ledger.state import Replica
from appliance.operator.errors import OperatorError
from appliance.operator.resolve import find_node, names_of
from appliance.operator.shared import finish, working
from appliance.operator.snapshot import Snapshot
from appliance.operator.statements import Desk
from provisioning.membership import Member


def node_drain(arguments: argparse.Namespace) -> int:
    """Order it, or take it back; said again, it tells how far it is."""

    def intent(desk: Desk, _: Snapshot) -> tuple[str, Member, int | None]:
        member = find_node(arguments.node, desk.replica, desk.now_ms)
        name = names_of(desk.replica, desk.now_ms)[member.node_id]
        if arguments.undo:
            desk.order_drain(member, drain=False)
            return f"{name} ({member.id_text}) may have pods again", member, None
        if not carries_pods(member):
            raise OperatorError(
                f"{name} carries no pods: its grant has the role none",
                hint=f"skerry node remove {name}",
            )
        desk.order_drain(member, drain=True)
        left = pods_left(desk.replica, member.node_id, desk.now_ms)
        return f"{name} ({member.id_text}) {_how_far(left, name)}", member, left

    with working(arguments) as work:
        (words, member, left), report = work.do(intent)
    return finish(arguments, words, report, {"node_id": member.id_text, "pods": left})


def _how_far(left: int | None, name: str) -> str:
    if left is None:
        return "is to be emptied: its pods go to other nodes; the same command tells how far it is"
    if left:
        return f"has {left} pods that have not gone yet"
    return f"has no pods any more; to take it out: skerry node remove {name}"


def pods_left(replica: Replica, node_id: bytes, now_ms: int) -> int | None:
    """Return how many pods a node still has; None: no leader said so since it was ordered."""
    order = replica.get(ASSIGNED, orders.drain_key(node_id), now_ms)
    if order is None or order.value != orders.DRAIN_VALUE:
        return None
    said = [
        one for one in replica.entries(cluster_entries.BUCKET, now_ms) if one.stamp > order.stamp
    ]
    for entry in sorted(said, key=lambda one: one.stamp, reverse=True):
        for told in cluster_entries.read([entry]).drained.values():
            for node, pods in told.left:
                if node == node_id:
                    return pods
    return None


def still_has_pods(desk: Desk, member: Member) -> bool:
    """Say whether a member may have pods that nobody drained: where there is a cluster."""
    said = desk.replica.entries(cluster_entries.BUCKET, desk.now_ms)
    cluster = bool(cluster_entries.read(said).founded) and carries_pods(member)
    return cluster and pods_left(desk.replica, member.node_id, desk.now_ms) != 0
