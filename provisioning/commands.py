"""``skerry network``, ``skerry token``, ``skerry flash``: what the operator types.

Only parsers are here; each handler imports what it needs when it runs, since every start of the
supervisor passes this way too.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from provisioning.settings import Explained, explanations
from skerry.groups import group

_WHICH = "its text, a file that holds it, or - for standard input"


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add our sub-commands."""
    _register_network(subparsers)
    _register_token(subparsers)
    _register_flash(subparsers)


def _register_network(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    actions = group(subparsers, "network", "make networks and look at them")
    new = actions.add_parser("new", help="make a network: a root key and its settings")
    new.add_argument("name", help="what the network is called (a-z, 0-9, -)")
    new.add_argument("--dir", type=Path, help="directory to make (default: among your networks)")
    new.add_argument("--passphrase", action="store_true", help="ask for one to seal the root key")
    new.add_argument("--passphrase-file", type=Path, help="file with the passphrase")
    _add_json(new)
    options = new.add_argument_group("settings of the network")
    for setting in explanations():
        _add_setting(options, setting)
    new.set_defaults(handler=_network_new)
    show = actions.add_parser("show", help="say what a network is; no secrets")
    show.add_argument("network", nargs="?", help="its directory or name")
    _add_json(show)
    show.set_defaults(handler=_network_show)


def _add_setting(group: argparse._ArgumentGroup, setting: Explained) -> None:
    flag = f"--{setting.name.replace('_', '-')}"
    keywords: dict[str, Any] = {"dest": f"setting_{setting.name}", "default": argparse.SUPPRESS}
    if setting.kind is bool:
        flag = flag.replace("--", "--no-") if setting.default else flag
        keywords |= {"action": "store_const", "const": not setting.default}
        keywords["help"] = f"turn off: {setting.help}" if setting.default else setting.help
    elif setting.kind is tuple:
        flag = flag.removesuffix("s")
        keywords |= {"action": "append", "metavar": "VALUE", "help": f"{setting.help}; repeatable"}
    else:
        default = "none" if setting.default is None else setting.default
        keywords |= {"type": setting.kind, "metavar": "VALUE"}
        keywords["help"] = f"{setting.help} (default: {default})"
    group.add_argument(flag, **keywords)


def _register_token(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    actions = group(subparsers, "token", "make tokens and look at them")
    new = actions.add_parser("new", help="make a token: what a node needs to join")
    new.add_argument("--network", help="directory or name of the network (default: the only one)")
    new.add_argument(
        "--role",
        action="append",
        choices=("auto", "server", "agent", "none"),
        help="Kubernetes role that its nodes may take; repeatable (default: auto)",
    )
    new.add_argument(
        "--cluster",
        metavar="NAME",
        help="its nodes are a cluster of their own (the network needs --cluster-bits)",
    )
    new.add_argument(
        "--founder", action="store_true", help="its node may found the cluster (one node only)"
    )
    new.add_argument("--label", action="append", default=[], metavar="KEY=VALUE", help="repeatable")
    new.add_argument(
        "--expires",
        default="30d",
        metavar="WHEN",
        help="30d, 12h, a date, or never: then it lets nobody new in (default: 30d)",
    )
    new.add_argument("--count", type=int, help="how many nodes it is meant for")
    new.add_argument("--passphrase-file", type=Path, help="file with the root key's passphrase")
    _add_json(new)
    new.set_defaults(handler=_token_new)
    show = actions.add_parser("show", help="say what is in a token; no secrets")
    show.add_argument("token", help=_WHICH)
    _add_json(show)
    show.set_defaults(handler=_token_show)
    code = actions.add_parser("qr", help="draw a token as a QR code")
    code.add_argument("token", help=_WHICH)
    target = code.add_mutually_exclusive_group()
    target.add_argument("--png", type=Path, metavar="FILE", help="write a PNG file instead")
    target.add_argument("--svg", type=Path, metavar="FILE", help="write an SVG file instead")
    code.set_defaults(handler=_token_qr)
    # What units run on a node, as root; people have no use for it, so it is not listed.
    media = actions.add_parser("import-media")
    media.add_argument("device", type=Path)
    media.add_argument("--inbox", type=Path, default=Path("/run/skerry/inbox"))
    media.set_defaults(handler=_import_media)
    wipe = actions.add_parser("wipe-media")
    wipe.add_argument("device", type=Path)
    wipe.set_defaults(handler=_wipe_media)


def _register_flash(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    flash = subparsers.add_parser("flash", help="write an image to a disk, with a token on it")
    flash.add_argument("image", type=Path, help="disk image: raw, .xz, .gz or .zst")
    flash.add_argument("target", type=Path, help="block device (the whole disk) or file")
    flash.add_argument("--token", help=_WHICH)
    flash.add_argument("--size", help="size of a target file, such as 8G (default: the image's)")
    flash.add_argument("--yes", action="store_true", help="do not ask before overwriting")
    flash.set_defaults(handler=_flash)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="machine-readable output")


def _network_new(arguments: argparse.Namespace) -> None:
    from provisioning import operator_commands

    operator_commands.network_new(arguments)


def _network_show(arguments: argparse.Namespace) -> None:
    from provisioning import operator_commands

    operator_commands.network_show(arguments)


def _token_new(arguments: argparse.Namespace) -> None:
    from provisioning import operator_commands

    operator_commands.token_new(arguments)


def _token_show(arguments: argparse.Namespace) -> None:
    from provisioning import operator_commands

    operator_commands.token_show(arguments)


def _token_qr(arguments: argparse.Namespace) -> None:
    from provisioning import operator_commands

    operator_commands.token_qr(arguments)


def _import_media(arguments: argparse.Namespace) -> None:
    from provisioning.media import import_media
    from skerry import console

    if path := import_media(arguments.device, arguments.inbox):
        console.note(f"token of {arguments.device} handed to the supervisor as {path.name}")
    else:
        console.note(f"{arguments.device} holds no token")


def _wipe_media(arguments: argparse.Namespace) -> None:
    from provisioning.media import wipe_media
    from skerry import console

    if wipe_media(arguments.device):
        console.note(f"the token on {arguments.device} was used and is erased")


def _flash(arguments: argparse.Namespace) -> None:
    from provisioning import flash_command

    flash_command.flash_handler(arguments)
