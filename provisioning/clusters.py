"""Several Kubernetes clusters on one overlay: who belongs to which, and its range of services.

A node's cluster is a label of its grant, so it is the root key's word and holds for the node's
life; nodes without it are one cluster, which has no name. ``service_cidr`` is cut into
2^``cluster_bits`` parts. Which part a cluster has follows from its name: nobody has to be asked,
no claim can be lost, and a node that was never online knows it. Two names of one part cannot both
be used (`rivals`). The same number gives each cluster the address of its API. Formulas:
docs/cluster.md.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable, Mapping

from provisioning.settings import Settings

CLUSTER_LABEL = "skerry.internal/cluster"
_PART_LABEL = b"skerry cluster services v1"


def cluster_of(labels: Mapping[str, str]) -> str:
    """Return the cluster that a grant's labels say, empty for the one without a name."""
    return labels.get(CLUSTER_LABEL, "")


def services_of(settings: Settings, cluster: str) -> ipaddress.IPv4Network:
    """Return a cluster's range of services; the one without a name has the first."""
    whole = ipaddress.IPv4Network(settings.service_cidr)
    prefix = whole.prefixlen + settings.cluster_bits
    first = int(whole.network_address) + (_part(settings, cluster) << 32 - prefix)
    return ipaddress.IPv4Network((first, prefix))


def rivals(settings: Settings, cluster: str, others: Iterable[str]) -> tuple[str, ...]:
    """Return those of the other clusters that have the same range of services."""
    part = _part(settings, cluster)
    return tuple(sorted({one for one in others if one != cluster and _part(settings, one) == part}))


def api_addresses_kept(settings: Settings) -> int:
    """Return how many addresses behind ``host_range``'s first are for APIs, and for no node.

    One per cluster that there may be, but a quarter of the range at most.
    """
    hosts = ipaddress.IPv4Network(settings.host_range).num_addresses
    return min(1 << settings.cluster_bits, hosts >> 2)


def api_address_of(settings: Settings, cluster: str) -> ipaddress.IPv4Address | None:
    """Return the address of a cluster's API; None: there is none for it.

    In the overlay, the number of its part behind the first of ``host_range``; without the tunnel,
    behind the one that the operator gave.
    """
    part = _part(settings, cluster)
    if settings.vpn:
        hosts = ipaddress.IPv4Network(settings.host_range)
        return hosts[1 + part] if part < api_addresses_kept(settings) else None
    if settings.api_address is None:
        return None
    return ipaddress.IPv4Address(settings.api_address) + part


def _part(settings: Settings, cluster: str) -> int:
    named = (1 << settings.cluster_bits) - 1
    if not cluster or not named:
        return 0
    drawn = hashlib.sha256(_PART_LABEL + b"\0" + cluster.encode()).digest()[:8]
    return 1 + int.from_bytes(drawn) % named
