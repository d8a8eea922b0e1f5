"""How pods of different nodes reach each other: on the overlay itself, or by Flannel.

Flannel is over the overlay, or on the LAN where there is no tunnel. This says what
`skerry-flannel.service` is told. See docs/flannel.md.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from appliance.cluster import conflist
from appliance.cluster.conflist import PodNetwork
from appliance.cluster.ranges import NodeRange
from appliance.kubernetes import files
from appliance.kubernetes.facts import Cluster, PodNetworkMode
from appliance.overlay.addresses import ula_prefix

log = logging.getLogger(__name__)

# Ethernet, IPv4, UDP and VXLAN headers around a pod's packet (RFC 7348, 5).
OVERHEAD = 50
_TEXT_MAX = 16 * 1024


def pod_network(cluster: Cluster, own: NodeRange) -> PodNetwork:
    """Return how this node's pods are connected.

    Flannel's are IPv4 only: what its encapsulation leaves of the overlay's 1280 bytes is less than
    IPv6 allows a link to have (RFC 8200, 5).
    """
    flannel = cluster.mode is PodNetworkMode.FLANNEL
    hosts = (ula_prefix(cluster.plan.network_id),) if cluster.document.vpn else ()
    mtu = cluster.document.mtu - (OVERHEAD if flannel else 0)
    return conflist.pod_network(own, mtu, (*cluster.pods, cluster.hosts, *hosts), ipv6=not flannel)


def unit_texts(cluster: Cluster) -> dict[str, str]:
    """Return the files of the daemon's unit by name; the last one is what starts it."""
    settings = {
        "Network": str(cluster.plan.pod_cidr),
        "EnableNFTables": True,
        "Backend": {"Type": "vxlan"},
    }
    facts = cluster.document
    # On a LAN, the address that Kubernetes knows: an interface may have others, such as the API's.
    over = facts.interface if facts.vpn else cluster.node_addresses[0]
    variables = f"NODE_NAME={facts.name}\nSKERRY_INTERFACE={over}\n"
    return {"net-conf.json": json.dumps(settings) + "\n", "flannel.env": variables}


def tell_unit(cluster: Cluster, folder: Path) -> None:
    """In Flannel mode, give the daemon's unit what it needs; a path unit starts it then.

    Raises FileTroubleError.
    """
    if cluster.mode is not PodNetworkMode.FLANNEL or not cluster.node_addresses:
        return
    for name, text in unit_texts(cluster).items():
        if files.read_text(folder / name, _TEXT_MAX) != text:
            files.write(folder / name, text.encode(), mode=0o644, folder_mode=0o755)
            log.info("Flannel is told: %s", name)
