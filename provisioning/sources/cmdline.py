"""``skerry.token=`` on the kernel command line.

Every process on the node can read it there, so it is the weakest of the sources; good for a
laboratory and for network boot.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from provisioning.files import FileError
from provisioning.sources import Candidate, Rejected

SOURCE = "cmdline"
_KEY = "skerry.token="
_LIMIT = 64 * 1024


def token_values(cmdline: str) -> list[str]:
    """Return the values of ``skerry.token=``; what follows ``--`` is for init, not for us."""
    values = []
    for word in cmdline.split():
        if word == "--":
            break
        bare = word.strip('"')
        if bare.startswith(_KEY):
            values.append(bare.removeprefix(_KEY).strip('"'))
    return values


def tokens(path: Path) -> Iterator[Candidate | Rejected]:
    """Yield the tokens of the command line that the file holds."""
    try:
        with path.open("rb") as file:
            cmdline = file.read(_LIMIT).decode(errors="replace")
    except FileNotFoundError:
        return
    except OSError as error:
        yield Rejected(SOURCE, str(path), FileError(f"cannot be read: {error.strerror}"))
        return
    for value in token_values(cmdline):
        yield Candidate(SOURCE, "kernel command line", value.encode())
