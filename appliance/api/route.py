"""``GET /v1/route?address=``: who owns an address, by which entries, and how it is reached.

A pure answer from what the node knows: `route`. A pod's address is the node's that holds its range;
addresses of services are told as such.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from http import HTTPStatus

from appliance.api.http import HttpError, Request
from appliance.api.router import Answer, Parameter, Route
from appliance.cluster.ranges import carries_pods, plan_for, unpack
from appliance.ledger import claims
from appliance.ledger.assigned import node_key, read_id
from appliance.ledger.claims import (
    ADDRESS_KIND,
    RANGE_KIND,
    WITNESSES,
    Claim,
    View,
    witness_key,
)
from appliance.ledger.entry import Entry
from appliance.ledger.hlc import ms_of
from appliance.ledger.rules import ASSIGNED, MEMBER, WITNESS
from appliance.ledger.state import Replica
from appliance.ledger.timekeeper import Quality
from appliance.names.ranges import DOMAIN
from appliance.names.zone import NodeName
from appliance.overlay.addresses import pods_prefix, ula_address, ula_prefix
from appliance.overlay.status import OverlayStatus, PeerStatus
from provisioning import codec
from provisioning.errors import FormatError
from provisioning.keys import id_text
from provisioning.settings import Settings
from skerry.errors import SkerryError

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class RouteError(SkerryError):
    """What was asked for is no address and no member."""


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What a node answers from.

    ``members``: ids of those who are in, this node too; ``names``: what they are called and their
    addresses (`control.views.names_view`); ``views``: the claims of addresses and of pod ranges,
    by kind (`claims.view_of`).
    """

    own: bytes
    replica: Replica
    views: Mapping[str, View]
    members: Collection[bytes]
    names: Sequence[NodeName]
    overlay: OverlayStatus
    settings: Settings
    now_ms: int


@dataclass(frozen=True, slots=True)
class Who:
    """A member, as people and as programs call it."""

    node_id: str
    name: str


@dataclass(frozen=True, slots=True)
class Witness:
    """A member that has seen the claim uncontested; ``guessed``: it had no clock then."""

    who: Who
    written: str
    guessed: bool


@dataclass(frozen=True, slots=True)
class Evidence:
    """An entry of the ledger that says so.

    ``kind``: ``fixed`` (by the operator), ``claimed`` (``attempt`` counts where the node's id led),
    ``certified`` (an IPv6 address follows from the key in the certificate). ``holds``: it makes the
    owner, or would if nobody outranked it.
    """

    kind: str
    who: Who
    bucket: str
    key: str
    owner: str
    written: str
    attempt: int | None = None
    witnesses: tuple[Witness, ...] = ()
    holds: bool = True


@dataclass(frozen=True, slots=True)
class Path:
    """How packets get there.

    ``kind``: ``self``, ``direct`` (through the tunnel, to ``endpoint``), ``down`` (met, no answer
    now), ``unmet`` (in the ledger only), ``coordination`` (the network has no tunnel), ``none``.
    """

    kind: str
    up: bool = False
    endpoint: str = ""
    via: str = ""
    interface: str = ""
    rtt_ms: float | None = None
    handshake_age_s: float | None = None


@dataclass(frozen=True, slots=True)
class RouteView:
    """The answer. ``range``: ``nodes``, ``pods``, ``services`` or ``outside``.

    ``evidence``: what makes the owner (or reserves the address); ``contested``: what others say who
    claim it too and are outranked. ``why``: in words, if nobody owns it. ``pod_range``: the range
    that a pod's address is in.
    """

    asked: str
    address: str
    range: str
    owner: Who | None
    evidence: tuple[Evidence, ...] = ()
    contested: tuple[Evidence, ...] = ()
    path: Path = Path("none")
    why: str = ""
    pod_range: str = ""


@dataclass(frozen=True, slots=True)
class _Thing:
    """What claims are about: ``what`` in the ledger, in ``words``, by the nodes in ``members``."""

    kind: str
    what: bytes
    words: str
    view: View
    members: Collection[bytes]


def route(asked: str, known: Knowledge) -> RouteView:
    """Return who owns an address, or the one of a member's name or id. Raises RouteError."""
    address = _address(asked, known)
    where = _range(address, known)
    if where == "pods":
        return _pod(asked, address, known)
    if where != "nodes":
        return RouteView(asked, str(address), where, None, why=_elsewhere(where, address, known))
    if isinstance(address, ipaddress.IPv6Address):
        return _ipv6(asked, address, known)
    view = known.views[ADDRESS_KIND]
    thing = _Thing(ADDRESS_KIND, address.packed, str(address), view, known.members)
    found = _held(RouteView(asked, str(address), where, None), thing, known)
    return found if found.owner else replace(found, why=_free(address, found.evidence, known))


# What is asked for


def _address(asked: str, known: Knowledge) -> IPAddress:
    text = asked.strip()
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        pass
    name = text.lower().removesuffix(".").removesuffix(f".{DOMAIN}")
    node_id = read_id(name)
    found = [one for one in known.names if node_id == one.node_id or one.name == name]
    if not found:
        raise RouteError(
            f"{text[:80]!r} is neither an address nor a member's name or id",
            hint="`skerry status` shows the members",
        )
    # As the resolver answers: the one that has had the name for longest.
    first = min(found, key=lambda one: (one.since, one.node_id))
    address = first.ipv4 or first.ipv6
    if address is None:
        raise RouteError(
            f"{first.name} has no overlay address yet", hint="it gets one within seconds; try again"
        )
    return address


def _range(address: IPAddress, known: Knowledge) -> str:
    if isinstance(address, ipaddress.IPv6Address):
        network_id = known.replica.directory.network.network_id
        if address in pods_prefix(network_id):
            return "pods"
        return "nodes" if address in ula_prefix(network_id) else "outside"
    ranges = (
        ("nodes", known.settings.host_range),
        ("pods", known.settings.pod_cidr),
        ("services", known.settings.service_cidr),
    )
    for name, text in ranges:
        if address in ipaddress.IPv4Network(text):
            return name
    return "outside"


def _elsewhere(where: str, address: IPAddress, known: Knowledge) -> str:
    match where:
        case "services":
            return (
                f"{address} is of the services' range {known.settings.service_cidr}: there are none"
            )
        case _:
            network = known.replica.directory.network
            return (
                f"{address} is not of this network: nodes have {known.settings.host_range} and "
                f"{ula_prefix(network.network_id)}"
            )


# Who owns it


def _ipv6(asked: str, address: ipaddress.IPv6Address, known: Knowledge) -> RouteView:
    network_id = known.replica.directory.network.network_id
    for member in known.replica.directory:
        if ula_address(network_id, member.node_key) != address:
            continue
        entry = known.replica.get(MEMBER, id_text(member.node_id), known.now_ms)
        evidence = (_evidence("certified", member.node_id, entry, known),) if entry else ()
        if member.node_id not in known.members:
            why = f"it would be that of {_who(member.node_id, known).name}, which is not let in"
            return RouteView(asked, str(address), "nodes", None, evidence, why=why)
        owner = _who(member.node_id, known)
        path = _path(member.node_id, known)
        return RouteView(asked, str(address), "nodes", owner, evidence, path=path)
    why = f"no member's key leads to {address}; whose it is would follow from its certificate"
    return RouteView(asked, str(address), "nodes", None, why=why)


def _pod(asked: str, address: IPAddress, known: Knowledge) -> RouteView:
    network_id = known.replica.directory.network.network_id
    what = plan_for(network_id, known.settings).around(address)
    view = RouteView(asked, str(address), "pods", None)
    if what is None:
        return replace(view, why=f"{address} is of the pods' IPv6 range, but of no node's part")
    words = str(unpack(what))
    carriers = {one.node_id for one in known.replica.directory if carries_pods(one)}
    inside = carriers.intersection(known.members)
    thing = _Thing(RANGE_KIND, what, words, known.views[RANGE_KIND], inside)
    found = _held(replace(view, pod_range=words), thing, known)
    if found.owner is not None:
        return found
    names = ", ".join(one.who.name for one in found.evidence)
    why = f"it is of the pod range {words}, which no member claims"
    if names:
        why = f"the operator keeps {words} for {names}, which does not claim it (yet)"
    return replace(found, why=why)


def _held(view: RouteView, thing: _Thing, known: Knowledge) -> RouteView:
    """Return the view with who holds it, and by what; without one, with who it is kept for."""
    said = thing.view
    inside = {node: one for node, one in said.claims.items() if node in thing.members}
    ranked = View(inside, said.sightings, said.fixed)
    rivals = sorted((one for one in inside.values() if one.what == thing.what), key=ranked.rank)
    if not rivals:
        reserved = sorted(node for node, one in said.fixed.items() if one == thing.what)
        kept = (_fixed(node, thing, known) for node in reserved)
        return replace(view, evidence=tuple(one for one in kept if one is not None))
    holder, *others = rivals
    return replace(
        view,
        owner=_who(holder.node, known),
        evidence=_claimed(holder, thing, known, holds=True),
        contested=tuple(
            item for one in others for item in _claimed(one, thing, known, holds=False)
        ),
        path=_path(holder.node, known),
    )


def _free(address: ipaddress.IPv4Address, said: Sequence[Evidence], known: Knowledge) -> str:
    network = ipaddress.IPv4Network(known.settings.host_range)
    if not claims.in_range(address.packed, network):
        return f"{address} is never given away: it is an edge of {network}"
    if said:
        names = ", ".join(one.who.name for one in said)
        return f"the operator keeps {address} for {names}, which does not claim it (yet)"
    return f"no member claims {address}"


def _claimed(claim: Claim, thing: _Thing, known: Knowledge, *, holds: bool) -> tuple[Evidence, ...]:
    """Return what speaks for a claim: the operator's word first, if there is one."""
    found = []
    if thing.view.fixed.get(claim.node) == claim.what:
        found.append(_fixed(claim.node, thing, known, holds=holds))
    # A kind has the name of its bucket.
    entry = known.replica.get(thing.kind, id_text(claim.node), known.now_ms)
    if entry is not None:
        seen = tuple(_witnesses(claim, thing.kind, known))
        found.append(
            _evidence("claimed", claim.node, entry, known, claim.attempt, seen, holds=holds)
        )
    return tuple(one for one in found if one is not None)


def _fixed(node: bytes, thing: _Thing, known: Knowledge, *, holds: bool = True) -> Evidence | None:
    entry = known.replica.get(ASSIGNED, node_key(node, thing.kind), known.now_ms)
    return _evidence("fixed", node, entry, known, holds=holds) if entry else None


def _evidence(
    kind: str,
    node: bytes,
    entry: Entry,
    known: Knowledge,
    attempt: int | None = None,
    witnesses: tuple[Witness, ...] = (),
    *,
    holds: bool = True,
) -> Evidence:
    return Evidence(
        kind,
        _who(node, known),
        entry.bucket,
        entry.key,
        id_text(entry.owner),
        _iso(ms_of(entry.stamp)),
        attempt,
        witnesses,
        holds,
    )


def _witnesses(claim: Claim, kind: str, known: Knowledge) -> Iterator[Witness]:
    """Yield who has seen a claim, those that count first; more than a few say nothing more."""
    found = []
    for member in known.replica.directory:
        key = witness_key(member.node_id, kind, claim.node)
        entry = known.replica.get(WITNESS, key, known.now_ms)
        if entry is None or member.node_id == claim.node:
            continue
        try:
            value = codec.decode(entry.value, claims.WitnessValue, limit=64)
        except FormatError:
            continue
        if value.what == claim.what:
            found.append((value.quality <= Quality.GUESSED, entry.stamp, member.node_id))
    for guessed, stamp, node_id in sorted(found)[:WITNESSES]:
        yield Witness(_who(node_id, known), _iso(ms_of(stamp)), guessed)


def _who(node: bytes, known: Knowledge) -> Who:
    name = next((one.name for one in known.names if one.node_id == node), None)
    member = known.replica.directory.member(node)
    return Who(id_text(node), name or (member.name if member else id_text(node)))


# On which path


def _path(owner: bytes, known: Knowledge) -> Path:
    overlay = known.overlay
    if owner == known.own:
        return Path("self", up=True, interface=overlay.interface)
    peer = next((one for one in overlay.peers if one.node_id == id_text(owner)), None)
    if peer is None:
        return Path("unmet")
    if overlay.mode == "off":
        return _over("coordination", peer, "")
    return _over("direct" if peer.up else "down", peer, overlay.interface)


def _over(kind: str, peer: PeerStatus, interface: str) -> Path:
    return Path(
        kind, peer.up, peer.endpoint, peer.path, interface, peer.rtt_ms, peer.handshake_age_s
    )


def _iso(ms: int) -> str:
    moment = _EPOCH + timedelta(milliseconds=min(ms, 253_402_300_799_999))
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


# The route of the API


def route_routes(provider: Callable[[], Knowledge | None]) -> dict[tuple[str, str], Route]:
    """Return the route; ``provider`` gives what the node knows, None while it has no network."""

    async def answer(request: Request) -> Answer:
        known = provider()
        if known is None:
            raise HttpError(
                HTTPStatus.CONFLICT,
                "this node is in no network yet",
                "Give it a token: skerry provision TOKEN",
            )
        return HTTPStatus.OK, route(request.query["address"], known)

    what = "an overlay address, a pod's address, or a member's name or id"
    who = {"type": ["object", "null"], "properties": {"node_id": {}, "name": {}}}
    entries = {"type": "array", "items": {"type": "object"}}
    return {
        ("GET", "/v1/route"): Route(
            answer,
            "Which node owns an address, by which entries, and on which path it is reached",
            query=(Parameter("address", what, required=True),),
            answer={
                "type": "object",
                "required": ["asked", "address", "range", "owner", "evidence", "path", "why"],
                "properties": {
                    "asked": {"type": "string"},
                    "address": {"type": "string"},
                    "range": {"enum": ["nodes", "pods", "services", "outside"]},
                    "owner": who,
                    "evidence": entries,
                    "contested": entries,
                    "path": {"type": "object"},
                    "why": {"type": "string"},
                    "pod_range": {"type": "string", "description": "the range of a pod's address"},
                },
            },
            refusals={
                HTTPStatus.CONFLICT: "the node has no network yet, or its end of it does not run",
                HTTPStatus.BAD_REQUEST: "no address, and no member's name or id",
            },
        )
    }
