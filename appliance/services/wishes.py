"""What a person wants of this node: the file ``services.json``, and its check."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from appliance.services.errors import ServiceError
from appliance.services.offers import Protocol, is_port
from provisioning.files import FileError, read_small, write_all
from provisioning.names import is_name

FILE = "services.json"
FILE_MAX = 256 * 1024
MOST = 64
NODES_MAX = 16
CLUSTERS_MAX = 16
KUBERNETES = "k8s:"
# What the node itself is reached at inside the overlay: the store's, Kubernetes' API, the kubelet;
# Flannel's VXLAN, the overlay's own.
NODE_PORTS = frozenset(
    {("tcp", one) for one in (2379, 2380, 6443, 10250)}
    | {("udp", one) for one in (8472, 51820, 51821)}
)
# Kubernetes gives these out itself.
_KUBERNETES_PORTS = range(30000, 32768)


class Exposure(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A service that this node offers.

    ``to``: ``HOST:PORT`` or ``k8s:NAMESPACE/SERVICE[:PORT]``; None: this node itself, at the same
    port. ``probe``: of UDP only, it has to answer an empty datagram to be well (TCP always is
    asked).
    """

    name: str
    protocol: str
    port: int
    to: str | None = None
    probe: bool = False


class Connection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A service that this node reaches.

    ``port``: instead of the service's own; ``nodes``: only if one of these (ids) offers it.
    """

    name: str
    port: int | None = None
    nodes: tuple[str, ...] = ()


class Wishes(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """All of it; ``clusters``: those of which this node reaches all services."""

    exposures: tuple[Exposure, ...] = ()
    connections: tuple[Connection, ...] = ()
    clusters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Target:
    """Where an exposed service really is."""

    host: str
    port: int


def load(directory: Path) -> Wishes:
    """Return what is wanted; nothing if nobody wanted anything yet. Raises ServiceError."""
    path = directory / FILE
    hint = f"put {path} right, or remove it and say again what is wanted"
    try:
        found = msgspec.json.decode(read_small(path, FILE_MAX), type=Wishes)
    except FileNotFoundError:
        return Wishes()
    except (FileError, OSError, msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ServiceError(f"{path} cannot be read: {error}", hint=hint) from error
    if len(found.exposures) > MOST or len(found.connections) > MOST:
        raise ServiceError(f"{path} has more than {MOST} services", hint=hint)
    try:
        for exposure in found.exposures:
            check_exposure(exposure)
        for connection in found.connections:
            check_connection(connection)
        check_clusters(found.clusters)
    except ServiceError as error:
        raise ServiceError(f"in {path}: {error}", hint=error.hint or hint) from error
    return found


def save(directory: Path, wishes: Wishes) -> None:
    """Write it, durably. Raises ServiceError."""
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o755)
        data = msgspec.json.format(msgspec.json.encode(wishes), indent=2)
        write_all(directory, {FILE: data + b"\n"}, mode=0o644)
    except OSError as error:
        raise ServiceError(
            f"{directory / FILE} cannot be written: {error.strerror}", hint="is this root?"
        ) from error


def check_exposure(one: Exposure) -> None:
    """Raise ServiceError for what cannot be exposed."""
    _check_name(one.name)
    if one.protocol not in {kind.value for kind in Protocol}:
        raise ServiceError(f"{one.protocol[:20]!r} is no protocol", hint="tcp or udp")
    _check_port(one.port)
    if one.to is None:
        return
    if (one.protocol, one.port) in NODE_PORTS:
        # Whoever may annotate one Service would take the cluster's API away from all nodes.
        raise ServiceError(
            f"port {one.port} is the node's own: what it is reached at would go elsewhere",
            hint="offer the service at another port",
        )
    if one.to.startswith(KUBERNETES):
        read_kubernetes(one.to)
        if one.port in _KUBERNETES_PORTS:
            raise ServiceError(
                f"port {one.port} is one of Kubernetes' NodePorts, which may be another Service's",
                hint="let the Service have a port below 30000, or above 32767",
            )
    else:
        target_of(one.to)


def check_connection(one: Connection) -> None:
    """Raise ServiceError for what cannot be connected to."""
    _check_name(one.name)
    if one.port is not None:
        _check_port(one.port)
    if len(one.nodes) > NODES_MAX:
        raise ServiceError(f"{len(one.nodes)} nodes are given", hint=f"at most {NODES_MAX}")


def check_clusters(clusters: Sequence[str]) -> None:
    """Raise ServiceError for clusters that cannot be, or too many. One may have no name."""
    for one in clusters:
        if one and not is_name(one):
            raise ServiceError(
                f"{one[:80]!r} cannot be the name of a cluster", hint="skerry node ls shows them"
            )
    if len(clusters) > CLUSTERS_MAX:
        raise ServiceError(f"{len(clusters)} clusters are given", hint=f"at most {CLUSTERS_MAX}")


def target_of(text: str) -> Target:
    """Return the target that ``HOST:PORT`` means; the host is an IPv4 address. ServiceError."""
    host, _, port = text.rpartition(":")
    hint = "write ADDRESS:PORT, such as 192.168.1.20:5432, or k8s:NAMESPACE/SERVICE"
    try:
        address = ipaddress.IPv4Address(host)
    except ValueError as error:
        raise ServiceError(f"{text[:60]!r} is no target", hint=hint) from error
    if not (port.isascii() and port.isdigit() and len(port) < 6 and is_port(int(port))):
        raise ServiceError(f"{text[:60]!r} has no port", hint=hint)
    if address.is_loopback:
        raise ServiceError(
            f"{address} is the node alone: the kernel leads nothing from the overlay there",
            hint="let the service listen on all addresses (or the overlay's), and leave --to out",
        )
    if address.is_multicast or address.is_unspecified or address.is_reserved:
        raise ServiceError(f"{address} is no address of a service", hint=hint)
    return Target(str(address), int(port))


def read_kubernetes(text: str) -> tuple[str, str, str]:
    """Return namespace, service and port (name or number, or empty). Raises ServiceError."""
    where, _, port = text.removeprefix(KUBERNETES).partition(":")
    namespace, slash, name = where.partition("/")
    if not (slash and is_name(namespace) and is_name(name) and (not port or is_name(port))):
        raise ServiceError(
            f"{text[:80]!r} is no Kubernetes service", hint="write k8s:NAMESPACE/SERVICE[:PORT]"
        )
    return namespace, name, port


def _check_name(name: str) -> None:
    if not is_name(name):
        raise ServiceError(
            f"{name[:80]!r} cannot be the name of a service",
            hint="use 1 to 63 of a-z, 0-9 and '-', not beginning or ending with '-'",
        )


def _check_port(port: int) -> None:
    if not is_port(port):
        raise ServiceError(f"{port} is no port", hint="choose 1 to 65535")
