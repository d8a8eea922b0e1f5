"""Images to boot: built when missing or stale, and their kernel for the probe guest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from image.artifacts import REPOSITORY, Artifacts
from image.tools import ToolsRoot
from qemu.errors import LabError


def ensure(board: str, *, kubernetes: bool = True) -> Artifacts:
    """Build a board's image unless it is there and current (the build itself knows)."""
    argv = [sys.executable, "-m", "skerry", "image", "build", board]
    argv += [] if kubernetes else ["--without-kubernetes"]
    artifacts = Artifacts.of(board)
    done = subprocess.run(argv, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    if done.returncode or not artifacts.disk.exists():
        raise LabError(
            f"the image of {board} could not be built (status {done.returncode})",
            hint=f"its own message is above; to repeat it: make image BOARD={board}",
        )
    return artifacts


def kernel_of(artifacts: Artifacts, tools: ToolsRoot, target: Path) -> Path:
    """Copy the kernel out of the boot partition of an image; returns ``target``."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    argv = ["mcopy", "-i", str(artifacts.boot), "::/vmlinuz", str(target)]
    tools.run(argv, binds=[artifacts.directory, target.parent])
    return target
