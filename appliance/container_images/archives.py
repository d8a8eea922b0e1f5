"""What an image archive holds, told from the list in it: OCI layouts and what `docker save` writes.

Both name content by hash, so the list's own hash says whether an archive was seen before, however
it is called and whenever it was written. Only that list is read, at most `LIST_MAX` bytes of it.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from skerry.errors import SkerryError

LIST_MAX = 1024 * 1024
# The packed ones are refused, not passed over: somebody put them there to be taken in.
SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.zst", ".tar.bz2")
_PACKED = (b"\x1f\x8b", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"BZh")
_LISTS = ("index.json", "manifest.json")
_FULL_NAME = "io.containerd.image.name"
_HINT = "make it with `skopeo copy ... oci-archive:FILE.tar`, `docker save` or `ctr images export`"


class ArchiveError(SkerryError):
    """A file is no image archive that can be read."""


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive: where it is, the hash of its list, the whole names that the list gives."""

    path: Path
    identity: str
    names: tuple[str, ...]


def find(folders: Iterable[Path]) -> list[Path]:
    """Return the archives in the folders, each folder's by name; hidden files don't count."""
    found: list[Path] = []
    for folder in folders:
        if folder.is_dir():
            found += sorted(
                path
                for path in folder.iterdir()
                if path.name.endswith(SUFFIXES) and not path.name.startswith(".")
            )
    return found


def read(path: Path) -> Archive:
    """Return what an archive says of itself. Raises ArchiveError."""
    try:
        if not path.is_file():
            raise ArchiveError(f"{path} is no regular file", hint=_HINT)
        with path.open("rb") as file:
            if file.read(8).startswith(_PACKED):
                raise ArchiveError(
                    f"{path} is packed, which containerd does not take",
                    hint="unpack it to a .tar (gunzip, unxz, unzstd) and put that here",
                )
            file.seek(0)
            content = _list(file, path)
        found = names(content)
    except OSError as error:
        raise ArchiveError(f"{path} can't be read: {error.strerror or error}") from error
    except (tarfile.TarError, EOFError, ValueError, RecursionError) as error:
        raise ArchiveError(f"{path} is no archive of images: {error}", hint=_HINT) from error
    return Archive(path, hashlib.sha256(content).hexdigest(), found)


def _list(file: IO[bytes], path: Path) -> bytes:
    # An OCI archive may have both lists; its own comes first and counts.
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=file, mode="r:") as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            if name not in _LISTS or not member.isreg():
                continue
            if member.size > LIST_MAX:
                raise ArchiveError(f"{path}: {name} in it has {member.size} bytes", hint=_HINT)
            opened = archive.extractfile(member)
            found[name] = opened.read() if opened else b""
            if name == _LISTS[0]:
                break
    for name in _LISTS:
        if name in found:
            return found[name]
    raise ArchiveError(f"{path} has neither {' nor '.join(_LISTS)} in it", hint=_HINT)


def names(content: bytes) -> tuple[str, ...]:
    """Return the names in a list; a list of no known form gives none. Raises ValueError."""
    document = json.loads(content)
    given: list[object] = []
    if isinstance(document, dict):
        entries = document.get("manifests")
        for entry in entries if isinstance(entries, list) else []:
            notes = entry.get("annotations") if isinstance(entry, dict) else None
            given.append(notes.get(_FULL_NAME) if isinstance(notes, dict) else None)
    elif isinstance(document, list):
        for entry in document:
            tags = entry.get("RepoTags") if isinstance(entry, dict) else None
            given += tags if isinstance(tags, list) else []
    return tuple(dict.fromkeys(one for one in given if isinstance(one, str) and one))
