"""What the stories of updates share: bundles on a stick, and the machine that they happen to."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from image.artifacts import Artifacts
from image.board import load as load_board
from image.build import Wanted
from image.bundle import build as build_bundle
from image.keys import signing_keys
from image.tools import ToolsRoot
from qemu.machine import Machine
from qemu.spec import MachineSpec, UserNic
from tests.contract.test_rauc import make_key, pack_bundle
from tests.vm.conftest import BOOT_SECONDS, MachineFactory

BOARD = "x86_64"
GOOD = "2.0-good"
_UNITS = "usr/lib/systemd/system"
SETTLED = "systemctl is-active --quiet skerry-slot.service boot-complete.target"
NO_SUPERVISOR = {
    f"{_UNITS}/skerry.service.d/50-test.conf": "[Service]\nExecStart=\nExecStart=/bin/false\n",
    f"{_UNITS}/skerry-health.service.d/50-test.conf": (
        "[Service]\nExecStart=\nExecStart=/usr/bin/skerry health --wait 3\n"
    ),
}
"""A supervisor that never runs, and a health check that soon gives up: the time-out is the
bundle's, so that good slots keep the product's."""


def panic_after_an_attempt_of(version: str) -> dict[str, str]:
    """Return files that make the kernel panic early, once a boot of this version was unhealthy."""
    report = f"/data/update/post-mortem/*{version}/attempt-1.json"
    return {
        f"{_UNITS}/test-panic.service": (
            f"[Unit]\nDefaultDependencies=no\nConditionPathExistsGlob={report}\n"
            "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'echo c >/proc/sysrq-trigger'\n"
        ),
        f"{_UNITS}/sysinit.target.d/50-test.conf": "[Unit]\nWants=test-panic.service\n",
    }


def make_stick(
    path: Path, tools: ToolsRoot, bad: Mapping[str, Mapping[str, str]], *, refused: bool
) -> Path:
    """Return an ext4 image with bundles in it, as a stick would bring them.

    ``good.raucb``, one NAME.raucb with overlaid files for each of ``bad``, and if ``refused``
    some that are refused by what they say of themselves; those need no system inside. Kubernetes,
    half of a system, is left out: it would only be written.
    """
    content = path / "content"
    content.mkdir()
    keys = signing_keys()
    good = Wanted(BOARD, GOOD, keys, kubernetes=False)
    build_bundle(good, output=content / "good.raucb")
    for version, files in bad.items():
        overlay = path / version
        for name, text in files.items():
            file = overlay / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        wanted = Wanted(BOARD, version, keys, (overlay,), kubernetes=False)
        build_bundle(wanted, output=content / f"{version}.raucb")
    if refused:
        make_key(path, "stranger", tools)
        stranger = (path / "stranger.crt", path / "stranger.key")
        ours = (keys.certificate, keys.key)
        small = path / "small"
        small.mkdir()
        pack_bundle(
            small,
            content / "foreign.raucb",
            tools,
            stranger,
            compatible=load_board(BOARD).rauc_compatible,
        )
        pack_bundle(small, content / "other.raucb", tools, ours, compatible="skerry-toaster")
        whole = (content / "other.raucb").read_bytes()
        (content / "cut.raucb").write_bytes(whole[:-1000])
    stick = path / "stick.img"
    size = sum(file.stat().st_size for file in content.iterdir()) + (64 << 20)
    stick.touch()
    os.truncate(stick, size)
    tools.run(["mkfs.ext4", "-q", "-L", "bundles", "-d", str(content), str(stick)], binds=[path])
    shutil.rmtree(content)
    return stick


def start_node(
    start_machine: MachineFactory, image: Artifacts, token: bytes, stick: Path
) -> UpdatedNode:
    """Switch a machine on, wait until its first system is committed, plug the stick in."""
    spec = MachineSpec(
        name="update",
        disk=image.disk,
        disk_size=image.disk.stat().st_size + (1 << 30),
        nics=(UserNic(),),
        credentials={"skerry.token": token},
    )
    machine = start_machine(spec)
    machine.wait_for(SETTLED, timeout=BOOT_SECONDS, every=2)
    machine.wait_for(["test", "-b", machine.attach_file_as_disk(stick)], timeout=120)
    node = UpdatedNode(machine, json.loads(image.manifest.read_text())["version"])
    node.mount_stick()
    return node


@dataclass(frozen=True, slots=True)
class UpdatedNode:
    """The machine of a story; ``first_version`` is what its image has."""

    machine: Machine
    first_version: str

    def status(self) -> dict[str, Any]:
        answer = self.machine.run(["skerry", "update", "status", "--json"], check=True)
        document = json.loads(answer.stdout)
        assert isinstance(document, dict)
        return document

    def shell(self, command: str) -> str:
        return self.machine.run(command, timeout=300, check=True).stdout.strip()

    def boot_id(self) -> str:
        return self.shell("cat /proc/sys/kernel/random/boot_id")

    def version(self) -> str:
        release = json.loads(self.shell("cat /usr/lib/skerry/release.json"))
        return str(release["version"])

    def install(self, name: str, *words: str) -> tuple[int, str]:
        result = self.machine.run(
            ["skerry", "update", "install", f"/run/stick/{name}", *words], timeout=900
        )
        return result.exit_status, result.stderr

    def reboot_and_settle(self, slot: str, *, timeout: float = BOOT_SECONDS) -> None:
        """Reboot, and wait until a boot of this slot is healthy and nothing is pending."""
        before = self.boot_id()
        self.machine.begin(["systemctl", "reboot"])
        self.machine.wait_for(
            f'test "$(cat /proc/sys/kernel/random/boot_id)" != {before} && '
            f"grep -qw rauc.slot={slot} /proc/cmdline && {SETTLED} && "
            "test ! -e /data/update/pending.json",
            timeout=timeout,
            every=4,
        )

    def tries_of(self, slot: str) -> list[str]:
        """Return what GRUB said of each start of the slot since power-on."""
        return [
            line for line in self.machine.serial.text().splitlines() if f"slot {slot}, try" in line
        ]

    def mount_stick(self) -> None:
        """Mount the stick, after a reboot anew."""
        device = "/dev/disk/by-label/bundles"
        self.machine.wait_for(["test", "-b", device], timeout=120)
        self.shell(f"mkdir -p /run/stick && mount -o ro {device} /run/stick")

    def no_unit_failed(self) -> bool:
        return not self.shell("systemctl --failed --no-legend --plain")
