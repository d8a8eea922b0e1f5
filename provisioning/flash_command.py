"""Handler of ``skerry flash``."""

from __future__ import annotations

import argparse
import re
import sys
import time

from provisioning.flash import Target, check_room, examine_image, examine_target, flash
from provisioning.operator_commands import read_token
from skerry import console
from skerry.errors import UsageError

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SECTOR = 512


def flash_handler(arguments: argparse.Namespace) -> None:
    """Check everything that can be checked, ask, then write."""
    token = read_token(arguments.token) if arguments.token is not None else None
    if token is not None:
        token.check_time(time.time())
    size = parse_size(arguments.size) if arguments.size else None
    target = examine_target(arguments.target, size=size)
    check_room(target, examine_image(arguments.image))
    if not arguments.yes and (target.is_device or target.path.exists()):
        _ask(target)
    with console.step(f"write {arguments.image} to {target.path}"):
        flash(arguments.image, target, token)
    if token is None:
        console.note("there is no token on it: its node will wait for one (skerry provision)")


def parse_size(text: str) -> int:
    """Return bytes for ``8G``, ``512M``, a plain number; whole sectors only."""
    match = re.fullmatch(r"([0-9]{1,15})([KMGT]?)(i?B)?", text, re.ASCII | re.IGNORECASE)
    size = int(match[1]) * _UNITS[match[2].upper()] if match else 0
    if not size or size % _SECTOR:
        raise UsageError(f"--size {text!r} is no size", hint="say 8G or 512M")
    return size


def _ask(target: Target) -> None:
    console.note(f"everything on {target.path} ({target.description}) will be lost")
    if not sys.stdin.isatty():
        raise UsageError("there is no terminal to ask on", hint="say --yes if you are sure")
    if input("type yes to go on: ").strip() != "yes":
        raise UsageError("nothing was written")
