"""What a boot means for an update: every combination."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ota.trial import (
    FAILURES_KEPT,
    RECORD_FORMAT,
    Boot,
    Failure,
    Failures,
    GoodSlot,
    GoodSlots,
    Origin,
    Pending,
    Phase,
    Standing,
    boots_tried,
    find_failure,
    judge,
    rollback_reason,
    same_release,
    with_failure,
    with_good,
    without_failure,
)


def pending(phase: Phase = Phase.ACTIVATED, *, boot_id: str = "old", boots: int = 0) -> Pending:
    return Pending(
        format=RECORD_FORMAT,
        phase=phase,
        origin=Origin.INSTALL,
        target="B",
        target_name="rootfs.1",
        version="2",
        build_id="b2",
        from_slot="A",
        from_version="1",
        installed_at=1_800_000_000,
        boot_id=boot_id,
        boots=boots,
    )


def boot(slot: str | None, boot_id: str = "new") -> Boot:
    return Boot(slot, boot_id, "1", "b1")


def failure(version: str, build_id: str = "") -> Failure:
    return Failure(
        version=version, build_id=build_id, slot="B", failed_at=0, reason="it broke", boots=3
    )


# (phase, booted slot, same boot as the installation, what the boot loader prefers) -> standing
EXPECTED = {
    (Phase.INSTALLING, "B", False, "B"): Standing.TRIAL,
    (Phase.INSTALLING, "B", False, "A"): Standing.TRIAL,
    (Phase.INSTALLING, "B", False, None): Standing.TRIAL,
    (Phase.INSTALLING, "B", True, "B"): Standing.TRIAL,
    (Phase.INSTALLING, "B", True, "A"): Standing.TRIAL,
    (Phase.INSTALLING, "B", True, None): Standing.TRIAL,
    (Phase.INSTALLING, "A", True, "A"): Standing.AWAITING_REBOOT,
    (Phase.INSTALLING, "A", True, "B"): Standing.AWAITING_REBOOT,
    (Phase.INSTALLING, "A", True, None): Standing.AWAITING_REBOOT,
    (Phase.INSTALLING, "A", False, "A"): Standing.INTERRUPTED,
    (Phase.INSTALLING, "A", False, None): Standing.INTERRUPTED,
    (Phase.INSTALLING, "A", False, "B"): Standing.ROLLED_BACK,
    (Phase.ACTIVATED, "B", False, "B"): Standing.TRIAL,
    (Phase.ACTIVATED, "B", False, "A"): Standing.TRIAL,
    (Phase.ACTIVATED, "B", False, None): Standing.TRIAL,
    (Phase.ACTIVATED, "B", True, "B"): Standing.TRIAL,
    (Phase.ACTIVATED, "B", True, "A"): Standing.TRIAL,
    (Phase.ACTIVATED, "B", True, None): Standing.TRIAL,
    (Phase.ACTIVATED, "A", True, "A"): Standing.AWAITING_REBOOT,
    (Phase.ACTIVATED, "A", True, "B"): Standing.AWAITING_REBOOT,
    (Phase.ACTIVATED, "A", True, None): Standing.AWAITING_REBOOT,
    (Phase.ACTIVATED, "A", False, "B"): Standing.ROLLED_BACK,
    (Phase.ACTIVATED, "A", False, None): Standing.ROLLED_BACK,
    (Phase.ACTIVATED, "A", False, "A"): Standing.INTERRUPTED,
    (Phase.PROVEN, "B", False, "B"): Standing.COMMITTED,
    (Phase.PROVEN, "B", False, "A"): Standing.COMMITTED,
    (Phase.PROVEN, "B", False, None): Standing.COMMITTED,
    (Phase.PROVEN, "B", True, "B"): Standing.COMMITTED,
    (Phase.PROVEN, "B", True, "A"): Standing.COMMITTED,
    (Phase.PROVEN, "B", True, None): Standing.COMMITTED,
    (Phase.PROVEN, "A", True, "A"): Standing.AWAITING_REBOOT,
    (Phase.PROVEN, "A", True, "B"): Standing.AWAITING_REBOOT,
    (Phase.PROVEN, "A", True, None): Standing.AWAITING_REBOOT,
    (Phase.PROVEN, "A", False, "A"): Standing.ROLLED_BACK,
    (Phase.PROVEN, "A", False, "B"): Standing.ROLLED_BACK,
    (Phase.PROVEN, "A", False, None): Standing.ROLLED_BACK,
}


def test_the_table_names_every_combination() -> None:
    every = itertools.product(Phase, ("A", "B"), (False, True), ("A", "B", None))
    assert set(EXPECTED) == set(every)


@pytest.mark.parametrize(("case", "standing"), EXPECTED.items())
def test_judge(case: tuple[Phase, str, bool, str | None], standing: Standing) -> None:
    phase, slot, same_boot, first = case
    record = pending(phase, boot_id="now" if same_boot else "then")
    assert judge(record, boot(slot, "now"), first=first) is standing


@pytest.mark.parametrize("first", ["A", "B", None])
def test_without_a_record_every_slot_is_committed(first: str | None) -> None:
    assert judge(None, boot("A"), first=first) is Standing.COMMITTED
    assert judge(None, boot("B"), first=first) is Standing.COMMITTED


@pytest.mark.parametrize("record", [None, *(pending(phase) for phase in Phase)])
def test_a_boot_without_a_slot_decides_nothing(record: Pending | None) -> None:
    assert judge(record, boot(None)) is Standing.NO_SLOT


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (("1", "x"), ("1", "x"), True),
        (("1", "x"), ("2", "x"), True),
        (("1", "x"), ("1", "y"), False),
        (("1", ""), ("1", "y"), True),
        (("1", ""), ("2", "y"), False),
        (("", ""), ("", ""), False),
        (("", "x"), ("", ""), False),
    ],
)
def test_same_release(one: tuple[str, str], other: tuple[str, str], same: bool) -> None:
    assert same_release(*one, *other) is same
    assert same_release(*other, *one) is same


def test_a_failed_release_is_found_again() -> None:
    failures = with_failure(Failures(), failure("2", "b2"))
    assert find_failure(failures, "2", "b2") == failure("2", "b2")
    assert find_failure(failures, "2", "") == failure("2", "b2")
    assert find_failure(failures, "2", "rebuilt") is None
    assert find_failure(failures, "3", "b3") is None
    assert find_failure(without_failure(failures, "2", "b2"), "2", "b2") is None


@given(st.lists(st.integers(0, 80), max_size=120))
def test_failures_are_bounded_and_unique(versions: list[int]) -> None:
    failures = Failures()
    for version in versions:
        failures = with_failure(failures, failure(f"v{version}"))
        assert failures.failures[-1].version == f"v{version}"
    names = [one.version for one in failures.failures]
    assert len(names) == len(set(names)) <= FAILURES_KEPT


def test_good_slots_are_set_and_forgotten() -> None:
    good = GoodSlot(version="1", build_id="b1", good_at=5)
    slots = with_good(with_good(GoodSlots(), "A", good), "B", good)
    assert with_good(slots, "B", None) == GoodSlots(slots={"A": good})
    assert with_good(GoodSlots(), "B", None) == GoodSlots()


def test_the_reason_of_a_roll_back() -> None:
    assert "never came as far" in rollback_reason(pending(), 3)
    assert "3 boots" in rollback_reason(pending(), 3)
    assert "never came as far" in rollback_reason(pending(), None)
    assert "did not become healthy" in rollback_reason(pending(boots=1), 3)
    assert "healthy once" in rollback_reason(pending(Phase.PROVEN, boots=1), None)


def test_boots_tried_takes_the_better_count() -> None:
    assert boots_tried(pending(boots=1), 3) == 3
    assert boots_tried(pending(boots=2), None) == 2
    assert boots_tried(pending(), 0) == 0


def test_records_survive_their_format() -> None:
    record = pending(boots=2)
    assert msgspec.json.decode(msgspec.json.encode(record), type=Pending) == record
