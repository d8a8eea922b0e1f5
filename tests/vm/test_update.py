"""Updates of a real machine by the real RAUC and GRUB: good, bad, foreign.

The tests are one story on one machine, in this order: A holds version 1; B gets 2, which is good; A
gets 3, whose first boot is never ready and whose next ones panic. `make test-long` has each alone.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from image.artifacts import Artifacts
from image.tools import ToolsRoot
from tests.vm.conftest import BOOT_SECONDS, MachineFactory
from tests.vm.updates import (
    GOOD,
    NO_SUPERVISOR,
    UpdatedNode,
    make_stick,
    panic_after_an_attempt_of,
    start_node,
)

pytestmark = pytest.mark.timeout(2400)

BAD = "3.0-bad"
PANIC = "] Kernel panic - not syncing"  # its end is "---[ end Kernel panic"


@pytest.fixture(scope="module")
def stick(tmp_path_factory: pytest.TempPathFactory, tools: ToolsRoot) -> Path:
    files = NO_SUPERVISOR | panic_after_an_attempt_of(BAD)
    return make_stick(tmp_path_factory.mktemp("bundles"), tools, {BAD: files}, refused=True)


@pytest.fixture(scope="module")
def node(
    start_machine: MachineFactory, x86_image: Artifacts, token: bytes, stick: Path
) -> UpdatedNode:
    return start_node(start_machine, x86_image, token, stick)


def test_a_fresh_node_is_committed(node: UpdatedNode) -> None:
    status = node.status()
    assert status["problems"] == []
    assert (status["slot"], status["standing"], status["version"]) == (
        "A",
        "committed",
        node.first_version,
    )
    slots = {row["slot"]: row for row in status["slots"]}
    assert slots["A"]["good"]
    assert slots["A"]["tries"] == 0
    assert not slots["B"]["good"]
    assert node.no_unit_failed()


def test_only_root_reaches_rauc(node: UpdatedNode) -> None:
    call = "busctl call de.pengutronix.rauc / de.pengutronix.rauc.Installer Mark ss active rootfs.1"
    answer = node.machine.run(f"setpriv --reuid=skerry --regid=skerry --clear-groups {call}")
    assert answer.exit_status != 0
    assert "denied" in answer.stderr.lower()
    assert node.status()["slots"][1]["next"] is False


def test_nothing_to_roll_back_to(node: UpdatedNode) -> None:
    answer = node.machine.run(["skerry", "update", "rollback"])
    assert answer.exit_status == 1
    assert "holds no system that has run well" in answer.stderr


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("foreign.raucb", "not signed by a key that this node trusts"),
        ("other.raucb", "is for 'skerry-toaster', and this machine is"),
        ("cut.raucb", "damaged or cut short"),
        ("none.raucb", "cannot be read"),
    ],
)
def test_refused_bundles(node: UpdatedNode, name: str, words: str) -> None:
    status, said = node.install(name)
    assert status == 1
    assert words in said
    assert "Traceback" not in said
    assert node.status()["pending"] is None


def test_a_good_update_stays(node: UpdatedNode) -> None:
    status, said = node.install("good.raucb")
    assert status == 0, said
    assert "100%" in said
    before = node.status()
    assert before["standing"] == "awaiting reboot"
    assert [row["next"] for row in before["slots"]] == [False, True]
    node.reboot_and_settle("B")
    after = node.status()
    assert (after["slot"], after["version"], after["standing"]) == ("B", GOOD, "committed")
    slots = {row["slot"]: row for row in after["slots"]}
    assert slots["B"]["good"]
    assert slots["A"]["good"]
    assert slots["A"]["version"] == node.first_version
    assert node.version() == GOOD
    assert node.no_unit_failed()
    assert len(node.tries_of("B")) == 1


def test_an_update_that_is_never_ready_and_then_panics_falls_back(node: UpdatedNode) -> None:
    node.mount_stick()
    tried, panics = len(node.tries_of("A")), node.machine.serial.text().count(PANIC)
    status, said = node.install(f"{BAD}.raucb")
    assert status == 0, said
    node.reboot_and_settle("B", timeout=3 * BOOT_SECONDS)
    assert len(node.tries_of("A")) == tried + 3
    assert node.machine.serial.text().count(PANIC) == panics + 2
    assert node.version() == GOOD
    after = node.status()
    verdict = after["last_post_mortem"]
    assert (verdict["version"], verdict["slot"], verdict["boots"]) == (BAD, "A", 3)
    assert "did not become healthy" in verdict["reason"]
    assert "skerry-health.service" in verdict["failed_units"]
    assert verdict["reasons"]
    reports = node.shell("ls /data/update/post-mortem/*/")
    assert [f"attempt-{number}.json" in reports for number in (1, 2, 3)] == [True, False, False]
    # Slot A held a good system once: that mark went with the installation.
    assert [row["good"] for row in after["slots"]] == [False, True]
    node.mount_stick()
    status, said = node.install(f"{BAD}.raucb")
    assert status == 1
    assert "was tried on this node and rolled back after 3 boots" in said


def test_the_units_order_without_a_cycle(node: UpdatedNode) -> None:
    assert "ordering cycle" not in node.shell("journalctl -b --no-pager | grep -i cycle || true")


def test_the_stick_was_not_written(stick: Path, tools: ToolsRoot) -> None:
    command = tools.command(["e2fsck", "-fn", str(stick)], binds=[stick.parent])
    assert subprocess.run(command, capture_output=True).returncode == 0
