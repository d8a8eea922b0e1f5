"""What the supervisor says of the cluster (`appliance.api.answers`), checked to hold together."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

import msgspec

from appliance.api.answers import ClusterFacts, RangeFacts
from appliance.cluster.errors import ClusterError
from appliance.cluster.ranges import NodeRange, RangePlan
from appliance.kubernetes.errors import SupervisorError
from appliance.ledger.assigned import read_id

T = TypeVar("T")
_HINT = "are the supervisor and the cluster agent of one release? systemctl restart skerry"


class PodNetworkMode(Enum):
    """How pods reach each other: on the overlay itself, or by Flannel's VXLAN over it."""

    NATIVE = "native"
    FLANNEL = "flannel"


def read(data: bytes, kind: type[T], what: str) -> T:
    """Return the document that JSON holds. Raises SupervisorError saying where it is wrong."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (ValueError, RecursionError) as error:
        raise SupervisorError(
            f"what the supervisor says of {what} can't be read: {str(error)[:200]}", hint=_HINT
        ) from error


@dataclass(frozen=True, slots=True)
class Cluster:
    """Facts that hold together: what `check` made of a document."""

    document: ClusterFacts
    plan: RangePlan
    range: NodeRange | None
    ranges: Mapping[str, NodeRange]
    services: ipaddress.IPv4Network
    hosts: ipaddress.IPv4Network
    mode: PodNetworkMode = PodNetworkMode.NATIVE

    @property
    def node_addresses(self) -> tuple[str, ...]:
        """What the Node is reached at: IPv4, then IPv6 inside the tunnel; empty: not known yet.

        Kubernetes takes no link-local address, which is what a LAN without DHCP leaves.
        """
        given = (ipaddress.ip_address(one) for one in self.document.addresses)
        found = [one for one in given if not one.is_link_local]
        ipv4 = next((str(one) for one in found if one.version == 4), None)
        ipv6 = next((str(one) for one in found if one.version == 6), None)
        if ipv4 is None:
            return ()
        return (ipv4, ipv6) if ipv6 is not None and self.document.vpn else (ipv4,)

    def range_of(self, node_id: str) -> NodeRange | None:
        """Return a member's pod range."""
        return self.range if node_id == self.document.node_id else self.ranges.get(node_id)

    def name_of(self, node_id: str) -> str | None:
        """Return what a member is called."""
        if node_id == self.document.node_id:
            return self.document.name
        found = (one.name for one in self.document.members if one.node_id == node_id)
        return next(found, None)

    @property
    def dns(self) -> str:
        """The address of the cluster's resolver: the tenth of the services'."""
        return str(self.services[10])

    @property
    def pods(self) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
        """The ranges of all pods."""
        text = self.document.pods_ipv6
        more = (ipaddress.IPv6Network(text),) if text else ()
        return (self.plan.pod_cidr, *more)


def check(document: ClusterFacts) -> Cluster:
    """Return the facts as they are worked with. Raises SupervisorError for what cannot be."""
    if document.services is None:
        words = [one for one in document.problems if one.code == "cluster-services-taken"]
        said = words[0].message if words else "another cluster has this one's range of services"
        raise SupervisorError(said, hint=words[0].hint if words else _HINT)
    try:
        _id(document.node_id)
        plan = RangePlan(
            _id(document.network_id),
            ipaddress.IPv4Network(document.settings.pod_cidr),
            document.settings.node_bits,
        )
        for address in document.addresses:
            ipaddress.ip_address(address)
        if document.api.address:
            ipaddress.IPv4Address(document.api.address)
        if document.pods_ipv6:
            ipaddress.IPv6Network(document.pods_ipv6)
        return Cluster(
            document,
            plan,
            None if document.range is None else _range(document.range),
            {one.node_id: _range(one.range) for one in document.members if one.range is not None},
            ipaddress.IPv4Network(document.services or document.settings.service_cidr),
            ipaddress.IPv4Network(document.settings.host_range),
            _mode(document),
        )
    except (ValueError, ClusterError) as error:
        raise SupervisorError(
            f"what the supervisor says of the cluster cannot be: {str(error)[:200]}", hint=_HINT
        ) from error


def _mode(document: ClusterFacts) -> PodNetworkMode:
    chosen = PodNetworkMode(document.settings.cni)
    # Native mode is AllowedIPs of the tunnel: without one, nothing else here carries pods.
    return chosen if document.vpn else PodNetworkMode.FLANNEL


def _range(one: RangeFacts) -> NodeRange:
    return NodeRange(ipaddress.IPv4Network(one.ipv4), ipaddress.IPv6Network(one.ipv6))


def _id(text: str) -> bytes:
    found = read_id(text)
    if found is None:
        raise ValueError(f"{text[:40]!r} is no id")
    return found
