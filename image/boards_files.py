"""Finds the files that a board wants beside the kernel or on the ESP."""

from __future__ import annotations

from pathlib import Path

from image.board import BOARDS, Board
from image.errors import BoardError


def firmware(board: Board, fetched: Path) -> dict[str, bytes]:
    """Return the firmware files by their path on the ESP; ``fetched``: unpacked packages."""
    found = {}
    for file in board.firmware.files:
        source = (
            BOARDS / board.name / file.file
            if file.file
            else fetched / file.package / file.path.lstrip("/")
        )
        if not source.is_file():
            raise BoardError(
                f"board {board.name}: there is no firmware file {source}",
                hint="packages with firmware are listed in image/packages.py",
            )
        found[file.to] = source.read_bytes()
    return found


def device_tree(board: Board, root: Path) -> dict[str, bytes]:
    """Return the board's device tree out of the kernel package, as ``board.dtb``, if it has one."""
    if not board.kernel.device_tree:
        return {}
    found = sorted(root.glob(f"usr/lib/linux-image-*/{board.kernel.device_tree}"))
    if len(found) != 1:
        raise BoardError(
            f"board {board.name}: the kernel has {len(found)} device trees of the name "
            f"{board.kernel.device_tree!r}"
        )
    return {"board.dtb": found[0].read_bytes()}
