"""Where members say in the ledger that they are: bucket ``node``, key ``NODEID/endpoints``."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from appliance.ledger.state import Replica
from appliance.overlay.endpoint import Endpoint, PackedEndpoint, unpack_endpoint
from appliance.overlay.errors import WireError
from provisioning import codec
from provisioning.errors import FormatError
from provisioning.keys import id_text

NODE = "node"
SUFFIX = "/endpoints"
ENDPOINTS_MAX = 8
_VALUE_MAX = 2048


def endpoints_key(node_id: bytes) -> str:
    """Return the key under which a member says where it is."""
    return f"{id_text(node_id)}{SUFFIX}"


def endpoints_value(endpoints: Iterable[Endpoint]) -> bytes:
    """Return the value that says so, of the first ENDPOINTS_MAX."""
    return codec.encode(tuple(one.pack() for one in endpoints)[:ENDPOINTS_MAX])


def read_endpoints(value: bytes) -> tuple[Endpoint, ...]:
    """Return the endpoints in a value; none if it is malformed."""
    try:
        packed = codec.decode(value, tuple[PackedEndpoint, ...], limit=_VALUE_MAX)
        return tuple(unpack_endpoint(one) for one in packed[:ENDPOINTS_MAX])
    except (FormatError, WireError, msgspec.MsgspecError):
        return ()


def endpoints_of(replica: Replica, node_id: bytes, now_ms: int) -> tuple[Endpoint, ...]:
    """Return where a member says that it is."""
    entry = replica.get(NODE, endpoints_key(node_id), now_ms)
    return () if entry is None else read_endpoints(entry.value)
