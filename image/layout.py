"""The disk: which partitions there are, where, and under which fixed identifiers."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from image.errors import BuildError

MIB = 1024 * 1024
SECTOR = 512
# Room for the first and the last partition table, in whole MiB.
_FIRST = 1 * MIB
_LAST = 1 * MIB
# All identifiers of a build are derived from this, so that a build is the same each time; flashing
# gives a disk identifiers of its own.
_NAMESPACE = uuid.UUID("6b1d5c0e-3f0f-4c56-9a51-7d2f3a9e5b10")

ESP_TYPE = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
LINUX_TYPE = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
# "Basic data": the one that every desktop shows, so that a token can be put on it anywhere.
BASIC_DATA_TYPE = "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7"


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition; ``start`` and ``size`` in bytes."""

    number: int
    name: str
    kind: str
    start: int
    size: int

    @property
    def uuid(self) -> str:
        """The partition's identifier in a fresh image."""
        return identifier(f"partition {self.name}")


# Names carry our prefix, so that a partition is ours beyond doubt. The data partition is not here:
# the first boot makes it in what is left of the disk.
_TABLE: tuple[tuple[str, str, int], ...] = (
    ("skerry-esp", ESP_TYPE, 64),
    ("skerry-boot-a", LINUX_TYPE, 128),
    ("skerry-root-a", LINUX_TYPE, 700),
    ("skerry-boot-b", LINUX_TYPE, 128),
    ("skerry-root-b", LINUX_TYPE, 700),
    ("skerry-token", BASIC_DATA_TYPE, 32),
)


def identifier(purpose: str) -> str:
    """Return the fixed UUID for a purpose."""
    return str(uuid.uuid5(_NAMESPACE, purpose))


def partitions() -> tuple[Partition, ...]:
    """Return the partitions of an image, one behind the other, aligned to 1 MiB."""
    found = []
    start = _FIRST
    for number, (name, kind, size) in enumerate(_TABLE, start=1):
        found.append(Partition(number, name, kind, start, size * MIB))
        start += size * MIB
    return tuple(found)


def partition(name: str) -> Partition:
    """Return a partition by name."""
    return next(item for item in partitions() if item.name == name)


def disk_size() -> int:
    """Return the bytes of an image: the smallest medium it fits on, without a data partition."""
    last = partitions()[-1]
    return last.start + last.size + _LAST


def sfdisk_script(table: Sequence[Partition]) -> str:
    """Return what sfdisk reads to make this table."""
    lines = [
        "label: gpt",
        f"label-id: {identifier('disk').upper()}",
        "unit: sectors",
        f"first-lba: {_FIRST // SECTOR}",
        "",
    ]
    lines += [
        f"{item.number} : start={item.start // SECTOR}, size={item.size // SECTOR}, "
        f'type={item.kind}, uuid={item.uuid.upper()}, name="{item.name}"'
        for item in table
    ]
    return "\n".join(lines) + "\n"


def check_fits(name: str, size: int) -> None:
    """Refuse content that is larger than its partition, saying by how much."""
    room = partition(name).size
    if size > room:
        raise BuildError(
            f"{name} needs {size / MIB:.1f} MiB and its partition has {room / MIB:.0f} MiB",
            hint="leave packages out of image/packages.py; a larger partition breaks old disks",
        )
