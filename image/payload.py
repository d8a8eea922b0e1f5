"""What of ours goes into the root: the Python packages with their wheels, and small made files."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from image import kubernetes
from image.artifacts import REPOSITORY, cache_directory
from image.board import Architecture, Board
from image.errors import BuildError
from image.process import run
from image.tools import locked

SHIPPED = ("skerry", "provisioning", "ota", "appliance")
PYTHON_VERSION = "3.13"
HOME = "usr/lib/skerry"
_LOCK = REPOSITORY / "requirements-node.lock"
_PINNED = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", re.MULTILINE)
# Of a wheel only what runs is kept.
_UNWANTED_SUFFIXES = (".pyi", ".pxd", ".pyx", ".h", ".c", ".cpp", ".typed", ".md", ".rst", ".a")
_UNWANTED_FOLDERS = ("tests", "test", "__pycache__", "bin", "include", "_docs")

_LAUNCHER = """\
#!/usr/bin/python3 -IS
# Isolated: no user's or distribution's packages, no environment; only what the image carries.
import sys

sys.dont_write_bytecode = True
sys.path[0:0] = ["/usr/lib/skerry", "/usr/lib/skerry/site"]
sys.argv[0] = "skerry"

from skerry.__main__ import main  # noqa: E402

sys.exit(main())
"""


@dataclass(frozen=True, slots=True)
class Release:
    """What ``/usr/lib/skerry/release.json`` says."""

    version: str
    board: str
    build_id: str
    commit: str

    def render(self) -> str:
        """Return the file's text."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps(fields, indent=2) + "\n"


def pinned_packages(lock: str) -> dict[str, str]:
    """Return names and versions in a requirements lock."""
    return {match[1]: match[2] for match in _PINNED.finditer(lock)}


def digest_tree(directories: Iterable[Path]) -> str:
    """Return a hash over names, modes (executable or not) and contents of everything below."""
    state = hashlib.sha256()
    for directory in directories:
        state.update(f"tree {directory.name}\0".encode())
        for path in [directory] if directory.is_file() else _files(directory):
            name = path.relative_to(directory).as_posix()
            if path.is_symlink():
                state.update(f"link {name}\0{path.readlink()}\0".encode())
            elif path.is_dir():
                state.update(f"directory {name}\0".encode())
            else:
                data = path.read_bytes()
                kind = "program" if os.access(path, os.X_OK) else "file"
                state.update(f"{kind} {name}\0{len(data)}\0".encode() + data)
    return state.hexdigest()


def lay_over(source: Path, target: Path) -> None:
    """Copy a tree: directories and programs 0755, files 0644, whatever the umask was."""
    for path in _files(source):
        place = target / path.relative_to(source)
        if path.is_symlink():
            place.unlink(missing_ok=True)
            place.symlink_to(path.readlink())
        elif path.is_dir():
            place.mkdir(parents=True, exist_ok=True)
            place.chmod(0o755)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.unlink(missing_ok=True)
            shutil.copyfile(path, place)
            place.chmod(0o755 if os.access(path, os.X_OK) else 0o644)


def _files(directory: Path) -> list[Path]:
    found = (
        path
        for path in directory.rglob("*")
        if "__pycache__" not in path.parts and path.name != ".gitkeep" and path.suffix != ".pyc"
    )
    return sorted(found)


def wheels(architecture: Architecture, log: Path) -> Path:
    """Return a folder in the cache with the locked dependencies for the node's Python.

    Only wheels, only with the locked hashes: nothing of them is run here.
    """
    settings = (
        f"{PYTHON_VERSION} {architecture.python_platform} {_UNWANTED_SUFFIXES} {_UNWANTED_FOLDERS}"
    )
    key = hashlib.sha256(_LOCK.read_bytes() + settings.encode()).hexdigest()[:16]
    path = cache_directory() / f"wheels-{architecture.value}-{key}"
    with locked(path.with_suffix(".lock"), waiting_for="the Python wheels"):
        if path.is_dir():
            return path
        aside = path.with_suffix(".new")
        shutil.rmtree(aside, ignore_errors=True)
        run(
            [
                *_uv(),
                "pip",
                "install",
                "--no-config",
                "--no-deps",
                "--require-hashes",
                "--only-binary=:all:",
                "--no-compile-bytecode",
                "--link-mode=copy",
                f"--python-platform={architecture.python_platform}",
                f"--python-version={PYTHON_VERSION}",
                f"--target={aside}",
                f"--requirement={_LOCK}",
            ],
            log=log,
            hint="is the Python package registry reachable, and has each package a wheel?",
        )
        _prune(aside)
        aside.rename(path)
    return path


def _uv() -> list[str]:
    beside = Path(sys.executable).with_name("uv")
    if beside.exists():
        return [str(beside)]
    found = shutil.which("uv")
    if not found:
        raise BuildError("there is no uv beside this Python", hint="run `make setup`")
    return [found]


def _prune(directory: Path) -> None:
    for path in sorted(directory.rglob("*"), reverse=True):
        if path.is_dir() and path.name in _UNWANTED_FOLDERS:
            shutil.rmtree(path)
        elif path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.suffix in _UNWANTED_SUFFIXES or path.name in {".lock", "RECORD", "INSTALLER"}:
            path.unlink()


def compose(
    directory: Path,
    *,
    board: Board,
    release: Release,
    wheels_directory: Path,
    keyring: str,
    parts: kubernetes.Parts | None,
    overlays: Iterable[Path],
) -> None:
    """Lay out in ``directory`` everything that is put over the Debian root.

    ``parts`` are there in an image with Kubernetes, and with them its static files.
    """
    # Some directories are made on the way to a file: their modes must not be the caller's habit.
    before = os.umask(0o022)
    try:
        _compose(directory, board, release, wheels_directory, keyring, parts, overlays)
    finally:
        os.umask(before)


def _compose(
    directory: Path,
    board: Board,
    release: Release,
    wheels_directory: Path,
    keyring: str,
    parts: kubernetes.Parts | None,
    overlays: Iterable[Path],
) -> None:
    directory.chmod(0o755)
    lay_over(REPOSITORY / "rootfs_overlay", directory)
    if parts:
        lay_over(kubernetes.OVERLAY, directory)
        kubernetes.lay_out(parts, directory)
    lay_program(directory, wheels_directory)
    for name, text in made_files(board, release, keyring).items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o644)
    for overlay in overlays:
        lay_over(overlay, directory)


def lay_program(directory: Path, wheels_directory: Path) -> None:
    """Put ``skerry`` into a tree: our packages, their dependencies, what starts them."""
    home = directory / HOME
    for package in SHIPPED:
        lay_over(REPOSITORY / package, home / package)
    lay_over(wheels_directory, home / "site")
    (directory / "usr/bin").mkdir(parents=True, exist_ok=True)
    launcher = directory / "usr/bin/skerry"
    launcher.write_text(_LAUNCHER)
    launcher.chmod(0o755)


def made_files(board: Board, release: Release, keyring: str) -> dict[str, str]:
    """Return the files that depend on board and release, by their path in the root."""
    modules = "".join(f"{module}\n" for module in board.kernel.watchdog_modules)
    return {
        f"{HOME}/release.json": release.render(),
        "usr/lib/os-release": _os_release(release),
        "usr/lib/clock-epoch": "",
        "etc/rauc/keyring.pem": keyring,
        "etc/rauc/system.conf": rauc_configuration(board),
        "usr/lib/modules-load.d/10-skerry-watchdog.conf": modules,
    }


def _os_release(release: Release) -> str:
    fields = {
        "NAME": "Skerry",
        "ID": "skerry",
        "ID_LIKE": "debian",
        "PRETTY_NAME": f"Skerry {release.version}",
        "VERSION_ID": release.version,
        "BUILD_ID": release.build_id,
        "IMAGE_ID": f"skerry-{release.board}",
        "IMAGE_VERSION": release.version,
        "DEFAULT_HOSTNAME": "skerry",
        "ANSI_COLOR": "1;36",
    }
    return "".join(f'{name}="{value}"\n' for name, value in fields.items())


def rauc_configuration(board: Board) -> str:
    """Return RAUC's system.conf: two slots, each a root partition with the boot partition of it."""
    lines = [
        "[system]",
        f"compatible={board.rauc_compatible}",
        "bootloader=grub",
        "grubenv=/efi/grub/grubenv",
        "data-directory=/data/update/rauc",
        "bundle-formats=verity",
        # `skerry update install` activates the slot itself, once its record is on the disk.
        "activate-installed=false",
        "",
        "[keyring]",
        "path=/etc/rauc/keyring.pem",
    ]
    for index, slot in enumerate("ab"):
        lines += [
            "",
            f"[slot.rootfs.{index}]",
            f"device=/run/skerry/disk/root-{slot}",
            "type=raw",
            f"bootname={slot.upper()}",
            "",
            f"[slot.boot.{index}]",
            f"device=/run/skerry/disk/boot-{slot}",
            "type=raw",
            f"parent=rootfs.{index}",
        ]
    return "\n".join(lines) + "\n"
