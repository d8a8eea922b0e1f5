"""What the control plane shows: the members of the network as this node knows them."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.control.plane import ControlPlane
from appliance.ledger.assigned import labels, labels_of, names
from appliance.ledger.claims import grant_view
from appliance.ledger.hlc import STAMP_MAX
from appliance.ledger.swim import Status
from appliance.names.zone import NodeName
from appliance.overlay.addresses import ula_address
from appliance.overlay.visitors import is_visitor
from provisioning.keys import id_text


@dataclass(frozen=True, slots=True)
class NodeView:
    """A member. ``state``: ``self``, ``up`` (answers us), ``alive`` (answers others), ``down``.

    ``refused``: why it is not let in although its certificate is good; empty: it is in.
    ``range``: its IPv4 pod range; empty: none.
    """

    node_id: str
    name: str
    state: str
    addresses: tuple[str, ...]
    roles: tuple[str, ...]
    labels: dict[str, str]
    grant_id: str
    issued: int
    founder: bool
    refused: str = ""
    range: str = ""


@dataclass(frozen=True, slots=True)
class LedgerView:
    """The ledger on this node; ``bytes`` of the entries, without the file's overhead.

    ``clock``: ``synced``, ``kept`` or ``guessed``; ``contacts``: members it can talk to now.
    """

    entries: int
    bytes: int
    members: int
    contacts: int
    epoch: int
    clock: str


def nodes_view(plane: ControlPlane, mono: float) -> tuple[NodeView, ...]:
    """Return all members in the ledger, by name."""
    replica = plane.gossip.replica
    now_ms = plane.timekeeper.now_ms(mono)
    given = labels(replica, now_ms)
    standing = plane.policies.standing()
    found = []
    for member in replica.directory:
        ipv6 = str(ula_address(plane.identity.network.network_id, member.node_key))
        ipv4 = plane.policies.address_of(member.node_id)
        denied = standing.judge(member)
        held = plane.policies.holdings.range_of(member.node_id)
        found.append(
            NodeView(
                node_id=member.id_text,
                name=plane.policies.name_of(member),
                state=state_of(plane, member.node_id),
                addresses=(str(ipv4), ipv6) if ipv4 else (ipv6,),
                roles=tuple(sorted(member.roles)),
                labels=labels_of(member, given),
                grant_id=id_text(member.grant_id),
                issued=member.issued,
                founder=member.founder,
                refused=denied.detail if denied else "",
                range=str(held.ipv4) if held else "",
            )
        )
    return tuple(sorted(found, key=lambda one: (one.name, one.node_id)))


def names_view(plane: ControlPlane, mono: float) -> tuple[NodeName, ...]:
    """Return what members that are in are called, and their addresses.

    Of several with one name it belongs to the one that the operator called so, else to the one that
    others saw first: what a certificate says of its own age proves nothing.
    """
    replica = plane.gossip.replica
    now_ms = plane.timekeeper.now_ms(mono)
    network_id = plane.identity.network.network_id
    excess = plane.policies.standing().excess
    given = names(replica, now_ms)
    seen = grant_view(replica, replica.directory).sightings
    found = []
    for member in replica.directory:
        node_id = member.node_id
        if node_id in excess:
            continue
        sighting = seen.get((node_id, member.grant_id))
        since = STAMP_MAX if sighting is None else sighting.stamp
        found.append(
            NodeName(
                node_id,
                plane.policies.name_of(member),
                plane.policies.address_of(node_id),
                ula_address(network_id, member.node_key),
                0 if node_id in given else since,
            )
        )
    return tuple(found)


def ledger_view(plane: ControlPlane) -> LedgerView:
    """Return what there is to say of the ledger as a whole."""
    replica = plane.gossip.replica
    return LedgerView(
        entries=len(replica),
        bytes=replica.bytes,
        members=len(replica.directory),
        contacts=len(plane.core.contacts() - visitors_of(plane)),
        epoch=plane.policies.secrets.current,
        clock=plane.timekeeper.quality.name.lower(),
    )


def visitors_of(plane: ControlPlane) -> frozenset[bytes]:
    """Return the ids of those among the peers who only look in: no members, so never shown."""
    return frozenset(node for node, peer in plane.peers.items() if is_visitor(peer.member.labels))


def state_of(plane: ControlPlane, node_id: bytes) -> str:
    """Return a member's state, as `NodeView` has it."""
    if node_id == plane.identity.node_id:
        return "self"
    peer = plane.peers.get(node_id)
    if peer is not None and peer.up:
        return "up"
    detector = plane.gossip.detector
    status = detector.status(node_id) if detector else None
    return "alive" if status is Status.ALIVE and plane.core.contacts() else "down"
