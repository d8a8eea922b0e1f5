"""All services of the network as people see them: pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from appliance.services.offers import Offer, service_address
from appliance.services.plan import Network, allowed, connections_of, is_near, usable
from appliance.services.wishes import Connection, Wishes
from provisioning.keys import id_text


@dataclass(frozen=True, slots=True)
class Row:
    """A service; of a connected one, ``now`` are the nodes to which connections go.

    ``spilled``: members of the own cluster offer it, and it goes to others, since none is well.
    """

    name: str
    protocol: str
    address: str
    port: int
    connected: bool
    offers: tuple[tuple[str, int, str], ...]
    now: tuple[str, ...] = ()
    spilled: bool = False


def rows(wishes: Wishes, network: Network, offers: Sequence[Offer]) -> tuple[Row, ...]:
    """Return all services that anybody offers or that are wanted here."""
    connections = {one.name: one for one in connections_of(wishes, network, offers)[0]}
    by_name: dict[tuple[str, str], list[Offer]] = {}
    for one in offers:
        by_name.setdefault((one.name, one.protocol), []).append(one)
    for name in connections.keys() - {name for name, _ in by_name}:
        by_name[name, ""] = []
    return tuple(
        _row(name, protocol, some, connections.get(name), network)
        for (name, protocol), some in sorted(by_name.items())
    )


def _row(
    name: str, protocol: str, some: Sequence[Offer], connection: Connection | None, network: Network
) -> Row:
    address = str(service_address(network.network_id, name))
    said = tuple((_name(network, one.node), one.port, _state(one, network)) for one in some)
    lowest = min((one.port for one in some), default=0)
    if connection is None:
        return Row(name, protocol, address, lowest, connected=False, offers=said)
    open_ = [one for one in some if allowed(one, connection)]
    used = usable(open_, network)
    near = [one for one in open_ if is_near(one, network)]
    return Row(
        name,
        protocol,
        address,
        connection.port or min((one.port for one in open_), default=lowest),
        connected=True,
        offers=said,
        now=tuple(_name(network, one.node) for one in used),
        spilled=bool(near and used) and not any(is_near(one, network) for one in used),
    )


def _state(one: Offer, network: Network) -> str:
    member = network.members.get(one.node)
    if member is None or not member.up:
        return "node down"
    return "up" if one.healthy else "no answer"


def _name(network: Network, node: bytes) -> str:
    member = network.members.get(node)
    return id_text(node) if member is None else member.name


def words(row: Row) -> str:
    """Return where a connected service's traffic goes now, for people."""
    if not row.connected:
        return "-"
    if not row.now:
        return "nobody"
    return ", ".join(row.now) + (" (spilled over)" if row.spilled else "")
