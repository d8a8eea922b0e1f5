"""x86-64: the data partition survives a power cut in the making, grows, is never formatted over."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

from image.artifacts import Artifacts
from image.layout import MIB, SECTOR
from image.tools import ToolsRoot
from qemu.machine import Machine
from qemu.prepare import prepare
from qemu.spec import Accelerator, DiskMode, MachineSpec
from tests.vm.conftest import BOOT_SECONDS, TEST_LOGS, keep_logs

MARK = "/data/mark"


def data_partition(disk: Path, tools: ToolsRoot) -> dict[str, Any]:
    """Return what the partition table says of the seventh partition."""
    argv = tools.command(["sfdisk", "--json", str(disk)], binds=[disk.parent])
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    table = json.loads(done.stdout)["partitiontable"]["partitions"]
    assert len(table) == 7
    return dict(table[6])


def mount_of(machine: Machine, place: str) -> tuple[str, int]:
    """Return the type and the size in MiB of what is mounted at a place."""
    said = machine.run(["findmnt", "-bno", "FSTYPE,SIZE", place], timeout=60).check().stdout.split()
    return said[0], int(said[1]) // MIB


def test_the_data_partition_is_finished_grown_and_never_formatted_over(
    x86_image: Artifacts, accelerator: Accelerator, tools: ToolsRoot, tmp_path: Path
) -> None:
    size = x86_image.disk.stat().st_size + 256 * MIB
    spec = MachineSpec("data", disk=x86_image.disk, disk_mode=DiskMode.COPY, disk_size=size)
    with Machine(spec, tmp_path, accelerator=accelerator, tools=tools) as machine:
        prepare(spec, machine.paths, tools)
        try:
            live_through_three_boots(machine, tools)
        except BaseException:
            keep_logs(machine, TEST_LOGS / "test_data_partition" / "data")
            raise
    machine.paths.disk_copy.unlink()


def switch_on(machine: Machine) -> None:
    """Switch on and wait for the end of the start: before it, nobody heeds the power button."""
    machine.start()
    machine.wait_agent(timeout=BOOT_SECONDS)
    said = machine.run(["systemctl", "is-system-running", "--wait"], timeout=BOOT_SECONDS)
    assert said.stdout == "running\n", machine.run("systemctl --failed", timeout=60).stdout


def live_through_three_boots(machine: Machine, tools: ToolsRoot) -> None:
    disk = machine.paths.disk_copy

    # A power cut between making the partition and naming it: there is a partition, no file system.
    subprocess.run(
        tools.command(
            [
                *("sh", "-eu", "-c"),
                'sfdisk -q --relocate gpt-bak-std "$0"; echo "name=skerry-new" | sfdisk -q -a "$0"',
                str(disk),
            ],
            binds=[disk.parent],
        ),
        check=True,
    )
    switch_on(machine)
    assert re.search("cut short", machine.serial.text())
    kind, before = mount_of(machine, "/data")
    assert kind == "ext4"
    assert before < 256
    machine.run(f"echo kept >{MARK} && sync").check()
    identifier = machine.get_file("/etc/machine-id")
    machine.power_off()
    assert data_partition(disk, tools)["name"] == "skerry-data"

    # The image goes onto a larger medium: the partition and its file system take the room.
    os.truncate(disk, disk.stat().st_size + 1024 * MIB)
    switch_on(machine)
    kind, after = mount_of(machine, "/data")
    assert kind == "ext4"
    assert after > before + 900
    assert machine.get_file(MARK) == b"kept\n"
    assert machine.get_file("/etc/machine-id") == identifier
    machine.power_off()

    # Nothing of the file system is left. It must not be formatted: the node runs, and says so.
    part = data_partition(disk, tools)
    start, length = part["start"] * SECTOR, part["size"] * SECTOR
    hole = ["fallocate", "--punch-hole", f"--offset={start}", f"--length={length}", str(disk)]
    subprocess.run(tools.command(hole, binds=[disk.parent]), check=True)
    switch_on(machine)
    kind, _ = mount_of(machine, "/data")
    assert kind == "tmpfs"
    assert re.search("cannot be mounted", machine.serial.text())
    assert b"cannot be mounted" in machine.get_file("/run/skerry/data-trouble")
    machine.power_off()
    with disk.open("rb") as file:
        file.seek(start)
        assert not file.read(4 * MIB).strip(b"\0"), "something was written to the damaged partition"
