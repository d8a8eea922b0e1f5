"""The machine's host name follows the node's name: two ends of one file.

The supervisor, which may not set it, writes the name it wants; a root unit (skerry-hostname.path)
sees the file, takes it away and sets the name. It trusts nothing in the file but a valid name.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

from provisioning.files import read_small, write_all
from provisioning.names import check_name, is_name
from skerry.errors import SkerryError

FILE_NAME = "hostname"
_LIMIT = 128
# Names that mean the machine itself, everywhere (RFC 6761, 6.3).
_RESERVED = frozenset({"localhost"})


class HostNameError(SkerryError):
    """A host name that can't be set."""


def is_host_name(name: str) -> bool:
    """Say whether a machine may be called so."""
    return is_name(name) and name not in _RESERVED


def want_host_name(run_dir: Path, name: str) -> None:
    """Ask for the machine to be called ``name``. Raises HostNameError and OSError."""
    if not is_host_name(check_name(name, "node")):
        raise HostNameError(
            f"a machine can't be called {name}", hint="give the node another name: node rename"
        )
    write_all(run_dir, {FILE_NAME: name.encode() + b"\n"}, mode=0o644)


def take_wanted(run_dir: Path) -> str:
    """Take the wish away and return it. Raises HostNameError, FileError, OSError.

    Moved before it is read: a wish that comes meanwhile is a new file, and is seen afterwards.
    """
    taken = run_dir / f".{FILE_NAME}.taken"
    (run_dir / FILE_NAME).rename(taken)
    try:
        data = read_small(taken, _LIMIT)
    finally:
        taken.unlink(missing_ok=True)
    name = data.decode("ascii", errors="replace").removesuffix("\n")
    if not is_host_name(name):
        raise HostNameError(
            f"{name[:80]!r} can't be the name of a machine",
            hint="the supervisor writes only valid ones: who else can write there?",
        )
    return name


def apply_wanted(
    run_dir: Path, set_name: Callable[[str], None] = socket.sethostname
) -> tuple[str, str]:
    """Set the kernel's host name as wanted; return the old and the new one. The end with root."""
    name = take_wanted(run_dir)
    before = socket.gethostname()
    if name != before:
        set_name(name)
    return before, name
