"""Handlers of ``skerry service``."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from appliance import journal
from appliance.journal import Redactor
from appliance.notify import Notifier
from appliance.services import daemon, wishes
from appliance.services.errors import ServiceError
from appliance.services.observing import observe
from appliance.services.offers import service_address
from appliance.services.plan import Row, rows
from appliance.services.wishes import KUBERNETES, Connection, Exposure, Wishes
from provisioning.keys import id_text
from skerry import console

_COLUMNS = ("NAME", "PROTOCOL", "ADDRESS", "CONNECTED", "OFFERED BY")


def expose(arguments: argparse.Namespace) -> None:
    """Offer a service."""
    one = Exposure(
        arguments.name, arguments.protocol, arguments.port, arguments.to, arguments.probe
    )
    wishes.check_exposure(one)
    if one.probe and one.protocol != "udp":
        raise ServiceError(
            "--probe is for udp: a TCP service is always asked",
            hint="leave it out, or say --protocol udp",
        )
    before = wishes.load(arguments.data_dir)
    kept = [
        other
        for other in before.exposures
        if (other.name, other.protocol) != (one.name, one.protocol)
    ]
    wishes.save(arguments.data_dir, Wishes((*kept, one), before.connections))
    where = one.to or f"this node's port {one.port}"
    console.note(f"{one.name} ({one.protocol}) is offered at port {one.port}; it is {where}")
    if one.to is not None and one.to.startswith(KUBERNETES):
        console.note("its pods are looked up by the cluster agent of a server: run this on one")
    console.note(f"elsewhere: skerry service connect {one.name}")


def connect(arguments: argparse.Namespace) -> None:
    """Reach a service."""
    observed = observe(arguments.socket)
    members = observed.network.members
    names = {one.name: id_text(node) for node, one in members.items()}
    ids = {id_text(node) for node in members}
    unknown = [one for one in arguments.nodes if one not in names and one not in ids]
    if unknown:
        raise ServiceError(f"no node is called {unknown[0][:80]!r}", hint="skerry node ls")
    nodes = tuple(sorted(names.get(one, one) for one in arguments.nodes))
    one = Connection(arguments.name, arguments.port, nodes)
    wishes.check_connection(one)
    before = wishes.load(arguments.data_dir)
    address = service_address(observed.network.network_id, one.name)
    for other in before.connections:
        same = service_address(observed.network.network_id, other.name) == address
        if other.name != one.name and same:
            raise ServiceError(
                f"{one.name} would be reached at {address}, as {other.name} is",
                hint="expose one of them under another name",
            )
    kept = [other for other in before.connections if other.name != one.name]
    wishes.save(arguments.data_dir, Wishes(before.exposures, (*kept, one)))
    offers = [offer for offer in observed.offers if offer.name == one.name]
    ports = {one.port} if one.port else {offer.port for offer in offers}
    at = ", ".join(f"{address}:{port}" for port in sorted(ports)) or str(address)
    console.note(f"{one.name} is reached at {at}, from this node and its pods")
    if not offers:
        console.note("nobody offers it yet; it works as soon as somebody does")


def remove(arguments: argparse.Namespace) -> None:
    """Offer and reach a service no longer."""
    before = wishes.load(arguments.data_dir)
    after = Wishes(
        tuple(one for one in before.exposures if one.name != arguments.name),
        tuple(one for one in before.connections if one.name != arguments.name),
    )
    if after == before:
        raise ServiceError(
            f"this node neither offers nor reaches {arguments.name[:80]!r}",
            hint="skerry service ls",
        )
    wishes.save(arguments.data_dir, after)
    console.note(f"{arguments.name} is neither offered nor reached from here any more")


def ls(arguments: argparse.Namespace) -> None:
    """List the services."""
    observed = observe(arguments.socket)
    wanted = wishes.load(arguments.data_dir)
    found = rows(wanted, observed.network, observed.offers)
    problems = _problems(arguments.run_dir)
    if arguments.json:
        print(json.dumps({"services": [asdict(one) for one in found], "problems": problems}))
        return
    print(console.table(_COLUMNS, [_line(one) for one in found]))
    for one in problems:
        console.note(f"{one['message']}")
        if one["hint"]:
            console.note(f"  {one['hint']}")
    if (wanted.exposures or wanted.connections) and not (
        arguments.run_dir / daemon.STATUS
    ).exists():
        console.note("nobody keeps them so: systemctl status skerry-services")


def _line(one: Row) -> tuple[str, ...]:
    offers = ", ".join(f"{name}:{port} {state}" for name, port, state in one.offers)
    at = f"{one.address}:{one.port}" if one.port else one.address
    return one.name, one.protocol or "-", at, "yes" if one.connected else "no", offers or "nobody"


def _problems(run_dir: Path) -> list[dict[str, Any]]:
    try:
        found = json.loads((run_dir / daemon.STATUS).read_text())["problems"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [one for one in found if isinstance(one, dict) and {"message", "hint"} <= one.keys()]


def run(arguments: argparse.Namespace) -> None:
    """Keep services as they should be, until told to stop."""
    by_hand = os.environ.get("JOURNAL_STREAM") is None
    journal.set_up(
        Redactor(), level=logging.INFO, journal=None if by_hand else journal.JOURNAL_SOCKET
    )
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    notifier = Notifier()
    places = daemon.Places(
        arguments.data_dir, arguments.run_dir, arguments.socket, arguments.kubernetes
    )
    try:
        daemon.run(places, stop.is_set, lambda: notifier.send(READY=1))
    finally:
        notifier.close()
