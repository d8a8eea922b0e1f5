"""``skerry clock set-once``: what skerry-clock.service runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from skerry.errors import SkerryError


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``skerry clock``."""
    clock = subparsers.add_parser("clock", help="the machine's clock (for the unit that sets it)")
    actions = clock.add_subparsers(dest="action", metavar="ACTION", required=True)
    text = "set a clock that nothing keeps to the time that the members agree on"
    once = actions.add_parser("set-once", help=text, description=text)
    once.add_argument("request", type=Path, metavar="FILE", help="what the supervisor asks for")
    once.set_defaults(handler=_set_once)


def _set_once(arguments: argparse.Namespace) -> int:
    from appliance.clock import set_clock
    from appliance.machine import image_epoch
    from skerry.console import format_elapsed, note

    try:
        moved = set_clock(arguments.request, int(image_epoch() * 1000))
    except (SkerryError, OSError) as error:
        # Not a failure: a refused request must not be tried again and again by the path unit.
        note(f"the clock stays as it is: {error}")
        return 0
    note(f"the clock was put forward by {format_elapsed(moved / 1000)}, as the members agree")
    return 0
