"""Boards: the typed facts in ``board_configs/BOARD/board.toml`` (the format: docs/image.md)."""

from __future__ import annotations

import enum
import re
import tomllib
from pathlib import Path, PurePosixPath

import msgspec

from image.artifacts import REPOSITORY
from image.errors import BoardError

BOARDS = REPOSITORY / "board_configs"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,30}")
_WORD = re.compile(r"[A-Za-z0-9_.,:=/@+-]+")
_MODULE = re.compile(r"[A-Za-z0-9_]+")


class Architecture(enum.Enum):
    """Debian's name of an architecture."""

    AMD64 = "amd64"
    ARM64 = "arm64"

    @property
    def grub_target(self) -> str:
        """GRUB's name for the platform."""
        return {"amd64": "x86_64-efi", "arm64": "arm64-efi"}[self.value]

    @property
    def grub_package(self) -> str:
        """The Debian package with GRUB's modules."""
        return f"grub-efi-{self.value}-bin"

    @property
    def removable_loader(self) -> str:
        """The file name that UEFI firmware starts from a removable medium (UEFI 2.10, 3.5.1.1)."""
        return {"amd64": "BOOTX64.EFI", "arm64": "BOOTAA64.EFI"}[self.value]

    @property
    def kernel_package(self) -> str:
        """The Debian package that depends on the current kernel."""
        return f"linux-image-{self.value}"

    @property
    def python_platform(self) -> str:
        """The wheels' platform, as uv names it: trixie's C library is 2.41."""
        machine = {"amd64": "x86_64", "arm64": "aarch64"}[self.value]
        return f"{machine}-manylinux_2_40"


class FirmwareKind(enum.Enum):
    """Who starts GRUB."""

    UEFI = "uefi"
    U_BOOT = "u-boot"


class FirmwareFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file that the board's own firmware wants on the ESP.

    Either ``path`` inside the Debian ``package``, or ``file`` beside board.toml; ``to`` is its path
    on the ESP.
    """

    to: str
    package: str = ""
    path: str = ""
    file: str = ""


class Firmware(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What runs before GRUB."""

    kind: FirmwareKind
    files: tuple[FirmwareFile, ...] = ()


class Kernel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the kernel is told, and what it needs before the root is there."""

    consoles: tuple[str, ...]
    command_line: tuple[str, ...] = ()
    initrd_modules: tuple[str, ...] = ()
    watchdog_modules: tuple[str, ...] = ()
    device_tree: str = ""


class Board(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything an image has to know about a board."""

    name: str
    description: str
    architecture: Architecture
    firmware: Firmware
    kernel: Kernel
    compatible: str = ""

    @property
    def rauc_compatible(self) -> str:
        """What a bundle has to name to be installed here."""
        return self.compatible or f"skerry-{self.name}"


def available(directory: Path = BOARDS) -> list[str]:
    """Return the names of the boards there are."""
    return sorted(path.parent.name for path in directory.glob("*/board.toml"))


def load(name: str, directory: Path = BOARDS) -> Board:
    """Return a board by its folder's name; raises :class:`BoardError` naming what is wrong."""
    path = directory / name / "board.toml"
    if not _NAME.fullmatch(name) or not path.is_file():
        raise BoardError(
            f"there is no board {name!r} in {directory}",
            hint=f"boards: {', '.join(available(directory)) or 'none'}",
        )
    return parse(path.read_text(errors="replace"), folder=path.parent)


def parse(text: str, *, folder: Path) -> Board:
    """Return the board that ``text`` describes; ``folder`` gives its name and its files."""
    path = folder / "board.toml"
    try:
        board = msgspec.convert(tomllib.loads(text), Board)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise BoardError(
            f"{path}: {error}", hint="docs/image.md describes the format of a board"
        ) from error
    for problem in _problems(board, folder):
        raise BoardError(f"{path}: {problem}", hint="docs/image.md describes the format of a board")
    return board


def _problems(board: Board, folder: Path) -> list[str]:
    problems = []
    if board.name != folder.name:
        problems.append(f"`name` is {board.name!r} but the folder is {folder.name!r}")
    if not board.kernel.consoles:
        problems.append("`kernel.consoles` is empty: nobody could see the machine boot")
    problems += [
        f"`kernel`: {word!r} is no single word of a kernel command line"
        for word in (*board.kernel.consoles, *board.kernel.command_line)
        if not _WORD.fullmatch(word)
    ]
    problems += [
        f"`kernel`: {module!r} is no module name"
        for module in (*board.kernel.initrd_modules, *board.kernel.watchdog_modules)
        if not _MODULE.fullmatch(module)
    ]
    for file in board.firmware.files:
        problems += _firmware_problems(file, folder)
    return problems


def _firmware_problems(file: FirmwareFile, folder: Path) -> list[str]:
    problems = []
    if bool(file.file) == bool(file.package):
        problems.append(f"`firmware.files`: {file.to!r} needs either `file` or `package`")
    if bool(file.package) != bool(file.path):
        problems.append(f"`firmware.files`: {file.to!r} needs `path` together with `package`")
    problems += [
        f"`firmware.files`: {place!r} leads out of its folder"
        for place in (file.to, file.path, file.file)
        if ".." in PurePosixPath(place).parts
    ]
    if file.to.startswith("/") or not file.to:
        problems.append(f"`firmware.files`: `to` is {file.to!r}; it is a path on the ESP")
    if file.file and not (folder / file.file).is_file():
        problems.append(f"`firmware.files`: there is no {file.file!r} beside board.toml")
    return problems
