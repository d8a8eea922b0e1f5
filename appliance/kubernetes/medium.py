"""What the kernel counts of the medium that holds a folder."""

from __future__ import annotations

import os
from pathlib import Path

from appliance.kubernetes import files
from appliance.kubernetes.wear import SECTOR, Counter, Wear

_STAT_MAX = 4096
# Of the numbers in /sys/block/*/stat (the kernel's Documentation/block/stat.rst).
_SECTORS_WRITTEN = 6


class Meter:
    """Looks at the counter of a folder's medium now and then."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._wear = Wear()

    def look(self, now: float) -> Wear:
        """Return what is known at a time (monotonic seconds); no more than a look a minute."""
        if self._wear.due(now):
            self._wear.take(now, counter(self._folder))
        return self._wear


def counter(folder: Path, blocks: Path = Path("/sys/dev/block")) -> Counter | None:
    """Return the counter of the partition that a folder is on.

    None: it is on no block device (data in memory), or the kernel says nothing that can be read.
    """
    try:
        number = folder.stat().st_dev
        place = (blocks / f"{os.major(number)}:{os.minor(number)}").resolve(strict=True)
    except (OSError, RuntimeError):
        return None
    written = sectors_written(files.read_text(place / "stat", _STAT_MAX) or "")
    if written is None:
        return None
    disk = place.parent if (place / "partition").exists() else place
    removable = (files.read_text(disk / "removable", 8) or "").strip() == "1"
    card = removable or disk.name.startswith("mmcblk")
    return Counter(place.name, written * SECTOR, card)


def sectors_written(stat: str) -> int | None:
    """Return how many sectors of 512 bytes a device's ``stat`` says were written."""
    words = stat.split()
    if len(words) <= _SECTORS_WRITTEN or not words[_SECTORS_WRITTEN].isascii():
        return None
    return int(words[_SECTORS_WRITTEN]) if words[_SECTORS_WRITTEN].isdigit() else None
