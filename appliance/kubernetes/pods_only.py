"""The agent of a node whose Kubernetes is somebody else's: pods' networking and no more.

``skerry cluster run --pods-only``: it serves the CNI plugin, writes the CNI configuration, and
records the node's pod range in that Kubernetes, with the pod's own service account. It takes no
part in founding a cluster and starts nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from appliance.api.answers import ClusterFacts
from appliance.cluster import conflist
from appliance.cluster.errors import ClusterError
from appliance.cluster.recorded import Reconciled, Verdict
from appliance.cni.provider import NoPods, Pods
from appliance.kubernetes import facts, files, flannel, records, report, service_account
from appliance.kubernetes.asking import AwayError, Supervisor
from appliance.kubernetes.errors import KubernetesError, SupervisorError
from appliance.kubernetes.facts import Cluster
from appliance.kubernetes.kubeapi import KubeApi
from appliance.kubernetes.places import Places
from appliance.kubernetes.pods import CniHost
from appliance.kubernetes.records import NodeObject, Record, Remove
from appliance.kubernetes.reporting import defect
from appliance.problem import Problem

log = logging.getLogger(__name__)

TURN_SECONDS = 2.0
CALM_SECONDS = 10.0
# A supervisor that restarts, or an API that does, is no problem yet.
AWAY_SECONDS = 20.0
WHY = "Kubernetes here is somebody else's: overlay and pods' networking only"
_NOT_FOUND = 404


class NodeApi(Protocol):
    """What is asked of Kubernetes; each blocks and may raise KubernetesError."""

    def node(self, name: str) -> NodeObject | None:
        """Return a node."""

    def perform(self, change: Record | Remove) -> None:
        """Change a node."""


def connect() -> NodeApi:
    """Return the API of the cluster that this pod is in. Raises KubernetesError."""
    return KubeApi(service_account.read_account(os.environ), Path("/"))


@dataclass(slots=True)
class _Last:
    """What the last turns left."""

    cluster: Cluster | None = None
    revoked: bool = False
    own: Reconciled | None = None
    node_ready: bool = False
    pods: Pods | NoPods | None = None
    # By who does not answer: the problem, and since when.
    away: dict[str, tuple[float, Problem]] = field(default_factory=dict)


class PodsOnly:
    """One node's agent. ``name`` is what Kubernetes calls the node; ``clock`` monotonic seconds."""

    def __init__(
        self,
        places: Places,
        *,
        supervisor: Supervisor,
        cni: CniHost,
        name: str,
        connect: Callable[[], NodeApi] = connect,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._places = places
        self._supervisor = supervisor
        self._cni = cni
        self._name = name
        self._connect = connect
        self._clock = clock
        self._api: NodeApi | None = None
        self._reporter = report.Reporter(places.status)
        self._last = _Last()

    async def turn(self) -> float:
        """Look, do, tell; return in how many seconds the next turn is due."""
        last = self._last
        try:
            last.cluster, last.revoked = await self._look()
        except KubernetesError as error:
            self._away("supervisor", error)
        else:
            last.away.pop("supervisor", None)
        problems = list(self._problems())
        try:
            last.pods = self._pods() or last.pods
        except ClusterError as error:
            problems.append(Problem("pod-network", str(error), error.hint or ""))
        try:
            await self._configure()
        except KubernetesError as error:
            problems.append(Problem("disk", str(error), error.hint or ""))
        await self._cni.use(last.pods)
        problems += self._cni.problems()
        ready = self._tell(tuple(problems))
        return CALM_SECONDS if ready else TURN_SECONDS

    async def ask_kubernetes(self) -> float:
        """Compare with what Kubernetes has of this node's range; record it if there is nothing."""
        last = self._last
        if last.cluster is None or last.cluster.range is None:
            return TURN_SECONDS
        try:
            if self._api is None:
                self._api = await asyncio.to_thread(self._connect)
            last.own = await self._reconciled(self._api, last.cluster)
        except KubernetesError as error:
            self._away("kubernetes", error)
            return TURN_SECONDS
        last.away.pop("kubernetes", None)
        return CALM_SECONDS

    async def _reconciled(self, api: NodeApi, cluster: Cluster) -> Reconciled:
        node = await asyncio.to_thread(api.node, self._name)
        if node is None:
            raise KubernetesError(
                f"Kubernetes has no Node called {self._name}",
                hint="the manifest sets NODE_NAME to spec.nodeName",
            )
        self._last.node_ready = node.ready
        found = records.own_range(node, cluster)
        if found.record:
            await asyncio.to_thread(api.perform, Record(self._name, found.record))
            log.info("told Kubernetes: %s has %s", self._name, ", ".join(found.record))
        return found

    async def _look(self) -> tuple[Cluster, bool]:
        get = self._supervisor.get
        document = facts.read(await get("/v1/cluster"), ClusterFacts, "the cluster")
        try:
            await get(f"/v1/ledger/revoked/node/{document.node_id}")
        except SupervisorError as error:
            if error.status != _NOT_FOUND:
                raise
            return facts.check(document), False
        return facts.check(document), True

    def _away(self, who: str, error: KubernetesError) -> None:
        code = f"{who}-away" if isinstance(error, AwayError) or who == "kubernetes" else who
        since, before = self._last.away.get(who, (self._clock(), None))
        problem = Problem(code, str(error), error.hint or "")
        if before is None or before.message != problem.message:
            log.warning("%s; what runs goes on", error)
        self._last.away[who] = since, problem

    def _problems(self) -> tuple[Problem, ...]:
        last = self._last
        found = [one for since, one in last.away.values() if self._clock() - since >= AWAY_SECONDS]
        if last.cluster is not None:
            document = last.cluster.document
            found += [Problem(one.code, one.message, one.hint) for one in document.problems]
            if document.roles == ("none",):
                found.append(
                    Problem(
                        "no-pods-role",
                        "this node's token lets it carry no pods: its role is none",
                        "Give it one of `skerry token new --role agent`.",
                    )
                )
        if last.own is not None and last.own.problem is not None:
            found.append(last.own.problem)
        return tuple(found)

    def _pods(self) -> Pods | NoPods | None:
        """Return how pods are to be connected; None: not known now, so as before."""
        last = self._last
        if last.revoked:
            return NoPods("this node is revoked: it is out of its network for good")
        if last.own is not None and last.own.verdict is Verdict.REFUSED:
            problem = last.own.problem
            return NoPods("" if problem is None else problem.message)
        # What Kubernetes has recorded may contradict: it is asked before the first pod.
        if last.cluster is None or last.cluster.range is None or last.own is None:
            return None
        network = flannel.pod_network(last.cluster, last.cluster.range)
        # Services and policies are that Kubernetes' own.
        return Pods(network, last.cluster.document.interface, gate=self._places.gate)

    async def _configure(self) -> None:
        """Write the CNI configuration, or take it away. Raises FileTroubleError."""
        pods, place = self._last.pods, self._places.conflist
        if isinstance(pods, NoPods):
            if place.exists():
                log.warning("the CNI configuration is removed: %s", pods.reason)
            files.remove(place)
        elif pods is not None:
            text = conflist.conflist_text(pods.network).encode()
            if files.read(place, conflist.TEXT_MAX + 1) != text:
                await asyncio.to_thread(files.write, place, text, mode=0o644, folder_mode=0o755)
                log.info("the CNI configuration is written: %s", place)

    def tell_defect(self, error: Exception) -> None:
        """Report an error that no turn should end in: the last report would stay as it is."""
        self._tell((defect(error),))

    def _tell(self, problems: tuple[Problem, ...]) -> bool:
        last = self._last
        works = isinstance(last.pods, Pods)
        state = report.State.READY if works else report.State.WAITING
        made = report.Report(
            report.State.DEGRADED.value if problems else state.value,
            "pods",
            WHY,
            report.EngineReport(),
            last.node_ready,
            "",
            problems,
            str(last.pods.network.ranges[0]) if isinstance(last.pods, Pods) else "",
        )
        self._reporter.tell(made)
        return works and not problems


def node_name(environment: Mapping[str, str]) -> str:
    """Return what Kubernetes calls this node. Raises KubernetesError."""
    name = environment.get("NODE_NAME", "")
    if not name:
        raise KubernetesError(
            "--pods-only needs the name of this Kubernetes node",
            hint="set NODE_NAME; the manifest of `skerry image oci` does",
        )
    return name
