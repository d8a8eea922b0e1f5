"""Identities made beforehand, for what chance would not bring about soon."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Iterable

from appliance.overlay.addresses import claimed_address
from provisioning.identity import FIRST, SECOND, new_identity, read_identity, write_identity
from tests.netns.lab import Network, Node


def clashing_identities(
    network: Network, one: Node, two: Node, *, avoid: Iterable[str] = ()
) -> tuple[bytes, bytes]:
    """Give the two nodes identities whose first addresses are the same; return their ids.

    The address is none of ``avoid``. The network's range should be small.
    """
    token, wanted = network.token(), ipaddress.IPv4Network(network.info.settings.host_range)
    taken = {ipaddress.IPv4Address(address) for address in avoid}
    seen: dict[Node, dict[ipaddress.IPv4Address, bytes]] = {one: {}, two: {}}
    while not (common := (seen[one].keys() & seen[two].keys()) - taken):
        for node, found in seen.items():
            blob = write_identity(new_identity(token, name=node.name, now=time.time()))
            found.setdefault(claimed_address(read_identity(blob).node_id, 0, wanted), blob)
    place = common.pop()
    for node, found in seen.items():
        keep_identity(node, found[place])
    return read_identity(seen[one][place]).node_id, read_identity(seen[two][place]).node_id


def keep_identity(node: Node, blob: bytes) -> None:
    """Put an identity where the node's supervisor will find it."""
    target = node.state_dir / "identity"
    target.mkdir(mode=0o700)
    for name in (FIRST, SECOND):
        (target / name).write_bytes(blob)
        (target / name).chmod(0o600)
