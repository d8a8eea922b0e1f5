"""The token on a mounted file system: ``token.txt``, ``skerry-token.txt``, or a NoCloud seed.

The file system is a stranger's: only regular files of its root are read, of bounded size, and no
link is followed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from provisioning.errors import ProvisioningError
from provisioning.files import FileError, read_small
from provisioning.sources import nocloud
from provisioning.token import TEXT_LIMIT

# FAT finds names in either case; `skerry flash` writes the first as an 8.3 name.
FLASHED_NAME = "TOKEN.TXT"
_NAMES = ("token.txt", "skerry-token.txt")
_SEED_LIMIT = 256 * 1024


def token_on(root: Path) -> tuple[str, bytes] | None:
    """Return file name and content of the token under ``root``, not judged yet; None if none.

    Raises ProvisioningError for a file that should hold one and cannot be used.
    """
    for name, content in _read(root, _NAMES, TEXT_LIMIT):
        return name, content
    for name, content in _read(root, nocloud.FILES, _SEED_LIMIT):
        if (text := nocloud.token_in(content.decode(errors="replace"))) is not None:
            return name, text.encode()
    return None


def _read(root: Path, names: tuple[str, ...], limit: int) -> Iterator[tuple[str, bytes]]:
    for name in names:
        try:
            yield name, read_small(root / name, limit)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise FileError(f"{name} cannot be read: {error.strerror}") from error
        except ProvisioningError as error:
            raise FileError(f"{name} is of no use: {error}") from error
