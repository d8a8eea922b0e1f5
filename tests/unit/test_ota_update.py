"""Install, settle, mark good, give up, roll back: what is done, and in which order."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest

from ota import postmortem
from ota.errors import OtaError, Trouble
from ota.installer import BundleInfo, Mark, Progress, Slot
from ota.records import PENDING
from ota.trial import Failures, GoodSlot, GoodSlots, Origin, Pending, Phase, Standing
from ota.update import Plan, Updates
from tests.unit.test_ota_records import BLOCK, files
from tests.unit.test_ota_trial import failure, pending

T = TypeVar("T")


def slot(name: str, bootname: str, boot_status: str = "good") -> Slot:
    return Slot(name, "rootfs", bootname, "", "", "inactive", boot_status, "", "", "")


@dataclass
class Installer:
    """RAUC in memory; the log also tells what the pending record said at that moment."""

    updates: Path
    info: BundleInfo = field(default_factory=lambda: BundleInfo("skerry-test", "2", "b2", "", ""))
    other_status: str = "good"
    doing: str = "idle"
    fail: str = ""
    log: list[str] = field(default_factory=list)

    def _note(self, what: str) -> None:
        path = self.updates / PENDING
        phase = msgspec.json.decode(path.read_bytes())["phase"] if path.exists() else "-"
        self.log.append(f"{what} [{phase}]")
        if self.fail and what.startswith(self.fail):
            raise OtaError("refused", trouble=Trouble.OTHER)

    async def slots(self) -> tuple[Slot, ...]:
        return (
            slot("boot.0", ""),
            slot("rootfs.0", "A"),
            slot("rootfs.1", "B", self.other_status),
        )

    async def operation(self) -> str:
        return self.doing

    async def compatible(self) -> str:
        return "skerry-test"

    async def inspect(self, bundle: str) -> BundleInfo:
        self._note(f"inspect {Path(bundle).name}")
        return self.info

    async def mark(self, mark: Mark, slot: str) -> str:
        self._note(f"{mark.value} {slot}")
        return ""

    async def install(
        self, bundle: str, *, on_progress: Callable[[Progress], None] | None = None
    ) -> None:
        self._note(f"install {Path(bundle).name}")
        if on_progress:
            on_progress(Progress(100, "", 0))


class Node:
    """A node made of files: slot, boot id, records, boot loader."""

    def __init__(self, tmp_path: Path) -> None:
        self.path = tmp_path
        self.env = tmp_path / "grubenv"
        self.files = files(
            tmp_path, b'{"version": "1", "build_id": "b1"}', f"[system]\ngrubenv={self.env}\n"
        )
        self.rauc = Installer(self.files.updates)
        self.said: list[str] = []
        self.bundle = tmp_path / "v2.raucb"
        self.bundle.write_bytes(b"bundle")
        self.boot("A", "first")

    def boot(self, name: str, boot_id: str, *, version: str = "1") -> Updates:
        (self.path / "cmdline").write_text(f"rauc.slot={name}")
        (self.path / "boot_id").write_text(boot_id)
        (self.path / "release").write_text(f'{{"version": "{version}", "build_id": "b{version}"}}')
        self.updates = Updates(self.files, say=self.said.append, now=lambda: 1_800_000_000.0)
        return self.updates

    def pending(self) -> Pending | None:
        return self.updates.records.pending()

    def plan(self, *, force: bool = False) -> Plan:
        return asyncio.run(self.updates.plan(self.rauc, self.bundle, force=force))

    def install(self) -> Pending:
        return asyncio.run(self.updates.install(self.rauc, self.plan()))

    def settle(self) -> Standing:
        return asyncio.run(self.updates.settle(self.rauc))

    def mark_good(self) -> Standing:
        return asyncio.run(self.updates.mark_good(self.rauc))

    def rollback(self) -> str:
        return asyncio.run(self.updates.rollback(self.rauc))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def refusal(action: Callable[[], object]) -> OtaError:
    with pytest.raises(OtaError) as caught:
        action()
    assert caught.value.hint
    return caught.value


def test_the_record_stands_before_anything_is_written_or_activated(node: Node) -> None:
    node.install()
    assert node.rauc.log == [
        "inspect v2.raucb [-]",
        "install v2.raucb [installing]",
        "active rootfs.1 [activated]",
    ]
    record = node.pending()
    assert record is not None
    assert (record.target, record.version, record.from_slot, record.origin, record.boots) == (
        "B",
        "2",
        "A",
        Origin.INSTALL,
        0,
    )


def test_a_good_update(node: Node) -> None:
    node.settle()
    node.install()
    node.rauc.log.clear()
    node.boot("B", "second", version="2")
    assert node.settle() is Standing.TRIAL
    assert node.rauc.log == []  # nothing is marked before the node is healthy
    record = node.pending()
    assert record is not None
    assert record.boots == 1
    node.mark_good()
    assert node.rauc.log == ["good booted [proven]"]
    assert node.pending() is None
    good = node.updates.records.good_slots().slots
    assert (good["A"].version, good["B"].version) == ("1", "2")
    node.boot("B", "third", version="2")
    assert node.settle() is Standing.COMMITTED
    assert node.rauc.log[-1] == "good booted [-]"


def test_a_bad_update_is_counted_left_and_remembered(node: Node) -> None:
    node.install()
    for boots in (1, 2, 3):
        node.boot("B", f"trial-{boots}", version="2")
        node.settle()
        assert node.updates.trial_failed(run=lambda argv: f"{argv[0]}.service loaded failed")
    node.env.write_bytes(BLOCK)
    node.boot("A", "back")
    node.rauc.log.clear()
    assert node.settle() is Standing.ROLLED_BACK
    assert node.rauc.log == [
        "bad rootfs.1 [activated]",
        "active booted [activated]",
        "good booted [activated]",
    ]
    assert node.pending() is None
    assert any("rolled back after 3 boots" in line for line in node.said)
    verdict = postmortem.last_summary(node.updates.records)
    assert verdict is not None
    assert (verdict.version, verdict.boots, verdict.back_on_version) == ("2", 3, "1")
    assert verdict.failed_units == ("systemctl.service",)
    error = refusal(node.plan)
    assert error.trouble is Trouble.REFUSED
    assert "rolled back after 3 boots" in str(error)
    assert node.plan(force=True).info.version == "2"


def test_a_panicking_update_has_no_attempts_but_a_reason(node: Node) -> None:
    node.install()
    node.env.write_bytes(BLOCK)
    node.boot("A", "back")
    node.settle()
    verdict = postmortem.last_summary(node.updates.records)
    assert verdict is not None
    assert verdict.boots == 3
    assert "never came as far" in verdict.reason


def test_power_lost_while_installing_blames_nobody(node: Node) -> None:
    node.updates.records.save_pending(pending(Phase.INSTALLING))
    node.env.write_bytes(BLOCK.replace(b"B A", b"A B"))
    node.boot("A", "back")
    assert node.settle() is Standing.INTERRUPTED
    assert node.pending() is None
    assert node.updates.records.failures() == Failures()
    assert "cut off" in node.said[-1]


def test_power_lost_between_the_record_and_the_activation(node: Node) -> None:
    node.updates.records.save_pending(pending(Phase.ACTIVATED))
    node.env.write_bytes(BLOCK.replace(b"B A", b"A B"))
    node.boot("A", "back")
    assert node.settle() is Standing.INTERRUPTED


def test_power_lost_after_the_proof_keeps_the_new_slot(node: Node) -> None:
    node.updates.records.save_pending(pending(Phase.PROVEN))
    node.boot("B", "again", version="2")
    assert node.settle() is Standing.COMMITTED
    assert node.rauc.log == ["good booted [proven]"]
    assert node.pending() is None


def test_power_lost_in_the_middle_of_noting_a_roll_back(node: Node) -> None:
    node.updates.records.save_pending(pending())
    node.boot("A", "back")
    node.rauc.fail = "bad"
    with pytest.raises(OtaError):
        node.settle()
    node.rauc.fail = ""
    node.settle()
    assert len(node.updates.records.failures().failures) == 1
    assert node.pending() is None


def test_a_committed_slot_is_marked_good_whatever_its_health(node: Node) -> None:
    assert node.settle() is Standing.COMMITTED
    assert node.rauc.log == ["good booted [-]"]
    assert node.updates.trial_failed(run=lambda _: "") is False
    assert "committed and stays" in node.said[-1]


def test_settling_twice_before_the_reboot_keeps_the_record(node: Node) -> None:
    node.install()
    assert node.settle() is Standing.AWAITING_REBOOT
    assert node.pending() is not None
    assert node.updates.trial_failed(run=lambda _: "") is False


def test_a_damaged_record_is_no_trial_and_said(node: Node) -> None:
    node.files.updates.mkdir()
    (node.files.updates / PENDING).write_bytes(b"{")
    assert node.settle() is Standing.COMMITTED
    assert "damaged" in node.said[0]


def test_no_slot_no_action(node: Node) -> None:
    (node.path / "cmdline").write_text("quiet")
    node.updates = Updates(node.files, say=node.said.append)
    assert node.settle() is Standing.NO_SLOT
    assert node.rauc.log == []
    assert "rauc.slot=" in (refusal(node.plan).hint or "")


def test_a_failed_installation_leaves_no_record(node: Node) -> None:
    for step in ("install", "active"):
        node.rauc.fail = step
        with pytest.raises(OtaError, match="refused"):
            node.install()
        assert node.pending() is None


def test_installing_forgets_that_the_slot_was_good(node: Node) -> None:
    good = GoodSlot(version="0", build_id="b0", good_at=1)
    node.updates.records.save_good_slots(GoodSlots(slots={"B": good}))
    node.rauc.fail = "install"
    with pytest.raises(OtaError):
        node.install()
    node.rauc.fail = ""
    assert refusal(node.rollback).trouble is Trouble.REFUSED


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"compatible": "other"}, Trouble.COMPATIBLE, "'other'"),
        ({"version": "1", "build_id": "b1"}, Trouble.REFUSED, "running already"),
        ({"version": "1", "build_id": ""}, Trouble.REFUSED, "running already"),
    ],
)
def test_refused_bundles(node: Node, change: dict[str, str], kind: Trouble, words: str) -> None:
    facts = {"compatible": "skerry-test", "version": "2", "build_id": "b2", **change}
    node.rauc.info = BundleInfo(description="", manifest_hash="", **facts)
    error = refusal(node.plan)
    assert error.trouble is kind
    assert words in str(error)
    assert not any(line.startswith("install") for line in node.rauc.log)


def test_force_does_not_override_the_machine(node: Node) -> None:
    node.rauc.info = BundleInfo("other", "2", "b2", "", "")
    assert refusal(lambda: node.plan(force=True)).trouble is Trouble.COMPATIBLE
    node.rauc.info = BundleInfo("skerry-test", "1", "b1", "", "")
    assert node.plan(force=True).target.bootname == "B"


def test_no_installation_during_a_trial_even_by_force(node: Node) -> None:
    node.updates.records.save_pending(pending())
    node.boot("B", "trial", version="2")
    assert "on trial" in str(refusal(lambda: node.plan(force=True)))


def test_an_installed_update_is_not_replaced_by_accident(node: Node) -> None:
    node.install()
    assert "waits for a reboot" in str(refusal(node.plan))
    assert node.plan(force=True).target.bootname == "B"


def test_an_installation_that_was_given_up_can_be_repeated(node: Node) -> None:
    node.updates.records.save_pending(pending(Phase.INSTALLING, boot_id="first"))
    node.install()


def test_one_installation_at_a_time(node: Node) -> None:
    node.rauc.doing = "installing"
    assert refusal(node.plan).trouble is Trouble.BUSY


def test_a_roll_back_nobody_settled_is_settled_first(node: Node) -> None:
    node.updates.records.save_pending(pending())
    node.boot("A", "back")
    assert "rolled back" in str(refusal(node.plan))
    assert node.pending() is None


@pytest.mark.parametrize("kind", ["missing", "directory", "empty", "fifo"])
def test_what_is_no_bundle(node: Node, kind: str) -> None:
    node.bundle.unlink()
    if kind == "directory":
        node.bundle.mkdir()
    elif kind == "empty":
        node.bundle.touch()
    elif kind == "fifo":
        os.mkfifo(node.bundle)
    error = refusal(node.plan)
    assert error.trouble is Trouble.NO_FILE
    assert str(node.bundle) in str(error)


def test_roll_back_by_hand_is_a_trial_of_the_old_version(node: Node) -> None:
    good = GoodSlot(version="0", build_id="b0", good_at=1)
    node.updates.records.save_good_slots(GoodSlots(slots={"B": good}))
    assert "version 0 in slot B" in node.rollback()
    record = node.pending()
    assert record is not None
    assert (record.origin, record.phase, record.version) == (
        Origin.ROLLBACK,
        Phase.ACTIVATED,
        "0",
    )
    assert node.rauc.log == ["active rootfs.1 [activated]"]
    node.boot("B", "older", version="0")
    assert node.settle() is Standing.TRIAL
    node.mark_good()
    assert node.pending() is None


@pytest.mark.parametrize(("status", "known"), [("bad", True), ("good", False)])
def test_no_roll_back_to_what_never_ran_well(node: Node, status: str, known: bool) -> None:
    if known:
        good = GoodSlot(version="0", build_id="b0", good_at=1)
        node.updates.records.save_good_slots(GoodSlots(slots={"B": good}))
    node.rauc.other_status = status
    assert "holds no system" in str(refusal(node.rollback))
    assert node.rauc.log == []


def test_roll_back_before_the_reboot_drops_the_update(node: Node) -> None:
    node.install()
    node.rauc.log.clear()
    assert "will not be booted" in node.rollback()
    assert node.rauc.log == ["active rootfs.0 [activated]"]
    assert node.pending() is None


def test_roll_back_during_the_trial_ends_it(node: Node) -> None:
    node.install()
    node.rauc.log.clear()
    node.boot("B", "trial", version="2")
    node.settle()
    assert "is over" in node.rollback()
    assert node.rauc.log == ["active rootfs.0 [activated]", "bad rootfs.1 [activated]"]
    assert node.updates.records.failures().failures[0].reason.startswith("rolled back by hand")


def test_a_failed_roll_back_leaves_no_record(node: Node) -> None:
    good = GoodSlot(version="0", build_id="b0", good_at=1)
    node.updates.records.save_good_slots(GoodSlots(slots={"B": good}))
    node.rauc.fail = "active"
    with pytest.raises(OtaError):
        node.rollback()
    assert node.pending() is None


def test_success_clears_an_older_failure(node: Node) -> None:
    node.updates.records.save_failures(Failures(failures=(failure("2", "b2"), failure("3"))))
    node.updates.records.save_pending(pending())
    node.boot("B", "trial", version="2")
    node.mark_good()
    assert node.updates.records.failures().failures == (failure("3"),)


def fill_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        # Directories still sync: removing a name needs no room.
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)


def test_a_full_disk_stops_an_installation_before_it_begins(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = node.plan()
    fill_the_disk(monkeypatch)
    error = refusal(lambda: asyncio.run(node.updates.install(node.rauc, plan)))
    assert error.trouble is Trouble.SPACE
    assert node.rauc.log == ["inspect v2.raucb [-]"]


def test_a_full_disk_keeps_no_bad_slot_alive(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.install()
    node.boot("B", "trial", version="2")
    fill_the_disk(monkeypatch)
    assert node.settle() is Standing.TRIAL
    assert node.updates.trial_failed(run=lambda _: "") is True
    assert any("free space on /data" in line for line in node.said)


def test_a_full_disk_does_not_carry_a_good_slot_away(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.install()
    node.boot("B", "trial", version="2")
    node.rauc.log.clear()
    fill_the_disk(monkeypatch)
    node.mark_good()
    assert node.rauc.log == ["good booted [activated]"]
    assert node.pending() is None
