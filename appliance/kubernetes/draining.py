"""Nodes that are to have no pods: cordoned, and emptied by eviction, by the server that leads.

The operator orders it (`skerry node drain`) before a node goes: as long as it is there its pods end
in their own time, and PodDisruptionBudgets hold. After `DEADLINE_SECONDS` they do so no more. What
belongs to the node itself (pods of DaemonSets, static ones) stays.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote

import msgspec

from appliance.cluster import cluster_entries
from appliance.cluster.cluster_entries import DRAINED_MAX, Drained
from appliance.kubernetes.asking import Supervisor
from appliance.kubernetes.errors import KubeApiError
from appliance.kubernetes.observing import Observed
from appliance.kubernetes.records import NodeObject
from appliance.ledger.assigned import read_id

log = logging.getLogger(__name__)

# How long PodDisruptionBudgets may hold a node up.
DEADLINE_SECONDS = 600.0
# On the Nodes that were cordoned by an order, and are free again when it is taken back.
MARK = "skerry/drained"
_MERGE = "application/merge-patch+json"
_MIRROR = "kubernetes.io/config.mirror"
_ENDED = frozenset({"Succeeded", "Failed"})
_BLOCKED = 429
_GONE = 404


class Asker(Protocol):
    """What is asked of Kubernetes; blocks, and may raise KubeApiError."""

    def ask(
        self, method: str, path: str, body: bytes | None = None, kind: str = "application/json"
    ) -> bytes:
        """Return the answer's body."""


class _Owner(msgspec.Struct, frozen=True):
    kind: str


class _Meta(msgspec.Struct, frozen=True, rename="camel"):
    name: str
    namespace: str
    uid: str
    annotations: dict[str, str] = {}
    owner_references: tuple[_Owner, ...] = ()
    deletion_timestamp: str | None = None


class _Status(msgspec.Struct, frozen=True):
    phase: str = ""


class Pod(msgspec.Struct, frozen=True):
    """A Pod (core/v1), as much as is used."""

    metadata: _Meta
    status: _Status = _Status()

    @property
    def goes(self) -> bool:
        """Whether it is to be somewhere else."""
        own = any(one.kind == "DaemonSet" for one in self.metadata.owner_references)
        static = _MIRROR in self.metadata.annotations
        return not (own or static or self.status.phase in _ENDED)

    @property
    def path(self) -> str:
        """Where the API has it."""
        space, name = quote(self.metadata.namespace), quote(self.metadata.name)
        return f"/api/v1/namespaces/{space}/pods/{name}"


class _Pods(msgspec.Struct, frozen=True):
    items: tuple[Pod, ...]


def read_pods(data: bytes) -> tuple[Pod, ...]:
    """Return the pods of a PodList. Raises KubeApiError."""
    try:
        return msgspec.json.decode(data, type=_Pods).items
    except (ValueError, RecursionError) as error:
        raise KubeApiError(f"the list of pods can't be read: {str(error)[:200]}") from error


@dataclass(frozen=True, slots=True)
class Cordon:
    """Let no pods come to a node, or (``on`` False) let them come again."""

    node: str
    on: bool

    @property
    def patch(self) -> bytes:
        """The merge patch (RFC 7386)."""
        mark, closed = ("true", True) if self.on else (None, None)
        return json.dumps(
            {"metadata": {"annotations": {MARK: mark}}, "spec": {"unschedulable": closed}}
        ).encode()


def cordons(nodes: Sequence[NodeObject], wanted: Collection[str]) -> tuple[Cordon, ...]:
    """Return what is to be changed; ``wanted`` are node ids. What a person cordoned stays so."""
    changes = []
    for one in nodes:
        to_be = one.node_id in wanted
        if to_be and not one.spec.unschedulable:
            changes.append(Cordon(one.metadata.name, on=True))
        elif not to_be and MARK in one.metadata.annotations:
            changes.append(Cordon(one.metadata.name, on=False))
    return tuple(changes)


def eviction(pod: Pod) -> bytes:
    """Return the request that a pod ends, if PodDisruptionBudgets allow it."""
    return json.dumps(
        {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": pod.metadata.name, "namespace": pod.metadata.namespace},
            "deleteOptions": {"preconditions": {"uid": pod.metadata.uid}},
        }
    ).encode()


class Draining:
    """Does it, one look at a time."""

    def __init__(
        self, supervisor: Supervisor, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._supervisor = supervisor
        self._clock = clock
        self._since: dict[str, float] = {}

    async def work(self, api: Asker, nodes: Sequence[NodeObject], observed: Observed) -> None:
        """Look once, as the server that leads. Raises KubeApiError and SupervisorError."""
        ordered = observed.orders.drain
        wanted = {one.node_id for one in nodes if read_id(one.node_id) in ordered}
        for change in cordons(nodes, wanted):
            path = f"/api/v1/nodes/{quote(change.node)}"
            await asyncio.to_thread(api.ask, "PATCH", path, change.patch, _MERGE)
            log.info("told Kubernetes: %s", change)
        now = self._clock()
        self._since = {one: self._since.get(one, now) for one in wanted}
        left = {}
        for one in nodes:
            if one.node_id in wanted:
                late = now - self._since[one.node_id] > DEADLINE_SECONDS
                left[one.node_id] = await asyncio.to_thread(empty, api, one.metadata.name, late)
        await self._tell(left, observed)

    async def _tell(self, left: Mapping[str, int], observed: Observed) -> None:
        own = read_id(observed.cluster.document.node_id) or b""
        rows = sorted((read_id(node) or b"", pods) for node, pods in left.items())
        said = cluster_entries.read(observed.said).drained.get(own)
        now = Drained(cluster_entries.VERSION, tuple(rows[:DRAINED_MAX]))
        if now != (said or Drained(cluster_entries.VERSION, ())):
            key = cluster_entries.key_of(own, cluster_entries.DRAINED)
            await self._supervisor.put_entry(key, cluster_entries.value_of(now))


def empty(api: Asker, node: str, late: bool) -> int:
    """Have the pods of a node end; return how many there are still."""
    selector = quote(f"spec.nodeName={node}")
    pods = [
        one
        for one in read_pods(api.ask("GET", f"/api/v1/pods?fieldSelector={selector}"))
        if one.goes
    ]
    for one in pods:
        if one.metadata.deletion_timestamp is not None:
            continue
        try:
            if late:
                body = json.dumps({"preconditions": {"uid": one.metadata.uid}}).encode()
                api.ask("DELETE", one.path, body)
                log.warning("%s did not leave %s in time: it is ended", one.path, node)
            else:
                api.ask("POST", f"{one.path}/eviction", eviction(one))
                log.info("%s is evicted from %s", one.path, node)
        except KubeApiError as error:
            if error.status not in {_BLOCKED, _GONE, 409, 500}:
                raise
            log.info("%s stays on %s for now: %s", one.path, node, error)
    return len(pods)
