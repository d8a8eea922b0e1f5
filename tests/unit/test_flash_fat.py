"""FAT volumes, held against ones that mkfs.fat and mcopy made (tests/vectors/fat*.img.xz)."""

from __future__ import annotations

import lzma
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from provisioning.fat import FatError, FatVolume, read_geometry

VECTORS = Path(__file__).resolve().parents[1] / "vectors"
KINDS = (12, 16, 32)


class Memory:
    """A volume of which only what was written is kept."""

    def __init__(self, base: bytes) -> None:
        self.base = base
        self.written: dict[int, int] = {}

    def read_at(self, offset: int, size: int) -> bytes:
        if offset < 0 or offset + size > len(self.base):
            raise FatError("outside of the volume")
        data = bytearray(self.base[offset : offset + size])
        if self.written:
            for place in range(size):
                data[place] = self.written.get(offset + place, data[place])
        return bytes(data)

    def write_at(self, offset: int, data: bytes) -> None:
        if offset < 0 or offset + len(data) > len(self.base):
            raise FatError("outside of the volume")
        self.written.update(enumerate(data, offset))

    def whole(self) -> bytes:
        data = bytearray(self.base)
        for place, value in self.written.items():
            data[place] = value
        return bytes(data)


@cache
def image(bits: int) -> bytes:
    return lzma.decompress((VECTORS / f"fat{bits}.img.xz").read_bytes())


def memory(bits: int) -> Memory:
    return Memory(image(bits))


def links(volume: FatVolume, disk: Memory) -> list[tuple[int, ...]]:
    """Each copy of the table's first clusters, which must always agree."""
    return [
        tuple(disk.read_at(volume.geometry.fat_offset + copy * volume.geometry.fat_size, 120))
        for copy in range(volume.geometry.fat_copies)
    ]


@pytest.mark.parametrize("bits", KINDS)
def test_what_mtools_wrote_is_read(bits: int) -> None:
    volume = FatVolume(memory(bits))
    assert volume.geometry.bits == bits
    assert volume.label() == "SKERRY"
    assert volume.read("hello.txt", 100) == b"hello\n"
    assert volume.read("HELLO.TXT", 6) == b"hello\n"
    assert volume.read("token.txt", 100) is None


@pytest.mark.parametrize("bits", KINDS)
@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 5000])
def test_what_is_written_is_read_and_leaves_the_rest_alone(bits: int, size: int) -> None:
    disk = memory(bits)
    content = bytes(number % 251 for number in range(size))
    FatVolume(disk).write("TOKEN.TXT", content)
    volume = FatVolume(disk)
    assert volume.read("TOKEN.TXT", 10_000) == content
    assert volume.read("HELLO.TXT", 10) == b"hello\n"
    assert volume.label() == "SKERRY"
    assert len(set(links(volume, disk))) == 1


@pytest.mark.parametrize("bits", KINDS)
def test_replacing_a_file_erases_what_it_held(bits: int) -> None:
    disk = memory(bits)
    volume = FatVolume(disk)
    volume.write("TOKEN.TXT", b"first secret" * 100)
    volume.write("TOKEN.TXT", b"second")
    assert volume.read("TOKEN.TXT", 100) == b"second"
    assert b"first secret" not in disk.whole()


@pytest.mark.parametrize("bits", KINDS)
def test_erasing_leaves_neither_content_nor_entry_nor_lost_clusters(bits: int) -> None:
    disk = memory(bits)
    volume = FatVolume(disk)
    before = links(volume, disk)
    volume.write("TOKEN.TXT", b"the secret" * 100)
    assert links(volume, disk) != before
    assert volume.erase("TOKEN.TXT")
    assert links(volume, disk) == before
    assert b"the secret" not in disk.whole()
    assert volume.read("TOKEN.TXT", 10) is None
    assert not volume.erase("TOKEN.TXT")
    assert volume.read("HELLO.TXT", 10) == b"hello\n"


def test_a_long_name_goes_with_its_file() -> None:
    disk = memory(16)
    volume = FatVolume(disk)
    root = slice(volume.geometry.root_offset, volume.geometry.root_offset + 512)
    short = next(entry[:11] for _, entry in volume._entries() if entry[:6] == b"A-LONG")
    # An 8.3 name that our writer would not make itself cannot be erased by it.
    with pytest.raises(FatError, match=r"no 8\.3 name"):
        volume.erase("A-LONG~1.TXT")
    renamed = disk.whole().replace(short, b"TOKEN   TXT")
    disk = Memory(renamed)
    assert FatVolume(disk).erase("token.txt")
    left = disk.whole()[root]
    assert b"n\0a\0m\0e\0" not in left
    assert b"TOKEN" not in left


def test_a_full_volume_is_said_and_nothing_is_changed() -> None:
    disk = memory(12)
    volume = FatVolume(disk)
    with pytest.raises(FatError, match="full"):
        volume.write("TOKEN.TXT", bytes(3 << 20))
    assert not disk.written


def test_a_full_root_directory_is_said() -> None:
    disk = memory(12)
    volume = FatVolume(disk)
    geometry = volume.geometry
    entry = b"OTHER   TXT\x20".ljust(32, b"\0")
    disk.write_at(geometry.root_offset, entry * (geometry.root_size // 32))
    with pytest.raises(FatError, match="directory is full"):
        volume.write("TOKEN.TXT", b"x")


def test_rubbish_behind_the_last_entry_stays_behind_it() -> None:
    disk = memory(16)
    volume = FatVolume(disk)
    end = next(offset for offset, entry in volume._entries() if entry[0] == 0)
    disk.write_at(end + 32, b"GHOST   TXT\x20".ljust(32, b"\0"))
    volume.write("TOKEN.TXT", b"x")
    assert volume.read("GHOST.TXT", 10) is None
    assert volume.read("TOKEN.TXT", 10) == b"x"


def test_a_file_beyond_the_limit_is_not_read() -> None:
    with pytest.raises(FatError, match="at most 5"):
        FatVolume(memory(16)).read("HELLO.TXT", 5)


@pytest.mark.parametrize(
    ("bits", "target"),
    [(12, None), (16, None), (12, 0xFF0), (16, 0xFFF0), (32, 0x0FFFFFF0), (32, 1)],
)
def test_a_chain_in_a_circle_or_out_of_the_volume_ends(bits: int, target: int | None) -> None:
    disk = memory(bits)
    volume = FatVolume(disk)
    volume.write("TOKEN.TXT", b"x" * 1024)
    found = volume._find("TOKEN.TXT")
    assert found is not None
    first = found.first_cluster
    second = volume._link(first)
    volume._set_link(second, first if target is None else target)
    volume._set_link(first, second)
    with pytest.raises(FatError, match="chain"):
        list(volume._chain(first))
    with pytest.raises(FatError, match="chain"):
        volume.erase("TOKEN.TXT")


@pytest.mark.parametrize("name", ["", "toolongname.txt", "a.longer", "ä.txt", "a/b.txt", ".txt"])
def test_only_short_names_are_taken(name: str) -> None:
    with pytest.raises(FatError, match=r"8\.3"):
        FatVolume(memory(12)).read(name, 1)


def test_no_boot_sector_no_volume() -> None:
    for sector in (b"", bytes(512), bytes(510) + b"\x55\xaa", b"\xff" * 510 + b"\x55\xaa"):
        with pytest.raises(FatError):
            read_geometry(sector)


@given(st.sampled_from(KINDS), st.integers(11, 63), st.binary(min_size=1, max_size=8))
def test_a_damaged_boot_sector_never_leads_astray(bits: int, place: int, noise: bytes) -> None:
    data = bytearray(image(bits)[: 64 * 1024])
    data[place : place + len(noise)] = noise
    try:
        volume = FatVolume(Memory(bytes(data)))
        volume.label()
        volume.read("HELLO.TXT", 100)
    except FatError:
        pass


@settings(max_examples=30)
@given(st.sampled_from(KINDS), st.data())
def test_a_damaged_directory_or_table_never_leads_astray(bits: int, data: st.DataObject) -> None:
    disk = memory(bits)
    volume = FatVolume(disk)
    geometry = volume.geometry
    for base in (geometry.fat_offset, geometry.root_offset):
        place = data.draw(st.integers(0, 200))
        disk.write_at(base + place, data.draw(st.binary(min_size=1, max_size=16)))
    try:
        volume.label()
        volume.read("HELLO.TXT", 1000)
        volume.write("TOKEN.TXT", b"x" * 600)
        assert volume.read("TOKEN.TXT", 1000) == b"x" * 600
    except FatError:
        pass
