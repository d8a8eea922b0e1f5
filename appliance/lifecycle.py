"""The node's life cycle: events in, (state, actions) out; no clock, files or sockets.

======================= =====================================================================
unprovisioned           no identity; waits for a token
provisioning            a valid token was taken, keys and certificate are being made
joining                 has an identity; the overlay is coming up, members are being looked for
ready                   the overlay is up and a member answered, or nobody did for a while: a
                        node that is alone on its network is ready
degraded (reasons)      has, or had, an identity, and something is wrong with it
======================= =====================================================================

The state is a function of facts, and events change facts: there is no order of events that leaves a
state without what it needs.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from appliance.problem import CLOCK_BY_MEMBERS, Problem

SETTLE_SECONDS = 8.0
RETRY_SECONDS = (2.0, 5.0, 15.0, 60.0)
NOTICE_SECONDS = 900.0
# Of the past: nothing is to be done about them, so they do not stay reasons for ever.
NOTICES = frozenset({"state-lost", "state-newer", "identity-lost", "ledger-lost", "ledger-newer"})
# What another release would not cure, so no cause to roll an update back.
NO_FAULT_OF_THE_RELEASE = frozenset(
    {
        *("state-lost", "state-newer", "ledger-lost", "ledger-newer", "clock"),
        *("identity-twice", "address-given-twice", "addresses-exhausted", "range-overlap"),
    }
)


class State(enum.Enum):
    """What the node tells about itself."""

    UNPROVISIONED = "unprovisioned"
    PROVISIONING = "provisioning"
    JOINING = "joining"
    READY = "ready"
    DEGRADED = "degraded"


class Stage(enum.Enum):
    """How far the node has come, whatever is wrong with it."""

    NO_IDENTITY = enum.auto()
    # Gone for good: a token makes a new one.
    LOST_IDENTITY = enum.auto()
    # There, but this release can't use it: it must not be replaced.
    UNUSABLE_IDENTITY = enum.auto()
    MAKING_IDENTITY = enum.auto()
    STARTING_OVERLAY = enum.auto()
    OVERLAY_DOWN = enum.auto()
    RUNNING = enum.auto()


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """The facts. Times are seconds of one monotonic clock."""

    stage: Stage = Stage.NO_IDENTITY
    stage_since: float = 0.0
    now: float = 0.0
    resume: Stage = Stage.NO_IDENTITY
    settled: bool = False
    attempts: int = 0
    # By origin ("store", "overlay", ...): each origin replaces only what it said itself.
    found: tuple[tuple[str, tuple[Problem, ...]], ...] = ()
    noticed: tuple[tuple[str, float], ...] = ()

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Everything that was found wrong, also what no longer degrades the node."""
        return tuple(problem for _, problems in self.found for problem in problems)

    @property
    def reasons(self) -> tuple[Problem, ...]:
        """What is wrong now."""
        noticed = dict(self.noticed)
        return tuple(
            problem
            for problem in self.problems
            if problem.code != CLOCK_BY_MEMBERS
            and (
                problem.code not in NOTICES
                or self.stage is Stage.LOST_IDENTITY
                or self.now - noticed.get(problem.code, self.now) < NOTICE_SECONDS
            )
        )

    @property
    def state(self) -> State:
        """The state that follows from the facts."""
        match self.stage:
            case Stage.NO_IDENTITY:
                return State.UNPROVISIONED
            case Stage.MAKING_IDENTITY:
                return State.PROVISIONING
            case Stage.LOST_IDENTITY | Stage.UNUSABLE_IDENTITY | Stage.OVERLAY_DOWN:
                return State.DEGRADED
            case _ if self.reasons:
                return State.DEGRADED
            case _:
                return State.READY if self.settled else State.JOINING

    @property
    def wants_token(self) -> bool:
        """A token is looked for and taken."""
        return self.stage in (Stage.NO_IDENTITY, Stage.LOST_IDENTITY)

    @property
    def ailments(self) -> tuple[Problem, ...]:
        """Why this release is not yet to be trusted with the node; empty: it is as it should be.

        A node without a token is as it should be: it waits.
        """
        if self.state in (State.UNPROVISIONED, State.READY):
            return ()
        if self.state is State.DEGRADED:
            grave = tuple(one for one in self.reasons if one.code not in NO_FAULT_OF_THE_RELEASE)
            if grave or self.settled:
                return grave
        return (
            Problem(
                "not-ready", f"the node is {self.state.value} and not settled yet", "Wait a little"
            ),
        )


# Events


@dataclass(frozen=True, slots=True)
class Begun:
    """The supervisor has looked for an identity.

    ``damage`` says why there is none to be used: ``identity-lost``, or, if it must not be replaced,
    any other code.
    """

    has_identity: bool
    damage: Problem | None = None


@dataclass(frozen=True, slots=True)
class TokenAccepted:
    """A token that is valid by itself was found at ``source``."""

    source: str


@dataclass(frozen=True, slots=True)
class IdentityMade:
    """Keys and certificate are on the disk."""


@dataclass(frozen=True, slots=True)
class IdentityFailed:
    """They could not be made or written."""

    problem: Problem


@dataclass(frozen=True, slots=True)
class OverlayStarted:
    """The interface is up, members are being looked for."""


@dataclass(frozen=True, slots=True)
class OverlayFailed:
    """The overlay could not be started."""

    problem: Problem


@dataclass(frozen=True, slots=True)
class Found:
    """Everything that is wrong now according to ``origin``."""

    origin: str
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; ``peers_up`` members answer in the tunnel."""

    peers_up: int = 0


Event = (
    Begun
    | TokenAccepted
    | IdentityMade
    | IdentityFailed
    | OverlayStarted
    | OverlayFailed
    | Found
    | Tick
)

# Actions


@dataclass(frozen=True, slots=True)
class MakeIdentity:
    """Make keys and certificate with the token in hand, then say IdentityMade or IdentityFailed."""


@dataclass(frozen=True, slots=True)
class StartOverlay:
    """Start the overlay, then say OverlayStarted or OverlayFailed."""


@dataclass(frozen=True, slots=True)
class Report:
    """Tell people: state or reasons are not what they were."""

    before: State
    state: State
    new_reasons: tuple[Problem, ...]
    gone_reasons: tuple[Problem, ...]


Action = MakeIdentity | StartOverlay | Report


def step(facts: Lifecycle, event: Event, now: float) -> tuple[Lifecycle, tuple[Action, ...]]:
    """Return the facts after ``event`` at ``now`` (monotonic seconds) and what is to be done.

    An event that does not fit the stage (a second token, say) changes nothing.
    """
    later, actions = _apply(replace(facts, now=now), event)
    later = _with_notices(later)
    new = tuple(one for one in later.reasons if one not in facts.reasons)
    # The same trouble in other words is not over.
    codes = {one.code for one in later.reasons}
    gone = tuple(one for one in facts.reasons if one.code not in codes)
    if later.state is not facts.state or new or gone:
        actions += (Report(facts.state, later.state, new, gone),)
    return later, actions


def _apply(facts: Lifecycle, event: Event) -> tuple[Lifecycle, tuple[Action, ...]]:
    match facts.stage, event:
        case Stage.NO_IDENTITY, Begun(has_identity=True):
            return _enter(facts, Stage.STARTING_OVERLAY), (StartOverlay(),)
        case Stage.NO_IDENTITY, Begun(damage=Problem(code="identity-lost") as damage):
            return _enter(_said(facts, "damage", damage), Stage.LOST_IDENTITY), ()
        case Stage.NO_IDENTITY, Begun(damage=Problem() as damage):
            return _enter(_said(facts, "damage", damage), Stage.UNUSABLE_IDENTITY), ()
        case ((Stage.NO_IDENTITY | Stage.LOST_IDENTITY), TokenAccepted()):
            making = _enter(replace(facts, resume=facts.stage), Stage.MAKING_IDENTITY)
            return making, (MakeIdentity(),)
        case Stage.MAKING_IDENTITY, IdentityMade():
            return _enter(_said(facts, "identity"), Stage.STARTING_OVERLAY), (StartOverlay(),)
        case Stage.MAKING_IDENTITY, IdentityFailed(problem):
            return _enter(_said(facts, "identity", problem), facts.resume), ()
        case Stage.STARTING_OVERLAY, OverlayStarted():
            running = _enter(_said(facts, "overlay"), Stage.RUNNING)
            return replace(running, settled=False, attempts=0), ()
        case Stage.STARTING_OVERLAY, OverlayFailed(problem):
            down = _enter(_said(facts, "overlay", problem), Stage.OVERLAY_DOWN)
            return replace(down, attempts=facts.attempts + 1), ()
        case _, Found(origin, problems):
            return _said(facts, origin, *problems), ()
        case Stage.OVERLAY_DOWN, Tick() if facts.now - facts.stage_since >= _pause(facts):
            return _enter(facts, Stage.STARTING_OVERLAY), (StartOverlay(),)
        case Stage.RUNNING, Tick(peers_up):
            settled = peers_up > 0 or facts.now - facts.stage_since >= SETTLE_SECONDS
            return replace(facts, settled=facts.settled or settled), ()
        case _:
            return facts, ()


def _enter(facts: Lifecycle, stage: Stage) -> Lifecycle:
    return replace(facts, stage=stage, stage_since=facts.now)


def _said(facts: Lifecycle, origin: str, *problems: Problem | None) -> Lifecycle:
    found = {name: said for name, said in facts.found if name != origin}
    if said := tuple(problem for problem in problems if problem is not None):
        found[origin] = said
    return replace(facts, found=tuple(sorted(found.items())))


def _with_notices(facts: Lifecycle) -> Lifecycle:
    known = dict(facts.noticed)
    noticed = {
        problem.code: known.get(problem.code, facts.now)
        for problem in facts.problems
        if problem.code in NOTICES
    }
    return replace(facts, noticed=tuple(sorted(noticed.items())))


def _pause(facts: Lifecycle) -> float:
    return RETRY_SECONDS[min(max(facts.attempts - 1, 0), len(RETRY_SECONDS) - 1)]
