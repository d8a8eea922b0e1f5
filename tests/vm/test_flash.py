"""A flashed disk: its token makes the node, and is gone from the disk once it did."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from image.artifacts import Artifacts
from qemu import demo
from qemu.machine import Machine
from qemu.spec import MachineSpec
from skerry.__main__ import main
from tests.vm.conftest import BOOT_SECONDS, MachineFactory, wait_ready

DISK_SIZE = 3 << 30


@pytest.fixture(scope="module")
def flashed(
    x86_image: Artifacts, token: bytes, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("flash")
    disk, text = directory / "node.img", directory / "token.txt"
    text.write_bytes(token)
    words = ["flash", str(x86_image.disk), str(disk), "--token", str(text), "--size", "3G"]
    assert main(words) == 0
    yield disk
    disk.unlink()


@pytest.fixture(scope="module")
def node(start_machine: MachineFactory, flashed: Path) -> Machine:
    machine = start_machine(MachineSpec("flashed", disk=flashed, disk_size=DISK_SIZE))
    machine.wait_agent(timeout=BOOT_SECONDS)
    wait_ready([machine], peers=0)
    return machine


def test_the_token_on_the_disk_makes_the_node(node: Machine) -> None:
    assert demo.node_status(node)["state"] == "ready"
    journal = node.run(["journalctl", "-b", "--no-pager", "-o", "cat", "-u", "skerry.service"])
    assert "SKERRY1" not in journal.stdout


def test_the_used_token_is_erased_from_the_disk(node: Machine) -> None:
    node.wait_for(["systemctl", "is-active", "--quiet", "skerry-token-wipe.service"])
    found = node.run("grep -c -a SKERRY1- /run/skerry/disk/token")
    assert found.stdout.strip() == "0"


def test_nothing_failed_on_the_way(node: Machine) -> None:
    failed = node.run(["systemctl", "--failed", "--plain", "--no-legend"])
    assert failed.stdout.strip() == ""
    media = node.run("journalctl -b --no-pager -o cat -u 'skerry-token-media@*'").stdout
    assert "handed to the supervisor as disk-" in media
