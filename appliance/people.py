"""What people see of the node without logging in: console lines, and text above the login prompt.

Display and serial line show the same: agetty(8) prints the issue file, and prints it again when it
is told to reload, so a screen that was plugged in an hour after boot is up to date too.
"""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from pathlib import Path

from appliance.status import Status

# What a token looks like in any text, to be hidden from logs.
TOKEN_PATTERNS = (re.compile(r"SKERRY[0-9]{1,4}[-\u2010-\u2015]?[A-Z2-7]{16}[A-Z2-7=-]*", re.I),)
AGETTY_RELOAD = Path("/run/agetty.reload")
HOW_TO_PROVISION = (
    "put token.txt on the SKERRY partition of the boot medium, plug in a USB stick that is "
    "labelled SKERRY and holds it, or run: skerry provision TOKEN"
)


def headline(status: Status) -> str:
    """Return one line: the state, and why."""
    line = status.state
    if status.state == "unprovisioned":
        line += ": waiting for a token"
    if status.reasons:
        line += f" ({', '.join(dict.fromkeys(one.code for one in status.reasons))})"
    return f"{status.name} is {line}" if status.name else line


def lines_of(status: Status) -> tuple[str, ...]:
    """Return what a person in front of the machine should know; no figure that moves."""
    release = " ".join(
        part
        for part in (
            status.release.version,
            status.release.board,
            f"slot {status.release.slot}" if status.release.slot else "",
        )
        if part
    )
    lines = [f"Skerry {release}".rstrip()]
    if status.name:
        lines.append(f"This is {status.name} of network {status.network}: {status.state}")
        lines.append(f"Node id {status.node_id}")
        if status.overlay is not None and status.overlay.addresses:
            lines.append(f"Overlay address {', '.join(status.overlay.addresses)}")
    elif status.state == "unprovisioned":
        lines.append(f"Waiting for a token: {HOW_TO_PROVISION}")
    else:
        lines.append(f"This node is {status.state}")
    lines += [f"! {one.message}. {one.hint}" for one in status.reasons]
    lines += [
        f"! The token from {one.where} can't be used: {one.error}. {one.hint}"
        for one in status.refused_tokens
    ]
    return tuple(lines)


class Console:
    """Writes what changed to stdout (the unit sends it on to the console) and to the issue file."""

    def __init__(self, issue: Path, reload: Path = AGETTY_RELOAD) -> None:
        self._issue = issue
        self._reload = reload
        self._shown: tuple[str, ...] = ()

    def show(self, status: Status) -> bool:
        """Show a status; False: it says nothing new."""
        lines = lines_of(status)
        if lines == self._shown:
            return False
        for line in lines:
            if line not in self._shown:
                with suppress(OSError, ValueError):
                    sys.stdout.write(f"{line}\n")
        with suppress(OSError, ValueError):
            sys.stdout.flush()
        self._shown = lines
        # In place: the file is made for us in a directory that we can't write to.
        with suppress(OSError):
            self._issue.write_text(issue_text(lines))
            os.utime(self._reload)
        return True


def issue_text(lines: tuple[str, ...]) -> str:
    """Return the lines as agetty's issue format: a backslash would begin one of its commands."""
    return "".join(line.replace("\\", "\\\\") + "\n" for line in lines) + "\n"
