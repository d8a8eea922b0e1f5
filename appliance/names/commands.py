"""``skerry names ...``: what root units do; nothing that a person types."""

from __future__ import annotations

import argparse
from pathlib import Path

_RUN_DIR = Path("/run/skerry")


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands of skerry-names.service and skerry-hostname.service."""
    names = subparsers.add_parser("names", help="members' names and this machine's (units do this)")
    actions = names.add_subparsers(dest="action", metavar="ACTION", required=True)

    link = actions.add_parser("link", help="have systemd-resolved ask the supervisor, for one link")
    link.add_argument("link", metavar="LINK", help="the overlay's interface")
    link.set_defaults(handler=_link)

    machine = actions.add_parser("machine", help="name the machine as the supervisor wants it")
    machine.set_defaults(handler=_machine)

    for parser in (link, machine):
        parser.add_argument("--run-dir", type=Path, default=_RUN_DIR, help=argparse.SUPPRESS)


def _link(arguments: argparse.Namespace) -> None:
    from appliance.names.link import configure
    from skerry.console import note

    configure(arguments.link, arguments.run_dir)
    note(f"systemd-resolved asks the supervisor about members of {arguments.link}")


def _machine(arguments: argparse.Namespace) -> None:
    from appliance.names.hostname import apply_wanted
    from skerry.console import note

    before, name = apply_wanted(arguments.run_dir)
    note(f"this machine is called {name}" + (f", no longer {before}" if before != name else ""))
