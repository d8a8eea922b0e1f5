"""``skerry status | provision | health | ledger | secret | route | supervisor run``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from appliance import clock_commands
from appliance.api import route_commands
from appliance.config import RUN_DIR, STATE_DIR, WIREGUARD_MODES
from appliance.ledger import commands as ledger_commands
from appliance.ledger import secret_commands
from appliance.names import commands as names_commands
from skerry.errors import SkerryError, UsageError

# Imports stay few: these commands start often, and slowly on small boards.
_TOKEN_LIMIT = 64 * 1024
_CLEAR = "\x1b[H\x1b[J"


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the node's commands."""
    status = subparsers.add_parser("status", help="what this node is doing, and with whom")
    how = status.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="the whole document, for machines")
    how.add_argument("--watch", action="store_true", help="draw it again and again")
    status.add_argument(
        "--interval", type=float, default=2.0, metavar="SECONDS", help="for --watch"
    )
    _add_socket(status)
    status.set_defaults(handler=_status)

    provision = subparsers.add_parser("provision", help="give this node its token")
    provision.add_argument("token", metavar="TOKEN|FILE|-", help="the token, a file with it, stdin")
    _add_socket(provision)
    provision.set_defaults(handler=_provision)

    health = subparsers.add_parser("health", help="exit 0 if this node is as it should be")
    health.add_argument(
        "--wait", type=float, default=0.0, metavar="SECONDS", help="give it time to become so"
    )
    _add_socket(health)
    health.set_defaults(handler=_health)

    _add_supervisor(subparsers)
    ledger_commands.register(subparsers, _add_socket)
    secret_commands.register(subparsers, _add_socket)
    route_commands.register(subparsers, _add_socket)
    names_commands.register(subparsers)
    clock_commands.register(subparsers)


def _add_socket(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--socket",
        type=Path,
        default=Path(os.environ.get("SKERRY_SOCKET", "/run/skerry/api.sock")),
        help="where the supervisor listens (default: %(default)s)",
    )


def _add_supervisor(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    supervisor = subparsers.add_parser("supervisor", help="the node's supervisor itself")
    actions = supervisor.add_subparsers(dest="action", metavar="ACTION", required=True)
    run = actions.add_parser("run", help="run it (the unit skerry.service does)")
    run.add_argument(
        "--state-dir", type=Path, metavar="DIR", help=f"identity and state (default: {STATE_DIR})"
    )
    run.add_argument(
        "--run-dir", type=Path, metavar="DIR", help=f"socket and inbox (default: {RUN_DIR})"
    )
    run.add_argument("--interface", metavar="NAME", help="the overlay's network interface")
    run.add_argument("--wireguard", choices=WIREGUARD_MODES, help="which implementation")
    run.add_argument("--wireguard-go", type=Path, metavar="PATH", help="the userspace one")
    run.add_argument("--listen-port", type=_port, metavar="PORT", help="UDP port of the overlay")
    run.add_argument("--token-file", type=Path, metavar="FILE", help="looked at before all sources")
    run.add_argument("--name", help="what the node is called (default: made of its id)")
    run.add_argument(
        "--names-port",
        type=_port,
        metavar="PORT",
        help="answer members' names on 127.0.0.153 at this port (a node does: 5335)",
    )
    run.add_argument("--debug", action="store_true", help="log more")
    run.set_defaults(handler=_run)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port (1 to 65535)")
    return int(text)


def _status(arguments: argparse.Namespace) -> int:
    from appliance.api.client import call
    from appliance.screen import render

    if arguments.json:
        import json

        document = call("GET", "/v1/status", socket_path=arguments.socket)
        print(json.dumps(document, indent=2))
        return 0
    if not arguments.watch:
        print(render(call("GET", "/v1/status", socket_path=arguments.socket)))
        return 0
    while True:
        try:
            text = render(call("GET", "/v1/status", socket_path=arguments.socket))
        except SkerryError as error:
            # The supervisor may be restarting: keep watching.
            text = f"{error}\n  {error.hint or ''}"
        clear = _CLEAR if sys.stdout.isatty() else ""
        print(f"{clear}{text}\n\n{time.strftime('%H:%M:%S')}", flush=True)
        time.sleep(max(arguments.interval, 0.2))


def _provision(arguments: argparse.Namespace) -> int:
    from appliance.api.client import call
    from skerry.console import note

    answer = call(
        "POST", "/v1/token", _read_token(arguments.token), socket_path=arguments.socket, timeout=60
    )
    note(f"this node is {answer['name']} of network {answer['network']} ({answer['node_id']})")
    return 0


def _read_token(text: str) -> bytes:
    """Return the token that the argument is or names; it is judged by the supervisor."""
    from provisioning.files import FileError, read_small

    if text == "-":
        return sys.stdin.buffer.read(_TOKEN_LIMIT)
    if text[:6].upper() == "SKERRY" and not Path(text[:200]).exists():
        return text.encode(errors="replace")[:_TOKEN_LIMIT]
    try:
        # Resolved: a person may mean a link. Not a pipe, which might never say anything.
        return read_small(Path(text or "-").resolve(), _TOKEN_LIMIT)
    except (OSError, ValueError, FileError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(
            f"{text[:60]!r} is neither a token nor a file that can be read: {reason}",
            hint="A token begins with SKERRY1-; `skerry provision -` reads it from stdin.",
        ) from error


def _health(arguments: argparse.Namespace) -> int:
    from appliance.api.client import call
    from skerry.console import note

    deadline = time.monotonic() + arguments.wait
    while True:
        try:
            answer = call("GET", "/v1/health", socket_path=arguments.socket)
            why = [f"{one['message']}. {one['hint']}" for one in answer["why"]]
            state = str(answer["state"])
        except SkerryError as error:
            why, state = [f"{error}. {error.hint or ''}"], "unknown"
        if not why:
            if state == "degraded":
                note("this release does its work; the node is degraded: skerry status says why")
            else:
                note(f"this node is as it should be: {state}")
            return 0
        if time.monotonic() >= deadline:
            note(f"this node is not as it should be ({state}):")
            for reason in why:
                note(f"  {reason}")
            return 1
        time.sleep(min(1.0, max(deadline - time.monotonic(), 0.05)))


def _run(arguments: argparse.Namespace) -> int:
    from appliance.config import SupervisorConfig
    from appliance.launch import run

    names = (
        *("state_dir", "run_dir", "interface", "wireguard", "wireguard_go"),
        *("listen_port", "token_file", "name", "names_port", "debug"),
    )
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    if directory := os.environ.get("CREDENTIALS_DIRECTORY"):
        given["credentials"] = Path(directory)
    return run(SupervisorConfig(**given))
