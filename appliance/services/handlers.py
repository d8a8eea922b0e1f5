"""Handlers of ``skerry service``."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from appliance import journal
from appliance.api.client import ApiError
from appliance.journal import Redactor
from appliance.names.ranges import DOMAIN
from appliance.notify import Notifier
from appliance.services import daemon, listing, wishes
from appliance.services.errors import ServiceError
from appliance.services.listing import Row
from appliance.services.observing import Observed, observe
from appliance.services.offers import service_address
from appliance.services.plan import connections_of
from appliance.services.wishes import KUBERNETES, Connection, Exposure, Wishes
from provisioning.keys import id_text
from skerry import console

_COLUMNS = ("NAME", "PROTOCOL", "ADDRESS", "GOES NOW TO", "OFFERED BY")


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
    wishes.save(arguments.data_dir, replace(before, exposures=(*kept, one)))
    where = one.to or f"this node's port {one.port}"
    console.note(f"{one.name} ({one.protocol}) is offered at port {one.port}; it is {where}")
    if one.to is not None and one.to.startswith(KUBERNETES):
        console.note("its pods are looked up by the cluster agent of a server: run this on one")
    console.note(f"elsewhere: skerry service connect {one.name}")


def connect(arguments: argparse.Namespace) -> None:
    """Reach a service, or all of a cluster."""
    seen = observe(arguments.socket)
    if arguments.cluster is not None:
        _connect_cluster(arguments, seen)
        return
    if arguments.name is None:
        raise ServiceError("nothing is named", hint="give NAME, or --cluster CLUSTER")
    members = seen.network.members
    names = {one.name: id_text(node) for node, one in members.items()}
    ids = {id_text(node) for node in members}
    unknown = [one for one in arguments.nodes if one not in names and one not in ids]
    if unknown:
        raise ServiceError(f"no node is called {unknown[0][:80]!r}", hint="skerry node ls")
    nodes = tuple(sorted(names.get(one, one) for one in arguments.nodes))
    one = Connection(arguments.name, arguments.port, nodes)
    wishes.check_connection(one)
    before = wishes.load(arguments.data_dir)
    address = service_address(seen.network.network_id, one.name)
    for other in before.connections:
        same = service_address(seen.network.network_id, other.name) == address
        if other.name != one.name and same:
            raise ServiceError(
                f"{one.name} would be reached at {address}, as {other.name} is",
                hint="expose one of them under another name",
            )
    kept = [other for other in before.connections if other.name != one.name]
    wishes.save(arguments.data_dir, replace(before, connections=(*kept, one)))
    offers = [offer for offer in seen.offers if offer.name == one.name]
    ports = {one.port} if one.port else {offer.port for offer in offers}
    at = ", ".join(f"{address}:{port}" for port in sorted(ports)) or str(address)
    console.note(f"{one.name} is reached at {at}, from this node and its pods")
    console.note(f"and under the name {one.name}.svc.{DOMAIN}")
    if not offers:
        console.note("nobody offers it yet; it works as soon as somebody does")


def _connect_cluster(arguments: argparse.Namespace, seen: Observed) -> None:
    if arguments.name is not None or arguments.port is not None or arguments.nodes:
        raise ServiceError(
            "--cluster is all services of a cluster at their own ports",
            hint="leave the rest out, or leave --cluster out and name one service",
        )
    cluster = str(arguments.cluster)
    before = wishes.load(arguments.data_dir)
    after = replace(before, clusters=tuple(sorted({*before.clusters, cluster})))
    wishes.check_clusters(after.clusters)
    if cluster not in {one.cluster for one in seen.network.members.values()}:
        raise ServiceError(
            f"no member is of the cluster {cluster!r}",
            hint="a token says which one its nodes are of: skerry token new --cluster NAME",
        )
    wishes.save(arguments.data_dir, after)
    connections, problems = connections_of(Wishes(clusters=(cluster,)), seen.network, seen.offers)
    listed = ", ".join(one.name for one in connections[:8]) or "none yet"
    more = len(connections) - 8
    console.note(
        f"all that members of {cluster or 'the cluster without a name'} offer is reached from this "
        f"node and its pods, also what comes: {listed}{f' and {more} more' if more > 0 else ''}"
    )
    for one in problems:
        console.note(f"{one.message}. {one.hint}")
    console.note("where: skerry service ls")


def remove(arguments: argparse.Namespace) -> None:
    """Offer and reach a service, or a cluster's, no longer."""
    before = wishes.load(arguments.data_dir)
    name, cluster = arguments.name, arguments.cluster
    if (name is None) == (cluster is None):
        raise ServiceError("nothing is named", hint="give NAME, or --cluster CLUSTER")
    after = Wishes(
        tuple(one for one in before.exposures if one.name != name),
        tuple(one for one in before.connections if one.name != name),
        tuple(one for one in before.clusters if one != cluster),
    )
    what = name if cluster is None else f"the cluster {cluster!r}"
    if after == before:
        raise ServiceError(
            f"this node neither offers nor reaches {what[:80]}", hint="skerry service ls"
        )
    wishes.save(arguments.data_dir, after)
    console.note(f"{what} is neither offered nor reached from here any more")


def ls(arguments: argparse.Namespace) -> None:
    """List the services."""
    wanted = wishes.load(arguments.data_dir)
    try:
        seen = observe(arguments.socket)
    except ApiError as error:
        named = {one.name for one in wanted.exposures} | {one.name for one in wanted.connections}
        raise ServiceError(
            f"{error}; what was set up stays as it is, and is not kept up to date"
            f"{': ' + ', '.join(sorted(named)) if named else ''}",
            hint=error.hint,
        ) from error
    found = listing.rows(wanted, seen.network, seen.offers)
    problems = _problems(arguments.run_dir)
    if arguments.json:
        print(json.dumps({"services": [asdict(one) for one in found], "problems": problems}))
        return
    print(console.table(_COLUMNS, [_line(one) for one in found]))
    for one in problems:
        console.note(f"{one['message']}")
        if one["hint"]:
            console.note(f"  {one['hint']}")
    if wanted != Wishes() and not _is_kept(arguments.run_dir):
        console.note("nobody keeps them so: systemctl status skerry-services")


def _is_kept(run_dir: Path) -> bool:
    """Say whether the daemon has turned of late."""
    try:
        age = time.time() - (run_dir / daemon.STATUS).stat().st_mtime
    except OSError:
        return False
    return age < daemon.STATUS_SECONDS


def _line(one: Row) -> tuple[str, ...]:
    offers = ", ".join(f"{name}:{port} {state}" for name, port, state in one.offers)
    at = f"{one.address}:{one.port}" if one.port else one.address
    return one.name, one.protocol or "-", at, listing.words(one), offers or "nobody"


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
