"""Handlers of ``skerry network`` and ``skerry token`` on the operator's machine."""

from __future__ import annotations

import argparse
import getpass
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from provisioning import operator_files as files
from provisioning.clusters import CLUSTER_LABEL, cluster_of, rivals, services_of
from provisioning.durations import expiry, moment_text
from provisioning.errors import FormatError, ProvisioningError
from provisioning.files import FileError, read_small
from provisioning.grant import COUNT_MAX
from provisioning.keys import id_text
from provisioning.names import LABELS_MAX, is_name
from provisioning.network import NetworkInfo
from provisioning.operator_grants import GrantNote, add_grant, load_grants, note_of
from provisioning.settings import SettingsError, check_room, explanations, settings_from
from provisioning.token import TEXT_LIMIT, Token, TokenError, TokenFault, make_token
from skerry import console
from skerry.errors import UsageError


def network_new(arguments: argparse.Namespace) -> None:
    """Make a network."""
    given = {
        name.removeprefix("setting_"): tuple(value) if isinstance(value, list) else value
        for name, value in vars(arguments).items()
        if name.startswith("setting_")
    }
    try:
        settings = settings_from(given, spelled_out=True)
        check_room(settings)
    except SettingsError as error:
        hint = None if error.hint is None else _as_options(error.hint)
        raise SettingsError(_as_options(str(error)), hint=hint) from error
    secret = None
    if arguments.passphrase_file:
        secret = _passphrase_in(arguments.passphrase_file)
    elif arguments.passphrase:
        secret = _new_passphrase()
    directory = arguments.dir or files.networks_directory() / arguments.name
    network = files.create_network(directory, arguments.name, settings, passphrase=secret)
    if arguments.json:
        print(json.dumps(_describe_network(network) | {"directory": str(directory)}))
    else:
        console.note(f"network {network.name} ({id_text(network.network_id)}) is in {directory}")
        console.note(f"keep {directory / files.KEY_FILE} safe and backed up: who has it can make")
        console.note("tokens; without it, nobody can. Now: skerry token new")
        if settings.servers > 1 and not settings.vpn and settings.api_address is None:
            console.note(
                "without --api-address no address follows the leader of the Kubernetes servers, and"
            )
            console.note("a network's settings hold for its life")
        if (settings.expected_nodes or 1) < 2:
            console.note(
                "for Kubernetes: skerry cluster found NODE, once the nodes are up (or give"
            )
            console.note("one of them a token of its own: skerry token new --founder)")


def _as_options(text: str) -> str:
    """Return words about settings as they are typed here: ``pod_cidr`` is --pod-cidr."""
    for one in explanations():
        if "_" in one.name:
            text = text.replace(one.name, f"--{one.name.replace('_', '-')}")
    return text


def network_show(arguments: argparse.Namespace) -> None:
    """Say what a network is."""
    network = files.load_network(files.find_network(arguments.network))
    _print(_describe_network(network), as_json=arguments.json)


def token_new(arguments: argparse.Namespace) -> None:
    """Make a token and print it."""
    directory = files.find_network(arguments.network)
    operator = files.open_network(directory, lambda: passphrase(arguments.passphrase_file))
    now = time.time()
    if arguments.count is not None and not 1 <= arguments.count <= COUNT_MAX:
        raise UsageError(f"--count cannot be {arguments.count}", hint=f"give 1 to {COUNT_MAX}")
    if arguments.founder and (arguments.count or 1) > 1:
        raise UsageError(
            f"a founder's token for {arguments.count} nodes: a cluster has one founder",
            hint="make one with --founder for one machine, and another without for the others",
        )
    roles = frozenset(arguments.role or ["auto"])
    _check_roles(roles, founder=arguments.founder)
    labels = _labels(arguments.label)
    if arguments.cluster is not None:
        labels |= _cluster(arguments.cluster, operator.network, load_grants(directory))
    try:
        token = make_token(
            operator.network,
            operator.root_seed,
            now=now,
            roles=roles,
            labels=labels,
            expires=expiry(arguments.expires, now),
            count=1 if arguments.founder else arguments.count,
            founder=arguments.founder,
        )
    except FormatError as error:
        raise UsageError(
            f"no such token can be made: {error}",
            hint=f"at most {LABELS_MAX} labels, their words of 1 to 63 letters, digits and . _ / -",
        ) from error
    token.text()  # Raises for one that is too large, before it is noted.
    with files.locked(directory):
        add_grant(directory, note_of(token.grant, token.network.epoch))
    show_token(token, as_json=arguments.json)


def show_token(token: Token, *, as_json: bool, more: Mapping[str, Any] | None = None) -> None:
    """Print a token that was made: its text to stdout, what it does to stderr."""
    text = token.text()
    if as_json:
        print(json.dumps({"token": text} | _describe_token(token) | dict(more or {})))
        return
    print(text)
    until = (
        "forever" if token.grant.expires is None else f"until {moment_text(token.grant.expires)}"
    )
    count = token.grant.count
    whom = "new nodes" if count is None else "one node" if count == 1 else f"{count} nodes"
    console.note(f"a token of network {token.network.name}: it lets {whom} in {until}")


def token_show(arguments: argparse.Namespace) -> None:
    """Say what is in a token."""
    _print(_describe_token(read_token(arguments.token)), as_json=arguments.json)


def token_qr(arguments: argparse.Namespace) -> None:
    """Draw a token."""
    try:
        import segno
    except ImportError as error:
        raise ProvisioningError(
            "QR codes need the Python package segno", hint="install skerry[workstation]"
        ) from error
    code = segno.make_qr(read_token(arguments.token).text(), error="m", boost_error=False)
    target: Path | None = arguments.png or arguments.svg
    if target is None:
        code.terminal(sys.stdout, border=2, compact=True)
        return
    try:
        # The picture is the token: nobody else may read it.
        handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            code.save(file, kind="png" if arguments.png else "svg", scale=6, border=4)
    except OSError as error:
        raise ProvisioningError(
            f"{target} cannot be written: {error.strerror}", hint="choose another file"
        ) from error
    console.note(f"wrote {target}; treat it like the token itself")


def read_token(given: str) -> Token:
    """Return the token that an argument means: its text, a file, or ``-`` for standard input."""
    if given == "-":
        return Token.parse(sys.stdin.buffer.read(TEXT_LIMIT + 1))
    if not given.strip():
        return Token.parse(given)
    path = Path(given)
    try:
        is_file = not given.upper().startswith("SKERRY") and path.exists()
        is_file = is_file or (len(given) < 200 and path.is_file())
    except (OSError, ValueError):
        is_file = False
    if not is_file:
        return _parse_words(given)
    try:
        return Token.parse(read_small(path.resolve(), TEXT_LIMIT))
    except OSError as error:
        raise FileError(
            f"{path} cannot be read: {error.strerror}",
            hint="check its permissions, or give the token itself",
        ) from error


def _parse_words(given: str) -> Token:
    try:
        return Token.parse(given)
    except TokenError as error:
        if error.fault is not TokenFault.FOREIGN:
            raise
        raise UsageError(
            "this is neither a token nor a file", hint="a token begins with SKERRY1-"
        ) from error


def _describe_network(network: NetworkInfo) -> dict[str, Any]:
    return {
        "network": network.name,
        "network_id": id_text(network.network_id),
        "epoch": network.epoch,
        "settings": network.settings.changed(),
    }


def _describe_token(token: Token) -> dict[str, Any]:
    grant = token.grant
    return _describe_network(token.network) | {
        "grant_id": id_text(grant.grant_id),
        "roles": sorted(grant.roles),
        "founder": grant.founder,
        "labels": dict(grant.labels),
        "issued": grant.issued,
        "expires": grant.expires,
        "count": grant.count,
        "expired": grant.expired(time.time()),
    }


def _print(facts: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(facts))
        return
    rows = [(name.replace("_", " "), _shown(name, value)) for name, value in facts.items()]
    print("\n".join(f"{name:<12}{text}".rstrip() for name, text in rows))


def _shown(name: str, value: Any) -> str:  # noqa: ANN401 - whatever JSON can say
    if name in {"issued", "expires"}:
        return "never" if value is None else moment_text(value)
    if isinstance(value, dict):
        return ", ".join(f"{key}={_shown('', one)}" for key, one in value.items()) or "-"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)


def _cluster(name: str, network: NetworkInfo, notes: Iterable[GrantNote]) -> dict[str, str]:
    """Return the label of a cluster's nodes, if there is a range of services for it."""
    settings = network.settings
    if not is_name(name):
        raise UsageError(
            f"{name[:80]!r} cannot be the name of a cluster", hint="use 1 to 63 of a-z, 0-9, -"
        )
    if not settings.cluster_bits:
        raise UsageError(
            f"the network {network.name} has room for one cluster",
            hint="make a network with --cluster-bits 4: its services are cut into 16 parts",
        )
    found = rivals(settings, name, (cluster_of(one.labels) for one in notes))
    if found:
        raise UsageError(
            f"the cluster {name} would have the services' range of {', '.join(found)}: "
            f"{services_of(settings, name)}",
            hint="choose another name",
        )
    return {CLUSTER_LABEL: name}


def _check_roles(roles: frozenset[str], *, founder: bool) -> None:
    """Refuse roles that contradict each other."""
    if "none" in roles and len(roles) > 1:
        raise UsageError(
            "--role none keeps nodes out of Kubernetes, another --role lets them in",
            hint="make two tokens",
        )
    if founder and roles.isdisjoint({"auto", "server"}):
        raise UsageError(
            f"a founder is a server, which --role {min(roles)} is not",
            hint="leave --role out, or say --role server",
        )


def _labels(given: list[str]) -> dict[str, str]:
    labels: dict[str, str] = {}
    for one in given:
        key, equals, value = one.partition("=")
        if not equals or key in labels:
            raise UsageError(
                f"--label {one[:80]!r} is no new KEY=VALUE", hint="as in site=attic; each key once"
            )
        if key.startswith("skerry.internal/"):
            raise UsageError(f"the label {key} is Skerry's own: choose a key with another prefix")
        labels[key] = value
    return labels


def _passphrase_in(path: Path) -> str:
    try:
        text = read_small(path.resolve(), 4096).decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise FileError(f"the passphrase in {path} cannot be read: {reason}") from error
    found = text.removesuffix("\n").removesuffix("\r")
    if not found:
        raise FileError(f"the passphrase in {path} is empty")
    return found


def passphrase(path: Path | None) -> str:
    """Return the root key's passphrase, from a file or from whoever sits at the terminal."""
    if path is not None:
        return _passphrase_in(path)
    if not sys.stdin.isatty():
        raise UsageError(
            "the root key is sealed by a passphrase", hint="give it with --passphrase-file"
        )
    return getpass.getpass("passphrase of the root key: ")


def _new_passphrase() -> str:
    if not sys.stdin.isatty():
        raise UsageError("there is no terminal to ask on", hint="use --passphrase-file")
    first = getpass.getpass("new passphrase: ")
    if not first or first != getpass.getpass("the same again: "):
        raise UsageError("the passphrases are empty or differ")
    return first
