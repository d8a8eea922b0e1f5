"""Flashing: the copy is whole, one of its kind, carries the token, and nothing else is harmed."""

from __future__ import annotations

import gzip
import lzma
import os
import stat
import uuid
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from provisioning import flash as flashing
from provisioning import gpt, storage
from provisioning.fat import FatVolume
from provisioning.flash import FlashError, Target, examine_target, flash
from provisioning.flash_command import parse_size
from provisioning.keys import public_key
from provisioning.network import NetworkInfo
from provisioning.storage import Kernel, StorageError, Window
from provisioning.token import Token, make_token
from skerry.errors import UsageError

VECTORS = Path(__file__).resolve().parents[1] / "vectors"
ROOT = b"\x01" * 32
TOKEN = make_token(NetworkInfo("home", public_key(ROOT), b"\x02" * 32), ROOT, now=1_795_000_000)
PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "raw": bytes,
    "gz": lambda data: gzip.compress(data, 1),
    "xz": lambda data: lzma.compress(data, preset=0),
}
SIZE, TOKEN_AT = 6 << 20, 2 << 20


@cache
def image_bytes() -> bytes:
    """A 6 MiB disk: a boot partition, and the FAT that mkfs.fat made for the token."""
    kind = uuid.UUID("ebd0a0a2-b9e5-4433-87c0-68b6b72699c7")
    slots: list[gpt.Partition | None] = [
        gpt.Partition(kind, uuid.UUID(int=1), 2048, 4095, 0, "skerry-boot-a"),
        gpt.Partition(
            kind, uuid.UUID(int=2), TOKEN_AT // 512, TOKEN_AT // 512 + 4095, 0, "skerry-token"
        ),
    ]
    table = gpt.Table(
        uuid.UUID(int=3), 2048, SIZE // 512 - 34, (*slots, *[None] * 126), SIZE // 512
    )
    disk = bytearray(SIZE)
    disk[510:512] = b"\x55\xaa"
    disk[1 << 20 : (1 << 20) + 26] = b"the kernel stands here ..."
    volume = lzma.decompress((VECTORS / "fat12.img.xz").read_bytes())
    disk[TOKEN_AT : TOKEN_AT + len(volume)] = volume
    for offset, data in gpt.writes(table):
        disk[offset : offset + len(data)] = data
    return bytes(disk)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(image_bytes())
    return path


def read_disk(path: Path) -> tuple[gpt.Table, FatVolume, int]:
    handle = os.open(path, os.O_RDONLY)
    disk = Window(handle, 0, path.stat().st_size)
    table = gpt.read_disk(disk.read_at, backup=True)
    partition = table.named("skerry-token")
    assert partition is not None
    return table, FatVolume(disk.part(partition.offset, partition.size)), handle


def held_token(path: Path) -> Token | None:
    _, volume, handle = read_disk(path)
    try:
        text = volume.read("token.txt", 10_000)
    finally:
        os.close(handle)
    return Token.parse(text) if text else None


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_file_gets_the_image_and_the_token(tmp_path: Path, packing: str) -> None:
    source, out = tmp_path / "any-name", tmp_path / "out.img"
    source.write_bytes(PACKINGS[packing](image_bytes()))
    flash(source, examine_target(out), TOKEN)
    assert out.stat().st_size == SIZE
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert held_token(out) == TOKEN
    written = out.read_bytes()
    assert written[1 << 20 : TOKEN_AT] == image_bytes()[1 << 20 : TOKEN_AT]


def test_a_larger_target_gets_its_table_at_its_end(image: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.img"
    flash(image, examine_target(out, size=20 << 20), TOKEN)
    table, _, handle = read_disk(out)
    os.close(handle)
    assert table.sectors == (20 << 20) // 512
    assert out.read_bytes()[SIZE - 512 : SIZE] == bytes(512)


def test_two_copies_share_no_identifier(image: Path, tmp_path: Path) -> None:
    identifiers: list[uuid.UUID] = []
    for name in ("one", "two"):
        flash(image, examine_target(tmp_path / name), None)
        table, _, handle = read_disk(tmp_path / name)
        os.close(handle)
        identifiers += [table.disk_id, *(one.unique_id for one in table.partitions)]
    assert len(set(identifiers)) == 6
    assert held_token(tmp_path / "one") is None


def test_what_was_on_the_target_is_gone(image: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.img"
    out.write_bytes(b"old secrets " * 2_000_000)
    target = Target(out, is_device=False, size=24 << 20, description="")
    flash(image, target, TOKEN)
    assert b"old secrets" not in out.read_bytes()


def test_a_disk_is_wiped_behind_the_image(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"\xee" * (20 << 20))
    handle = os.open(path, os.O_RDWR)
    flashing._wipe_behind(Window(handle, 0, 20 << 20), 6 << 20)
    flashing._wipe_behind(Window(handle, 0, 20 << 20), 20 << 20)
    os.close(handle)
    data = path.read_bytes()
    assert data[: 6 << 20].count(0) == 0
    assert data[6 << 20 : 14 << 20].count(0) == 8 << 20
    assert data[-1 << 20 :].count(0) == 1 << 20


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "only 0 bytes"),
        (b"hello", "only 5 bytes"),
        (bytes(2 << 20), "no GUID partition table"),
        (image_bytes()[: 3 << 20], "cut short"),
        (gzip.compress(image_bytes())[:-500], "failed"),
        (lzma.compress(image_bytes())[:-500], "failed"),
        (lzma.compress(image_bytes())[:80] + bytes(50), "failed"),
        (b"\x1f\x8b" + bytes(100), "failed"),
    ],
)
def test_what_is_no_whole_image_is_said(tmp_path: Path, content: bytes, message: str) -> None:
    source = tmp_path / "disk.img"
    source.write_bytes(content)
    with pytest.raises(FlashError, match=message):
        flash(source, examine_target(tmp_path / "out.img"), None)


def test_an_image_that_is_no_image_leaves_the_target_alone(tmp_path: Path) -> None:
    source, out = tmp_path / "notes.txt", tmp_path / "out.img"
    source.write_bytes(b"notes" * 1_000_000)
    out.write_bytes(b"precious")
    with pytest.raises(FlashError, match="no disk image"):
        flash(source, examine_target(out), None)
    assert out.read_bytes() == b"precious"


def test_an_interrupted_run_leaves_no_disk_that_boots(image: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.img"
    image.write_bytes(image_bytes()[: 5 << 20])
    with pytest.raises(FlashError, match="cut short"):
        flash(image, examine_target(out), None)
    assert out.read_bytes()[: 1 << 20] == bytes(1 << 20)


def test_a_target_that_is_too_small_is_left_alone(image: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.img"
    with pytest.raises(FlashError, match="too small"):
        flash(image, examine_target(out, size=4 << 20), None)
    assert not out.exists()


def test_the_image_itself_is_no_target(image: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.hardlink_to(image)
    with pytest.raises(FlashError, match="same file"):
        flash(image, examine_target(link), None)
    assert image.read_bytes() == image_bytes()


def test_an_image_without_a_place_for_the_token_is_said(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flashing, "_PARTITION", "other")
    with pytest.raises(FlashError, match="no 'other' partition"):
        flash(image, examine_target(tmp_path / "out.img"), TOKEN)


def test_a_medium_that_forgets_is_noticed(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.img"

    def bad_medium(handle: int) -> None:
        os.pwrite(handle, b"\x00\x01\x02", 1 << 20)

    monkeypatch.setattr(flashing, "forget_cache", bad_medium)
    with pytest.raises(FlashError, match="does not hold what was written"):
        flash(image, examine_target(out), TOKEN)


def test_a_medium_that_forgets_the_token_is_noticed(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.img"
    calls = 0

    def bad_medium(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            os.pwrite(handle, bytes(1 << 20), TOKEN_AT + 29184)

    monkeypatch.setattr(flashing, "forget_cache", bad_medium)
    with pytest.raises(FlashError, match="does not hold what was written"):
        flash(image, examine_target(out), TOKEN)


@pytest.mark.parametrize("path", ["/dev/null", "/", "/nowhere/at/all"])
def test_what_is_neither_disk_nor_file_is_refused(path: str) -> None:
    with pytest.raises(FlashError):
        examine_target(Path(path))


class FakeSystem:
    """A sysfs with /dev/sda (two partitions, one under a device mapper), mounts and swaps."""

    def __init__(self, root: Path) -> None:
        self.root = root
        block = root / "sys/devices/sda"
        for place, number in (("", "8:0"), ("sda1", "8:1"), ("sda2", "8:2")):
            (block / place).mkdir(parents=True, exist_ok=True)
            (block / place / "dev").write_text(f"{number}\n")
            self._link(number, block / place)
            if place:
                (block / place / "partition").write_text("1\n")
        (block / "device").mkdir()
        (block / "device/vendor").write_text("ACME  \n")
        (block / "device/model").write_text("Stick\n")
        mapped = root / "sys/devices/dm-0"
        mapped.mkdir(parents=True)
        (mapped / "dev").write_text("253:0\n")
        self._link("253:0", mapped)
        (block / "sda2/holders").mkdir()
        (block / "sda2/holders/dm-0").symlink_to(mapped)
        self.mounts("")

    def _link(self, number: str, target: Path) -> None:
        directory = self.root / "sys/dev/block"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / number).symlink_to(target)

    def mounts(self, text: str) -> None:
        (self.root / "mountinfo").write_text(text)

    @property
    def kernel(self) -> Kernel:
        return Kernel(self.root / "sys", self.root / "mountinfo", self.root / "swaps")


@pytest.fixture
def system(tmp_path: Path) -> FakeSystem:
    return FakeSystem(tmp_path)


def test_a_free_disk_is_free(system: FakeSystem) -> None:
    system.mounts("22 1 259:0 / / rw - ext4 /dev/none rw\nrubbish\n\n - \n")
    system.kernel.check_free(Path("/dev/sda"), "8:0")
    assert system.kernel.describe("8:0") == "ACME Stick"
    assert system.kernel.describe("8:1") == "disk of unknown make"


@pytest.mark.parametrize(
    ("mount", "message"),
    [
        ("40 1 8:0 / /media/a rw - vfat /dev/none rw", "in use: sda is mounted at /media/a"),
        ("40 1 8:1 / /media/a\\040b rw - vfat x rw", "in use: sda1 is mounted at /media/a b"),
        ("40 1 8:2 / / rw - ext4 /dev/none rw", "system's own disk"),
        ("40 1 253:0 / / rw - ext4 /dev/none rw", "system's own disk: dm-0"),
        ("40 1 253:0 / /srv rw shared:1 - ext4 x rw", "in use: dm-0 is mounted at /srv"),
        ("40 1 8:1 / /boot/efi rw - vfat x rw", "system's own disk"),
    ],
)
def test_a_disk_in_use_is_refused_whatever_is_stacked_on_it(
    system: FakeSystem, mount: str, message: str
) -> None:
    system.mounts(f"22 1 0:5 / /proc rw - proc proc rw\n{mount}\n")
    with pytest.raises(StorageError, match=message) as caught:
        system.kernel.check_free(Path("/dev/sda"), "8:0")
    assert caught.value.hint


def test_swap_and_mounts_under_a_foreign_number_are_found_by_their_device(
    system: FakeSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_number_of", {"/dev/sda1": "8:1"}.get)
    system.mounts("40 1 0:33 /@ /home rw - btrfs /dev/sda1 rw\n")
    with pytest.raises(StorageError, match="mounted at /home"):
        system.kernel.check_free(Path("/dev/sda"), "8:0")
    system.mounts("")
    (system.root / "swaps").write_text("Filename\tType\n/dev/sda1  partition 1 0 -2\n")
    with pytest.raises(StorageError, match="system's own disk: sda1 is used as swap"):
        system.kernel.check_free(Path("/dev/sda"), "8:0")


def test_a_partition_is_no_disk(system: FakeSystem) -> None:
    with pytest.raises(StorageError, match="is a partition") as caught:
        system.kernel.check_free(Path("/dev/sda1"), "8:1")
    assert caught.value.hint == "give the whole disk: /dev/sda"


def test_a_disk_that_the_kernel_does_not_know_is_refused(system: FakeSystem) -> None:
    with pytest.raises(StorageError, match="unknown"):
        system.kernel.check_free(Path("/dev/sdq"), "9:9")


def test_a_window_reaches_nothing_outside_of_it(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"0123456789")
    handle = os.open(path, os.O_RDWR)
    window = Window(handle, 0, 10).part(2, 4)
    assert window.read_at(0, 4) == b"2345"
    window.write_at(2, b"ab")
    for offset, size in ((-1, 2), (0, 5), (4, 1), (2, -1)):
        with pytest.raises(StorageError, match="outside"):
            window.read_at(offset, size)
    with pytest.raises(StorageError, match="outside"):
        window.write_at(3, b"xy")
    with pytest.raises(StorageError, match="ends too early"):
        Window(handle, 0, 20).read_at(5, 10)
    os.close(handle)
    assert path.read_bytes() == b"0123ab6789"


@pytest.mark.parametrize(
    ("text", "size"), [("8G", 8 << 30), ("512M", 512 << 20), ("4096", 4096), ("1GiB", 1 << 30)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "8X", "1000", "G", "1.5G"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(UsageError):
        parse_size(text)
