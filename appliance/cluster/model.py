"""The types of deciding about roles: what a node sees of its cluster, and what it decides."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from appliance.cluster.cluster_entries import Entries, Promises
from appliance.cluster.founding import Quiet
from appliance.cluster.growth import Engine, Waiting
from appliance.problem import Problem

# Nodes whose grant has this label form a cluster of their own, called so; the others one cluster.
CLUSTER_LABEL = "skerry.internal/cluster"


class Kind(Enum):
    """What to be. FOUND is also what a founder is after every later start, for life."""

    WAIT = "wait"
    NONE = "none"
    FOUND = "found"
    SERVER = "server"
    AGENT = "agent"


@dataclass(frozen=True, slots=True)
class Member:
    """A member of the network that is in.

    ``roles`` are its grant's, ``founder`` its grant's bit, ``cluster`` the value of CLUSTER_LABEL
    among its grant's labels or empty. ``addresses``: those of the overlay.
    """

    node_id: bytes
    name: str
    roles: frozenset[str]
    founder: bool = False
    alive: bool = True
    addresses: tuple[str, ...] = ()
    cluster: str = ""

    @property
    def may_serve(self) -> bool:
        """Say whether it may be a server, and so votes."""
        return not self.roles.isdisjoint({"server", "auto"})

    @property
    def may_work(self) -> bool:
        """Say whether it may be an agent."""
        return not self.roles.isdisjoint({"agent", "auto"})


@dataclass(frozen=True, slots=True)
class Wanted:
    """The network's settings that matter here."""

    servers: int = 1
    expected_nodes: int | None = None


@dataclass(frozen=True, slots=True)
class Orders:
    """What the root key says of clusters in ``assigned`` (`orders`): over settings and ballots."""

    founder: bytes | None = None
    servers: int | None = None
    drain: frozenset[bytes] = frozenset()


@dataclass(frozen=True, slots=True)
class Memory:
    """What the next call has to know of the ones before; it may be lost, then all takes longer."""

    started: float | None = None
    ordered: float | None = None
    quiet: Quiet = field(default_factory=Quiet)
    waiting: Waiting = field(default_factory=Waiting)


@dataclass(frozen=True, slots=True)
class View:
    """What this node sees. ``now`` is monotonic seconds; ``now_ms`` (Unix) is for people only."""

    own: bytes
    network_id: bytes
    members: Mapping[bytes, Member]
    wanted: Wanted
    entries: Entries
    now: float
    now_ms: int = 0
    kept: Promises = field(default_factory=Promises)
    engine: Engine = field(default_factory=Engine)
    orders: Orders = field(default_factory=Orders)
    memory: Memory = field(default_factory=Memory)


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, in this order: store ``keep``, write ``writes`` (key, value), then act.

    ``join`` are addresses of servers, the best first; a server that has its data needs none.
    ``cluster_init``: found with the embedded etcd, which others can join. ``reset``: the engine's
    data is of a server that the others have replaced: move it away first. ``remove``: a server to
    take out of the engine (of the leader only). ``wake``: look again by then at the latest.
    """

    kind: Kind
    why: str
    hint: str = ""
    join: tuple[str, ...] = ()
    cluster_init: bool = False
    cluster_id: bytes | None = None
    reset: bool = False
    keep: Promises | None = None
    writes: tuple[tuple[str, bytes], ...] = ()
    remove: bytes | None = None
    problems: tuple[Problem, ...] = ()
    memory: Memory = field(default_factory=Memory)
    wake: float | None = None


def order_of(salt: bytes, node: bytes) -> bytes:
    """Return by what nodes are put in an order that is everybody's, and nobody's choice."""
    return hashlib.sha256(salt + node).digest()
