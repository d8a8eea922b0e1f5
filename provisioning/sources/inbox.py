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
    try:
        names = sorted(entry.name for entry in os.scandir(inbox))
    except OSError:
        # No inbox yet: nothing was handed over.
        return
    for name in [name for name in names if kind_of(name) == kind][:_FILES_MAX]:
        path = inbox / name
        try:
            content = read_small(path, TEXT_LIMIT)
        except FileNotFoundError:
            continue
        except FileError as error:
            yield Rejected(kind, name, error, path)
        except OSError as error:
            error_text = FileError(f"{path} cannot be read: {error.strerror}")
            yield Rejected(kind, name, error_text, path)
        else:
            yield Candidate(kind, _place(name, kind), content, path)


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
    bare = name.removesuffix(SUFFIX)
    return f"/dev/{bare.removeprefix(kind + '-')}" if kind in MEDIA else f"inbox file {name}"
