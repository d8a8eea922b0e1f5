"""To whom the addresses of the clusters' APIs lead, and which cluster a part of the network is for.

Worked out anew from the ledger each time, alike on every node that has it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable

from appliance.cluster import vip
from appliance.cluster.cluster_entries import BUCKET, Vip
from appliance.cluster.ranges import carries_pods
from appliance.ledger.claims import grant_view
from appliance.ledger.state import Replica
from provisioning.clusters import api_address_of, cluster_of, rivals
from provisioning.membership import Member
from provisioning.settings import Settings

_SERVING = frozenset({"server", "auto"})


def cluster_before(
    cluster: str, settings: Settings, members: Iterable[Member], replica: Replica
) -> str | None:
    """Return the cluster that has what would be this one's part, None if this one has it.

    Of clusters with one part the one has it whose nodes were seen first, as with a grant's count.
    """
    carriers = {one.node_id: one for one in members if carries_pods(one)}
    others = rivals(settings, cluster, (cluster_of(one.labels) for one in carriers.values()))
    if not others:
        return None
    view = grant_view(replica, carriers.values())
    first = min(
        (one for one in carriers.values() if cluster_of(one.labels) in {cluster, *others}),
        key=lambda one: view.rank(view.claims[one.node_id]),
    )
    holder = cluster_of(first.labels)
    return None if holder == cluster else holder


def api_routes(
    settings: Settings,
    members: Collection[Member],
    replica: Replica,
    taken: Collection[ipaddress.IPv4Address],
    now_ms: int,
) -> dict[bytes, str]:
    """Return the network of its cluster's API by the node that has it.

    ``taken``: the addresses of nodes. One that a node has is no API's: it was there before, and a
    packet for it can have one way only.
    """
    able = {one.node_id: cluster_of(one.labels) for one in members if one.roles & _SERVING}
    said = (one for one in replica.entries(BUCKET, now_ms) if one.key.endswith(vip.END))
    claims: dict[str, dict[bytes, Vip]] = {}
    for node, claim in vip.claims(said, able).items():
        claims.setdefault(able[node], {})[node] = claim
    routes = {}
    for cluster, found in claims.items():
        address, holder = api_address_of(settings, cluster), vip.holder(found)
        if address is None or holder is None or address in taken:
            continue
        if cluster_before(cluster, settings, members, replica) is None:
            routes[holder] = f"{address}/32"
    return routes
