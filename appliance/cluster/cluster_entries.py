"""What nodes say in bucket ``cluster``, and the file that a node keeps of it (docs/cluster.md).

Every entry is under its writer's node id, ``{NODE}/{KIND}``. It is read strictly; what is malformed
counts for nothing. A node says what it says for itself only: who may say what counts is `roles`'.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar

import msgspec

from appliance.ledger.assigned import read_id
from appliance.ledger.said import Said
from provisioning import codec
from provisioning.errors import FormatError
from provisioning.keys import ID_SIZE, id_text, short_hash

BUCKET = "cluster"
BALLOT, FOUNDED, ROLE, SERVER, PLAN, VIP = "ballot", "founded", "role", "server", "plan", "vip"
DRAINED = "drained"
VERSION = 1
NUMBER_MAX = 2**40
ADDRESSES_MAX = 4
SERVERS_MAX = 7
DRAINED_MAX = 32
VALUE_MAX = 1024
FILE_MAX = 4096
_CLUSTER_LABEL = b"skerry cluster id v1"
T = TypeVar("T")


class RunsAs(Enum):
    """What a node of a cluster runs as."""

    SERVER = "server"
    AGENT = "agent"


class Ballot(msgspec.Struct, frozen=True, array_like=True, order=True):
    """A ballot of the founding: the higher number wins, then the higher node id."""

    number: int
    node: bytes


class Vote(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """All that a node has said in the founding, as acceptor and as proposer.

    ``promised``: it hears no lower ballot any more. ``accepted`` and ``value``: the last ballot in
    which it agreed, and to whom. ``proposed`` is its own ballot, ``proposal`` whom it proposes in
    it, once it knows whom it may.
    """

    version: int = VERSION
    promised: Ballot | None = None
    accepted: Ballot | None = None
    value: bytes | None = None
    proposed: Ballot | None = None
    proposal: bytes | None = None


class Founded(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Which cluster was founded, and by whom."""

    version: int
    cluster_id: bytes
    founder: bytes


class Role(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a node of a cluster runs as, for life; an agent may become a server.

    ``begun``: its engine has served once: what it founded is not to be founded again.
    """

    version: int
    cluster_id: bytes
    role: str
    begun: bool


class Server(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A server that serves the API: its addresses, and since when (Unix ms, for people)."""

    version: int
    cluster_id: bytes
    addresses: tuple[str, ...]
    since_ms: int


class Plan(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What the engine's leader of a term says of its servers, and whom it lets become one."""

    version: int
    cluster_id: bytes
    term: int
    servers: tuple[bytes, ...]
    joining: bytes | None


class Vip(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A server's claim of the API's address as the leader of a term; since in Unix ms."""

    version: int
    cluster_id: bytes
    term: int
    since_ms: int


class Drained(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What the engine's leader says of nodes that are to have no pods: how many each still has."""

    version: int
    left: tuple[tuple[bytes, int], ...]


@dataclass(frozen=True, slots=True)
class Entries:
    """The well-formed entries of bucket ``cluster``, by kind and node."""

    votes: Mapping[bytes, Vote] = field(default_factory=dict)
    founded: Mapping[bytes, Founded] = field(default_factory=dict)
    roles: Mapping[bytes, Role] = field(default_factory=dict)
    servers: Mapping[bytes, Server] = field(default_factory=dict)
    plans: Mapping[bytes, Plan] = field(default_factory=dict)
    vips: Mapping[bytes, Vip] = field(default_factory=dict)
    drained: Mapping[bytes, Drained] = field(default_factory=dict)


class Promises(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a node promised and became, in a file of its own, apart from the ledger's.

    Written and synced before the ledger hears of it: so a lost ``ledger.db`` takes no promise back.
    """

    version: int = VERSION
    vote: Vote = Vote()
    founded: Founded | None = None
    role: Role | None = None


def cluster_id(network_id: bytes, name: str, founder: bytes) -> bytes:
    """Return the id of the cluster that a node founds; ``name`` is empty but for further ones."""
    return short_hash(_CLUSTER_LABEL, network_id + founder + name.encode())


def key_of(node: bytes, kind: str) -> str:
    """Return the key under which a node says something."""
    return f"{id_text(node)}/{kind}"


def value_of(said: Vote | Founded | Role | Server | Plan | Vip | Drained) -> bytes:
    """Return an entry's value."""
    return codec.encode(said)


def read(said: Iterable[Said]) -> Entries:
    """Return what is well-formed and under its writer's own id; the rest counts for nothing."""
    votes: dict[bytes, Vote] = {}
    founded: dict[bytes, Founded] = {}
    roles: dict[bytes, Role] = {}
    servers: dict[bytes, Server] = {}
    plans: dict[bytes, Plan] = {}
    vips: dict[bytes, Vip] = {}
    drained: dict[bytes, Drained] = {}
    for one in said:
        node, _, kind = one.key.partition("/")
        if read_id(node) != one.owner:
            continue
        match kind:
            case "ballot":
                _keep(votes, one, Vote, _vote_fits)
            case "founded":
                _keep(founded, one, Founded, _founded_fits)
            case "role":
                _keep(roles, one, Role, _role_fits)
            case "server":
                _keep(servers, one, Server, _server_fits)
            case "plan":
                _keep(plans, one, Plan, _plan_fits)
            case "vip":
                _keep(vips, one, Vip, _vip_fits)
            case "drained":
                _keep(drained, one, Drained, _drained_fits)
    return Entries(votes, founded, roles, servers, plans, vips, drained)


def read_promises(data: bytes) -> Promises | None:
    """Return what the file holds, or None for anything else: a damaged one is as good as none."""
    kept = _decoded(data, Promises, FILE_MAX)
    if kept is None or kept.version != VERSION or not _vote_fits(kept.vote):
        return None
    right = (kept.founded is None or _founded_fits(kept.founded)) and (
        kept.role is None or _role_fits(kept.role)
    )
    return kept if right else None


def merged(one: Vote, other: Vote) -> Vote:
    """Return what holds if a node has said both: nothing of either is taken back."""
    promised = max(filter(None, (one.promised, other.promised)), default=None)
    agreed = max(one, other, key=lambda vote: _rank(vote.accepted, vote.value))
    own = max(one, other, key=lambda vote: _rank(vote.proposed, vote.proposal))
    return Vote(VERSION, promised, agreed.accepted, agreed.value, own.proposed, own.proposal)


def _rank(ballot: Ballot | None, value: bytes | None) -> tuple[int, bytes, bytes]:
    return (0, b"", b"") if ballot is None else (ballot.number, ballot.node, value or b"")


def _keep(into: dict[bytes, T], said: Said, kind: type[T], fits: Callable[[T], bool]) -> None:
    found = _decoded(said.value, kind, VALUE_MAX)
    if found is not None and fits(found):
        into[said.owner] = found


def _decoded(data: bytes, kind: type[T], limit: int) -> T | None:
    try:
        return codec.decode(data, kind, limit=limit)
    except FormatError:
        return None


def _vote_fits(vote: Vote) -> bool:
    ballots = all(
        one is None or (0 < one.number <= NUMBER_MAX and _is_id(one.node))
        for one in (vote.promised, vote.accepted, vote.proposed)
    )
    return (
        ballots
        and vote.version == VERSION
        and (vote.accepted is None) == (vote.value is None)
        and (vote.proposal is None or vote.proposed is not None)
        and all(one is None or _is_id(one) for one in (vote.value, vote.proposal))
    )


def _founded_fits(said: Founded) -> bool:
    return said.version == VERSION and _is_id(said.cluster_id) and _is_id(said.founder)


def _role_fits(said: Role) -> bool:
    known = said.role in {one.value for one in RunsAs}
    return said.version == VERSION and _is_id(said.cluster_id) and known


def _server_fits(said: Server) -> bool:
    return (
        said.version == VERSION
        and _is_id(said.cluster_id)
        and 0 < len(said.addresses) <= ADDRESSES_MAX
        and all(map(_is_address, said.addresses))
        and said.since_ms >= 0
    )


def _plan_fits(said: Plan) -> bool:
    return (
        said.version == VERSION
        and _is_id(said.cluster_id)
        and 0 <= said.term <= NUMBER_MAX
        and 0 < len(said.servers) <= SERVERS_MAX
        and all(map(_is_id, said.servers))
        and said.servers == tuple(sorted(set(said.servers)))
        and (said.joining is None or _is_id(said.joining))
    )


def _vip_fits(said: Vip) -> bool:
    right = _is_id(said.cluster_id) and 0 <= said.term <= NUMBER_MAX and said.since_ms >= 0
    return said.version == VERSION and right


def _drained_fits(said: Drained) -> bool:
    return (
        said.version == VERSION
        and len(said.left) <= DRAINED_MAX
        and all(_is_id(node) and 0 <= pods <= NUMBER_MAX for node, pods in said.left)
    )


def _is_id(one: bytes) -> bool:
    return len(one) == ID_SIZE


def _is_address(text: str) -> bool:
    """Say whether it is an address as `ipaddress` writes it, and one that a node can have."""
    try:
        one = ipaddress.ip_address(text)
    except ValueError:
        return False
    wrong = one.is_multicast or one.is_unspecified or one.is_loopback
    return str(one) == text and "%" not in text and not wrong
