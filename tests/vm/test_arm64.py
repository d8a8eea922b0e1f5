"""arm64: the same image recipe boots on QEMU's virt machine and takes its token."""

from __future__ import annotations

from pathlib import Path

import pytest

from image.artifacts import Artifacts
from qemu import demo
from qemu.machine import Machine
from qemu.spec import Arch, Firmware, LanNic, MachineSpec
from tests.vm.conftest import BOOT_SECONDS, MachineFactory, wait_ready


@pytest.fixture(scope="module")
def node(start_machine: MachineFactory, arm_image: Artifacts, lan: Path, token: bytes) -> Machine:
    spec = MachineSpec(
        "arm",
        arch=Arch.AARCH64,
        firmware=Firmware.AAVMF,
        disk=arm_image.disk,
        disk_size=arm_image.disk.stat().st_size + (1 << 30),
        nics=(LanNic(lan),),
        credentials={"skerry.token": token},
    )
    machine = start_machine(spec)
    wait_ready([machine], peers=0, timeout=2 * BOOT_SECONDS)
    return machine


def test_it_is_an_arm_machine_and_ready(node: Machine) -> None:
    assert node.run(["uname", "-m"]).stdout.strip() == "aarch64"
    status = demo.node_status(node)
    assert status["state"] == "ready"
    assert status["release"]["board"] == "qemu-arm64"
    assert status["release"]["slot"] == "A"


def test_no_unit_failed(node: Machine) -> None:
    running = node.run(["systemctl", "is-system-running", "--wait"], timeout=BOOT_SECONDS)
    failed = node.run(["systemctl", "--failed", "--plain", "--no-legend"]).stdout
    assert (running.stdout.strip(), failed.strip()) == ("running", "")


def test_its_root_is_verified(node: Machine) -> None:
    assert " verity 1 " in node.run(["dmsetup", "table", "skerry-root"], check=True).stdout
    assert node.run(["findmnt", "-no", "FSTYPE", "/"], check=True).stdout.strip() == "erofs"
