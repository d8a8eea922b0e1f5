"""Writes the cpio archive that the kernel unpacks (format "newc", kernel doc buffer-format)."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass

_MAGIC = "070701"
_TRAILER = "TRAILER!!!"


@dataclass(frozen=True, slots=True)
class Entry:
    """A file, link or directory: ``mode`` has the type bits; a link's data is its target."""

    mode: int
    data: bytes = b""

    @classmethod
    def file(cls, data: bytes, *, executable: bool = False) -> Entry:
        """Return a regular file."""
        return cls(stat.S_IFREG | (0o755 if executable else 0o644), data)

    @classmethod
    def link(cls, target: str) -> Entry:
        """Return a symbolic link."""
        return cls(stat.S_IFLNK | 0o777, target.encode())

    @classmethod
    def directory(cls) -> Entry:
        """Return a directory."""
        return cls(stat.S_IFDIR | 0o755)


def archive(entries: Mapping[str, Entry]) -> bytes:
    """Return the archive: sorted by name, owned by root, without times, parents added."""
    complete = dict(entries)
    for name in entries:
        parts = name.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            complete.setdefault("/".join(parts[:depth]), Entry.directory())
    blocks = [
        _record(number, name, complete[name])
        for number, name in enumerate(sorted(complete), start=1)
    ]
    blocks.append(_record(0, _TRAILER, Entry(0)))
    return b"".join(blocks)


def _record(number: int, name: str, entry: Entry) -> bytes:
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    encoded = name.encode() + b"\0"
    # inode, mode, uid, gid, links, time, size, four device numbers, length of the name, checksum
    numbers = (number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, 0, 0, len(encoded), 0)
    header = (_MAGIC + "".join(f"{value:08x}" for value in numbers)).encode()
    return _padded(header + encoded) + _padded(entry.data)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
