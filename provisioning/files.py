"""Small private files: read without being led astray, written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from provisioning.errors import ProvisioningError

_WAY_OUT = "give a file that holds only what is asked for"


class FileError(ProvisioningError):
    """A file that cannot be used as it is."""


def read_small(path: Path, limit: int) -> bytes:
    """Return the content of a regular file of at most ``limit`` bytes.

    A symbolic link, a device or a larger file raises FileError; what the system refuses stays
    an OSError (FileNotFoundError among them).
    """
    try:
        # O_NONBLOCK: a planted FIFO must not hang us.
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if path.is_symlink():
            raise FileError(
                f"{path} is a symbolic link, which is not followed",
                hint="put the file itself there",
            ) from error
        raise
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, handle)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise FileError(f"{path} is not a regular file", hint=_WAY_OUT)
        with os.fdopen(handle, "rb", closefd=False) as file:
            data = file.read(limit + 1)
    if len(data) > limit:
        raise FileError(f"{path} is larger than {limit} bytes", hint=_WAY_OUT)
    return data


def write_all(directory: Path, contents: Mapping[str, bytes], *, mode: int = 0o600) -> None:
    """Write several files of one directory durably; an OSError leaves no half-written one.

    Every content is on the medium under a temporary name before the first takes its place.
    """
    temporary = {name: directory / f".{name}.new" for name in contents}
    try:
        for name, content in contents.items():
            _write_durably(temporary[name], content, mode)
        for name, path in temporary.items():
            path.replace(directory / name)
    except BaseException:
        for path in temporary.values():
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        raise
    sync_directory(directory)


def _write_durably(path: Path, content: bytes, mode: int) -> None:
    path.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, mode), "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(directory: Path) -> None:
    """Make renames in a directory durable."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def tighten(path: Path, mode: int) -> bool:
    """Take away every permission beyond ``mode``; say whether there was any."""
    present = stat.S_IMODE(path.stat(follow_symlinks=False).st_mode)
    if not present & ~mode:
        return False
    path.chmod(present & mode)
    return True
