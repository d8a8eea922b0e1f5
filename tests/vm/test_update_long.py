"""The rest of the stories of updates, each failure by itself (`make test-long`).

On one machine, in this order: A holds version 1; B gets 2, and the node goes back to A by hand; B
gets 3, which is never ready; B gets 2 again, with a broken root that panics.
"""

from __future__ import annotations

import time

import pytest

from image.artifacts import Artifacts
from image.tools import ToolsRoot
from tests.vm.conftest import BOOT_SECONDS, MachineFactory
from tests.vm.updates import GOOD, NO_SUPERVISOR, UpdatedNode, make_stick, start_node

pytestmark = [pytest.mark.timeout(2400), pytest.mark.long]

NEVER_READY = "3.0-never-ready"


@pytest.fixture(scope="module")
def node(
    start_machine: MachineFactory,
    x86_image: Artifacts,
    token: bytes,
    tools: ToolsRoot,
    tmp_path_factory: pytest.TempPathFactory,
) -> UpdatedNode:
    folder = tmp_path_factory.mktemp("bundles")
    stick = make_stick(folder, tools, {NEVER_READY: NO_SUPERVISOR}, refused=False)
    return start_node(start_machine, x86_image, token, stick)


def test_rolling_back_by_hand(node: UpdatedNode) -> None:
    status, said = node.install("good.raucb")
    assert status == 0, said
    node.reboot_and_settle("B")
    assert node.version() == GOOD
    assert (
        "in slot A is tried at the next boot"
        in node.machine.run(["skerry", "update", "rollback"], check=True).stderr
    )
    node.reboot_and_settle("A")
    assert node.version() == node.first_version
    status_now = node.status()
    assert [row["good"] for row in status_now["slots"]] == [True, True]
    assert status_now["failed"] == []


def test_an_update_that_never_gets_ready_falls_back(node: UpdatedNode) -> None:
    node.mount_stick()
    tried = len(node.tries_of("B"))
    status, said = node.install(f"{NEVER_READY}.raucb")
    assert status == 0, said
    node.reboot_and_settle("A", timeout=3 * BOOT_SECONDS)
    assert len(node.tries_of("B")) == tried + 3
    assert node.version() == node.first_version
    after = node.status()
    verdict = after["last_post_mortem"]
    assert (verdict["version"], verdict["slot"], verdict["boots"]) == (NEVER_READY, "B", 3)
    assert "did not become healthy" in verdict["reason"]
    assert "skerry-health.service" in verdict["failed_units"]
    assert verdict["reasons"]
    reports = node.shell("ls /data/update/post-mortem/*/")
    assert [f"attempt-{number}.json" in reports for number in (1, 2, 3)] == [True] * 3
    node.mount_stick()
    status, said = node.install(f"{NEVER_READY}.raucb")
    assert status == 1
    assert "was tried on this node and rolled back after 3 boots" in said


def test_an_update_that_panics_falls_back(node: UpdatedNode) -> None:
    tried = len(node.tries_of("B"))
    status, said = node.install("good.raucb")
    assert status == 0, said
    # Written behind RAUC's back, where every boot reads: dm-verity has to panic.
    node.shell("dd if=/dev/zero of=/run/skerry/disk/root-b bs=1M count=8 conv=fsync 2>&1")
    begun = time.monotonic()
    node.reboot_and_settle("A", timeout=3 * BOOT_SECONDS)
    assert time.monotonic() - begun < 3 * BOOT_SECONDS
    assert len(node.tries_of("B")) == tried + 3
    assert "Kernel panic" in node.machine.serial.text()
    assert node.version() == node.first_version
    verdict = node.status()["last_post_mortem"]
    assert (verdict["version"], verdict["boots"]) == (GOOD, 3)
    assert "never came as far" in verdict["reason"]
