"""What servers do about Kubernetes' Node objects: record pod ranges, remove nodes that are out.

Pure. A node is known by its ``providerID`` (``skerry://NODEID``), which its kubelet may set once
and never change; what other machines (of no member) there are is left alone.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import msgspec

from appliance.cluster.recorded import Reconciled, Verdict, reconcile
from appliance.kubernetes.config import PROVIDER
from appliance.kubernetes.errors import KubeApiError
from appliance.kubernetes.facts import Cluster
from appliance.problem import Problem

# What engines label servers with, ours with the first only: no kubelet may set either itself
# (NodeRestriction). Of several servers each is a member of the store by the time it has one.
_SERVER_LABELS = ("node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/etcd")


class _Meta(msgspec.Struct, frozen=True):
    name: str
    uid: str = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class _Spec(
    msgspec.Struct, frozen=True, rename={"provider_id": "providerID", "ranges": "podCIDRs"}
):
    provider_id: str = ""
    ranges: tuple[str, ...] = ()
    unschedulable: bool = False


class _Condition(msgspec.Struct, frozen=True):
    type: str
    status: str


class _Status(msgspec.Struct, frozen=True):
    conditions: tuple[_Condition, ...] = ()


class NodeObject(msgspec.Struct, frozen=True):
    """A Node (core/v1), as much as is used."""

    metadata: _Meta
    spec: _Spec = _Spec()
    status: _Status = _Status()

    @property
    def node_id(self) -> str:
        """The Skerry node that it stands for, or nothing."""
        text = self.spec.provider_id
        return text.removeprefix(PROVIDER) if text.startswith(PROVIDER) else ""

    @property
    def ready(self) -> bool:
        """Whether Kubernetes counts on it."""
        return any(one.type == "Ready" and one.status == "True" for one in self.status.conditions)

    @property
    def keeps_state(self) -> bool:
        """Whether it is a voting member of the engine's store."""
        return any(self.metadata.labels.get(one) == "true" for one in _SERVER_LABELS)


class _NodeList(msgspec.Struct, frozen=True):
    items: tuple[NodeObject, ...]


def read_nodes(data: bytes) -> tuple[NodeObject, ...]:
    """Return the nodes of a NodeList. Raises KubeApiError."""
    try:
        return msgspec.json.decode(data, type=_NodeList).items
    except (ValueError, RecursionError) as error:
        raise KubeApiError(f"the list of nodes can't be read: {str(error)[:200]}") from error


def read_node(data: bytes) -> NodeObject:
    """Return a Node. Raises KubeApiError."""
    try:
        return msgspec.json.decode(data, type=NodeObject)
    except (ValueError, RecursionError) as error:
        raise KubeApiError(f"a node can't be read: {str(error)[:200]}") from error


_LEASE_NAMES = {"holder": "holderIdentity", "transitions": "leaseTransitions"}


class _LeaseSpec(msgspec.Struct, frozen=True, rename=_LEASE_NAMES):
    holder: str | None = None
    transitions: int | None = None


class Lease(msgspec.Struct, frozen=True):
    """A Lease (coordination.k8s.io/v1), as much as is used."""

    spec: _LeaseSpec = _LeaseSpec()

    @property
    def holder_node(self) -> str:
        """The name of the node that holds it: what is before the ``_``."""
        return (self.spec.holder or "").partition("_")[0]

    @property
    def transitions(self) -> int:
        """How often it changed hands: the leader's term."""
        return max(self.spec.transitions or 0, 0)


def read_lease(data: bytes) -> Lease:
    """Return a Lease. Raises KubeApiError."""
    try:
        return msgspec.json.decode(data, type=Lease)
    except (ValueError, RecursionError) as error:
        raise KubeApiError(f"a lease can't be read: {str(error)[:200]}") from error


@dataclass(frozen=True, slots=True)
class Record:
    """Write a node's pod ranges."""

    node: str
    ranges: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Remove:
    """Delete a Node object; ``uid``: that one and no later one of the same name."""

    node: str
    uid: str


@dataclass(frozen=True, slots=True)
class Records:
    """What to do, and what to tell; ``own``: what this node may do with its own range."""

    changes: tuple[Record | Remove, ...] = ()
    problems: tuple[Problem, ...] = ()
    own: Reconciled | None = None


def unknown(nodes: Sequence[NodeObject], cluster: Cluster) -> frozenset[str]:
    """Return the ids of nodes in Kubernetes that are no members: they may be revoked."""
    members = {one.node_id for one in cluster.document.members} | {cluster.document.node_id}
    return frozenset(one.node_id for one in nodes if one.node_id) - members


def decide(nodes: Sequence[NodeObject], cluster: Cluster, revoked: Collection[str]) -> Records:
    """Return what follows from Kubernetes' nodes; ``revoked`` are ids that are out for ever.

    A node that is merely not known (a ledger that is still filling up) loses nothing.
    """
    gone = [one for one in nodes if one.node_id in revoked or _is_former(one, nodes, cluster)]
    stay = [one for one in nodes if one not in gone]
    ranges = {one.metadata.name: one.spec.ranges for one in stay if not _lies(one, cluster)}
    changes: list[Record | Remove] = [Remove(one.metadata.name, one.metadata.uid) for one in gone]
    problems: list[Problem] = []
    own: Reconciled | None = None
    for one in stay:
        if not one.node_id:
            continue
        name = one.metadata.name
        others = {other: said for other, said in ranges.items() if other != name}
        held = cluster.range_of(one.node_id)
        found = reconcile(name, held, one.spec.ranges, cluster.plan, others)
        if found.problem is not None:
            problems.append(found.problem)
        # What ledger and Kubernetes have agreed on nobody takes back by writing it to his own Node.
        settled = reconcile(name, held, one.spec.ranges, cluster.plan)
        if settled.verdict is Verdict.AGREED:
            found = settled
        if one.node_id == cluster.document.node_id:
            own = found
        if found.record:
            changes.append(Record(name, found.record))
    return Records(tuple(changes), tuple(problems), own)


def _is_former(one: NodeObject, nodes: Sequence[NodeObject], cluster: Cluster) -> bool:
    """Say whether it is what a member was called before, or only says that it is that member.

    True once there is one of the member's own name: only its kubelet's certificate made that.
    """
    name = cluster.name_of(one.node_id)
    return name not in {None, one.metadata.name} and any(
        other.metadata.name == name and other.node_id == one.node_id for other in nodes
    )


def _lies(one: NodeObject, cluster: Cluster) -> bool:
    """Say whether a member's Node has other ranges than the ledger gives that member.

    A kubelet may write its own Node's, once: so it could claim another's before that is recorded.
    """
    held = cluster.range_of(one.node_id)
    if held is None:
        return False
    return reconcile("", held, one.spec.ranges, cluster.plan).verdict is Verdict.REFUSED


def own_range(node: NodeObject, cluster: Cluster) -> Reconciled:
    """Return what a node that sees its own object only makes of it."""
    return reconcile(node.metadata.name, cluster.range, node.spec.ranges, cluster.plan)


def patch_of(change: Record) -> bytes:
    """Return the merge patch (RFC 7386) that records a range."""
    return msgspec.json.encode({"spec": {"podCIDR": change.ranges[0], "podCIDRs": change.ranges}})
