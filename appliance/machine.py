"""Facts about the machine that the supervisor runs on. Every reader survives a missing file."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ota.node import slot_of

RELEASE = Path("/usr/lib/skerry/release.json")
CLOCK_EPOCH = Path("/usr/lib/clock-epoch")
CMDLINE = Path("/proc/cmdline")
_LONGEST = 64 * 1024


@dataclass(frozen=True, slots=True)
class Release:
    """What is installed; empty strings where this is no node."""

    version: str = ""
    board: str = ""
    build_id: str = ""
    slot: str = ""


def read_release(path: Path = RELEASE, cmdline: Path = CMDLINE) -> Release:
    """Return release and slot."""
    document: object = {}
    with suppress(ValueError):
        document = json.loads(_read(path) or "{}")
    facts = document if isinstance(document, dict) else {}
    return Release(
        version=str(facts.get("version", "")),
        board=str(facts.get("board", "")),
        build_id=str(facts.get("build_id", "")),
        slot=slot_of(_read(cmdline)) or "",
    )


def image_epoch(*paths: Path) -> float:
    """Return the time before which this image can't have been built (unix seconds)."""
    latest = 0.0
    for path in paths or (CLOCK_EPOCH, RELEASE):
        with suppress(OSError):
            latest = max(latest, path.stat().st_mtime)
    return latest


def free_bytes(directory: Path) -> int | None:
    """Return the room left for unprivileged processes, or None if it can't be known."""
    with suppress(OSError):
        room = os.statvfs(directory)
        return room.f_bavail * room.f_frsize
    return None


def data_trouble(run_dir: Path) -> str:
    """Return why the initrd could not mount the data partition; empty: it could."""
    return _read(run_dir / "data-trouble").strip()[:500]


def uptime(path: Path = Path("/proc/uptime")) -> float:
    """Return the seconds since the machine booted."""
    with suppress(ValueError, IndexError):
        return float(_read(path).split()[0])
    return 0.0


def _read(path: Path) -> str:
    with suppress(OSError), path.open("rb") as file:
        return file.read(_LONGEST).decode(errors="replace")
    return ""
