"""The outbox: nothing said is lost, and no token is of an epoch that no node was told of."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.ledger.assigned import names
from appliance.ledger.entry import Entry
from appliance.ledger.epochs import announcements, commitment
from appliance.ledger.hlc import MAX_SKEW_MS
from appliance.ledger.state import Replica
from appliance.operator import snapshot as snapshot_module
from appliance.operator.errors import ClockError, OperatorError, PublishError
from appliance.operator.outbox import OUTBOX_FILE, Outbox, load_outbox
from appliance.operator.publisher import (
    Fetched,
    Result,
)
from appliance.operator.snapshot import Snapshot
from appliance.operator.statements import epoch_of, is_announcement
from provisioning import operator_files
from provisioning.files import write_all
from provisioning.operator_files import load_network
from tests.fakes.ledger import NOW, entry, network, node, root_entry
from tests.fakes.operator import (
    LATER,
    FakeNode,
    do,
    fake_node,
    make_directory,
    nothing,
    out,
    rename,
    work_in,
)

NODES = [node(number) for number in (1, 2, 3, 4)]
A, B, C, D = NODES
# Writes and sent entries of one revocation among four nodes.
STEPS = 11


class CrashError(BaseException):
    """The machine lost its power here."""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return make_directory(tmp_path / "net")


def tokens_are_known(home: Path, of: Replica) -> bool:
    """Say whether what a token would carry now is the secret of an epoch that a node knows."""
    info = load_network(home)
    if info.epoch == 0:
        return info.otp_seed == network().otp_seed
    said = announcements(of, LATER).get(info.epoch)
    right = commitment(info.network_id, info.epoch, info.otp_seed)
    return said is not None and said.commitment == right


def test_a_revocation_is_published_and_tokens_carry_its_epoch(home: Path) -> None:
    at = fake_node(NODES)
    report = do(home, at, out(3))
    assert (report.status, report.waiting, report.epoch) == (0, 0, 1)
    assert report.published == report.made == len(at.log)
    assert at.log[0].bucket == "revoked"
    assert load_network(home).epoch == 1
    assert tokens_are_known(home, at.replica)
    assert stat.S_IMODE((home / OUTBOX_FILE).stat().st_mode) == 0o600
    assert load_outbox(home, network()).sent
    do(home, at, nothing)
    assert load_outbox(home, network()) == Outbox(report.made, at.log[-1].stamp)


def test_nothing_is_sent_before_it_is_kept(home: Path) -> None:
    at = fake_node(NODES)

    def kept(one: Entry) -> None:
        ids = {each.entry_id for each in load_outbox(home, network()).unseen}
        assert one.entry_id in ids
        if is_announcement(one):
            number = epoch_of(one.key)
            assert number in load_outbox(home, network()).secrets
            assert load_network(home).epoch < (number or 0)

    at.fate = kept
    do(home, at, out(3))
    assert len(at.log) > 3


def crashing(
    monkeypatch: pytest.MonkeyPatch, at: FakeNode, step: int, *, after: bool
) -> Callable[[], int]:
    """Let the power fail at a step, before or after it took effect; return how many there were."""
    count = 0

    def passing(act: Callable[[], object]) -> None:
        nonlocal count
        count += 1
        if count == step and not after:
            raise CrashError
        act()
        if count == step:
            raise CrashError

    def writing(directory: Path, contents: dict[str, bytes], **more: int) -> None:
        passing(lambda: write_all(directory, contents, **more))

    publish = at.publish

    def publishing(records: list[bytes]) -> tuple[Result, ...]:
        results: list[Result] = []
        for one in records:
            passing(lambda one=one: results.extend(publish([one])))  # type: ignore[misc]
        return tuple(results)

    for module in (operator_files, snapshot_module):
        monkeypatch.setattr(module, "write_all", writing)
    monkeypatch.setattr(at, "publish", publishing)
    return lambda: count


def steps_of_a_revocation(tmp_path: Path) -> int:
    with pytest.MonkeyPatch.context() as patch:
        at = fake_node(NODES)
        counted = crashing(patch, at, 0, after=False)
        do(make_directory(tmp_path / "counted"), at, out(3))
        return counted()


def test_every_step_is_crashed_at(tmp_path: Path) -> None:
    assert steps_of_a_revocation(tmp_path) == STEPS


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_a_crash_at_any_step_loses_nothing(home: Path, step: int, *, after: bool) -> None:
    at = fake_node(NODES)
    with pytest.MonkeyPatch.context() as patch:
        crashing(patch, at, step, after=after)
        with pytest.raises(CrashError):
            do(home, at, out(3))
    assert tokens_are_known(home, at.replica)
    began = bool(load_outbox(home, network()).unseen)
    assert began or not at.log
    report = do(home, at, nothing)
    assert report.status == 0
    assert tokens_are_known(home, at.replica)
    gone = at.replica.directory.member(D.node_id) is None
    assert gone == began
    assert load_network(home).epoch == (1 if began else 0)
    # And the network can go on from there.
    assert do(home, at, out(2)).epoch == (2 if began else 1)
    assert tokens_are_known(home, at.replica)


def test_what_was_not_confirmed_is_published_first(home: Path) -> None:
    at = fake_node(NODES)
    at.fate = lambda _: PublishError("the line broke", hint="try again")
    report = do(home, at, rename("n1", "kitchen"))
    assert (report.status, report.waiting) == (1, 1)
    at.fate = lambda _: None
    assert do(home, at, rename("n2", "attic")).status == 0
    assert [one.value for one in at.log] == [b"kitchen", b"attic"]


def test_what_waits_is_published_even_if_the_next_command_is_refused(home: Path) -> None:
    at = fake_node(NODES)
    at.fate = lambda _: PublishError("the line broke", hint="try again")
    do(home, at, rename("n1", "kitchen"))
    at.fate = lambda _: None
    with pytest.raises(OperatorError, match="nobody"):
        do(home, at, rename("nobody", "attic"))
    assert [one.value for one in at.log] == [b"kitchen"]
    assert not load_outbox(home, network()).pending


def test_nothing_new_overtakes_what_waits(home: Path) -> None:
    at = fake_node(NODES)
    full = Result("rejected", "the ledger is full")
    at.fate = lambda one: full if one.value == b"kitchen" else None
    do(home, at, rename("n1", "kitchen"))
    report = do(home, at, rename("n2", "attic"))
    assert report.waiting == 2
    assert not at.log


def test_without_a_node_the_outbox_keeps_it_and_nothing_seen_is_an_error(home: Path) -> None:
    at = fake_node(NODES)
    at.down = True
    with pytest.raises(PublishError, match="down"):
        do(home, at, rename("n1", "kitchen"))
    assert not (home / OUTBOX_FILE).exists()
    at.down = False
    do(home, at, nothing)
    at.down = True
    notes: list[str] = []
    _, report = work_in(home, at, notes=notes).do(rename("n1", "kitchen"))
    assert (report.status, report.waiting) == (1, 1)
    assert "what was seen" in notes[0]
    at.down = False
    assert do(home, at, nothing).status == 0
    assert names(at.replica, LATER) == {A.node_id: "kitchen"}


def test_a_way_that_was_never_there_is_the_error_itself(home: Path) -> None:
    with pytest.raises(PublishError, match="no way"):
        work_in(home, PublishError("no way")).do(nothing)
    _, report = work_in(home, PublishError("no way")).do(
        lambda desk, _: desk.revoke(grants=[A.grant_id]), blind=True
    )
    assert report.status == 1
    assert load_network(home).epoch == 0


def test_an_announcement_waits_for_its_boxes(home: Path) -> None:
    at = fake_node(NODES)
    at.fate = lambda one: (
        Result("rejected", "the ledger is full") if one.key == f"box/1/{B.text}" else None
    )
    report = do(home, at, out(3))
    assert report.status == 1
    assert "the ledger is full" in report.reasons[0]
    assert 1 not in announcements(at.replica, LATER)
    assert load_network(home).epoch == 0
    assert at.replica.directory.member(D.node_id) is None
    at.fate = lambda _: None
    assert do(home, at, nothing).epoch == 1


def test_a_way_that_answers_too_little_is_not_believed(home: Path) -> None:
    at = fake_node(NODES)
    whole = at.publish
    at.publish = lambda records: whole(records)[:1]  # type: ignore[method-assign]
    report = do(home, at, out(3))
    assert report.status == 1
    assert "did not answer for all" in report.reasons[0]
    at.publish = whole  # type: ignore[method-assign]
    assert do(home, at, nothing).status == 0
    assert tokens_are_known(home, at.replica)


def test_what_a_node_took_and_lost_again_is_published_once_more(home: Path) -> None:
    at = fake_node(NODES)
    assert do(home, at, out(3)).status == 0
    other = fake_node(NODES)
    report = do(home, other, nothing)
    assert report.status == 0
    assert other.replica.directory.member(D.node_id) is None
    assert tokens_are_known(home, other.replica)


@settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32))
def test_a_way_that_loses_repeats_and_refuses_in_the_end_delivers(
    tmp_path: Path, number: int
) -> None:
    random = Random(number)  # noqa: S311 - a test's choices
    home = make_directory(tmp_path / f"{number}-{len(list(tmp_path.iterdir()))}")
    at = fake_node(NODES)
    whole = at.publish

    def publish(records: list[bytes]) -> tuple[Result, ...]:
        fate = random.random()
        if fate < 0.3:
            raise PublishError("lost on the way there")
        results = whole(records)
        if fate < 0.5:
            raise PublishError("lost on the way back")
        if fate < 0.7:
            whole(records)
        return results[: random.randrange(len(results) + 1)] if fate > 0.9 else results

    at.publish = publish  # type: ignore[method-assign, assignment]
    waiting = do(home, at, out(3)).waiting
    waiting = do(home, at, out(2)).waiting
    assert tokens_are_known(home, at.replica)
    for _ in range(60):
        if not waiting:
            break
        waiting = do(home, at, nothing).waiting
        assert tokens_are_known(home, at.replica)
    assert not waiting
    assert {one.node_id for one in at.replica.directory} == {A.node_id, B.node_id}
    assert load_network(home).epoch >= 1


def test_two_operators_with_copies_of_one_directory(tmp_path: Path) -> None:
    first, second = make_directory(tmp_path / "first"), make_directory(tmp_path / "second")
    at = fake_node(NODES)
    do(first, at, rename("n1", "kitchen"))
    do(second, at, rename("n2", "attic"))
    do(first, at, out(3))
    report = do(second, at, out(2))
    assert report.epoch == load_network(second).epoch == 2
    assert load_network(first).epoch == 1
    assert do(first, at, nothing).epoch == 2
    assert load_network(first).otp_seed == load_network(second).otp_seed
    sequences = [one.sequence for one in at.log]
    assert sequences == sorted(set(sequences))


def test_two_operators_at_one_moment_through_two_nodes(tmp_path: Path) -> None:
    first, second = make_directory(tmp_path / "first"), make_directory(tmp_path / "second")
    one, two = fake_node(NODES), fake_node(NODES)
    do(first, one, out(3))
    do(second, two, out(2))
    for here, there in ((one, two), (two, one)):
        for statement in list(there.replica):
            here.replica.apply(statement, LATER)
    assert {each.entry_id for each in one.replica} == {each.entry_id for each in two.replica}
    epochs = {do(home, one, nothing).epoch for home in (first, second, first)}
    assert max(epochs) == 2
    assert load_network(first) == load_network(second)
    assert tokens_are_known(first, one.replica)
    said = announcements(one.replica, LATER)
    named = {key for each in said.values() for key in each.excluded}
    assert named == {f"node/{C.text}", f"node/{D.text}"}


def test_a_clock_that_is_far_off_signs_nothing(home: Path) -> None:
    at = fake_node(NODES)
    at.now_ms = LATER
    for off in (MAX_SKEW_MS + 1000, -MAX_SKEW_MS - 1000):
        with pytest.raises(ClockError, match="nothing was signed"):
            do(home, at, rename("n1", "kitchen"), now_ms=LATER + off)
    at.now_ms = None
    with pytest.raises(ClockError, match="but n1 wrote"):
        do(home, at, rename("n1", "kitchen"), now_ms=NOW - 2 * MAX_SKEW_MS)
    assert not (home / OUTBOX_FILE).exists()
    do(home, at, nothing)
    at.down = True
    with pytest.raises(ClockError, match="saw the network"):
        do(home, at, rename("n1", "kitchen"), now_ms=LATER - 2 * MAX_SKEW_MS)


def test_a_clock_ahead_that_nobody_told_of_is_noticed_by_the_refusal(home: Path) -> None:
    at = fake_node(NODES)
    report = do(home, at, out(3), now_ms=LATER + 3 * MAX_SKEW_MS)
    assert report.status == 1
    assert "clock is ahead" in report.reasons[0]
    assert tokens_are_known(home, at.replica)
    assert do(home, at, nothing).status == 0
    assert tokens_are_known(home, at.replica)
    assert at.replica.directory.member(D.node_id) is None


def test_a_node_of_another_network_is_told_apart(home: Path) -> None:
    at = fake_node(NODES)
    at.fetch = lambda: Fetched("aaaa", ())  # type: ignore[method-assign]
    with pytest.raises(PublishError, match="another network"):
        do(home, at, nothing)


def test_a_node_that_lies_makes_no_members_and_no_statements(home: Path) -> None:
    at = fake_node([A])
    stranger = node(7, net=1)
    forged = root_entry("assigned", f"{A.text}/name", b"forged", sequence=2**40)
    broken = forged.record[:-1] + bytes([forged.record[-1] ^ 1])
    honest = at.fetch()
    at.fetch = lambda: Fetched(  # type: ignore[method-assign]
        honest.network_id,
        (
            *honest.records,
            broken,
            b"",
            b"\xc1" * 5000,
            entry(stranger, "member", stranger.text, stranger.certificate, net=1).record,
        ),
    )
    seen: list[Snapshot] = []
    do(home, at, lambda _, snapshot: seen.append(snapshot))
    assert [one.node_id for one in seen[0].replica.directory] == [A.node_id]
    assert names(seen[0].replica, LATER) == {}
    assert seen[0].unread == 4
    assert do(home, at, rename("n1", "kitchen")).made == 1
    assert at.log[-1].sequence == 1
