"""``skerry node | revoke | token ls, rotate | network sync``: what the operator types.

Only parsers are here; each handler imports what it needs when it runs, since every start of the
supervisor passes this way too.
"""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Callable
from pathlib import Path

from skerry.groups import Actions, group

_NODE = "its name, its id, or the beginning of its id"
_GRANT = "a grant's id (or its beginning: skerry token ls), or a token of it: text, file, -"


def register(subparsers: Actions) -> None:
    """Add our sub-commands."""
    _register_node(
        group(
            subparsers,
            "node",
            "the network's nodes: list, name, label, address, range, drain, remove",
        )
    )
    _register_revoke(group(subparsers, "revoke", "put a node or a grant out, for ever"))
    _register_token(group(subparsers, "token", "make tokens and look at them"))
    _register_ledger(group(subparsers, "ledger", "read, write and watch the network's ledger"))
    _register_cluster(group(subparsers, "cluster", "Kubernetes on this node, and in this network"))
    sync = group(subparsers, "network", "make networks and look at them").add_parser(
        "sync", help="publish what waits in the outbox, and learn the network's latest epoch"
    )
    _common(sync, "token.network_sync")


def _register_ledger(actions: Actions) -> None:
    # What an operator's command runs on a node over ssh (`ssh`); people have no use for them.
    for name in ("fetch", "publish"):
        parser = actions.add_parser(name)
        if name == "publish":
            parser.add_argument("records", metavar="-", choices=("-",))
        default = os.environ.get("SKERRY_SOCKET", "/run/skerry/api.sock")
        parser.add_argument("--socket", type=Path, default=Path(default))
        parser.set_defaults(handler=_handler(f"remote.{name}"))


def _register_node(actions: Actions) -> None:
    ls = actions.add_parser("ls", help="the members, as one of them sees them")
    ls.add_argument("--all", action="store_true", help="the revoked ones too")
    _common(ls, "node.node_ls", signs=False)
    rename = _about_node(actions, "rename", "give a node another name")
    rename.add_argument("name", metavar="NAME", help="a-z, 0-9, -")
    _common(rename, "node.node_rename")
    label = _about_node(actions, "label", "set and take away labels of a node")
    label.add_argument("labels", metavar="KEY=VALUE|KEY-", nargs="+", help="KEY- takes one away")
    _common(label, "node.node_label")
    address = _about_node(actions, "address", "fix a node's overlay address")
    address.add_argument("address", metavar="IP|auto", help="auto: it finds one itself again")
    _common(address, "node.node_address")
    pods = _about_node(
        actions,
        "range",
        "fix a node's pod range, or show it",
        "The range that the node gives its pods, in the place of the one that it found "
        "itself. Without a range: which one it has.",
    )
    pods.add_argument("range", metavar="CIDR", nargs="?", help="like 10.244.7.0/24")
    pods.add_argument("--auto", action="store_true", help="it finds one itself again")
    _common(pods, "node.node_range")
    drain = _about_node(
        actions,
        "drain",
        "have a node's pods go elsewhere, before it is removed or worked on",
        "No more pods come to the node, and those that it has are evicted: they end in "
        "their own time and start on other nodes; PodDisruptionBudgets hold for ten minutes. The "
        "server that leads does it, while the node goes on working. Said again, the command tells "
        "how many are left. Then: skerry node remove.",
    )
    drain.add_argument("--undo", action="store_true", help="the node may have pods again")
    _common(drain, "drain.node_drain")
    remove = _about_node(
        actions,
        "remove",
        "put out a node that is in your own hands",
        "The node is out for ever, as by `skerry revoke node`, but the network keeps "
        "its secret: for a machine that is broken or wiped. If somebody else may have it, "
        "revoke it.",
    )
    _final(remove, yes="even if it is the node asked")
    _common(remove, "node.node_remove")


def _register_cluster(actions: Actions) -> None:
    found = _about_node(
        actions,
        "found",
        "name the node that founds the Kubernetes cluster",
        "For a network that has no founder's token and was not told how many nodes to "
        "expect. One node, once: a cluster is never founded twice by itself.",
    )
    _common(found, "cluster.cluster_found")
    servers = actions.add_parser("servers", help="how many servers the cluster is to have: 1 or 3")
    servers.add_argument("servers", metavar="N", type=int, choices=(1, 3), help="1 or 3")
    _common(servers, "cluster.cluster_servers")


def _register_revoke(actions: Actions) -> None:
    node = _about_node(
        actions,
        "node",
        "put a node out and begin a new secret epoch",
        "Final: there is no way back for this node's identity. With a new token the "
        "machine comes in again as a new node.",
    )
    _final(node, yes="even if it is the node asked")
    _common(node, "node.revoke_node")
    grant = actions.add_parser(
        "grant",
        help="put out a grant and every node that came in under it",
        description="Final, for the grant and its nodes. To let nobody new in and keep those who "
        "are in: skerry token rotate.",
    )
    grant.add_argument("grant", metavar="GRANT|TOKEN", help=_GRANT)
    _final(grant, yes="do not ask")
    _common(grant, "token.revoke_grant")


def _register_token(actions: Actions) -> None:
    ls = actions.add_parser("ls", help="the grants: made here, and used in the network")
    _common(ls, "token.token_ls", signs=False)
    rotate = actions.add_parser(
        "rotate",
        help="make a token in place of another, which lets nobody new in from then on",
        description="The new token has the same permissions and the network's present secret. "
        "Nodes that came in by the old one stay in.",
    )
    rotate.add_argument(
        "grant", metavar="TOKEN|GRANT", nargs="?", help=f"{_GRANT}; default: the only open one"
    )
    rotate.add_argument(
        "--expires",
        metavar="WHEN",
        help="30d, a date, never (default: as long as the old one lasted)",
    )
    _common(rotate, "token.token_rotate")


def _about_node(
    actions: Actions, name: str, words: str, more: str | None = None
) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=words, description=more)
    parser.add_argument("node", metavar="NODE", help=_NODE)
    return parser


def _final(parser: argparse.ArgumentParser, *, yes: str) -> None:
    parser.add_argument("--reason", default="", metavar="TEXT", help="kept with it, for people")
    parser.add_argument("--yes", action="store_true", help=yes)


def _common(parser: argparse.ArgumentParser, name: str, *, signs: bool = True) -> None:
    parser.add_argument(
        "--network", help="directory or name of the network (default: the only one)"
    )
    parser.add_argument(
        "--via",
        metavar="WAY",
        help="the node to go through: ssh://USER@HOST, the path of a local API's socket, or "
        "HOST[:PORT] of the overlay (UDP) (default: the node on this machine)",
    )
    what = "passphrase" if signs else "passphrase, if the way needs it"
    parser.add_argument("--passphrase-file", type=Path, help=f"file with the root key's {what}")
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.set_defaults(handler=_handler(name))


def _handler(name: str) -> Callable[[argparse.Namespace], int]:
    module, _, function = name.partition(".")

    def run(arguments: argparse.Namespace) -> int:
        place = importlib.import_module(f"appliance.operator.{module}_handlers")
        handler: Callable[[argparse.Namespace], int] = getattr(place, function)
        return handler(arguments)

    return run
