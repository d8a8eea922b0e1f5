"""The cluster agent's loop: look, decide, do, tell; every two seconds, for ever.

Each turn begins anew from what there is, so the process may be killed anywhere. Without the
supervisor everything is kept as it is.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from appliance.cluster import cluster_entries, conflist, roles
from appliance.cluster.cluster_entries import Promises
from appliance.cluster.errors import ClusterError
from appliance.cluster.growth import Engine
from appliance.cluster.model import Decision, Memory
from appliance.cluster.model import Kind as Decided
from appliance.cluster.recorded import Verdict
from appliance.cni.provider import NoPods, Pods
from appliance.kubernetes import files, flannel, manifests
from appliance.kubernetes.api_address import ApiAddress
from appliance.kubernetes.asking import AwayError, Supervisor
from appliance.kubernetes.config import engine_config, joined_in
from appliance.kubernetes.engine import EngineKeeper, Outcome, read_manifests
from appliance.kubernetes.errors import KubernetesError
from appliance.kubernetes.exposing import Exposing
from appliance.kubernetes.keeper import UNITS, Machine, Unit, UnitFacts, Wanted
from appliance.kubernetes.lan_doors import LanDoors
from appliance.kubernetes.medium import Meter
from appliance.kubernetes.observing import Observed, Observer
from appliance.kubernetes.part import (
    Kind,
    Part,
    expects_cluster,
    one_after,
    part_of,
    turn_of,
    view_of,
    was_removed,
)
from appliance.kubernetes.places import Places
from appliance.kubernetes.pods import CniHost
from appliance.kubernetes.report import Reporter, State
from appliance.kubernetes.reporting import Turn, defect, report_of, state_of
from appliance.kubernetes.sealing import Sealer
from appliance.kubernetes.serving import KubeFacts, KubeSide
from appliance.ledger.assigned import read_id
from appliance.problem import Problem
from provisioning import codec

log = logging.getLogger(__name__)

TURN_SECONDS = 2.0
# Where all is as it should be, a look costs more than it finds.
CALM_SECONDS = 5.0
# A supervisor that restarts, or a machine that is busy, is no problem yet.
AWAY_SECONDS = 20.0
# A node that is not in the cluster after this long asks another server, if there is one: the first
# may be broken, or may have lied about where it serves.
JOIN_SECONDS = 300.0
# After so many starts in vain a server asks whether the others took it out.
REMOVED_ATTEMPTS = 3
# After a turn that said something: what it said is the reason for the next one.
SOON_SECONDS = 0.2
KUBE_SECONDS = 10.0


_UNASKED = Part(Kind.WAIT, "the supervisor was not asked yet")
_OUT = Decision(Decided.NONE, "this node is revoked: it is out of its network for good")
_NOTHING = Wanted(_UNASKED, conflist_known=False)
_NO_ADDRESS = Problem(
    "no-node-address",
    "this node has no IPv4 address but link-local ones, and Kubernetes takes none of those",
    "Without the tunnel a node needs a DHCP server, or an address from you, on its LAN.",
)
_UNSEEN = Machine(UnitFacts(Unit.INACTIVE), UnitFacts(Unit.INACTIVE))


@dataclass(slots=True)
class _Last:
    """What the last turns left."""

    observed: Observed | None = None
    decision: Decision | None = None
    part: Part = _UNASKED
    wanted: Wanted = _NOTHING
    pods: Pods | NoPods | None = None
    away: Problem | None = None
    away_since: float = 0.0
    # Through which server this node joins, and since when it tries.
    join: str | None = None
    join_since: float = 0.0
    machine: Machine = _UNSEEN
    defect: Problem | None = None


class Agent:
    """One node's cluster agent. ``clock`` is monotonic seconds, ``wall`` Unix seconds."""

    def __init__(
        self,
        places: Places,
        *,
        supervisor: Supervisor,
        engine: EngineKeeper,
        kube: KubeSide,
        sealer: Sealer,
        observer: Observer,
        cni: CniHost,
        api_address: ApiAddress | None = None,
        doors: LanDoors | None = None,
        exposing: Exposing | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._places = places
        self._supervisor = supervisor
        self._engine = engine
        self._kube = kube
        self._sealer = sealer
        self._observer = observer
        self._cni = cni
        self._api_address = api_address
        self._doors = doors
        self._exposing = exposing
        self._clock = clock
        self._wall = wall
        self._meter = Meter(places.data_dir)
        self._memory = Memory()
        self._last = _Last()
        self._reporter = Reporter(places.status)
        self._spoke = False
        self._removed = False

    async def turn(self) -> float:
        """Do what one look at everything asks for; return in how many seconds the next is due.

        Raises nothing but defects.
        """
        last = self._last
        problems: list[Problem] = []
        self._spoke = False
        try:
            observed = await self._observer.observe()
            decision = _OUT if observed.revoked else await self._decide(observed)
        except KubernetesError as error:
            self._away(error)
        else:
            if last.away is not None:
                log.info("the supervisor answers again")
            last.observed, last.decision, last.away = observed, decision, None
            join = self._join_through(decision)
            last.part = part_of(decision, join, inside=self._is_in(decision))
        if last.away is not None and self._clock() - last.away_since >= AWAY_SECONDS:
            problems.append(last.away)
        if last.observed is not None:
            last.wanted = self._want(last.observed, last.part)
            if last.part.kind is not Kind.NONE and expects_cluster(last.observed):
                await self._engine.prepare()
        kept = await self._engine.keep(last.wanted)
        last.machine = kept.machine
        await self._cni.use(last.pods)
        problems += await self._keep_api_address()
        calm = self._tell(kept, (*problems, *kept.problems)) in {State.READY, State.OFF}
        if self._spoke:
            return SOON_SECONDS
        return CALM_SECONDS if calm and not last.part.shared else TURN_SECONDS

    async def _keep_api_address(self) -> tuple[Problem, ...]:
        last, facts, address = self._last, self._kube.facts, self._api_address
        if address is None or last.observed is None:
            return ()
        serves = last.part.kind is Kind.SERVER and facts.serves
        away = last.away is not None
        if self._doors is not None:
            await self._doors.keep(last.observed.cluster, serves=serves)
        await address.keep(last.observed, serves=serves, leads=facts.engine.leader, away=away)
        return address.problems

    async def ask_kubernetes(self) -> float:
        """Do the Kubernetes API's part, as slow as that is; return when it is due again."""
        last = self._last
        if last.observed is None:
            return TURN_SECONDS
        remove = None if last.decision is None else last.decision.remove
        restart = self._engine.outdated
        facts = await self._kube.work(last.observed, last.part, remove, restart=restart)
        if last.part.kind is Kind.SERVER and facts.serves:
            try:
                await self._sealer.seal(last.observed, leads=facts.engine.leader)
            except KubernetesError as error:
                log.warning("credentials are not sealed yet: %s", error)
            if self._exposing is not None:
                await self._exposing.work()
        last.defect = None
        settled = facts.node is not None and facts.node.ready
        return KUBE_SECONDS if settled and not last.part.shared else TURN_SECONDS

    # Deciding

    async def _decide(self, observed: Observed) -> Decision:
        kept = self._kept()
        decision = roles.decide(
            view_of(
                observed,
                self._clock(),
                int(self._wall() * 1000),
                kept=kept,
                engine=self._engine_facts(observed),
                memory=self._memory,
                orders=observed.orders,
            )
        )
        if decision.keep is not None:
            data = codec.encode(decision.keep)
            await asyncio.to_thread(files.write, self._places.kept, data)
        for key, value in decision.writes:
            await self._supervisor.put_entry(key, value)
        self._memory = decision.memory
        self._spoke = bool(decision.writes) or decision.keep is not None
        return decision

    def _engine_facts(self, observed: Observed) -> Engine:
        facts, has_data = self._kube.facts, self._kube.has_data()
        own = read_id(observed.cluster.document.node_id) or b""
        failing = not facts.serves and self._engine.attempts >= REMOVED_ATTEMPTS
        found = failing and was_removed(cluster_entries.read(observed.said), own)
        # Until its state is set aside: its engine has to stop for that, and fails no more then.
        self._removed = has_data and (self._removed or found)
        return replace(facts.engine, has_data=has_data, removed=self._removed)

    def _kept(self) -> Promises:
        data = files.read(self._places.kept, cluster_entries.FILE_MAX + 1)
        found = None if data is None else cluster_entries.read_promises(data)
        return Promises() if found is None else found

    def _away(self, error: KubernetesError) -> None:
        code = "supervisor-away" if isinstance(error, AwayError) else "supervisor"
        problem = Problem(code, str(error), error.hint or "")
        if self._last.away is None:
            self._last.away_since = self._clock()
        if self._last.away is None or self._last.away.code != code:
            log.warning("%s; what runs goes on", error)
        self._last.away = problem

    # What there should be

    def _want(self, observed: Observed, part: Part) -> Wanted:
        cluster, facts = observed.cluster, self._kube.facts
        problems = [Problem(one.code, one.message, one.hint) for one in cluster.document.problems]
        problems += [*part.problems, *facts.problems, *self._cni.problems()]
        if cluster.document.addresses and not cluster.node_addresses:
            problems.append(_NO_ADDRESS)
        pods = None
        try:
            pods = self._pods(observed, part, facts)
        except ClusterError as error:
            problems.append(Problem("pod-network", str(error), error.hint or ""))
        self._last.pods = pods or self._last.pods
        texts: dict[str, str] = {}
        config = None
        try:
            if part.kind is Kind.SERVER:
                texts = read_manifests(self._places, manifests.values(cluster, self._places))
            config = self._config(observed, part)
            if config is not None:
                flannel.tell_unit(cluster, self._places.flannel_dir)
        except KubernetesError as error:
            problems.append(Problem("engine-configuration", str(error), error.hint or ""))
        text = conflist.conflist_text(pods.network).encode() if isinstance(pods, Pods) else None
        return Wanted(
            part,
            config,
            text,
            # A range that is only not known again yet takes nothing from pods that have it.
            conflist_known=text is not None or self._refused(part),
            manifests=texts,
            problems=tuple(problems),
            turn=self._turn(observed, part),
            may=not part.shared or facts.turn or facts.away,
        )

    def _turn(self, observed: Observed, part: Part) -> int:
        if part.kind is not Kind.SERVER:
            return 0
        own = read_id(observed.cluster.document.node_id) or b""
        leads = self._kube.facts.engine.leader
        return turn_of(cluster_entries.read(observed.said), own, leads=leads)

    def _refused(self, part: Part) -> bool:
        own = self._kube.facts.own
        return part.kind is Kind.NONE or (own is not None and own.verdict is Verdict.REFUSED)

    def _pods(self, observed: Observed, part: Part, facts: KubeFacts) -> Pods | NoPods | None:
        """Return how pods are to be connected; None: not known now, so as before."""
        cluster = observed.cluster
        if part.kind is Kind.NONE:
            return NoPods(part.why)
        if facts.own is not None and facts.own.verdict is Verdict.REFUSED:
            problem = facts.own.problem
            return NoPods(
                "Kubernetes has another pod range" if problem is None else problem.message
            )
        if cluster.range is None:
            return None
        network = flannel.pod_network(cluster, cluster.range)
        services = (cluster.services,)
        return Pods(network, cluster.document.interface, self._places.gate, services)

    def _config(self, observed: Observed, part: Part) -> str | None:
        if part.kind not in UNITS:
            return None
        keys = self._sealer.keys(observed, part)
        addresses = observed.cluster.node_addresses
        if keys is None or not addresses or observed.cluster.range is None:
            return None
        return engine_config(observed.cluster, part, keys, addresses, self._places)

    def _join_through(self, decision: Decision) -> str | None:
        """Return the server to join through as long as it is one; after long in vain, another."""
        last, now = self._last, self._clock()
        joined = self._joined()
        if joined != last.join:
            last.join, last.join_since = joined, now
        if joined is None or now - last.join_since < JOIN_SECONDS or self._is_in(decision):
            return joined
        another = one_after(joined, decision.join)
        if another != joined:
            log.warning("%s does not let this node in; trying %s", joined, another)
        return another

    def _is_in(self, decision: Decision) -> bool:
        """Say whether this node has joined: the engine knows all servers from then on."""
        if decision.kind is Decided.AGENT:
            return self._places.kubelet_kubeconfig.exists()
        return self._kube.is_member()

    def _joined(self) -> str | None:
        """Return the server that the engine's present configuration joins through."""
        return joined_in(files.read_text(self._places.config, 256 * 1024) or "")

    # Telling

    def tell_defect(self, error: Exception) -> None:
        """Report an error that no turn should end in: the last report would stay as it is."""
        self._last.defect = defect(error)
        self._tell(Outcome(self._last.machine), ())

    def _tell(self, kept: Outcome, problems: tuple[Problem, ...]) -> State:
        last = self._last
        wear = self._meter.look(self._clock())
        turn = Turn(
            last.part,
            last.wanted,
            last.observed,
            last.pods,
            kept,
            self._kube.facts,
            self._engine.attempts,
            (*problems, *wear.problems, *(() if last.defect is None else (last.defect,))),
            wear.writes,
            None if self._api_address is None else self._api_address.report(),
        )
        self._reporter.tell(report_of(turn))
        return state_of(turn)
