"""A FAT volume's root directory: read, write and erase one small file, without mounting it.

FAT12, FAT16 and FAT32 as in Microsoft's "FAT: General Overview of On-Disk Format" 1.03 (fatgen103),
8.3 names only. A volume comes from anywhere, so every number in it is checked before use, chains
are bounded, and nothing outside the volume is touched.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from provisioning.errors import ProvisioningError

_ENTRY = 32
_BOOT_SECTOR = struct.Struct("<3x8xHBHBHHBHHHIIIHHIHH")
_DELETED, _LAST = 0xE5, 0x00
_LONG_NAME, _VOLUME_LABEL, _DIRECTORY, _ARCHIVE = 0x0F, 0x08, 0x10, 0x20
# 1980-01-01 00:00, the first time FAT knows: the same bytes whenever a file is written.
_DATE, _TIME = 0x0021, 0x0000


class FatError(ProvisioningError):
    """A volume that is no FAT, is damaged, or has no room."""


class Storage(Protocol):
    """What a volume lies on: offsets are bytes from its beginning."""

    def read_at(self, offset: int, size: int) -> bytes:
        """Return exactly ``size`` bytes, or raise FatError/OSError."""

    def write_at(self, offset: int, data: bytes) -> None:
        """Write all of ``data``."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where things are. Sizes and offsets are bytes, clusters count from 2."""

    bits: int
    cluster_size: int
    fat_offset: int
    fat_size: int
    fat_copies: int
    root_offset: int
    root_size: int
    root_cluster: int
    data_offset: int
    clusters: int
    info_offset: int | None

    @property
    def end_mark(self) -> int:
        """The value that ends a chain; this and the seven below it count as the end."""
        return (1 << min(self.bits, 28)) - 1


@dataclass(frozen=True, slots=True)
class _Found:
    offset: int
    first_cluster: int
    size: int
    long_names: tuple[int, ...]


def read_geometry(sector: bytes) -> Geometry:
    """Return the geometry that a boot sector (512 bytes) describes, or raise FatError."""
    if len(sector) < 512 or sector[510:512] != b"\x55\xaa":
        raise FatError("it has no FAT boot sector")
    (sector_size, per_cluster, reserved, copies, root_entries, total16, _, fat16, _, _, _) = (
        _BOOT_SECTOR.unpack_from(sector)[:11]
    )
    total32, fat32, flags, _, root_cluster, info_sector, _ = _BOOT_SECTOR.unpack_from(sector)[11:]
    total, fat_sectors = total16 or total32, fat16 or fat32
    if (
        sector_size not in {512, 1024, 2048, 4096}
        or per_cluster not in {1, 2, 4, 8, 16, 32, 64, 128}
        or not reserved
        or copies not in {1, 2}
        or not fat_sectors
        or root_entries * _ENTRY % sector_size
    ):
        raise FatError("its FAT boot sector is damaged")
    root_sectors = root_entries * _ENTRY // sector_size
    data_sector = reserved + copies * fat_sectors + root_sectors
    clusters = (total - data_sector) // per_cluster
    bits = 12 if clusters < 4085 else 16 if clusters < 65525 else 32
    held = fat_sectors * sector_size * 8 // bits - 2
    if clusters < 1 or held < clusters or clusters >= 0x0FFFFFF5:
        raise FatError("its FAT does not cover the volume")
    if (bits == 32) != (root_entries == 0) or (bits == 32 and not 2 <= root_cluster < clusters + 2):
        raise FatError("its root directory cannot be found")
    if bits == 32 and flags & 0x80:
        raise FatError("the copies of its FAT are not kept alike")
    has_info = bits == 32 and 0 < info_sector < reserved
    return Geometry(
        bits=bits,
        cluster_size=per_cluster * sector_size,
        fat_offset=reserved * sector_size,
        fat_size=fat_sectors * sector_size,
        fat_copies=copies,
        root_offset=(reserved + copies * fat_sectors) * sector_size,
        root_size=root_entries * _ENTRY,
        root_cluster=root_cluster if bits == 32 else 0,
        data_offset=data_sector * sector_size,
        clusters=clusters,
        info_offset=info_sector * sector_size if has_info else None,
    )


class FatVolume:
    """A volume whose root directory is worked on; raises FatError for what cannot be."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._geometry = read_geometry(storage.read_at(0, 512))

    @property
    def geometry(self) -> Geometry:
        """Where things are."""
        return self._geometry

    def label(self) -> str | None:
        """Return the volume label in the root directory."""
        for _, entry in self._entries():
            if entry[11] & 0x3F == _VOLUME_LABEL:
                return entry[:11].decode("ascii", errors="replace").rstrip()
        return None

    def read(self, name: str, limit: int) -> bytes | None:
        """Return a file's content; None if there is no such file. At most ``limit`` bytes."""
        found = self._find(name)
        if found is None:
            return None
        if found.size > limit:
            raise FatError(f"{name} has {found.size} bytes, at most {limit} are read")
        parts, left = [], found.size
        for cluster in self._chain(found.first_cluster) if left else ():
            part = min(left, self._geometry.cluster_size)
            parts.append(self._storage.read_at(self._cluster_offset(cluster), part))
            left -= part
            if not left:
                break
        if left:
            raise FatError(f"{name} is damaged: its end is missing")
        return b"".join(parts)

    def write(self, name: str, content: bytes) -> None:
        """Make or replace a file. Content first, then the table, then the directory."""
        old = self._find(name)
        clusters = self._free_clusters(-(-len(content) // self._geometry.cluster_size))
        entry_offset = old.offset if old else self._free_entry(name)
        for index, cluster in enumerate(clusters):
            size = self._geometry.cluster_size
            part = content[index * size : (index + 1) * size]
            self._storage.write_at(self._cluster_offset(cluster), part.ljust(size, b"\0"))
        for cluster, following in zip(
            clusters, [*clusters[1:], self._geometry.end_mark], strict=False
        ):
            self._set_link(cluster, following)
        first = clusters[0] if clusters else 0
        self._storage.write_at(entry_offset, _entry(name, first, len(content)))
        if old:
            self._release(old, erase=True)
        self._forget_free_count()

    def erase(self, name: str) -> bool:
        """Overwrite a file's content with zeros and remove it; False if there is none."""
        found = self._find(name)
        if found is None:
            return False
        self._release(found, erase=True)
        for offset in (*found.long_names, found.offset):
            self._storage.write_at(offset, bytes([_DELETED]).ljust(_ENTRY, b"\0"))
        self._forget_free_count()
        return True

    def _entries(self) -> Iterator[tuple[int, bytes]]:
        """Yield offset and bytes of each entry up to the last one, free ones included."""
        for offset, size in self._root_extents():
            data = self._storage.read_at(offset, size)
            for place in range(0, size, _ENTRY):
                entry = data[place : place + _ENTRY]
                yield offset + place, entry
                if entry[0] == _LAST:
                    return

    def _root_extents(self) -> Iterator[tuple[int, int]]:
        geometry = self._geometry
        if geometry.bits != 32:
            yield geometry.root_offset, geometry.root_size
            return
        for count, cluster in enumerate(self._chain(geometry.root_cluster)):
            if count * geometry.cluster_size > 2 * 1024 * 1024:
                raise FatError("its root directory is larger than FAT allows")
            yield self._cluster_offset(cluster), geometry.cluster_size

    def _find(self, name: str) -> _Found | None:
        wanted, long_names = _short_name(name), list[int]()
        for offset, entry in self._entries():
            if entry[0] in {_DELETED, _LAST}:
                long_names.clear()
            elif entry[11] & 0x3F == _LONG_NAME:
                long_names.append(offset)
            elif entry[:11] == wanted and not entry[11] & _VOLUME_LABEL:
                if entry[11] & _DIRECTORY:
                    raise FatError(f"{name} is a directory")
                high, low, size = struct.unpack_from("<H4xHI", entry, 20)
                first = low | (high << 16 if self._geometry.bits == 32 else 0)
                return _Found(offset, first, size, tuple(long_names))
            else:
                long_names.clear()
        return None

    def _free_entry(self, name: str) -> int:
        for offset, entry in self._entries():
            if entry[0] in {_DELETED, _LAST}:
                if entry[0] == _LAST:
                    self._end_after(offset)
                return offset
        raise FatError(f"its root directory is full: {name} cannot be added")

    def _end_after(self, offset: int) -> None:
        """Keep the mark of the last entry: what follows it may be old rubbish."""
        for start, size in self._root_extents():
            if start <= offset and offset + 2 * _ENTRY <= start + size:
                self._storage.write_at(offset + _ENTRY, bytes(_ENTRY))

    def _cluster_offset(self, cluster: int) -> int:
        return self._geometry.data_offset + (cluster - 2) * self._geometry.cluster_size

    def _chain(self, first: int) -> Iterator[int]:
        cluster = first
        for _ in range(self._geometry.clusters):
            if not 2 <= cluster < self._geometry.clusters + 2:
                raise FatError("a chain of clusters leaves the volume")
            yield cluster
            cluster = self._link(cluster)
            if cluster >= self._geometry.end_mark - 7:
                return
        raise FatError("a chain of clusters runs in a circle")

    def _link_place(self, cluster: int) -> tuple[int, int]:
        bits = self._geometry.bits
        return cluster * bits // 8, 4 if bits == 32 else 2

    def _link(self, cluster: int) -> int:
        place, size = self._link_place(cluster)
        raw = self._storage.read_at(self._geometry.fat_offset + place, size)
        value = int.from_bytes(raw, "little")
        if self._geometry.bits == 12:
            return value >> 4 if cluster & 1 else value & 0xFFF
        return value & 0x0FFFFFFF if self._geometry.bits == 32 else value

    def _set_link(self, cluster: int, value: int) -> None:
        place, size = self._link_place(cluster)
        for copy in range(self._geometry.fat_copies):
            offset = self._geometry.fat_offset + copy * self._geometry.fat_size + place
            old = int.from_bytes(self._storage.read_at(offset, size), "little")
            if self._geometry.bits == 12:
                new = (old & 0x000F) | value << 4 if cluster & 1 else (old & 0xF000) | value
            elif self._geometry.bits == 32:
                new = (old & 0xF0000000) | value
            else:
                new = value
            self._storage.write_at(offset, new.to_bytes(size, "little"))

    def _free_clusters(self, count: int) -> list[int]:
        free: list[int] = []
        for cluster in range(2, self._geometry.clusters + 2):
            if len(free) == count:
                break
            if self._link(cluster) == 0:
                free.append(cluster)
        if len(free) < count:
            raise FatError("it is full")
        return free

    def _release(self, found: _Found, *, erase: bool) -> None:
        if not found.first_cluster:
            return
        for cluster in list(self._chain(found.first_cluster)):
            if erase:
                zeros = bytes(self._geometry.cluster_size)
                self._storage.write_at(self._cluster_offset(cluster), zeros)
            self._set_link(cluster, 0)

    def _forget_free_count(self) -> None:
        """Mark FAT32's hint of free clusters as unknown, so that none believes an old one."""
        offset = self._geometry.info_offset
        if offset is not None and self._storage.read_at(offset, 4) == b"RRaA":
            self._storage.write_at(offset + 488, b"\xff" * 8)


def _short_name(name: str) -> bytes:
    stem, _, extension = name.upper().partition(".")
    right = 1 <= len(stem) <= 8 and len(extension) <= 3 and (stem + (extension or "X")).isalnum()
    if not right or not name.isascii():
        raise FatError(f"{name!r} is no 8.3 name")
    return stem.ljust(8).encode() + extension.ljust(3).encode()


def _entry(name: str, first_cluster: int, size: int) -> bytes:
    high, low = first_cluster >> 16, first_cluster & 0xFFFF
    times = (_TIME, _DATE, _DATE, high, _TIME, _DATE)
    return _short_name(name) + struct.pack("<BBBHHHHHHHI", _ARCHIVE, 0, 0, *times, low, size)
