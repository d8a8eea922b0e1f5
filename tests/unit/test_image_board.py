"""Boards: what a board.toml may say, and what it is told when it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from image import board
from image.board import Architecture, FirmwareKind
from image.errors import BoardError

PI = """
name = "rpi4"
description = "Raspberry Pi 4"
architecture = "arm64"

[firmware]
kind = "u-boot"
files = [
    { to = "config.txt", file = "config.txt" },
    { to = "start4.elf", package = "raspi-firmware", path = "/usr/lib/raspi-firmware/start4.elf" },
]

[kernel]
consoles = ["tty0", "ttyS1,115200n8"]
command_line = ["snd_bcm2835.enable_hdmi=0"]
initrd_modules = ["bcm2835", "sdhci_iproc"]
watchdog_modules = ["bcm2835_wdt"]
device_tree = "broadcom/bcm2711-rpi-4-b.dtb"
"""
GOOD = """
name = "x"
description = "a board"
architecture = "amd64"
[firmware]
kind = "uefi"
[kernel]
consoles = ["ttyS0"]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "rpi4"
    path.mkdir()
    (path / "config.txt").write_text("arm_64bit=1\n")
    return path


def test_every_board_there_is_can_be_read() -> None:
    names = board.available()
    assert {"x86_64", "qemu-arm64"} <= set(names)
    boards = [board.load(name) for name in names]
    assert len({item.rauc_compatible for item in boards}) == len(boards)
    for item in boards:
        assert item.kernel.watchdog_modules, "a node without a watchdog hangs for good"


def test_the_format_fits_a_raspberry_pi(folder: Path) -> None:
    pi = board.parse(PI, folder=folder)
    assert pi.architecture is Architecture.ARM64
    assert pi.firmware.kind is FirmwareKind.U_BOOT
    assert [file.to for file in pi.firmware.files] == ["config.txt", "start4.elf"]
    assert pi.kernel.device_tree == "broadcom/bcm2711-rpi-4-b.dtb"
    assert pi.rauc_compatible == "skerry-rpi4"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('name = "x"', 'name = "y"', "the folder is 'x'"),
        ('name = "x"', "name = 7", "Expected `str`"),
        ('name = "x"', 'name = "x"\ncolour = "red"', "colour"),
        ('"amd64"', '"riscv64"', "riscv64"),
        ('consoles = ["ttyS0"]', "consoles = []", "nobody could see"),
        ('consoles = ["ttyS0"]', 'consoles = ["ttyS0 init=/bin/sh"]', "no single word"),
        ('consoles = ["ttyS0"]', 'consoles = ["ttyS0"]\ninitrd_modules = ["a/b"]', "no module"),
        ('kind = "uefi"', 'kind = "bios"', "bios"),
        ('kind = "uefi"', 'kind = "uefi"\nfiles = [{to = "a"}]', "either `file` or `package`"),
        (
            'kind = "uefi"',
            'kind = "uefi"\nfiles = [{to = "../a", file = "b"}]',
            "leads out of its folder",
        ),
        (
            'kind = "uefi"',
            'kind = "uefi"\nfiles = [{to = "a", package = "b"}]',
            "`path` together with `package`",
        ),
        ('kind = "uefi"', 'kind = "uefi"\nfiles = [{to = "a", file = "b"}]', "there is no 'b'"),
        ('kind = "uefi"', 'kind = "uefi"\nfiles = [{to = "/a", file = "b"}]', "a path on the ESP"),
        ("[kernel]", "[kernel", "Expected"),
    ],
)
def test_a_wrong_board_is_told_what_is_wrong(tmp_path: Path, old: str, new: str, said: str) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    assert board.parse(GOOD, folder=folder).name == "x"
    assert old in GOOD
    with pytest.raises(BoardError) as caught:
        board.parse(GOOD.replace(old, new), folder=folder)
    assert said in str(caught.value)
    assert "board.toml" in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("name", ["nope", "../x86_64", "", "x86_64/", "X"])
def test_an_unknown_board_is_told_which_there_are(name: str) -> None:
    with pytest.raises(BoardError) as caught:
        board.load(name)
    assert "x86_64" in (caught.value.hint or "")


@given(st.text(max_size=200))
def test_no_text_makes_a_traceback(text: str) -> None:
    with pytest.raises(BoardError):
        board.parse(text, folder=Path("/nowhere/x"))
