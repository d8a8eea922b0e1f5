"""``skerry route``: which way a packet would go, and why, for people."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from typing import Any

# Imports stay few: these commands start often, and slowly on small boards.
Document = dict[str, Any]


def register(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
    add_socket: Callable[[argparse.ArgumentParser], None],
) -> None:
    """Add ``skerry route``; ``add_socket`` adds the option that says where the supervisor is."""
    text = "tell which node owns an address, by which entry, and on which path it is reached"
    parser = subparsers.add_parser(
        "route", help=text, description=f"{text}. Exit status 1: nobody owns it."
    )
    parser.add_argument(
        "address",
        metavar="ADDRESS|NAME",
        help="an overlay or pod address, or a member's name or id",
    )
    parser.add_argument("--json", action="store_true", help="the answer, for machines")
    add_socket(parser)
    parser.set_defaults(handler=_route)


def _route(arguments: argparse.Namespace) -> int:
    from urllib.parse import quote

    from appliance.api.client import call

    asked = quote(os.fsencode(arguments.address), safe="")
    document = call("GET", f"/v1/route?address={asked}", socket_path=arguments.socket)
    if arguments.json:
        import json

        print(json.dumps(document, indent=2))
    else:
        print(draw(document))
    return 0 if document["owner"] else 1


def draw(document: Document) -> str:
    """Return the answer as lines of text."""
    owner = document["owner"]
    if owner:
        # A supervisor from before the ranges does not say.
        pods = document.get("pod_range")
        what = f"in the pod range {pods} of " if pods else ""
        lines = [f"{document['address']} is {what}{owner['name']} ({owner['node_id']})"]
    else:
        why, address = document["why"], document["address"]
        lines = [why if why.startswith(address) else f"{address} is nobody's: {why}"]
    for one in document["evidence"]:
        lines += _because(one, "by ")
    for one in document["contested"]:
        lines += _because(one, "not")
    if owner:
        lines.append(f"  path  {_path(document['path'])}")
    return "\n".join(lines)


def _because(one: Document, mark: str) -> Iterator[str]:
    who = one["who"]["name"]
    when = _moment(one["written"])
    match one["kind"]:
        case "fixed":
            said = f"the operator fixed it for {who}, {when}"
        case "certified":
            said = f"it follows from the key of {who}, whose certificate is here since {when}"
        case _:
            attempt = one["attempt"]
            rule = "as the operator said" if attempt is None else f"its attempt {attempt}"
            said = f"{who} claims it, {rule}, {when}"
    if mark == "not":
        said += "; outranked"
    yield f"  {mark}   {said}"
    yield f"        {one['bucket']}/{one['key']}"
    for seen in one["witnesses"]:
        clock = ", without a clock" if seen["guessed"] else ""
        yield f"        seen by {seen['who']['name']}, {_moment(seen['written'])}{clock}"
    if one["kind"] == "claimed" and not one["witnesses"]:
        yield "        seen by no other member so far"


def _path(path: Document) -> str:
    match path["kind"]:
        case "self":
            return f"this node itself, {path['interface']}" if path["interface"] else "this node"
        case "direct":
            return f"direct, {path['interface']} to {_end(path)}: up{_quality(path)}"
        case "down":
            return f"{path['interface']} to {_end(path)}: no answer now{_quality(path)}"
        case "coordination":
            state = f"up{_quality(path)}" if path["up"] else "no answer now"
            return f"no tunnel (vpn is off); the member is at {_end(path)}: {state}"
        case _:
            return "none: this node has not met that member yet"


def _end(path: Document) -> str:
    where = path["endpoint"] or "(no endpoint)"
    return f"{where} ({path['via']})" if path["via"] else where


def _quality(path: Document) -> str:
    from appliance.screen import age

    said = ""
    if path["rtt_ms"] is not None:
        said += f", {path['rtt_ms']:.1f} ms"
    if path["handshake_age_s"] is not None:
        said += f", handshake {age(path['handshake_age_s'])} ago"
    return said


def _moment(written: str) -> str:
    return f"{written[:10]} {written[11:19]} UTC"
