"""``skerry lab up | down | status | shell | logs``."""

from __future__ import annotations

import argparse
from pathlib import Path


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add our sub-command."""
    lab = subparsers.add_parser("lab", help="machines in QEMU that show the whole thing")
    actions = lab.add_subparsers(dest="action", metavar="ACTION", required=True)

    up = actions.add_parser("up", help="boot nodes from one image and show them talk")
    up.add_argument("--nodes", type=int, default=2, metavar="N", help="how many (default: 2)")
    up.add_argument("--image", type=Path, metavar="FILE", help="instead of building one")
    up.add_argument(
        "--timeout",
        type=float,
        default=900,
        metavar="SECONDS",
        help="for each stage (default: 900)",
    )
    up.add_argument(
        "--no-cluster",
        dest="cluster",
        action="store_false",
        help="the overlay alone: no Kubernetes on the nodes",
    )
    up.add_argument("--json", action="store_true", help="the result as JSON on stdout")
    up.set_defaults(handler=_up)

    down = actions.add_parser("down", help="end the machines")
    down.add_argument(
        "--graceful", type=float, default=0, metavar="SECONDS", help="let them shut down first"
    )
    down.set_defaults(handler=_down)

    status = actions.add_parser("status", help="say what the machines are doing")
    status.add_argument("--json", action="store_true", help="as JSON on stdout")
    status.set_defaults(handler=_status)

    shell = actions.add_parser("shell", help="a root shell in a machine; Ctrl-] leaves")
    shell.add_argument("node", type=int, nargs="?", default=1, help="from 1 (default: 1)")
    shell.set_defaults(handler=_shell)

    logs = actions.add_parser("logs", help="the journal of a machine")
    logs.add_argument("node", type=int, nargs="?", default=1, help="from 1 (default: 1)")
    logs.add_argument("-f", "--follow", action="store_true", help="go on with what comes")
    logs.add_argument("-u", "--unit", help="only this unit")
    logs.add_argument("-n", "--lines", type=int, help="only the last so many lines")
    logs.add_argument("-b", "--boot", nargs="?", const="0", help="only a boot (default: this one)")
    logs.set_defaults(handler=_logs)


def _up(arguments: argparse.Namespace) -> int:
    from qemu import handlers

    return handlers.up(arguments)


def _down(arguments: argparse.Namespace) -> int:
    from qemu import handlers

    return handlers.down(arguments)


def _status(arguments: argparse.Namespace) -> int:
    from qemu import handlers

    return handlers.status(arguments)


def _shell(arguments: argparse.Namespace) -> int:
    from qemu import handlers

    return handlers.shell(arguments)


def _logs(arguments: argparse.Namespace) -> int:
    from qemu import handlers

    return handlers.logs(arguments)
