"""What ``skerry node ls`` and ``skerry token ls`` show. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from appliance.cluster.ranges import carries_pods, holders_of, plan_for, range_view
from appliance.ledger import assigned, claims
from appliance.ledger.rules import MEMBER
from appliance.ledger.state import Replica
from appliance.operator.resolve import names_of, revoked_grants, revoked_name, revoked_nodes
from appliance.operator.snapshot import Snapshot
from appliance.operator.statements import read_reason
from appliance.overlay.addresses import ula_address
from appliance.overlay.visitors import is_visitor
from provisioning import codec
from provisioning.errors import FormatError
from provisioning.grant import Grant, read_grant
from provisioning.keys import id_text
from provisioning.membership import CERTIFICATE_LIMIT, CertificateRecord
from provisioning.network import NetworkInfo
from provisioning.operator_grants import GrantNote, note_of

UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class NodeRow:
    """A node as a list shows it; of a revoked one only the id and the reason are left."""

    name: str
    node_id: str
    state: str
    address: str | None = None
    address_fixed: bool = False
    address6: str | None = None
    roles: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
    grant_id: str | None = None
    reason: str = ""
    range: str | None = None
    range_fixed: bool = False


@dataclass(frozen=True, slots=True)
class GrantRow:
    """A grant as a list shows it. ``used`` is None if that is not known."""

    note: GrantNote
    state: str
    used: int | None
    made_here: bool
    nodes: tuple[str, ...] = ()


def node_rows(
    snapshot: Snapshot, network: NetworkInfo, now_ms: int, *, revoked: bool = False
) -> list[NodeRow]:
    """Return the members by name, and with ``revoked`` those that are out."""
    replica = snapshot.replica
    host_range = ipaddress.IPv4Network(network.settings.host_range)
    view = claims.address_view(replica, host_range, now_ms)
    held = {node: what for what, node in view.holders().items()}
    plan = plan_for(network.network_id, network.settings)
    carriers = [one.node_id for one in replica.directory if carries_pods(one)]
    ranges = range_view(replica, plan, now_ms)
    pods = holders_of(plan, ranges, carriers)
    names = names_of(replica, now_ms)
    given = assigned.labels(replica, now_ms)
    rows = []
    for one in replica.directory:
        if is_visitor(one.labels):
            continue
        packed = held.get(one.node_id) or view.fixed.get(one.node_id)
        rows.append(
            NodeRow(
                names[one.node_id],
                one.id_text,
                snapshot.states.get(one.id_text, UNKNOWN),
                str(ipaddress.IPv4Address(packed)) if packed else None,
                one.node_id in view.fixed,
                str(ula_address(network.network_id, one.node_key)),
                tuple(sorted(one.roles)),
                assigned.labels_of(one, given),
                id_text(one.grant_id),
                range=str(pods[one.node_id].ipv4) if one.node_id in pods else None,
                range_fixed=one.node_id in ranges.fixed,
            )
        )
    rows.sort(key=lambda row: (row.name, row.node_id))
    if revoked:
        for node, value in sorted(revoked_nodes(replica, now_ms).items()):
            name, reason = revoked_name(value), read_reason(value)
            told = reason.removeprefix(name).removeprefix(": ")
            rows.append(NodeRow(name or "-", id_text(node), "revoked", reason=told))
    return rows


def rows_here(
    nodes: Iterable[Mapping[str, Any]], fixed: Collection[str], ranges: Collection[str] = ()
) -> list[NodeRow]:
    """Return the members that a node lists (``/v1/nodes``).

    ``fixed``: ids of those whose address the operator fixed, ``ranges``: of those whose range.
    """
    rows = []
    for one in nodes:
        addresses = [ipaddress.ip_address(text) for text in one["addresses"]]
        row = NodeRow(
            one["name"],
            one["node_id"],
            "refused" if one["refused"] else one["state"],
            next((str(address) for address in addresses if address.version == 4), None),
            one["node_id"] in fixed,
            next((str(address) for address in addresses if address.version == 6), None),
            tuple(one["roles"]),
            one["labels"],
            one["grant_id"],
            one["refused"],
            # A supervisor from before the ranges does not say.
            one.get("range") or None,
            one["node_id"] in ranges,
        )
        rows.append(row)
    return rows


def grant_rows(
    snapshot: Snapshot | None, notes: Iterable[GrantNote], now_ms: int
) -> list[GrantRow]:
    """Return the grants made here and those that members came in under, oldest first."""
    replica = snapshot.replica if snapshot else None
    closed = assigned.closed_grants(replica, now_ms) if replica else frozenset()
    revoked = revoked_grants(replica, now_ms) if replica else {}
    users: dict[str, list[str]] = {}
    if replica:
        names = names_of(replica, now_ms)
        for one in replica.directory:
            users.setdefault(id_text(one.grant_id), []).append(names[one.node_id])
    mine = {one.grant_id: one for one in notes}
    seen = {id_text(one.grant_id): note_of(one, -1) for one in _seen(replica)}
    rows = []
    for grant_id, note in sorted((seen | mine).items(), key=lambda one: one[1].issued):
        inside = sorted(users.get(grant_id, ()))
        used = len(inside) if replica is not None else None
        state = "open"
        if grant_id in {id_text(one) for one in revoked}:
            state = "revoked"
        elif grant_id in {id_text(one) for one in closed}:
            state = "closed"
        elif note.expires is not None and now_ms >= note.expires * 1000:
            state = "expired"
        elif used is not None and note.count is not None and used >= note.count:
            state = "used up"
        rows.append(GrantRow(note, state, used, grant_id in mine, tuple(inside)))
    return rows


def grants_in(replica: Replica) -> dict[bytes, Grant]:
    """Return the grants that the members' certificates carry."""
    return {one.grant_id: one for one in _seen(replica)}


def _seen(replica: Replica | None) -> Iterator[Grant]:
    for member in replica.directory if replica else ():
        entry = replica.slot(MEMBER, member.id_text, member.node_id) if replica else None
        if entry is None:
            continue
        try:
            record = codec.decode(entry.value, CertificateRecord, limit=CERTIFICATE_LIMIT)
            grant = read_grant(record.grant)
        except FormatError:
            continue
        if not is_visitor(grant.labels):
            yield grant
