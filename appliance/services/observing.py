"""What the daemon observes through the supervisor's local API, as the plan's types."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from appliance.api.answers import ClusterFacts, LedgerEntries, MemberFacts
from appliance.api.client import call
from appliance.ledger.assigned import read_id
from appliance.services import offers
from appliance.services.errors import ServiceError
from appliance.services.offers import Offer
from appliance.services.plan import Member, Network
from provisioning.clusters import cluster_of

_UP = frozenset({"self", "up", "alive"})
_RELEASE = "are the supervisor and this of one release? systemctl restart skerry skerry-services"


@dataclass(frozen=True, slots=True)
class Observed:
    """What was observed of the network; ``own_keys``: of the offers that are this node's."""

    network: Network
    interface: str
    vpn: bool
    offers: tuple[Offer, ...]
    own_keys: frozenset[str]


def observe(socket: Path) -> Observed:
    """Return what is so now. Raises ApiError and ServiceError."""
    cluster = call("GET", "/v1/cluster", socket_path=socket)
    entries = call("GET", f"/v1/ledger/{offers.BUCKET}", socket_path=socket)
    return read(cluster, entries)


def read(cluster: Mapping[str, Any], entries: Mapping[str, Any]) -> Observed:
    """Return what two answers of the API say. Raises ServiceError."""
    try:
        seen = msgspec.convert(cluster, ClusterFacts)
        listed = msgspec.convert(entries, LedgerEntries)
    except msgspec.ValidationError as error:
        raise ServiceError(
            f"the supervisor's answer is not understood: {error}", hint=_RELEASE
        ) from error
    own, network_id = read_id(seen.node_id), read_id(seen.network_id)
    if own is None or network_id is None:
        raise ServiceError("the supervisor's answer has no ids", hint=_RELEASE)
    members = {one.node_id: one for one in map(_member, seen.members) if one is not None}
    found = offers.read(listed.heard())
    return Observed(
        Network(network_id, own, members),
        seen.interface,
        seen.vpn,
        found,
        frozenset(one.key for one in found if one.node == own),
    )


def _member(one: MemberFacts) -> Member | None:
    node_id = read_id(one.node_id)
    if node_id is None:
        return None
    # Machines outside of all clusters are near to none of them.
    cluster = None if set(one.roles) <= {"none"} else cluster_of(one.labels)
    return Member(node_id, one.name, _ipv4(one.addresses), one.state in _UP, cluster)


def _ipv4(addresses: tuple[str, ...]) -> str | None:
    for text in addresses:
        try:
            return str(ipaddress.IPv4Address(text))
        except ValueError:
            continue
    return None
