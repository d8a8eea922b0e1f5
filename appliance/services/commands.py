"""``skerry service``: what people type on a node."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from skerry.groups import Actions, group


def register(subparsers: Actions) -> None:
    """Add our sub-commands."""
    actions = group(subparsers, "service", "TCP and UDP services between nodes and clusters")
    expose = actions.add_parser("expose", help="offer a service of this node to the network")
    expose.add_argument("name", metavar="NAME", help="what it is reached by (a-z, 0-9, -)")
    expose.add_argument("--port", type=int, required=True, help="where others reach it")
    expose.add_argument("--protocol", choices=("tcp", "udp"), default="tcp", help="default: tcp")
    expose.add_argument(
        "--to",
        metavar="ADDRESS:PORT|k8s:NAMESPACE/SERVICE[:PORT]",
        help="where it really is (default: this node, the same port)",
    )
    expose.add_argument(
        "--probe", action="store_true", help="it has to answer an empty datagram (udp only)"
    )
    _places(expose)
    expose.set_defaults(handler=_handler("expose"))
    connect = actions.add_parser("connect", help="reach a service from this node and its pods")
    connect.add_argument("name", metavar="NAME", nargs="?")
    connect.add_argument(
        "--cluster",
        metavar="CLUSTER",
        help="all that members of this cluster offer, as it comes and goes ('': that without name)",
    )
    connect.add_argument("--port", type=int, metavar="LOCAL", help="instead of the service's own")
    connect.add_argument(
        "--from",
        dest="nodes",
        action="append",
        default=[],
        metavar="NODE",
        help="only if this node (its name or id) offers it; repeatable",
    )
    _places(connect)
    connect.set_defaults(handler=_handler("connect"))
    remove = actions.add_parser("rm", help="offer or reach a service no longer")
    remove.add_argument("name", metavar="NAME", nargs="?")
    remove.add_argument("--cluster", metavar="CLUSTER", help="of this cluster, what was not named")
    _places(remove)
    remove.set_defaults(handler=_handler("remove"))
    ls = actions.add_parser("ls", help="the services of the network, and how they are")
    ls.add_argument("--json", action="store_true", help="machine-readable output")
    _places(ls)
    ls.set_defaults(handler=_handler("ls"))
    run = actions.add_parser("run", help="keep them so (the unit skerry-services does)")
    _places(run)
    run.add_argument(
        "--kubernetes",
        type=Path,
        default=Path("/run/skerry-cluster/services.json"),
        help=argparse.SUPPRESS,
    )
    run.set_defaults(handler=_handler("run"))


def _places(parser: argparse.ArgumentParser) -> None:
    socket = os.environ.get("SKERRY_SOCKET", "/run/skerry/api.sock")
    parser.add_argument("--socket", type=Path, default=Path(socket), help=argparse.SUPPRESS)
    data, run = (os.environ.get(f"SKERRY_SERVICES_{one}") for one in ("DATA", "RUN"))
    parser.add_argument(
        "--data-dir", type=Path, default=Path(data or "/data/services"), help=argparse.SUPPRESS
    )
    parser.add_argument(
        "--run-dir", type=Path, default=Path(run or "/run/skerry-services"), help=argparse.SUPPRESS
    )


def _handler(name: str) -> Callable[[argparse.Namespace], int]:
    def run(arguments: argparse.Namespace) -> int:
        from appliance.services import handlers

        handler = getattr(handlers, name)
        return int(handler(arguments) or 0)

    return run
