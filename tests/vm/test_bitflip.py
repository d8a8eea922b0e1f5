"""x86-64: a node does not run on a root that was changed by a single bit."""

from __future__ import annotations

from pathlib import Path

from image.artifacts import Artifacts
from image.layout import partition
from image.tools import ToolsRoot
from qemu.machine import Machine
from qemu.prepare import prepare
from qemu.spec import Accelerator, DiskMode, MachineSpec
from tests.vm.conftest import BOOT_SECONDS, TEST_LOGS, keep_logs

CORRUPT = r"verity: \d+:\d+: data block 0 is corrupted"


def flip_bit(file: Path, position: int) -> None:
    with file.open("r+b") as stream:
        stream.seek(position)
        byte = stream.read(1)[0]
        stream.seek(position)
        stream.write(bytes([byte ^ 1]))


def test_a_flipped_bit_is_detected(
    x86_image: Artifacts, accelerator: Accelerator, tools: ToolsRoot, tmp_path: Path
) -> None:
    # The volume name in erofs' superblock (at 1024, the name at +64): it changes nothing but the
    # checksum, so only verity can object, and the first block is surely read.
    position = 1024 + 64
    start = partition("skerry-root-a").start
    spec = MachineSpec("flipped", disk=x86_image.disk, disk_mode=DiskMode.COPY)
    with Machine(spec, tmp_path, accelerator=accelerator, tools=tools) as machine:
        prepare(spec, machine.paths, tools)
        flip_bit(machine.paths.disk_copy, start + position)
        machine.start()
        try:
            machine.serial.wait_for(CORRUPT, timeout=BOOT_SECONDS)
            # The kernel restarts for the next try instead of running on.
            machine.wait_for_event("RESET", timeout=BOOT_SECONDS)
            assert machine.agent.hello is None
        except BaseException:
            keep_logs(machine, TEST_LOGS / "test_bitflip" / "flipped")
            raise
    (tmp_path / "disk.img").unlink()
