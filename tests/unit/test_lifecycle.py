from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance import lifecycle
from appliance.lifecycle import (
    NOTICE_SECONDS,
    Begun,
    Event,
    Found,
    IdentityFailed,
    IdentityMade,
    Lifecycle,
    MakeIdentity,
    OverlayFailed,
    OverlayStarted,
    Report,
    Stage,
    StartOverlay,
    State,
    Tick,
    TokenAccepted,
    step,
)
from appliance.problem import Problem, clock_problem, room_problem

LOST = Problem("identity-lost", "both copies are damaged", "give it a token")
UNUSABLE = Problem("identity-unusable", "a newer format", "boot the other slot")
BROKEN = Problem("overlay", "no WireGuard", "load the module")
FULL = Problem("disk-full", "the disk is full", "free space")
FORGOTTEN = Problem("state-lost", "the database was damaged", "nothing")

EVENTS: tuple[Event, ...] = (
    Begun(has_identity=True),
    Begun(has_identity=False),
    Begun(has_identity=False, damage=LOST),
    Begun(has_identity=False, damage=UNUSABLE),
    TokenAccepted("usb"),
    IdentityMade(),
    IdentityFailed(FULL),
    OverlayStarted(),
    OverlayFailed(BROKEN),
    Found("disk", (FULL,)),
    Found("disk", ()),
    Tick(),
    Tick(peers_up=1),
)


class Node:
    """Feeds events and keeps what came out."""

    def __init__(self) -> None:
        self.facts = Lifecycle()
        self.now = 100.0
        self.actions: list[lifecycle.Action] = []

    def feed(self, *events: Event, after: float = 0.0) -> Node:
        for event in events:
            self.now += after
            self.facts, actions = step(self.facts, event, self.now)
            self.actions += actions
        return self

    def state(self) -> State:
        return self.facts.state

    def reasons(self) -> tuple[Problem, ...]:
        return self.facts.reasons

    def took(self, kind: type) -> int:
        return sum(isinstance(action, kind) for action in self.actions)


def test_from_token_to_ready() -> None:
    node = Node().feed(Begun(has_identity=False))
    assert (node.state(), node.facts.wants_token) == (State.UNPROVISIONED, True)
    node.feed(TokenAccepted("usb"))
    assert (node.state(), node.facts.wants_token) == (State.PROVISIONING, False)
    assert node.took(MakeIdentity) == 1
    node.feed(IdentityMade())
    assert node.state() is State.JOINING
    assert node.took(StartOverlay) == 1
    node.feed(OverlayStarted(), Tick())
    assert node.state() is State.JOINING
    node.feed(Tick(peers_up=1))
    assert node.state() is State.READY
    reports = [action for action in node.actions if isinstance(action, Report)]
    assert [(report.before.value, report.state.value) for report in reports] == [
        ("unprovisioned", "provisioning"),
        ("provisioning", "joining"),
        ("joining", "ready"),
    ]


def test_a_node_that_is_alone_is_ready_after_a_while() -> None:
    node = Node().feed(Begun(has_identity=True), OverlayStarted())
    node.feed(Tick(), after=lifecycle.SETTLE_SECONDS - 0.1)
    assert node.state() is State.JOINING
    node.feed(Tick(), after=0.2)
    assert node.state() is State.READY
    node.feed(Tick(peers_up=2), Tick(peers_up=0))
    assert node.state() is State.READY


def test_a_reason_degrades_and_its_end_restores() -> None:
    node = Node().feed(Begun(has_identity=True), OverlayStarted(), Tick(peers_up=1))
    node.feed(Found("disk", (FULL,)))
    assert (node.state(), node.reasons()) == (State.DEGRADED, (FULL,))
    assert node.actions[-1] == Report(State.READY, State.DEGRADED, (FULL,), ())
    node.feed(Found("disk", (FULL,)))
    assert node.took(Report) == 3
    node.feed(Found("disk", ()))
    assert node.actions[-1] == Report(State.DEGRADED, State.READY, (), (FULL,))


def test_trouble_in_other_words_is_told_and_not_called_over() -> None:
    node = Node().feed(Begun(has_identity=True), OverlayFailed(BROKEN))
    again = Problem(BROKEN.code, "still no WireGuard", "load the module")
    node.feed(Tick(), after=10).feed(OverlayFailed(again))
    assert node.actions[-1] == Report(State.DEGRADED, State.DEGRADED, (again,), ())


def test_an_overlay_that_fails_is_tried_again_ever_more_slowly() -> None:
    node = Node().feed(Begun(has_identity=True))
    pauses = []
    for _ in range(6):
        node.feed(OverlayFailed(BROKEN))
        assert (node.state(), node.reasons()) == (State.DEGRADED, (BROKEN,))
        failed_at, tries = node.now, node.took(StartOverlay)
        while node.took(StartOverlay) == tries:
            node.feed(Tick(), after=0.5)
        pauses.append(node.now - failed_at)
    assert pauses == [2, 5, 15, 60, 60, 60]
    node.feed(OverlayStarted(), Tick(peers_up=1))
    assert (node.state(), node.reasons()) == (State.READY, ())


def test_a_lost_identity_is_said_and_replaced_by_a_token() -> None:
    node = Node().feed(Begun(has_identity=False, damage=LOST))
    assert (node.state(), node.reasons()) == (State.DEGRADED, (LOST,))
    node.feed(Tick(), after=lifecycle.NOTICE_SECONDS * 2)
    assert node.reasons() == (LOST,)
    assert node.facts.wants_token
    node.feed(TokenAccepted("usb"), IdentityFailed(FULL))
    assert node.reasons() == (LOST, FULL)
    assert node.facts.stage is Stage.LOST_IDENTITY
    node.feed(TokenAccepted("usb"), IdentityMade(), OverlayStarted(), Tick(peers_up=1))
    assert node.state() is State.READY
    assert LOST in node.facts.problems


def test_an_identity_of_a_later_release_is_never_replaced() -> None:
    node = Node().feed(Begun(has_identity=False, damage=UNUSABLE), TokenAccepted("usb"))
    assert (node.state(), node.facts.wants_token) == (State.DEGRADED, False)
    assert node.took(MakeIdentity) == 0


def test_what_is_of_the_past_stops_being_a_reason_but_is_not_forgotten() -> None:
    node = Node().feed(Begun(has_identity=True), OverlayStarted(), Tick(peers_up=1))
    node.feed(Found("store", (FORGOTTEN,)))
    assert node.state() is State.DEGRADED
    node.feed(Tick(), after=lifecycle.NOTICE_SECONDS - 1)
    assert node.state() is State.DEGRADED
    node.feed(Found("store", (FORGOTTEN,)), after=2)
    assert (node.state(), node.reasons()) == (State.READY, ())
    assert node.facts.problems == (FORGOTTEN,)


@pytest.mark.parametrize(
    ("events", "healthy"),
    [
        pytest.param([Begun(has_identity=False)], True, id="waits-for-a-token"),
        pytest.param([Begun(has_identity=True)], False, id="joining"),
        pytest.param([Begun(has_identity=True), OverlayStarted(), Tick(1)], True, id="ready"),
        pytest.param([Begun(has_identity=False, damage=LOST)], False, id="lost"),
        pytest.param([Begun(has_identity=False, damage=UNUSABLE)], False, id="unusable"),
        pytest.param([Begun(has_identity=True), OverlayFailed(BROKEN)], False, id="no-overlay"),
        pytest.param(
            [Begun(has_identity=True), OverlayStarted(), Tick(1), Found("disk", (FULL,))],
            False,
            id="disk-full",
        ),
        pytest.param(
            [Begun(has_identity=True), OverlayStarted(), Tick(1), Found("store", (FORGOTTEN,))],
            True,
            id="no-fault-of-the-release",
        ),
        pytest.param(
            [Begun(has_identity=True), Found("store", (FORGOTTEN,))], False, id="not-yet-joined"
        ),
    ],
)
def test_health(events: list[Event], healthy: bool) -> None:
    node = Node().feed(*events)
    assert (not node.facts.ailments) is healthy
    assert all(one.message and one.hint for one in node.facts.ailments)


# Which state may follow which, whatever happens: found by walking all of them below.
MAY_FOLLOW = {
    State.UNPROVISIONED: {State.PROVISIONING, State.JOINING, State.DEGRADED},
    State.PROVISIONING: {State.UNPROVISIONED, State.JOINING, State.DEGRADED},
    State.JOINING: {State.READY, State.DEGRADED},
    State.READY: {State.DEGRADED},
    State.DEGRADED: {State.PROVISIONING, State.JOINING, State.READY},
}


def walk(visit: Callable[[Lifecycle, Event, Lifecycle, tuple[lifecycle.Action, ...]], None]) -> int:
    """Visit every transition that any order of events, with or without time passing, can take."""
    seen: set[tuple[object, ...]] = set()
    todo = [(Lifecycle(), 0.0)]
    while todo:
        facts, now = todo.pop()
        key = (facts.stage, facts.resume, facts.settled, min(facts.attempts, 4), facts.found)
        if key in seen:
            continue
        seen.add(key)
        for event in EVENTS:
            for later in (now, now + 100):
                after, actions = step(facts, event, later)
                visit(facts, event, after, actions)
                todo.append((after, later))
    return len(seen)


def test_every_reachable_transition_is_one_that_we_know() -> None:
    followed: dict[State, set[State]] = {state: set() for state in State}

    def visit(
        before: Lifecycle, _event: Event, after: Lifecycle, actions: tuple[lifecycle.Action, ...]
    ) -> None:
        if before.state is not after.state:
            followed[before.state].add(after.state)
        reports = [action for action in actions if isinstance(action, Report)]
        changed = before.state is not after.state or set(before.reasons) != set(after.reasons)
        assert len(reports) == int(changed)

    assert walk(visit) > 30
    assert followed == MAY_FOLLOW


def test_in_every_reachable_state_what_is_needed_is_there() -> None:
    def visit(
        before: Lifecycle, event: Event, after: Lifecycle, actions: tuple[lifecycle.Action, ...]
    ) -> None:
        if after.state is State.DEGRADED:
            assert after.reasons
        if any(isinstance(action, MakeIdentity) for action in actions):
            assert before.wants_token
            assert isinstance(event, TokenAccepted)
        if any(isinstance(action, StartOverlay) for action in actions):
            assert after.stage is Stage.STARTING_OVERLAY
            assert before.stage is not Stage.STARTING_OVERLAY
        if after.state is State.READY:
            assert after.stage is Stage.RUNNING

    walk(visit)


@given(st.lists(st.tuples(st.sampled_from(EVENTS), st.floats(0, 1000)), max_size=30))
def test_reports_tell_the_whole_story(events: list[tuple[Event, float]]) -> None:
    node = Node()
    told_state, told_reasons = node.state(), set[str]()
    for event, pause in events:
        seen = len(node.actions)
        node.feed(event, after=pause)
        for action in node.actions[seen:]:
            if isinstance(action, Report):
                assert action.before is told_state
                told_state = action.state
                told_reasons |= {problem.code for problem in action.new_reasons}
                told_reasons -= {problem.code for problem in action.gone_reasons}
        assert told_state is node.state()
        assert told_reasons == {problem.code for problem in node.reasons()}


@pytest.mark.parametrize("code", ["ledger-lost", "ledger-newer", "state-newer"])
def test_what_lies_in_the_past_is_no_fault_and_passes(code: str) -> None:
    # After a roll-back a node meets the files of a later release: the old one must not fail by it.
    facts, _ = step(Lifecycle(stage=Stage.RUNNING, settled=True), Tick(1), 10.0)
    facts, _ = step(facts, Found("network", (Problem(code, "x", "y"),)), 10.0)
    assert (facts.state, facts.ailments) == (State.DEGRADED, ())
    facts, _ = step(facts, Tick(1), 11.0 + NOTICE_SECONDS)
    assert (facts.state, len(facts.problems)) == (State.READY, 1)


def test_clock() -> None:
    made = 1_800_000_000
    assert clock_problem(made + 1, made) is None
    assert clock_problem(made - 3600, made) is None
    problem = clock_problem(12.0, made)
    assert problem is not None
    assert problem.code == "clock"
    assert "1970-01-01 00:00 UTC" in problem.message
    assert "2027-01-15 08:00 UTC" in problem.message
    assert "timedatectl set-time" in problem.hint
    assert clock_problem(-1e18, 1e18) is not None
    known = clock_problem(12.0, made, members=True)
    assert known is not None
    assert known.code == "clock-by-members"
    assert clock_problem(made + 1, made, members=True) is None
    # The node is as well as before it knew.
    facts = Lifecycle(stage=Stage.RUNNING, settled=True, found=(("clock", (known,)),))
    assert (facts.state, facts.reasons, facts.problems) == (State.READY, (), (known,))


def test_room() -> None:
    assert room_problem(8192, "/data", 8192) is None
    problem = room_problem(4096, "/data", 8192)
    assert problem is not None
    assert (problem.code, "4 KiB" in problem.message) == ("disk-full", True)
    assert "du -xh /data" in problem.hint
