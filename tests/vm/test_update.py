"""Updates of a real machine by the real RAUC and GRUB: good, never ready, panicking, foreign.

The tests are one story on one machine, in this order: A holds version 1; B gets 2 (good), the
node goes back to A by hand; B gets 3 (never ready) and then 2 again with a broken root (panics).
"""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

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

pytestmark = pytest.mark.timeout(2400)

BOARD = "x86_64"
GOOD, NEVER_READY = "2.0-good", "3.0-never-ready"
_DROP_IN = "usr/lib/systemd/system/{}.d/50-test.conf"
_SETTLED = "systemctl is-active --quiet skerry-slot.service boot-complete.target"


@dataclass(frozen=True, slots=True)
class Bundles:
    """An ext4 image with bundles in it, as a stick would bring them."""

    stick: Path
    version: str


@pytest.fixture(scope="module")
def bundles(
    tmp_path_factory: pytest.TempPathFactory, tools: ToolsRoot, x86_image: Artifacts
) -> Bundles:
    path = tmp_path_factory.mktemp("bundles")
    content = path / "content"
    content.mkdir()
    keys = signing_keys()
    build_bundle(Wanted(BOARD, GOOD, keys), output=content / "good.raucb")
    broken = (broken_overlay(path),)
    build_bundle(Wanted(BOARD, NEVER_READY, keys, broken), output=content / "never-ready.raucb")
    # These are refused by what they say of themselves; they need no system inside.
    make_key(path, "stranger", tools)
    stranger = (path / "stranger.crt", path / "stranger.key")
    ours = (keys.certificate, keys.key)
    compatible = load_board(BOARD).rauc_compatible
    small = path / "small"
    small.mkdir()
    pack_bundle(small, content / "foreign.raucb", tools, stranger, compatible=compatible)
    pack_bundle(small, content / "other.raucb", tools, ours, compatible="skerry-toaster")
    whole = (content / "other.raucb").read_bytes()
    (content / "cut.raucb").write_bytes(whole[:-1000])
    stick = path / "stick.img"
    size = sum(file.stat().st_size for file in content.iterdir()) + (64 << 20)
    with stick.open("wb") as file:
        file.truncate(size)
    tools.run(["mkfs.ext4", "-q", "-L", "bundles", "-d", str(content), str(stick)], binds=[path])
    return Bundles(stick, json.loads(x86_image.manifest.read_text())["version"])


def broken_overlay(path: Path) -> Path:
    """Return files that make a supervisor which never runs, and a health check that soon gives up.

    The time-out is the bundle's, so that good slots keep the product's.
    """
    overlay = path / "broken"
    for unit, command in (
        ("skerry.service", "/bin/false"),
        ("skerry-health.service", "/usr/bin/skerry health --wait 3"),
    ):
        file = overlay / _DROP_IN.format(unit)
        file.parent.mkdir(parents=True)
        file.write_text(f"[Service]\nExecStart=\nExecStart={command}\n")
    return overlay


class Node:
    """The machine of the story."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

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
            f"grep -qw rauc.slot={slot} /proc/cmdline && {_SETTLED} && "
            "test ! -e /data/update/pending.json",
            timeout=timeout,
            every=4,
        )

    def tries_of(self, slot: str) -> list[str]:
        """Return what GRUB said of each start of the slot since power-on."""
        return [
            line for line in self.machine.serial.text().splitlines() if f"slot {slot}, try" in line
        ]


@pytest.fixture(scope="module")
def node(
    start_machine: MachineFactory, x86_image: Artifacts, token: bytes, bundles: Bundles
) -> Node:
    spec = MachineSpec(
        name="update",
        disk=x86_image.disk,
        disk_size=x86_image.disk.stat().st_size + (1 << 30),
        nics=(UserNic(),),
        credentials={"skerry.token": token},
    )
    machine = start_machine(spec)
    machine.wait_for(_SETTLED, timeout=BOOT_SECONDS, every=2)
    device = machine.attach_file_as_disk(bundles.stick)
    machine.wait_for(["test", "-b", device], timeout=120)
    node = Node(machine)
    mount_stick(node)
    return node


def mount_stick(node: Node) -> None:
    """Mount the stick, after a reboot anew."""
    device = "/dev/disk/by-label/bundles"
    node.machine.wait_for(["test", "-b", device], timeout=120)
    node.shell(f"mkdir -p /run/stick && mount -o ro {device} /run/stick")


def test_a_fresh_node_is_committed(node: Node, bundles: Bundles) -> None:
    status = node.status()
    assert status["problems"] == []
    assert (status["slot"], status["standing"], status["version"]) == (
        "A",
        "committed",
        bundles.version,
    )
    slots = {row["slot"]: row for row in status["slots"]}
    assert slots["A"]["good"]
    assert slots["A"]["tries"] == 0
    assert not slots["B"]["good"]
    assert node.shell("systemctl --failed --no-legend --plain") == ""


def test_only_root_reaches_rauc(node: Node) -> None:
    call = "busctl call de.pengutronix.rauc / de.pengutronix.rauc.Installer Mark ss active rootfs.1"
    answer = node.machine.run(f"setpriv --reuid=skerry --regid=skerry --clear-groups {call}")
    assert answer.exit_status != 0
    assert "denied" in answer.stderr.lower()
    assert node.status()["slots"][1]["next"] is False


def test_nothing_to_roll_back_to(node: Node) -> None:
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
def test_refused_bundles(node: Node, name: str, words: str) -> None:
    status, said = node.install(name)
    assert status == 1
    assert words in said
    assert "Traceback" not in said
    assert node.status()["pending"] is None


def test_a_good_update_stays(node: Node, bundles: Bundles) -> None:
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
    assert slots["A"]["version"] == bundles.version
    assert node.version() == GOOD
    assert node.shell("systemctl --failed --no-legend --plain") == ""
    assert len(node.tries_of("B")) == 1


def test_rolling_back_by_hand(node: Node, bundles: Bundles) -> None:
    assert (
        "in slot A is tried at the next boot"
        in node.machine.run(["skerry", "update", "rollback"], check=True).stderr
    )
    node.reboot_and_settle("A")
    assert node.version() == bundles.version
    status = node.status()
    assert [row["good"] for row in status["slots"]] == [True, True]
    assert status["failed"] == []


def test_an_update_that_never_gets_ready_falls_back(node: Node, bundles: Bundles) -> None:
    mount_stick(node)
    tried = len(node.tries_of("B"))
    status, said = node.install("never-ready.raucb")
    assert status == 0, said
    node.reboot_and_settle("A", timeout=3 * BOOT_SECONDS)
    assert len(node.tries_of("B")) == tried + 3
    assert node.version() == bundles.version
    after = node.status()
    verdict = after["last_post_mortem"]
    assert (verdict["version"], verdict["slot"], verdict["boots"]) == (NEVER_READY, "B", 3)
    assert "did not become healthy" in verdict["reason"]
    assert "skerry-health.service" in verdict["failed_units"]
    assert verdict["reasons"]
    reports = node.shell("ls /data/update/post-mortem/*/")
    assert [f"attempt-{number}.json" in reports for number in (1, 2, 3)] == [True] * 3
    mount_stick(node)
    status, said = node.install("never-ready.raucb")
    assert status == 1
    assert "was tried on this node and rolled back after 3 boots" in said


def test_an_update_that_panics_falls_back(node: Node, bundles: Bundles) -> None:
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
    assert node.version() == bundles.version
    verdict = node.status()["last_post_mortem"]
    assert (verdict["version"], verdict["boots"]) == (GOOD, 3)
    assert "never came as far" in verdict["reason"]


def test_the_units_order_without_a_cycle(node: Node) -> None:
    assert "ordering cycle" not in node.shell("journalctl -b --no-pager | grep -i cycle || true")


def test_the_stick_was_not_written(bundles: Bundles, tools: ToolsRoot) -> None:
    command = tools.command(["e2fsck", "-fn", str(bundles.stick)], binds=[bundles.stick.parent])
    assert subprocess.run(command, capture_output=True).returncode == 0
