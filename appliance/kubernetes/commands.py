"""``skerry cluster run | status`` and ``skerry kubeconfig``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from skerry.groups import Actions, group


def register(subparsers: Actions) -> None:
    """Add our sub-commands."""
    actions = group(subparsers, "cluster", "Kubernetes on this node, and in this network")
    run = actions.add_parser("run", help="the cluster agent (the unit skerry-cluster does)")
    run.add_argument("--debug", action="store_true", help="log more")
    run.add_argument(
        "--pods-only",
        action="store_true",
        help="pod networking alone: Kubernetes is somebody else's (docs/image.md)",
    )
    run.set_defaults(handler=_run)
    status = actions.add_parser("status", help="what Kubernetes does on this node")
    status.add_argument("--json", action="store_true", help="the whole document, for machines")
    status.add_argument(
        "--run-dir",
        type=Path,
        default=Path(os.environ.get("SKERRY_CLUSTER_RUN", "/run/skerry-cluster")),
        help=argparse.SUPPRESS,
    )
    status.set_defaults(handler=_status)
    config = subparsers.add_parser(
        "kubeconfig",
        help="the administrator's access to the cluster",
        description="On a server as root: the engine's own. On the operator's machine: what a "
        "server sealed to the network's root key, fetched like the ledger.",
    )
    config.add_argument("--output", type=Path, metavar="FILE", help="write it there, mode 0600")
    config.add_argument(
        "--server",
        metavar="ADDRESS",
        help="where the API is reached from this machine (default: as the server says)",
    )
    config.add_argument(
        "--cluster", metavar="NAME", help="of several on one overlay ('': that without a name)"
    )
    config.add_argument(
        "--network", help="directory or name of the network (default: the only one)"
    )
    config.add_argument(
        "--via",
        metavar="WAY",
        help="the node to go through: ssh://USER@HOST, the path of a local API's socket, or "
        "HOST[:PORT] of the overlay (UDP) (default: the node on this machine)",
    )
    config.add_argument("--passphrase-file", type=Path, help="file with the root key's passphrase")
    config.set_defaults(handler=_kubeconfig)


def _run(arguments: argparse.Namespace) -> int:
    from appliance.kubernetes.launch import run
    from appliance.kubernetes.places import Places

    return run(Places(pods_only=arguments.pods_only), debug=arguments.debug)


def _status(arguments: argparse.Namespace) -> int:
    from appliance.kubernetes.status_words import show

    return show(arguments.run_dir / "status.json", as_json=arguments.json)


def _kubeconfig(arguments: argparse.Namespace) -> int:
    from appliance.kubernetes.fetching import fetch

    return fetch(arguments)
