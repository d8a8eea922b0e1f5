"""Assembles the boot loader, the FAT partitions and the whole disk image."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from image import grub, layout
from image.board import Architecture
from image.tools import ToolsRoot

# The file system in a boot partition is smaller than the partition: less to write in an update.
BOOT_IMAGE_SIZE = 64 * layout.MIB
_CHUNK = 1024 * 1024

LABEL_TEXT = """\
Skerry

Put the file token.txt here: the token of your network, as `skerry token new` wrote it.
The node takes it within seconds, at any time, without a restart. After the node has joined, the
file may be deleted.

Leave the disk's other partitions alone: a desktop may offer to "repair" or format them.
"""


def fat_image(
    tools: ToolsRoot,
    output: Path,
    *,
    size: int,
    label: str,
    files: Mapping[str, bytes],
    epoch: int,
    fat: int,
) -> None:
    """Make a FAT file system that holds ``files`` (by path), the same bytes each time."""
    folder = output.with_suffix(".files")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    tools.run(
        ["sh", "-eu", str(_SCRIPTS / "fat.sh")],
        environment={
            "OUTPUT": str(output),
            "SOURCE": str(folder),
            "SIZE": str(size),
            "LABEL": label,
            "FAT": str(fat),
            # A FAT serial number is 32 bits.
            "SERIAL": layout.identifier(f"serial {label}")[:8],
            "SOURCE_DATE_EPOCH": str(epoch),
        },
    )
    shutil.rmtree(folder)


def grub_program(tools: ToolsRoot, architecture: Architecture, modules: Path, output: Path) -> None:
    """Make GRUB for UEFI firmware; it reads /grub/grub.cfg from the partition it came from."""
    tools.run(
        [
            "grub-mkimage",
            f"--format={architecture.grub_target}",
            f"--directory={modules}",
            "--prefix=/grub",
            f"--output={output}",
            *grub.MODULES,
            *grub.PLATFORM_MODULES[architecture],
        ]
    )


def assemble(tools: ToolsRoot, output: Path, contents: Mapping[str, Path]) -> None:
    """Make the disk image: the partition table, and each file at its partition's place; sparse."""
    for name, path in contents.items():
        layout.check_fits(name, path.stat().st_size)
    output.unlink(missing_ok=True)
    with output.open("wb") as file:
        file.truncate(layout.disk_size())
    script = output.with_suffix(".sfdisk")
    script.write_text(layout.sfdisk_script(layout.partitions()))
    tools.run(["sh", "-eu", "-c", 'sfdisk --quiet "$0" <"$1"', str(output), str(script)])
    script.unlink()
    with output.open("r+b") as file:
        for name, path in contents.items():
            copy_sparse(path, file, layout.partition(name).start)


def replace(source: Path, target: Path) -> None:
    """Copy a file to where others may be reading what was there before: they have that whole."""
    aside = target.with_suffix(".new")
    shutil.copyfile(source, aside)
    aside.rename(target)


def copy_sparse(source: Path, target: BinaryIO, offset: int) -> None:
    """Copy a file into an open one at an offset, leaving holes where it has only zeros."""
    with source.open("rb") as file:
        position = offset
        while chunk := file.read(_CHUNK):
            if chunk.strip(b"\0"):
                target.seek(position)
                target.write(chunk)
            position += len(chunk)


_SCRIPTS = Path(__file__).parent / "scripts"
