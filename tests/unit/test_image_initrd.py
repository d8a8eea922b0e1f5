"""The initrd's parts: cpio archives, ELF needs, the order of modules."""

from __future__ import annotations

import shutil
import stat
import struct
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from image import elf, initrd
from image.artifacts import REPOSITORY
from image.cpio import Entry, archive
from image.errors import BuildError

DEPENDENCIES = """\
kernel/fs/ext4/ext4.ko.xz: kernel/fs/jbd2/jbd2.ko.xz kernel/fs/mbcache.ko.xz kernel/lib/crc16.ko.xz
kernel/fs/jbd2/jbd2.ko.xz:
kernel/fs/mbcache.ko.xz:
kernel/lib/crc16.ko.xz:
kernel/drivers/md/dm-verity.ko: kernel/drivers/md/dm-bufio.ko kernel/drivers/md/dm-mod.ko
kernel/drivers/md/dm-bufio.ko: kernel/drivers/md/dm-mod.ko
kernel/drivers/md/dm-mod.ko:
kernel/crypto/crc32c_generic.ko:
"""


def read(data: bytes) -> dict[str, tuple[int, bytes]]:
    """Read a newc archive as the kernel does; independent of the writer."""
    found: dict[str, tuple[int, bytes]] = {}
    position = 0
    while True:
        assert data[position : position + 6] == b"070701"
        fields = [
            int(data[position + 6 + 8 * index : position + 14 + 8 * index], 16)
            for index in range(13)
        ]
        name_at = position + 110
        name = data[name_at : name_at + fields[11] - 1].decode()
        content_at = (name_at + fields[11] + 3) // 4 * 4
        if name == "TRAILER!!!":
            return found
        assert fields[2] == fields[3] == fields[5] == 0, "owner and time are always the same"
        found[name] = (fields[1], data[content_at : content_at + fields[6]])
        position = (content_at + fields[6] + 3) // 4 * 4


def test_an_archive_has_files_links_and_their_folders() -> None:
    entries = {
        "usr/bin/tool": Entry.file(b"program", executable=True),
        "init": Entry.file(b"#!/bin/sh\n"),
        "bin/sh": Entry.link("busybox"),
    }
    found = read(archive(entries))
    assert list(found) == ["bin", "bin/sh", "init", "usr", "usr/bin", "usr/bin/tool"]
    assert found["usr/bin/tool"] == (stat.S_IFREG | 0o755, b"program")
    assert found["bin/sh"] == (stat.S_IFLNK | 0o777, b"busybox")
    assert stat.S_ISDIR(found["usr"][0])


@settings(max_examples=40)
@given(
    st.dictionaries(
        st.from_regex(r"\A[a-z]{1,6}(/[a-z]{1,6}){0,2}\.f\Z"), st.binary(max_size=64), max_size=6
    )
)
def test_every_content_comes_back_whatever_its_length(files: dict[str, bytes]) -> None:
    found = read(archive({name: Entry.file(data) for name, data in files.items()}))
    assert {name: data for name, (mode, data) in found.items() if stat.S_ISREG(mode)} == files


def test_an_archive_is_the_same_whatever_the_order() -> None:
    first = {"a": Entry.file(b"1"), "b": Entry.file(b"2")}
    second = dict(reversed(first.items()))
    assert archive(first) == archive(second)


def test_modules_come_after_what_they_need() -> None:
    found = initrd.order(["crc32c_generic", "dm_verity", "ext4", "built_in"], DEPENDENCIES)
    assert found[0] == "kernel/crypto/crc32c_generic.ko"
    assert found.index("kernel/drivers/md/dm-mod.ko") < found.index("kernel/drivers/md/dm-bufio.ko")
    assert found.index("kernel/drivers/md/dm-bufio.ko") < found.index(
        "kernel/drivers/md/dm-verity.ko"
    )
    assert found[-1] == "kernel/fs/ext4/ext4.ko.xz"
    assert len(found) == len(set(found)) == 8


def test_crc32c_comes_first_of_all() -> None:
    assert initrd.MODULES[0] == "crc32c_generic"
    assert initrd.MODULES.index("crc32c_generic") < initrd.MODULES.index("erofs")


def test_what_python_needs_is_what_the_loader_says() -> None:
    program = Path(shutil.which("ls") or "/bin/ls").resolve()
    needs = elf.needs(program.read_bytes())
    said = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    assert needs.interpreter
    assert needs.interpreter in said
    assert needs.libraries
    assert all(library in said for library in needs.libraries)


@given(st.binary(max_size=300))
def test_what_is_no_program_is_refused(data: bytes) -> None:
    with pytest.raises(BuildError, match="no 64-bit"):
        elf.needs(data, name="x")


@given(st.data())
def test_a_damaged_program_is_read_or_refused(data: st.DataObject) -> None:
    whole = bytearray(HEAD)
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with suppress(BuildError):
        assert isinstance(elf.needs(bytes(whole)), elf.Needs)


def test_an_offset_beyond_every_file_is_refused() -> None:
    whole = bytearray(HEAD)
    # e_phoff, the place of the program headers: found by a random example.
    struct.pack_into("<Q", whole, 32, 2**64 - 1)
    with pytest.raises(BuildError, match="no 64-bit"):
        elf.needs(bytes(whole), name="x")


def head() -> bytes:
    """Make the smallest file with an interpreter and one needed library."""
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 3, 62, 1, 0, 64, 0, 0, 64, 56, 3, 0, 0, 0
    )
    strings = b"\0libx.so\0/ld.so\0"
    at = 64 + 3 * 56
    dynamic = struct.pack("<qQqQqQ", 5, at, 1, 1, 0, 0)
    total = at + len(strings) + len(dynamic)
    segments = [
        struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, total, total, 4096),
        struct.pack("<IIQQQQQQ", 3, 4, at + 9, 0, 0, 7, 7, 1),
        struct.pack("<IIQQQQQQ", 2, 6, at + len(strings), 0, 0, len(dynamic), len(dynamic), 8),
    ]
    return header + b"".join(segments) + strings + dynamic


HEAD = head()


def test_the_smallest_program_is_read() -> None:
    assert elf.needs(HEAD) == elf.Needs("/ld.so", ("libx.so",))


def test_a_missing_library_is_named(tmp_path: Path) -> None:
    (tmp_path / "usr").mkdir()
    (tmp_path / "usr/prog").write_bytes(HEAD)
    (tmp_path / "ld.so").write_bytes(b"")
    with pytest.raises(BuildError, match=r"libx\.so"):
        initrd.libraries(tmp_path, ["/usr/prog"])


def test_the_shells_agree_that_the_scripts_are_shell() -> None:
    scripts = [REPOSITORY / "image/initrd/init", *(REPOSITORY / "image/scripts").glob("*.sh")]
    assert len(scripts) >= 5
    for script in scripts:
        subprocess.run(["sh", "-n", script], check=True)


def test_the_initrd_never_formats_the_data_partition() -> None:
    """mkfs stands once, and only behind the name that says there is nothing to lose."""
    text = (REPOSITORY / "image/initrd/init").read_text()
    lines = [line for line in text.splitlines() if "mkfs" in line and not line.startswith("#")]
    assert len(lines) == 1
    assert '"/dev/$new"' in lines[0]
