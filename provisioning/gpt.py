"""GUID partition tables: read, given fresh ids, fitted to a larger disk. Bytes in, writes out.

Source: UEFI 2.10, section 5.3 (GPT header revision 1.0, 512-byte sectors). Both copies are kept; a
table comes from an image that anybody may have made, so every number is checked before use.
"""

from __future__ import annotations

import struct
import uuid
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from provisioning.errors import ProvisioningError

SECTOR = 512
_SIGNATURE = b"EFI PART"
_REVISION = 0x00010000
# signature, revision, header size, CRC, reserved, own LBA, other LBA, first and last usable LBA,
# disk GUID, LBA of the entries, number of entries, size of one, CRC of the entries
_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
_ENTRY = struct.Struct("<16s16sQQQ72s")
_ENTRIES_MAX = 1024
_UNUSED = bytes(16)


class GptError(ProvisioningError):
    """Bytes that are no GUID partition table, or one that cannot be kept."""


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition; ``first`` and ``last`` are sectors, both included."""

    type_id: uuid.UUID
    unique_id: uuid.UUID
    first: int
    last: int
    attributes: int
    name: str

    @property
    def offset(self) -> int:
        """Where it begins, in bytes."""
        return self.first * SECTOR

    @property
    def size(self) -> int:
        """How long it is, in bytes."""
        return (self.last - self.first + 1) * SECTOR


@dataclass(frozen=True, slots=True)
class Table:
    """A partition table. ``slots`` has one item per entry of the table, None if unused."""

    disk_id: uuid.UUID
    first_usable: int
    last_usable: int
    slots: tuple[Partition | None, ...]
    sectors: int

    @property
    def partitions(self) -> tuple[Partition, ...]:
        """The partitions there are, in table order."""
        return tuple(one for one in self.slots if one is not None)

    def named(self, name: str) -> Partition | None:
        """Return the partition with this name."""
        return next((one for one in self.partitions if one.name == name), None)

    @property
    def end(self) -> int:
        """The first byte after the last partition."""
        return max((one.last + 1 for one in self.partitions), default=self.first_usable) * SECTOR


@dataclass(frozen=True, slots=True)
class Header:
    """The fixed part of one copy of a table."""

    own: int
    other: int
    first_usable: int
    last_usable: int
    disk_id: uuid.UUID
    entries_at: int
    entries: int
    entries_crc: int

    @property
    def entries_size(self) -> int:
        """Bytes of all entries."""
        return self.entries * _ENTRY.size


def read_header(sector: bytes) -> Header:
    """Return the header in one sector, its CRC checked, or raise GptError."""
    if len(sector) < _HEADER.size or not sector.startswith(_SIGNATURE):
        raise GptError("there is no GUID partition table")
    (_, revision, size, crc, _, own, other, first, last, disk, at, count, each, entries_crc) = (
        _HEADER.unpack_from(sector)
    )
    if size != _HEADER.size or crc != _header_crc(sector[: _HEADER.size]):
        raise GptError("the header of the partition table is damaged")
    if (
        revision != _REVISION
        or each != _ENTRY.size
        or not 1 <= count <= _ENTRIES_MAX
        or not 2 <= first <= last < 2**48
        or max(own, other, at) >= 2**48
    ):
        raise GptError("the header of the partition table is of an unknown kind")
    return Header(own, other, first, last, uuid.UUID(bytes_le=disk), at, count, entries_crc)


def read_table(header: Header, entries: bytes) -> Table:
    """Return the table of a header and its entries, or raise GptError."""
    if len(entries) != header.entries_size or zlib.crc32(entries) != header.entries_crc:
        raise GptError("the entries of the partition table are damaged")
    slots = tuple(
        _read_entry(entries[place : place + _ENTRY.size])
        for place in range(0, len(entries), _ENTRY.size)
    )
    taken = sorted((one.first, one.last) for one in slots if one)
    free_from = header.first_usable
    for first, last in taken:
        if not free_from <= first <= last <= header.last_usable:
            raise GptError("partitions overlap or leave the disk")
        free_from = last + 1
    sectors = max(header.own, header.other) + 1
    return Table(header.disk_id, header.first_usable, header.last_usable, slots, sectors)


def read_disk(read_at: Callable[[int, int], bytes], *, backup: bool = False) -> Table:
    """Return the table of a disk; ``read_at(offset, size)`` reads bytes.

    With ``backup``, the copy that the primary header points to is read and must agree.
    """
    header = read_header(read_at(SECTOR, SECTOR))
    if header.own != 1:
        raise GptError("the partition table says that it is somewhere else")
    table = read_table(header, read_at(header.entries_at * SECTOR, header.entries_size))
    if backup:
        second = read_header(read_at(header.other * SECTOR, SECTOR))
        copy = read_table(second, read_at(second.entries_at * SECTOR, second.entries_size))
        if (second.own, second.other, copy) != (header.other, header.own, table):
            raise GptError("the two copies of the partition table differ")
    return table


def with_fresh_ids(table: Table, new_id: Callable[[], uuid.UUID] = uuid.uuid4) -> Table:
    """Return the table with a new id of the disk and of every partition."""
    slots = tuple(one and replace(one, unique_id=new_id()) for one in table.slots)
    return replace(table, disk_id=new_id(), slots=slots)


def fitted(table: Table, sectors: int) -> Table:
    """Return the table for a disk of so many sectors: its backup moves to the new end."""
    if table.first_usable < 2 + _entries_sectors(table):
        raise GptError("the partition table leaves no room for its own entries")
    last_usable = sectors - 2 - _entries_sectors(table)
    if table.end > (last_usable + 1) * SECTOR:
        need = table.end // SECTOR + 1 + _entries_sectors(table)
        raise GptError(f"the partitions need {need} sectors, the disk has {sectors}")
    return replace(table, last_usable=last_usable, sectors=sectors)


def writes(table: Table) -> tuple[tuple[int, bytes], ...]:
    """Return ``(offset, bytes)`` of both copies and of the protective MBR's partition record.

    The backup stands first: a power cut leaves at least one good copy.
    """
    entries = b"".join(_write_entry(one) for one in table.slots)
    last, at_end = table.sectors - 1, table.sectors - 1 - _entries_sectors(table)
    return (
        (at_end * SECTOR, entries),
        (last * SECTOR, _write_header(table, entries, own=last, other=1, entries_at=at_end)),
        (2 * SECTOR, entries),
        (SECTOR, _write_header(table, entries, own=1, other=last, entries_at=2)),
        (446, _protective_record(table.sectors)),
    )


def _entries_sectors(table: Table) -> int:
    return -(-len(table.slots) * _ENTRY.size // SECTOR)


def _read_entry(raw: bytes) -> Partition | None:
    kind, unique, first, last, attributes, name = _ENTRY.unpack(raw)
    if kind == _UNUSED:
        return None
    text = name.decode("utf-16-le", errors="replace").partition("\0")[0]
    return Partition(
        uuid.UUID(bytes_le=kind), uuid.UUID(bytes_le=unique), first, last, attributes, text
    )


def _write_entry(one: Partition | None) -> bytes:
    if one is None:
        return bytes(_ENTRY.size)
    name = one.name.encode("utf-16-le")[:72]
    return _ENTRY.pack(
        one.type_id.bytes_le, one.unique_id.bytes_le, one.first, one.last, one.attributes, name
    )


def _write_header(table: Table, entries: bytes, *, own: int, other: int, entries_at: int) -> bytes:
    fields = [_SIGNATURE, _REVISION, _HEADER.size, 0, 0, own, other]
    fields += [table.first_usable, table.last_usable, table.disk_id.bytes_le]
    fields += [entries_at, len(table.slots), _ENTRY.size, zlib.crc32(entries)]
    bare = _HEADER.pack(*fields)
    fields[3] = _header_crc(bare)
    return _HEADER.pack(*fields).ljust(SECTOR, b"\0")


def _header_crc(header: bytes) -> int:
    """CRC-32 of a header with its own CRC field as zero."""
    return zlib.crc32(header[:16] + bytes(4) + header[20:])


def _protective_record(sectors: int) -> bytes:
    """Return the protective MBR's only partition: the whole disk, type EE (UEFI 2.10, 5.2.3)."""
    size = min(sectors - 1, 0xFFFFFFFF)
    return struct.pack("<B3sB3sII", 0, b"\x00\x02\x00", 0xEE, b"\xff\xff\xff", 1, size)
