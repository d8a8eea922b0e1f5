"""What a turn of the cluster agent came to, as its report."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
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

# A report has to fit into `report.STATUS_MAX`, whatever a member that may register Nodes does.
PROBLEMS_MAX = 64
NODES_MAX = 2048
_NAME_MAX = 63


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
        _told(turn.problems),
        str(turn.pods.network.ranges[0]) if isinstance(turn.pods, Pods) else "",
        _nodes(turn.kube.nodes) or None,
        turn.writes,
        turn.api_address,
    )


def defect(error: Exception) -> Problem:
    """Return what there is to say of an error that nobody expected; its text may hold anything."""
    return Problem(
        "defect",
        f"the cluster agent came upon a defect of its own ({type(error).__name__})",
        "journalctl -u skerry-cluster has all of it. What runs goes on.",
    )


def _told(problems: tuple[Problem, ...]) -> tuple[Problem, ...]:
    """Return as many as a person reads, and how many there are besides."""
    if len(problems) <= PROBLEMS_MAX:
        return problems
    left = len(problems) - PROBLEMS_MAX + 1
    more = Problem("more-problems", f"there are {left} more problems", "Begin with the first.")
    return (*problems[: PROBLEMS_MAX - 1], more)


def _nodes(nodes: Mapping[str, bool]) -> dict[str, bool]:
    """Return the nodes that can be members': no member has a longer name."""
    found = (one for one in nodes.items() if len(one[0]) <= _NAME_MAX)
    return dict(itertools.islice(found, NODES_MAX))


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
