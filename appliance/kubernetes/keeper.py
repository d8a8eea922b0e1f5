"""What to do about the engine: what there should be, against what there is.

Pure: `steps` returns what to do now, in order, and is asked again every turn; each step may fail
or be cut off, and the next turn says what is left. Pods are stopped by a decision only, never by
ignorance: while nothing is known (`Kind.WAIT`, no token yet), what runs goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from appliance.kubernetes.part import Kind, Part
from appliance.kubernetes.places import AGENT_UNIT, PODS_SLICE, SERVER_UNIT
from appliance.problem import Problem

# Seconds to the next attempt after the first, second, ... failure to start.
PAUSES = (2.0, 5.0, 15.0, 30.0, 60.0)
# An engine that has run this long has started.
GOOD_SECONDS = 120.0
# Restarts for a changed configuration come no closer than this.
CALM_SECONDS = 20.0
# Servers go in this order at that; that only one is away at a time is the affair of `turns`.
TURN_SECONDS = 20.0
UNITS = {Kind.SERVER: SERVER_UNIT, Kind.AGENT: AGENT_UNIT}


class Unit(Enum):
    """A unit's state, as systemd calls it."""

    MISSING = "not-found"
    INACTIVE = "inactive"
    ACTIVATING = "activating"
    ACTIVE = "active"
    DEACTIVATING = "deactivating"
    FAILED = "failed"
    # It ended by itself; systemd starts it again after a pause.
    RETRYING = "auto-restart"

    @property
    def runs(self) -> bool:
        """Whether there is something to stop, and nothing to start."""
        return self in {Unit.ACTIVE, Unit.ACTIVATING, Unit.RETRYING}


@dataclass(frozen=True, slots=True)
class UnitFacts:
    """What systemd says of a unit; ``restarts`` counts its own (NRestarts)."""

    state: Unit
    result: str = "success"
    restarts: int = 0


@dataclass(frozen=True, slots=True)
class Machine:
    """What there is on the node."""

    server: UnitFacts
    agent: UnitFacts
    config: str | None = field(default=None, repr=False)
    applied: str | None = None
    conflist: bytes | None = None
    manifests: Mapping[str, str] = field(default_factory=dict)
    pods: Unit = Unit.INACTIVE
    has_data: bool = False

    def unit(self, name: str) -> UnitFacts:
        """Return one of the engine's two."""
        return self.server if name == SERVER_UNIT else self.agent


@dataclass(frozen=True, slots=True)
class Wanted:
    """What there should be.

    ``config`` None: it can't be written yet, ``problems`` say why. ``conflist`` None: no pods here
    (no range, or a refused one). ``conflist_known`` False: keep what is there. ``turn``: how many
    other servers restart for a changed configuration first; ``may`` False: one of them does now.
    """

    part: Part
    config: str | None = field(default=None, repr=False)
    conflist: bytes | None = None
    conflist_known: bool = True
    manifests: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    turn: int = 0
    may: bool = True


@dataclass(frozen=True, slots=True)
class Attempts:
    """How often the engine was started in a row, and when it may be again (monotonic seconds).

    ``outdated``: since when it runs with another configuration than it should.
    """

    count: int = 0
    last: float = float("-inf")
    outdated: float | None = None

    def due(self, now: float) -> bool:
        """Say whether the next start may be tried."""
        pause = 0.0 if self.count == 0 else PAUSES[min(self.count, len(PAUSES)) - 1]
        return now >= self.last + pause

    def again(self, now: float) -> Attempts:
        """Return the count after one more."""
        return Attempts(self.count + 1, now)

    def looked(self, wanted: Wanted, machine: Machine, now: float) -> Attempts:
        """Return what is known after a look at whether the configuration is the right one."""
        unit = UNITS.get(wanted.part.kind)
        if unit is None or wanted.config is None:
            return self
        right = machine.applied == digest(unit, wanted.config)
        since = now if self.outdated is None else self.outdated
        return replace(self, outdated=None if right else since)


# Steps


@dataclass(frozen=True, slots=True)
class WriteConfig:
    """Write the engine's configuration, mode 0600."""

    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class RemoveConfig:
    """Remove it: it holds a token that is of no use here any more."""


@dataclass(frozen=True, slots=True)
class WriteConflist:
    """Write the CNI configuration."""

    data: bytes


@dataclass(frozen=True, slots=True)
class RemoveConflist:
    """Remove it: the runtime starts no pods then."""


@dataclass(frozen=True, slots=True)
class PlaceManifest:
    """Give the engine a manifest; it applies it."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class SetAside:
    """Move the engine's server state away: it is of a server that the others replaced."""


@dataclass(frozen=True, slots=True)
class Start:
    """Start a unit, and remember for which configuration."""

    unit: str
    digest: str


@dataclass(frozen=True, slots=True)
class Restart:
    """Start a unit anew, and remember for which configuration."""

    unit: str
    digest: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop a unit; pods go on without an engine, until their slice is stopped."""

    unit: str


Step = (
    WriteConfig
    | RemoveConfig
    | WriteConflist
    | RemoveConflist
    | PlaceManifest
    | SetAside
    | Start
    | Restart
    | Stop
)


def digest(unit: str, config: str) -> str:
    """Return what a start of a unit with a configuration is remembered by."""
    return hashlib.sha256(f"{unit}\0{config}".encode()).hexdigest()


def steps(wanted: Wanted, machine: Machine, attempts: Attempts, now: float) -> tuple[Step, ...]:
    """Return what to do now, in order."""
    return (*_pods(wanted, machine), *_engine(wanted, machine, attempts, now))


def settled(machine: Machine, part: Part) -> bool:
    """Say whether the part's engine runs, so that the count of attempts may be forgotten."""
    unit = UNITS.get(part.kind)
    return unit is not None and machine.unit(unit).state is Unit.ACTIVE


def _pods(wanted: Wanted, machine: Machine) -> tuple[Step, ...]:
    if not wanted.conflist_known or wanted.conflist == machine.conflist:
        return ()
    if wanted.conflist is None:
        return (RemoveConflist(),)
    return (WriteConflist(wanted.conflist),)


def _engine(wanted: Wanted, machine: Machine, attempts: Attempts, now: float) -> tuple[Step, ...]:
    if wanted.part.reset and machine.has_data:
        running = [name for name in UNITS.values() if machine.unit(name).state.runs]
        return tuple(Stop(one) for one in running) or (SetAside(),)
    if wanted.part.kind is Kind.WAIT:
        return ()
    unit = UNITS.get(wanted.part.kind)
    others = [name for name in UNITS.values() if name != unit and machine.unit(name).state.runs]
    if unit is None:
        gone: tuple[Step, ...] = (RemoveConfig(),) if machine.config is not None else ()
        # Pods outlive an engine; with nobody to look after them they are not to.
        ends = others or ([PODS_SLICE] if machine.pods.runs else [])
        return (*(Stop(one) for one in ends), *gone)
    facts = machine.unit(unit)
    if wanted.config is None or facts.state is Unit.MISSING:
        return ()
    if others:
        # One engine at a time: both would want the same data and ports.
        return tuple(Stop(one) for one in others)
    leaving = {machine.unit(name).state for name in UNITS.values()}
    if Unit.DEACTIVATING in leaving:
        return ()
    return (
        *_manifests(wanted, machine),
        *((WriteConfig(wanted.config),) if machine.config != wanted.config else ()),
        *_start(unit, wanted, machine, attempts, now),
    )


def _manifests(wanted: Wanted, machine: Machine) -> tuple[Step, ...]:
    return tuple(
        PlaceManifest(name, text)
        for name, text in sorted(wanted.manifests.items())
        if machine.manifests.get(name) != text
    )


def _start(
    unit: str, wanted: Wanted, machine: Machine, attempts: Attempts, now: float
) -> tuple[Step, ...]:
    right = digest(unit, wanted.config or "")
    if not machine.unit(unit).state.runs:
        return (Start(unit, right),) if attempts.due(now) else ()
    since = now if attempts.outdated is None else attempts.outdated
    turn = since + wanted.turn * TURN_SECONDS
    if wanted.may and machine.applied != right and now >= max(attempts.last + CALM_SECONDS, turn):
        return (Restart(unit, right),)
    return ()


def engine_problem(wanted: Wanted, machine: Machine, attempts: Attempts) -> Problem | None:
    """Say what is wrong with the engine that should run."""
    unit = UNITS.get(wanted.part.kind)
    if unit is None:
        return None
    facts = machine.unit(unit)
    if facts.state is Unit.MISSING:
        return Problem(
            "engine-missing",
            f"this node is to be a Kubernetes {wanted.part.kind.value}, and has no {unit}",
            "Its image was built --without-kubernetes: install one with, or give it a token with "
            "--role none.",
        )
    failing = {Unit.FAILED, Unit.RETRYING}
    if facts.state in failing or (facts.state is not Unit.ACTIVE and attempts.count > 1):
        return Problem(
            "engine-failing",
            f"{unit} does not stay up ({facts.state.value}, {facts.result}, started "
            f"{max(attempts.count, facts.restarts)} times)",
            f"It is tried again by itself; journalctl -u {unit.removesuffix('.service')} -n 50 "
            "says why.",
        )
    return None
