"""Partition tables, held against one that sfdisk made (tests/vectors/gpt.img.xz)."""

from __future__ import annotations

import lzma
import struct
import uuid
import zlib
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning import gpt

VECTOR = Path(__file__).resolve().parents[1] / "vectors" / "gpt.img.xz"


@cache
def image() -> bytes:
    return lzma.decompress(VECTOR.read_bytes())


def read(disk: bytes | bytearray, *, backup: bool = True) -> gpt.Table:
    def read_at(offset: int, size: int) -> bytes:
        if offset + size > len(disk):
            raise gpt.GptError("outside")
        return bytes(disk[offset : offset + size])

    return gpt.read_disk(read_at, backup=backup)


def applied(disk: bytes, table: gpt.Table) -> bytearray:
    changed = bytearray(disk)
    for offset, data in gpt.writes(table):
        changed[offset : offset + len(data)] = data
    return changed


def test_what_sfdisk_wrote_is_read() -> None:
    table = read(image())
    assert table.disk_id == uuid.UUID("11111111-2222-4333-8444-555555555555")
    assert [one.name for one in table.partitions] == ["esp", "boot-a", "root-a", "token"]
    assert [(one.first, one.last) for one in table.partitions] == [
        (2048, 4095),
        (4096, 8191),
        (8192, 12287),
        (12288, 45055),
    ]
    assert table.partitions[0].type_id == uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
    assert table.partitions[2].attributes == 1
    assert table.sectors * gpt.SECTOR == len(image())
    token = table.named("token")
    assert token is not None
    assert (token.offset, token.size) == (12288 * 512, 16 << 20)
    assert token.unique_id == uuid.UUID("aaaaaaaa-0000-4000-8000-000000000004")
    assert table.named("data") is None
    assert table.end == 45056 * 512


def test_writing_it_again_gives_sfdisks_own_bytes() -> None:
    assert applied(image(), read(image())) == image()


def test_a_larger_disk_gets_its_backup_at_its_end() -> None:
    larger = image() + bytes(8 << 20)
    table = gpt.fitted(read(image()), len(larger) // 512)
    disk = applied(larger, table)
    assert read(disk) == table
    assert disk[-512:-504] == b"EFI PART"
    assert table.last_usable == len(larger) // 512 - 34
    assert table.slots == read(image()).slots
    assert struct.unpack_from("<II", disk, 446 + 8) == (1, len(larger) // 512 - 1)


def test_a_disk_beyond_two_tebibytes_has_a_full_protective_record() -> None:
    table = gpt.fitted(read(image()), 2**33)
    record = next(data for offset, data in gpt.writes(table) if offset == 446)
    assert struct.unpack_from("<II", record, 8) == (1, 0xFFFFFFFF)


def test_a_disk_that_is_too_small_is_refused() -> None:
    table = read(image())
    gpt.fitted(table, 45056 + 33)
    with pytest.raises(gpt.GptError, match="need 45089 sectors, the disk has 45088"):
        gpt.fitted(table, 45056 + 32)


def test_fresh_ids_change_every_id_and_nothing_else() -> None:
    table = read(image())
    fresh = gpt.with_fresh_ids(table)
    olds = {table.disk_id, *(one.unique_id for one in table.partitions)}
    news = {fresh.disk_id, *(one.unique_id for one in fresh.partitions)}
    assert len(news) == 5
    assert not olds & news
    assert [
        (one.type_id, one.first, one.last, one.name, one.attributes) for one in fresh.partitions
    ] == [(one.type_id, one.first, one.last, one.name, one.attributes) for one in table.partitions]
    assert read(applied(image(), fresh)) == fresh


@given(st.integers(0, 33 * 512 - 1), st.integers(0, 7))
def test_a_flipped_bit_in_the_table_is_noticed(offset: int, bit: int) -> None:
    # The head of the disk is enough for the primary copy.
    disk = bytearray(image()[: 34 * 512])
    disk[512 + offset] ^= 1 << bit
    in_header_padding = 92 <= offset < 512
    if in_header_padding:
        read(disk, backup=False)
    else:
        with pytest.raises(gpt.GptError):
            read(disk, backup=False)


@given(st.binary(max_size=512), st.binary(max_size=2048))
def test_rubbish_is_no_table(header: bytes, entries: bytes) -> None:
    disk = bytes(512) + header.ljust(512, b"\0") + entries
    with pytest.raises(gpt.GptError):
        read(disk)


@given(
    st.tuples(*[st.integers(0, 2**64 - 1)] * 4),
    st.tuples(*[st.integers(0, 2**32 - 1)] * 2),
)
def test_hostile_numbers_under_a_right_checksum_are_refused_or_harmless(
    places: tuple[int, int, int, int], counts: tuple[int, int]
) -> None:
    own, other, first, last = places
    count, each = counts
    fields = [b"EFI PART", 0x10000, 92, 0, 0, own, other, first, last, bytes(16), 2]
    fields += [count, each, zlib.crc32(b"")]
    header = struct.Struct("<8sIIIIQQQQ16sQIII")
    fields[3] = zlib.crc32(header.pack(*fields))
    disk = bytes(512) + header.pack(*fields).ljust(512, b"\0") + bytes(4096)
    with pytest.raises(gpt.GptError):
        read(disk)


def overlapping(first: int, last: int) -> bytearray:
    table = read(image())
    from dataclasses import replace

    slots = list(table.slots)
    assert slots[1] is not None
    slots[1] = replace(slots[1], first=first, last=last)
    return applied(image(), replace(table, slots=tuple(slots)))


@pytest.mark.parametrize(
    ("first", "last"), [(4095, 8191), (4096, 8192), (5000, 4999), (40, 60), (49118, 60000)]
)
def test_partitions_that_overlap_or_leave_the_disk_are_refused(first: int, last: int) -> None:
    with pytest.raises(gpt.GptError, match="overlap"):
        read(overlapping(first, last))


def test_copies_that_differ_are_noticed() -> None:
    disk = applied(image(), gpt.with_fresh_ids(read(image())))
    disk[-33 * 512 :] = image()[-33 * 512 :]
    assert read(disk, backup=False) != read(image())
    with pytest.raises(gpt.GptError, match="differ"):
        read(disk)
