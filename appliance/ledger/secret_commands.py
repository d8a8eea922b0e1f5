"""``skerry secret ...``: the network's secrets for people, over the local API."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from appliance.ledger.value_files import read_value_file
from skerry.errors import UsageError

# Imports stay few: these commands start often, and slowly on small boards.
VALUE_MAX = 3072
ROLES = ("server", "agent", "none")

Document = dict[str, Any]


def register(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
    add_socket: Callable[[argparse.ArgumentParser], None],
) -> None:
    """Add ``skerry secret``; ``add_socket`` adds the option that says where the supervisor is."""
    secret = subparsers.add_parser(
        "secret", help="leave secrets for the nodes of a role; values need root"
    )
    actions = secret.add_subparsers(dest="action", metavar="ACTION", required=True)

    def add(
        name: str, handler: Callable[[argparse.Namespace], int | None], text: str
    ) -> argparse.ArgumentParser:
        parser = actions.add_parser(name, help=text, description=text)
        add_socket(parser)
        parser.add_argument("--json", action="store_true", help="the answer, for machines")
        parser.set_defaults(handler=handler)
        return parser

    put = add("put", _put, "put a secret's (next) value (on a server)")
    put.add_argument("name", metavar="NAME")
    put.add_argument(
        "value",
        metavar="-|@FILE",
        help=f"where the value is, at most {VALUE_MAX} bytes: others see the words of a call",
    )
    put.add_argument(
        "--role",
        action="append",
        choices=ROLES,
        help="who may read it besides servers; may be given more than once",
    )
    add("get", _get, "print a secret's value").add_argument("name", metavar="NAME")
    add("ls", _ls, "list the secrets, who may read them, and which are exposed")
    add("rm", _rm, "end a secret for all members (on a server)").add_argument(
        "name", metavar="NAME"
    )


def _put(arguments: argparse.Namespace) -> None:
    from skerry.console import note

    roles = ",".join(arguments.role or ["server"])
    answer = _call(arguments, "PUT", f"?roles={roles}", _read_value(arguments.value))
    if arguments.json:
        _print_json(answer)
        return
    note(f"{answer['name']}, generation {answer['generation']}, for {', '.join(answer['roles'])}")


def _get(arguments: argparse.Namespace) -> None:
    answer = _call(arguments, "GET")
    if arguments.json:
        _print_json(answer)
        return
    from base64 import b64decode

    text = answer["encoding"] == "utf-8"
    value = answer["value"].encode() if text else b64decode(answer["value"])
    if sys.stdout.isatty():
        if not text or not answer["value"].replace("\n", "").isprintable():
            raise UsageError(
                f"the value is {len(value)} bytes that are no text: not for a terminal",
                hint="send it elsewhere (`... > FILE`), or use --json",
            )
        value += b"" if value.endswith(b"\n") else b"\n"
    sys.stdout.buffer.write(value)


def _ls(arguments: argparse.Namespace) -> None:
    from appliance.api.client import call

    document = call("GET", "/v1/secret", socket_path=arguments.socket)
    if arguments.json:
        _print_json(document)
        return
    from skerry.console import note, table

    rows = [
        (
            one["name"],
            str(one["generation"]),
            ", ".join(one["roles"]),
            one["written"][:16].replace("T", " "),
            _writer(one),
            _remarks(one),
        )
        for one in document["secrets"]
    ]
    print(table(("secret", "generation", "for", "written", "by", "remarks"), rows))
    if any(one["exposed"] for one in document["secrets"]):
        note(
            "exposed: a node that is out has had the value. Change what it opens, then put the "
            "new one: skerry secret put NAME -"
        )


def _rm(arguments: argparse.Namespace) -> None:
    from skerry.console import note

    answer = _call(arguments, "DELETE")
    if arguments.json:
        _print_json(answer)
    else:
        note(f"{answer['name']} is no secret any more")


def _writer(one: Document) -> str:
    first = one["written_by"][0]
    name = str(first["name"] or first["node_id"])
    return f"{name}, for one that is out" if one.get("taken_over") else name


def _remarks(one: Document) -> str:
    found = []
    if one["exposed"]:
        found.append("exposed")
    if one["missing"]:
        found.append(f"{one['missing']} without it so far")
    if not one["readable"]:
        held = one.get("held_generation")
        found.append("not held here" if held is None else f"generation {held} held here")
    if one["unreadable_from"]:
        names = (str(who["name"] or who["node_id"]) for who in one["unreadable_from"])
        found.append(f"what {', '.join(names)} left here is not what was promised")
    return "; ".join(found)


def _call(
    arguments: argparse.Namespace, method: str, query: str = "", body: bytes | None = None
) -> Document:
    from urllib.parse import quote

    from appliance.api.client import call

    name = quote(os.fsencode(arguments.name), safe="")
    return call(method, f"/v1/secret/{name}{query}", body, socket_path=arguments.socket)


def _read_value(text: str) -> bytes:
    """Return the bytes that the argument leads to; their size is checked before they travel."""
    if text == "-":
        value = sys.stdin.buffer.read(VALUE_MAX + 1)
    elif text.startswith("@"):
        value = read_value_file(Path(text[1:]), VALUE_MAX)
    else:
        # Not even its beginning is repeated: it may be the secret.
        raise UsageError(
            "a secret is not given in the call itself, where other users and the shell's history "
            "see it",
            hint="use - for stdin, or @FILE",
        )
    if not value:
        raise UsageError("the value is empty", hint="to end a secret: skerry secret rm NAME")
    if len(value) > VALUE_MAX:
        raise UsageError(
            f"the value has more than {VALUE_MAX} bytes",
            hint="keep a key in the secret, and what it opens elsewhere",
        )
    return value


def _print_json(document: Document) -> None:
    import json

    print(json.dumps(document, indent=2))
