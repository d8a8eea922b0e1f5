"""What a turn of the cluster agent came to, as its report."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.cni.provider import NoPods, Pods
from appliance.kubernetes.engine import Outcome
from appliance.kubernetes.keeper import UNITS, Wanted
from appliance.kubernetes.observing import Observed
from appliance.kubernetes.part import Kind, Part
from appliance.kubernetes.places import API_PORT
from appliance.kubernetes.report import ApiReport, EngineReport, Report, State
from appliance.kubernetes.serving import KubeFacts, server_url
from appliance.kubernetes.wear import Writes
from appliance.problem import Problem


@dataclass(frozen=True, slots=True)
class Turn:
    """What a turn came to. ``starts``: how often the engine was started in a row."""

    part: Part
    wanted: Wanted
    observed: Observed | None
    pods: Pods | NoPods | None
    kept: Outcome
    kube: KubeFacts
    starts: int
    problems: tuple[Problem, ...]
    writes: Writes | None = None
    api_address: ApiReport | None = None


def state_of(turn: Turn) -> State:
    """Return the state that follows."""
    kind = turn.part.kind
    if kind is Kind.NONE:
        return State.DEGRADED if turn.problems else State.OFF
    if turn.problems:
        return State.DEGRADED
    if kind is Kind.WAIT:
        return State.WAITING
    return State.READY if turn.kept.running(kind) and _ready(turn) else State.STARTING


def report_of(turn: Turn) -> Report:
    """Return what there is to say of a turn."""
    unit = UNITS.get(turn.part.kind, "")
    state = turn.kept.machine.unit(unit).state.value if unit else ""
    return Report(
        state_of(turn).value,
        turn.part.kind.value,
        _why(turn),
        EngineReport(unit, state, turn.starts),
        _ready(turn),
        _api(turn),
        turn.problems,
        str(turn.pods.network.ranges[0]) if isinstance(turn.pods, Pods) else "",
        turn.kube.nodes or None,
        turn.writes,
        turn.api_address,
    )


def _ready(turn: Turn) -> bool:
    return turn.kube.node is not None and turn.kube.node.ready


def _why(turn: Turn) -> str:
    part = turn.part
    if part.kind not in UNITS or turn.observed is None or _ready(turn):
        return part.why
    if turn.wanted.config is not None or turn.wanted.problems:
        return part.why
    cluster = turn.observed.cluster
    if cluster.range is None:
        return f"{part.why}; it has no pod range yet"
    if not cluster.node_addresses:
        return f"{part.why}; it has no address yet"
    return f"{part.why}; no server has sealed a join token for it yet"


def _api(turn: Turn) -> str:
    if turn.part.join is not None:
        return server_url(turn.part.join, API_PORT)
    addresses = () if turn.observed is None else turn.observed.cluster.node_addresses
    if turn.part.kind is Kind.SERVER and addresses:
        return server_url(addresses[0], API_PORT)
    return ""
