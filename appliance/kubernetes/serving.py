"""The Kubernetes side of a node: asks the API, records ranges, removes nodes that are out.

All of it may be slow or away; it runs beside the agent's loop and leaves its latest `KubeFacts`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from appliance.cluster.growth import Engine
from appliance.cluster.recorded import Reconciled
from appliance.kubernetes import files, records
from appliance.kubernetes.config import bracketed
from appliance.kubernetes.draining import Asker, Draining
from appliance.kubernetes.errors import KubeApiError, KubernetesError
from appliance.kubernetes.facts import Cluster
from appliance.kubernetes.kubeapi import KubeApi
from appliance.kubernetes.kubeconfig import FILE_MAX, Kubeconfig, read_kubeconfig
from appliance.kubernetes.observing import Observed, Observer
from appliance.kubernetes.part import Kind, Part
from appliance.kubernetes.places import Places
from appliance.kubernetes.records import Lease, NodeObject, Record, Remove
from appliance.kubernetes.shutting_out import ShuttingOut
from appliance.kubernetes.turns import Turns
from appliance.ledger.assigned import read_id
from appliance.problem import Problem

log = logging.getLogger(__name__)

# What is known is as good for so long without an answer; Kubernetes itself forgives a node 40 s.
GRACE_SECONDS = 40.0
# Another server wrote at the same time: all of it again, at the next look.
_CONFLICT = 409


class Api(Asker, Protocol):
    """What is asked of Kubernetes; every method blocks and may raise KubeApiError."""

    def ready(self) -> bool:
        """Say whether it serves."""

    def nodes(self) -> tuple[NodeObject, ...]:
        """Return all nodes."""

    def node(self, name: str) -> NodeObject | None:
        """Return a node."""

    def lease(self) -> Lease | None:
        """Return the controller manager's lease."""

    def perform(self, change: Record | Remove) -> None:
        """Change a node."""

    def close(self) -> None:
        """Give back what was used."""


Connect = Callable[[Kubeconfig], Api]


@dataclass(frozen=True, slots=True)
class KubeFacts:
    """What is known of Kubernetes now.

    ``serves``: this node's own API answers; ``away``: it was asked, and does not. ``turn``: of all
    servers, this one may restart. ``own``: what this node may do with its pod range, None
    while Kubernetes was not asked. ``nodes``: every Node's name, and whether it is ready.
    """

    serves: bool = False
    node: NodeObject | None = None
    own: Reconciled | None = None
    nodes: Mapping[str, bool] = field(default_factory=dict)
    engine: Engine = field(default_factory=Engine)
    problems: tuple[Problem, ...] = ()
    turn: bool = False
    away: bool = False


class KubeSide:
    """Asks with the administrator's credentials on a server, with the kubelet's on an agent."""

    def __init__(
        self,
        places: Places,
        observer: Observer,
        *,
        connect: Connect | None = None,
        draining: Draining | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._good = float("-inf")
        self._places = places
        self._observer = observer
        self._connect = connect or (lambda config: KubeApi(config, places.run_dir))
        self._draining = draining
        self._turns = Turns(clock=clock)
        self._shutting_out = ShuttingOut()
        self._api: tuple[Kubeconfig, Api] | None = None
        self._trouble = ""
        self.facts = KubeFacts()

    async def work(
        self,
        observed: Observed,
        part: Part,
        remove: bytes | None = None,
        *,
        restart: bool = False,
    ) -> KubeFacts:
        """Ask, do what servers do, and return what is so now. Never raises SkerryError.

        ``restart``: the engine has to, and asks for its turn.
        """
        try:
            if part.kind is Kind.SERVER:
                self.facts = await self._serve(observed, part, remove, restart=restart)
            elif part.kind is Kind.AGENT:
                self.facts = await self._watch(observed.cluster)
            elif part.kind is Kind.NONE:
                self.facts = KubeFacts()
            self._good = self._clock()
        except KubernetesError as error:
            if str(error) != self._trouble:
                log.info("Kubernetes was not asked: %s", error)
            self._trouble = str(error)
            if self._clock() - self._good < GRACE_SECONDS:
                return self.facts
            # What was agreed on a pod range stays: it never changes.
            self.facts = self._away(observed.cluster)
        return self.facts

    def has_data(self) -> bool:
        """Say whether there is Kubernetes state on this server's disk."""
        return (self._places.data_dir / "server/db").is_dir()

    def is_member(self) -> bool:
        """Say whether this server has joined: there is a datastore's member on its disk."""
        return (self._places.data_dir / "server/db/etcd/member/wal").is_dir()

    def _without_api(self, cluster: Cluster) -> Engine:
        own = read_id(cluster.document.node_id) or b""
        return Engine(has_data=self.has_data(), members=frozenset({own}))

    def _away(self, cluster: Cluster) -> KubeFacts:
        return KubeFacts(own=self.facts.own, engine=self._without_api(cluster), away=True)

    async def _serve(
        self, observed: Observed, part: Part, remove: bytes | None, *, restart: bool
    ) -> KubeFacts:
        cluster = observed.cluster
        api = self._connected(self._places.server_kubeconfig)
        if not self.facts.serves and not await asyncio.to_thread(api.ready):
            return self._away(cluster)
        nodes = await asyncio.to_thread(api.nodes)
        lease = None if _alone(part) else await asyncio.to_thread(api.lease)
        revoked = await self._observer.revoked(records.unknown(nodes, cluster))
        decided = records.decide(nodes, cluster, revoked | _text_id(nodes, remove))
        problems = list(decided.problems)
        # First: who is out is known by its Node, which goes.
        problems += await self._shut_out(api, nodes, revoked, cluster)
        for change in decided.changes:
            try:
                await asyncio.to_thread(api.perform, change)
            except KubeApiError as error:
                problems.append(Problem("kubernetes-refused", str(error), error.hint or ""))
            else:
                log.info("told Kubernetes: %s", change)
        engine = self._engine(cluster, part, nodes, lease)
        if not _alone(part):
            await self._turns.work(api, cluster.document.name, wants=restart)
        if engine.leader and self._draining is not None:
            try:
                await self._draining.work(api, nodes, observed)
            except KubernetesError as error:
                problems.append(Problem("draining", str(error), error.hint or ""))
        return KubeFacts(
            serves=True,
            node=_named(nodes, cluster.document.name),
            own=decided.own,
            nodes={one.metadata.name: one.ready for one in nodes},
            engine=engine,
            problems=tuple(problems),
            turn=self._turns.held,
        )

    async def _shut_out(
        self, api: Api, nodes: Sequence[NodeObject], revoked: Collection[str], cluster: Cluster
    ) -> tuple[Problem, ...]:
        out = {one.metadata.name for one in nodes if one.node_id in revoked}
        members = {one.name for one in cluster.document.members} | {cluster.document.name}
        try:
            await asyncio.to_thread(self._shutting_out.work, api, out, members)
        except KubeApiError as error:
            if error.status == _CONFLICT:
                raise
            return (Problem("kubernetes-refused", str(error), error.hint or ""),)
        return ()

    def _engine(
        self, cluster: Cluster, part: Part, nodes: tuple[NodeObject, ...], lease: Lease | None
    ) -> Engine:
        own = read_id(cluster.document.node_id) or b""
        shared = {read_id(one.node_id) or b"" for one in nodes if one.keeps_state} - {b""}
        alone = _alone(part)
        return Engine(
            has_data=self.has_data(),
            addresses=cluster.document.addresses[:2],
            leader=alone or (lease is not None and lease.holder_node == cluster.document.name),
            term=0 if alone or lease is None else lease.transitions,
            members=frozenset(shared | {own}),
        )

    async def _watch(self, cluster: Cluster) -> KubeFacts:
        api = self._connected(self._places.kubelet_kubeconfig)
        node = await asyncio.to_thread(api.node, cluster.document.name)
        own = None if node is None else records.own_range(node, cluster)
        problems = () if own is None or own.problem is None else (own.problem,)
        nodes = {} if node is None else {node.metadata.name: node.ready}
        return KubeFacts(node=node, own=own, nodes=nodes, problems=problems)

    def _connected(self, path: Path) -> Api:
        text = files.read_text(path, FILE_MAX)
        if text is None:
            raise KubernetesError(f"there is no {path} yet")
        config = read_kubeconfig(text, str(path))
        # It may name files, whose content changes.
        if self._api is None or self._api[0] != config:
            if self._api is not None:
                self._api[1].close()
            self._api = (config, self._connect(config))
        return self._api[1]


def server_url(address: str, port: int) -> str:
    """Return the URL of an API."""
    return f"https://{bracketed(address)}:{port}"


def _alone(part: Part) -> bool:
    """Say whether this server keeps the state alone: it needs no lease to be the first."""
    return not part.embedded and part.join is None


def _named(nodes: tuple[NodeObject, ...], name: str) -> NodeObject | None:
    return next((one for one in nodes if one.metadata.name == name), None)


def _text_id(nodes: tuple[NodeObject, ...], node_id: bytes | None) -> frozenset[str]:
    if node_id is None:
        return frozenset()
    return frozenset(one.node_id for one in nodes if read_id(one.node_id) == node_id)
