"""``skerry ledger ...``: the network's ledger for people, over the local API."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.ledger.value_files import read_value_file
from skerry.errors import UsageError
from skerry.groups import group

# Imports stay few: these commands start often, and slowly on small boards.
if TYPE_CHECKING:
    from appliance.api.client import StreamEvent

VALUE_MAX = 4096
AGAIN_SECONDS = 1.0
DUMP_TIMEOUT_SECONDS = 300.0
_SHOWN = 60

Document = dict[str, Any]


def register(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
    add_socket: Callable[[argparse.ArgumentParser], None],
) -> None:
    """Add ``skerry ledger``; ``add_socket`` adds the option that says where the supervisor is."""
    actions = group(subparsers, "ledger", "read, write and watch the network's ledger")

    def add(name: str, handler: Callable[[argparse.Namespace], int | None], text: str) -> _Parser:
        parser = actions.add_parser(name, help=text, description=text)
        add_socket(parser)
        parser.set_defaults(handler=handler)
        return parser

    get = add("get", _get, "print the value of a key; exit 1 if it has none")
    _add_slot(get)
    _add_json(get, "the whole entry")

    put = add("put", _put, "write a value as this node")
    _add_slot(put)
    put.add_argument(
        "value",
        metavar="VALUE|-|@FILE",
        help=f"the value (- reads it from stdin), at most {VALUE_MAX} bytes",
    )
    put.add_argument("--lease", metavar="TIME", help="until when it counts: 90s, 1h, 2027-01-31")
    _add_json(put, "the entry as it was written")

    delete = add("del", _del, "take a key's value away, whoever wrote it")
    _add_slot(delete)
    _add_json(delete, "the tombstone")

    entries = add("ls", _ls, "list what counts in a bucket")
    entries.add_argument("bucket", metavar="BUCKET")
    entries.add_argument("prefix", metavar="PREFIX", nargs="?", default="")
    _add_json(entries, "the entries")

    watch = add("watch", _watch, "show changes as they come (Ctrl-C ends it)")
    watch.add_argument("bucket", metavar="BUCKET", nargs="?", help="default: all")
    watch.add_argument("prefix", metavar="PREFIX", nargs="?", default="")
    _add_json(watch, "one JSON document a line")

    dump = add("dump", _dump, "print all that this node holds, tombstones included")
    _add_json(dump, "every record, for a backup")

    buckets = add("buckets", _buckets, "list the buckets and who may write them")
    _add_json(buckets, "the buckets and their rules")


_Parser = argparse.ArgumentParser


def _add_slot(parser: _Parser) -> None:
    parser.add_argument("bucket", metavar="BUCKET")
    parser.add_argument("key", metavar="KEY", help="in `service` a NAME of this node's own")


def _add_json(parser: _Parser, what: str) -> None:
    parser.add_argument("--json", action="store_true", help=f"{what}, for machines")


def _get(arguments: argparse.Namespace) -> int:
    from appliance.api.client import ApiError
    from skerry.console import note

    try:
        entry = _call(arguments, "GET", _slot(arguments))
    except ApiError as error:
        if error.status != 404:
            raise
        known = _call(arguments, "GET", "/v1/ledger")["buckets"]
        if all(one["name"] != arguments.bucket for one in known):
            raise
        note(f"{arguments.bucket}/{arguments.key} has no value")
        return 1
    if arguments.json:
        _print_json(entry)
        return 0
    value = _value(entry)
    terminal = sys.stdout.isatty()
    if terminal and entry["encoding"] != "utf-8":
        raise UsageError(
            f"the value is {len(value)} bytes that are no text: not for a terminal",
            hint="send it elsewhere (`... > FILE`), or use --json",
        )
    sys.stdout.buffer.write(value)
    if terminal and not value.endswith(b"\n"):
        print()
    return 0


def _put(arguments: argparse.Namespace) -> None:
    from skerry.console import note

    path = _slot(arguments)
    if arguments.lease is not None:
        path += f"?lease={_lease_seconds(arguments.lease)}"
    entry = _call(arguments, "PUT", path, _read_value(arguments.value))
    if arguments.json:
        _print_json(entry)
        return
    until = f", until {entry['expires']}" if entry["expires"] else ""
    note(f"{entry['bucket']}/{entry['key']}: {len(_value(entry))} bytes{until}")


def _del(arguments: argparse.Namespace) -> None:
    from skerry.console import note

    entry = _call(arguments, "DELETE", _slot(arguments))
    if arguments.json:
        _print_json(entry)
    else:
        note(f"{entry['bucket']}/{entry['key']} has no value any more")


def _ls(arguments: argparse.Namespace) -> None:
    from appliance.screen import age
    from skerry.console import table

    path = _with_prefix(_path(arguments.bucket), arguments.prefix)
    document = _call(arguments, "GET", path)
    if arguments.json:
        _print_json(document)
        return
    now = time.time()
    rows = [
        (one["key"], _brief(one), age(now - _seconds(one["written"])), _owner(one), _until(one))
        for one in document["entries"]
    ]
    print(table(("key", "value", "age", "written by", "until"), rows))


def _watch(arguments: argparse.Namespace) -> None:
    for event in _followed(arguments):
        if arguments.json:
            _print_json({"event": event.kind, **event.data}, indent=None)
            continue
        at = time.strftime("%H:%M:%S")
        where = f"{event.data.get('bucket')}/{event.data.get('key')}"
        match event.kind:
            case "put":
                said = f"{where} = {_brief(event.data)}  ({_owner(event.data)})"
            case "delete" if "owner" in event.data:
                said = f"{where} deleted  ({_owner(event.data)})"
            case "delete":
                said = f"{where} ended"
            case "ready":
                said = "-- all that is there; now what changes --"
            case _:
                said = "-- too much at once; all of it again --"
        print(f"{at} {said}", flush=True)


def _followed(arguments: argparse.Namespace) -> Iterator[StreamEvent]:
    """Yield events for ever; a supervisor that goes away is waited for."""
    from appliance.api.client import ApiError, stream
    from skerry.console import note

    path = "/v1/ledger" if arguments.bucket is None else _path(arguments.bucket)
    path = _with_prefix(path + "?watch=1", arguments.prefix)
    connected = away = False
    while True:
        try:
            for event in stream(path, socket_path=arguments.socket):
                if away:
                    note("the supervisor is back; all of it again")
                connected, away = True, False
                yield event
        except ApiError as error:
            if not connected:
                raise
            if not away:
                note(f"{error}; waiting for it to come back")
            away = True
        time.sleep(AGAIN_SECONDS)


def _dump(arguments: argparse.Namespace) -> None:
    from appliance.api.client import call

    document = call(
        "GET", "/v1/ledger-dump", socket_path=arguments.socket, timeout=DUMP_TIMEOUT_SECONDS
    )
    if arguments.json:
        _print_json(document, indent=None)
        return
    from base64 import b64decode

    from appliance.ledger.entry import read_entry
    from provisioning.keys import id_text
    from skerry.console import table

    entries = [read_entry(b64decode(one)) for one in document["records"]]
    rows = [
        (
            f"{one.bucket}/{one.key}",
            id_text(one.owner),
            str(one.sequence),
            "deleted" if one.deleted else f"{len(one.value)} B",
        )
        for one in sorted(entries, key=lambda one: one.slot)
    ]
    print(table(("entry", "written by", "number", "value"), rows))


def _buckets(arguments: argparse.Namespace) -> None:
    from skerry.console import format_size, table

    document = _call(arguments, "GET", "/v1/ledger")
    if arguments.json:
        _print_json(document)
        return
    rows = [
        (
            one["name"],
            str(one["entries"]),
            format_size(one["bytes"]),
            "yes" if one["open"] else "no",
            _writers(one),
            one["what"],
        )
        for one in document["buckets"]
    ]
    print(table(("bucket", "entries", "size", "open", "written by", "holds"), rows))


# Words of the call


def _path(bucket: str, key: str | None = None) -> str:
    path = f"/v1/ledger/{_quoted(bucket)}"
    return path if key is None else f"{path}/{_quoted(key, safe='/')}"


def _slot(arguments: argparse.Namespace) -> str:
    if not arguments.key:
        raise UsageError("the key is empty", hint="skerry ledger ls BUCKET shows the keys")
    return _path(arguments.bucket, arguments.key)


def _with_prefix(path: str, prefix: str) -> str:
    if not prefix:
        return path
    return f"{path}{'&' if '?' in path else '?'}prefix={_quoted(prefix)}"


def _quoted(text: str, safe: str = "") -> str:
    """Return a word of the call for a URL; what is no UTF-8 is the supervisor's to refuse."""
    from urllib.parse import quote

    return quote(os.fsencode(text), safe=safe)


def _read_value(text: str) -> bytes:
    """Return the bytes that the argument is or names; their size is checked before they travel."""
    if text == "-":
        value = sys.stdin.buffer.read(VALUE_MAX + 1)
    elif text.startswith("@"):
        value = read_value_file(
            Path(text[1:]), VALUE_MAX, more="; a value that begins with @ comes by stdin: -"
        )
    else:
        value = os.fsencode(text)
    if len(value) > VALUE_MAX:
        raise UsageError(
            f"the value has more than {VALUE_MAX} bytes",
            hint="the ledger is for small things; leave large ones elsewhere and say where",
        )
    return value


def _lease_seconds(text: str) -> int:
    from provisioning.durations import expiry

    now = time.time()
    try:
        # Seconds, as the local API has them.
        end = expiry(f"{text}s" if text.isdigit() else text, now)
    except UsageError as error:
        raise UsageError(str(error), hint="say 90s, 12h, or a date like 2027-01-31") from error
    if end is None:
        raise UsageError(
            "a lease that never ends is none", hint="leave --lease out, in a bucket without leases"
        )
    return end - int(now)


# The supervisor's answers


def _call(
    arguments: argparse.Namespace, method: str, path: str, body: bytes | None = None
) -> Document:
    from appliance.api.client import call

    return call(method, path, body, socket_path=arguments.socket)


def _value(entry: Document) -> bytes:
    from base64 import b64decode

    text = str(entry["value"])
    return b64decode(text) if entry["encoding"] == "base64" else text.encode()


def _brief(entry: Document) -> str:
    """Return a value on one line, without anything that a terminal would obey."""
    if entry["encoding"] != "utf-8":
        return f"({len(_value(entry))} bytes)"
    text = str(entry["value"]).replace("\n", "\\n").replace("\t", "\\t")
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _owner(entry: Document) -> str:
    return str(entry.get("owner_name") or entry["owner"])


def _until(entry: Document) -> str:
    from appliance.screen import age

    return f"{age(_seconds(entry['expires']) - time.time())} left" if entry["expires"] else ""


def _writers(bucket: Document) -> str:
    roles = f" ({', '.join(bucket['roles'])})" if bucket["roles"] else ""
    lease = f"; lease up to {bucket['lease_max_s']} s" if bucket["lease_max_s"] else ""
    return f"{bucket['writers']}{roles}{lease}"


def _seconds(text: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(text).timestamp()


def _print_json(document: object, *, indent: int | None = 2) -> None:
    import json

    print(json.dumps(document, indent=indent), flush=True)
