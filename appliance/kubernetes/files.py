"""Files of the cluster agent: written whole or not at all, readable by whom they are for."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from appliance.kubernetes.errors import KubernetesError
from provisioning.files import write_all

KEPT_ASIDE = 2
_REPLACED = ".replaced-"


class FileTroubleError(KubernetesError):
    """A file that can't be written; what was there before still is."""


def write(path: Path, data: bytes, *, mode: int = 0o600, folder_mode: int = 0o700) -> None:
    """Put ``data`` at ``path`` in one step, synced. Missing folders are made.

    :raises FileTroubleError: the disk is full, read-only or missing; the old content stays.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=folder_mode)
        write_all(path.parent, {path.name: data}, mode=mode)
    except OSError as error:
        raise FileTroubleError(
            f"{path} can't be written: {error.strerror or error}",
            hint=f"free space on, or mend, the file system of {path.parent} (df -h, dmesg)",
        ) from error


def make_folder(path: Path) -> None:
    """Make a folder that others may look into; its files have modes of their own."""
    try:
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
        path.chmod(0o755)
    except OSError as error:
        raise FileTroubleError(f"{path} can't be made: {error.strerror or error}") from error


def read(path: Path, limit: int) -> bytes | None:
    """Return what a file holds, at most ``limit`` bytes of it; None if there is none to read."""
    try:
        with path.open("rb") as file:
            return file.read(limit)
    except OSError:
        return None


def read_text(path: Path, limit: int) -> str | None:
    """Return a file's text, None if there is none."""
    data = read(path, limit)
    return None if data is None else data.decode("utf-8", "replace")


def remove(path: Path) -> None:
    """Remove a file, if there is one. Raises FileTroubleError."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise FileTroubleError(f"{path} can't be removed: {error.strerror or error}") from error


def set_aside(folder: Path) -> Path:
    """Give a folder another name beside it, and return that; only the latest few are kept.

    Each is a whole database: a machine that is replaced every month would fill its card.

    :raises FileTroubleError: it can't be moved; it is where it was.
    """
    before = sorted(_set_aside_before(folder))
    number = before[-1][0] + 1 if before else 1
    aside = folder.with_name(f"{folder.name}{_REPLACED}{number}")
    try:
        folder.rename(aside)
    except OSError as error:
        raise FileTroubleError(
            f"{folder} can't be moved aside: {error.strerror or error}"
        ) from error
    for _, old in before[: len(before) + 1 - KEPT_ASIDE]:
        # What is left of one that can't be removed goes the next time.
        shutil.rmtree(old, ignore_errors=True)
    return aside


def _set_aside_before(folder: Path) -> Iterator[tuple[int, Path]]:
    for path in folder.parent.glob(f"{folder.name}{_REPLACED}*"):
        number = path.name.removeprefix(f"{folder.name}{_REPLACED}")
        if number.isdecimal() and number.isascii():
            yield int(number), path
