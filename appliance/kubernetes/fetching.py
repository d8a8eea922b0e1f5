"""``skerry kubeconfig``: on a server as root, or on the operator's machine by the root key."""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from appliance.kubernetes import files
from appliance.kubernetes.config import bracketed
from appliance.kubernetes.errors import KubernetesError
from appliance.kubernetes.kubeconfig import FILE_MAX, Kubeconfig, kubeconfig_text, read_kubeconfig
from appliance.kubernetes.places import API_PORT, Places
from appliance.ledger.entry import Entry
from provisioning.clusters import cluster_of
from provisioning.keys import id_text
from provisioning.membership import Member
from skerry import console
from skerry.errors import UsageError

_KIND = "kubeconfig"
_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]{0,250}[a-z0-9])?")


def fetch(arguments: argparse.Namespace, places: Places | None = None) -> int:
    """Print or write the kubeconfig."""
    path = (places or Places()).kubeconfig
    asked = (arguments.network, arguments.via, arguments.cluster)
    here = asked == (None, None, None) and _is_there(path)
    name, found = _here(path) if here else _by_root_key(arguments)
    if arguments.server is not None:
        url = server_url_of(arguments.server)
        found = Kubeconfig(url, found.authority, found.certificate, found.key)
    text = kubeconfig_text(found, name)
    if arguments.output is None:
        sys.stdout.write(text)
        return 0
    files.write(arguments.output, text.encode(), mode=0o600)
    print(f"{arguments.output} gives whoever reads it the whole cluster", file=sys.stderr)
    return 0


def server_url_of(text: str) -> str:
    """Return the URL of an API for ADDRESS, ADDRESS:PORT or a URL. Raises UsageError."""
    plain = text.removeprefix("https://").rstrip("/")
    try:
        return f"https://{bracketed(str(ipaddress.ip_address(plain.strip('[]'))))}:{API_PORT}"
    except ValueError:
        pass
    host, colon, port = plain.rpartition(":")
    if not colon:
        host, port = plain, str(API_PORT)
    inside = host.removeprefix("[").removesuffix("]")
    right = port.isascii() and port.isdigit() and 0 < int(port) < 65536
    if not right or not (_HOST.fullmatch(inside.lower()) or _is_address(inside)):
        raise UsageError(
            f"{text[:80]!r} is no address of an API", hint="write 10.10.0.7, HOST:PORT"
        )
    return f"https://{bracketed(inside.lower())}:{port}"


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def _here(path: Path) -> tuple[str, Kubeconfig]:
    if not os.access(path, os.R_OK):
        raise KubernetesError(f"no permission to read {path}", hint="Use sudo.")
    text = files.read_text(path, FILE_MAX)
    if text is None:
        raise KubernetesError(f"{path} can't be read", hint="the engine writes it at each start")
    return "skerry", read_kubeconfig(text, str(path))


def _by_root_key(arguments: argparse.Namespace) -> tuple[str, Kubeconfig]:
    from appliance.operator.shared import now_ms, working
    from appliance.operator.snapshot import fetch_snapshot

    with working(arguments) as work:
        if isinstance(work.publisher, Exception):
            raise work.publisher
        network = work.root.network
        snapshot = fetch_snapshot(work.directory, network, work.publisher, now_ms())
        entries = snapshot.replica.entries("cluster", now_ms())
        left = left_by_servers(entries, snapshot.replica.directory)
        cluster = which_cluster(left, arguments.cluster)
        sealed = [(one.server, one.value) for one in left if one.cluster == cluster]
        found = opened(work.root.seed, network.network_id, sealed)
    name = f"{network.name}-{cluster}" if cluster else network.name
    return name, one_cluster(found, name)


@dataclass(frozen=True, slots=True)
class Sealed:
    """What a server of a cluster left for the operator."""

    server: str
    cluster: str
    value: bytes


def left_by_servers(entries: Iterable[Entry], members: Iterable[Member]) -> tuple[Sealed, ...]:
    """Return what servers left, the latest first: the ledger lets nobody else write there."""
    known = {one.node_id: one for one in members}
    return tuple(
        Sealed(known[one.owner].name, cluster_of(known[one.owner].labels), one.value)
        for one in sorted(entries, key=lambda one: one.stamp, reverse=True)
        if one.owner in known and one.key == f"{id_text(one.owner)}/{_KIND}"
    )


def which_cluster(left: Iterable[Sealed], asked: str | None) -> str:
    """Return the cluster that is meant. Raises UsageError if there are several and none is said."""
    there = sorted({one.cluster for one in left})
    if asked is not None:
        return asked
    if len(there) > 1:
        listed = ", ".join(one or "'' (that without a name)" for one in there)
        raise UsageError(f"this network has the clusters {listed}", hint="say --cluster NAME")
    return there[0] if there else ""


def opened(
    seed: bytes, network_id: bytes, sealed: Iterable[tuple[str, bytes]]
) -> dict[str, Kubeconfig]:
    """Return what can be opened of what servers sealed, by their names.

    What is none is said and passed over: a member that lies does not stand before the others.
    Raises KubernetesError if nothing but such was found.
    """
    from appliance.kubernetes.operator_box import open_as_operator

    found: dict[str, Kubeconfig] = {}
    troubles: list[KubernetesError] = []
    for name, value in sealed:
        try:
            found[name] = open_as_operator(seed, network_id, value, f"what {name} sealed")
        except KubernetesError as error:
            troubles.append(error)
    if troubles and not found:
        raise troubles[0]
    for trouble in troubles:
        console.note(f"passed over: {trouble}")
    return found


def one_cluster(found: dict[str, Kubeconfig], network: str) -> Kubeconfig:
    """Return the latest of several servers' kubeconfigs, if they are of one cluster."""
    if not found:
        raise KubernetesError(
            f"no server of {network} has sealed a kubeconfig yet",
            hint="the founder does so when its API serves: `skerry cluster status` there",
        )
    if len({one.authority for one in found.values()}) > 1:
        raise KubernetesError(
            f"{', '.join(sorted(found))} sealed kubeconfigs of different clusters",
            hint="one of them does not tell the truth, or was revoked too late: get it on a "
            "server, as root, and revoke the other: skerry revoke node",
        )
    return next(iter(found.values()))
