"""x86-64: a flashed disk, in three boots of one machine.

Its token makes the node and is gone from the disk once it did; the data partition survives a power
cut in the making, grows with the medium, and is never formatted over. The tests are one story.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from image.artifacts import Artifacts
from image.layout import MIB, SECTOR
from image.tools import ToolsRoot
from qemu import demo
from qemu.machine import Machine
from qemu.prepare import prepare
from qemu.spec import DiskMode, MachineSpec
from skerry.__main__ import main
from tests.vm.conftest import BOOT_SECONDS, MachineMaker, wait_ready

ROOM = 256 * MIB
MARK = "/data/mark"
POWER_CUT_IN_THE_MAKING = (
    'sfdisk -q --relocate gpt-bak-std "$0"; echo "name=skerry-new" | sfdisk -q -a "$0"'
)
"""Between making the data partition and naming it: there is a partition, no file system."""


@pytest.fixture(scope="module")
def flashed(
    x86_image: Artifacts, token: bytes, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("flash")
    disk, text = directory / "node.img", directory / "token.txt"
    text.write_bytes(token)
    size = f"{(x86_image.disk.stat().st_size + ROOM) // MIB}M"
    words = ["flash", str(x86_image.disk), str(disk), "--token", str(text), "--size", size]
    assert main(words) == 0
    yield disk
    disk.unlink()


@pytest.fixture(scope="module")
def node(make_machine: MachineMaker, flashed: Path, tools: ToolsRoot) -> Machine:
    spec = MachineSpec("disk", disk=flashed, disk_mode=DiskMode.COPY)
    machine = make_machine(spec)
    prepare(spec, machine.paths, tools)
    disk = machine.paths.disk_copy
    command = ["sh", "-eu", "-c", POWER_CUT_IN_THE_MAKING, str(disk)]
    subprocess.run(tools.command(command, binds=[disk.parent]), check=True)
    machine.start()
    machine.wait_agent(timeout=BOOT_SECONDS)
    wait_ready([machine], peers=0)
    return machine


def data_partition(disk: Path, tools: ToolsRoot) -> dict[str, Any]:
    """Return what the partition table says of the seventh partition."""
    argv = tools.command(["sfdisk", "--json", str(disk)], binds=[disk.parent])
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    table = json.loads(done.stdout)["partitiontable"]["partitions"]
    assert len(table) == 7
    return dict(table[6])


def mount_of(machine: Machine, place: str) -> tuple[str, int]:
    """Return the type and the size in bytes of what is mounted at a place."""
    said = machine.run(["findmnt", "-bno", "FSTYPE,SIZE", place], timeout=60).check().stdout.split()
    return said[0], int(said[1])


def came_up_whole(machine: Machine) -> None:
    said = machine.run(["systemctl", "is-system-running", "--wait"], timeout=BOOT_SECONDS)
    assert said.stdout == "running\n", machine.run("systemctl --failed", timeout=60).stdout


def test_the_token_on_the_disk_makes_the_node(node: Machine) -> None:
    assert demo.node_status(node)["state"] == "ready"
    journal = node.run(["journalctl", "-b", "--no-pager", "-o", "cat", "-u", "skerry.service"])
    assert "SKERRY1" not in journal.stdout
    media = node.run("journalctl -b --no-pager -o cat -u 'skerry-token-media@*'").stdout
    assert "handed to the supervisor as disk-" in media


def test_the_used_token_is_erased_from_the_disk(node: Machine) -> None:
    node.wait_for(["systemctl", "is-active", "--quiet", "skerry-token-wipe.service"])
    found = node.run("grep -c -a SKERRY1- /run/skerry/disk/token")
    assert found.stdout.strip() == "0"


def test_a_power_cut_while_the_data_partition_was_made(node: Machine) -> None:
    assert "cut short" in node.serial.text()
    kind, size = mount_of(node, "/data")
    assert kind == "ext4"
    assert size < ROOM
    came_up_whole(node)


def test_the_data_partition_grows_with_its_medium(node: Machine, tools: ToolsRoot) -> None:
    _, before = mount_of(node, "/data")
    node.run(f"echo kept >{MARK} && sync").check()
    machine_id, node_id = node.get_file("/etc/machine-id"), demo.node_status(node)["node_id"]
    node.power_off(timeout=BOOT_SECONDS)
    disk = node.paths.disk_copy
    assert data_partition(disk, tools)["name"] == "skerry-data"
    os.truncate(disk, disk.stat().st_size + 1024 * MIB)
    node.start()
    node.wait_agent(timeout=BOOT_SECONDS)
    kind, after = mount_of(node, "/data")
    assert kind == "ext4"
    assert after > before + 900 * MIB
    assert node.get_file(MARK) == b"kept\n"
    assert node.get_file("/etc/machine-id") == machine_id
    wait_ready([node], peers=0)
    assert demo.node_status(node)["node_id"] == node_id


def test_a_data_partition_that_is_damaged_is_not_formatted(node: Machine, tools: ToolsRoot) -> None:
    node.power_cut()
    disk = node.paths.disk_copy
    part = data_partition(disk, tools)
    start, length = part["start"] * SECTOR, part["size"] * SECTOR
    # Nothing of the file system is left. The node runs, and says so.
    hole = ["fallocate", "--punch-hole", f"--offset={start}", f"--length={length}", str(disk)]
    subprocess.run(tools.command(hole, binds=[disk.parent]), check=True)
    node.start()
    node.wait_agent(timeout=BOOT_SECONDS)
    came_up_whole(node)
    kind, _ = mount_of(node, "/data")
    assert kind == "tmpfs"
    assert "cannot be mounted" in node.serial.text()
    assert b"cannot be mounted" in node.get_file("/run/skerry/data-trouble")
    node.power_off(timeout=BOOT_SECONDS)
    with disk.open("rb") as file:
        file.seek(start)
        assert not file.read(4 * MIB).strip(b"\0"), "something was written to the damaged partition"
