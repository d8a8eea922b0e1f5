"""The inbox ``/run/skerry/inbox``: tokens that others put where the supervisor can read them.

A file ``KIND-PLACE.token`` came from a medium (written by `provisioning.media`), any other
``*.token`` from a person.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from provisioning.files import FileError, read_small
from provisioning.sources import Candidate, Rejected
from provisioning.token import TEXT_LIMIT

PERSON, DISK, USB, NOCLOUD = "person", "disk", "usb", "nocloud"
MEDIA = (DISK, USB, NOCLOUD)
SUFFIX = ".token"
_FILES_MAX = 64


def kind_of(name: str) -> str | None:
    """Return the source that a file name of the inbox stands for; None for other files."""
    if not name.endswith(SUFFIX) or name.startswith("."):
        return None
    kind = name.partition("-")[0]
    return kind if kind in MEDIA else PERSON


def tokens(inbox: Path, kind: str) -> Iterator[Candidate | Rejected]:
    """Yield the inbox's tokens of one kind, by file name."""
    for name in sorted(_newest(inbox, kind)):
        path, place = inbox / name, _place(name, kind)
        if not name.isprintable():
            # Consoles and JSON documents are to show it.
            error = FileError("its name is not printable", hint="call it my.token")
            yield Rejected(kind, place, error, path)
            continue
        try:
            content = read_small(path, TEXT_LIMIT)
        except FileNotFoundError:
            continue
        except FileError as reason:
            yield Rejected(kind, place, reason, path)
        except OSError as reason:
            error = FileError(f"{path} cannot be read: {reason.strerror}")
            yield Rejected(kind, place, error, path)
        else:
            yield Candidate(kind, place, content, path)


def _newest(inbox: Path, kind: str) -> list[str]:
    """Return the names of a kind's latest files: of a heap of bad ones, the last one counts."""
    times: dict[str, int] = {}
    with contextlib.suppress(OSError):  # no inbox yet: nothing was handed over
        for entry in os.scandir(inbox):
            if kind_of(entry.name) == kind:
                with contextlib.suppress(FileNotFoundError):
                    times[entry.name] = entry.stat(follow_symlinks=False).st_mtime_ns
    return sorted(times, key=times.__getitem__)[-_FILES_MAX:]


def shown(name: str) -> str:
    """Return a file's name as a console and a JSON document can show it."""
    return name if name.isprintable() else ascii(name)[1:-1]


def discard(path: Path) -> None:
    """Remove a token from the inbox: it was used, or it is no use."""
    with contextlib.suppress(OSError):
        path.unlink()


def put(inbox: Path, name: str, content: bytes) -> Path:
    """Put a token into the inbox for the supervisor, owned by the inbox's owner.

    Runs as root in a directory of an unprivileged user: nothing in it is followed or trusted.
    """
    directory = os.open(inbox, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    temporary = f".{name}.new"
    try:
        owner = os.fstat(directory)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=directory)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(temporary, flags, 0o600, dir_fd=directory), "wb") as file:
            file.write(content)
            if os.geteuid() == 0:
                os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    finally:
        os.close(directory)
    return inbox / name


def _place(name: str, kind: str) -> str:
    bare = (name if name.isprintable() else ascii(name)[1:-1]).removesuffix(SUFFIX)
    return (
        f"/dev/{bare.removeprefix(kind + '-')}" if kind in MEDIA else f"inbox file {bare}{SUFFIX}"
    )
