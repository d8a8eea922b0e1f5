"""What the root key says of clusters, in bucket ``assigned``: keys and values.

Over the network's settings, which hold for its life: ``cluster/founder`` names the node that
founds the cluster, ``cluster/servers`` how many servers it grows to, ``cluster/drain/NODE`` that a
node is to have no pods. Read strictly, like all
statements (`appliance.ledger.assigned`): what is malformed counts for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from appliance.cluster.errors import ClusterError
from appliance.cluster.model import Orders
from appliance.ledger.assigned import read_id
from appliance.ledger.said import Said
from provisioning.keys import ID_SIZE, id_text

PREFIX = "cluster/"
FOUNDER = "cluster/founder"
SERVERS = "cluster/servers"
DRAIN = "cluster/drain/"
DRAIN_VALUE = b"\x01"
SERVERS_CHOICES = (1, 3)


def founder_value(node_id: bytes) -> bytes:
    """Return the value that names the founder."""
    return node_id


def servers_value(servers: int) -> bytes:
    """Return the value that says how many servers there are to be. Raises ClusterError."""
    if servers not in SERVERS_CHOICES:
        raise ClusterError(f"a cluster cannot have {servers} servers", hint="choose 1 or 3")
    return bytes([servers])


def drain_key(node_id: bytes) -> str:
    """Return the key that says that a node is to have no pods."""
    return DRAIN + id_text(node_id)


def read_orders(said: Iterable[Said], network_id: bytes) -> Orders:
    """Return what the root key's entries say; whoever else signed them says nothing."""
    by_key = {one.key: one.value for one in said if one.owner == network_id}
    founder = by_key.get(FOUNDER, b"")
    servers = by_key.get(SERVERS, b"")
    drain = (read_id(key.removeprefix(DRAIN)) for key in by_key if key.startswith(DRAIN))
    return Orders(
        founder if len(founder) == ID_SIZE else None,
        servers[0] if len(servers) == 1 and servers[0] in SERVERS_CHOICES else None,
        frozenset(
            one for one in drain if one is not None and by_key[drain_key(one)] == DRAIN_VALUE
        ),
    )
