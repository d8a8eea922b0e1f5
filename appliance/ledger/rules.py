"""The buckets of the ledger: who may write what, how much, and which entry counts.

A new bucket is one row. Rules are the same on every node of a release; an entry of a bucket that a
node does not know yet is refused there, and comes by reconciliation once the node is updated.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

from appliance.ledger.entry import VALUE_MAX

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS


class Writers(Enum):
    """Who may write; the value is how a message puts it."""

    OWNER = "a member, under its own node id"
    ROLE = "members whose grant has the role"
    ROLE_OWNER = "members whose grant has the role, under their own node id"
    ANY = "any member"
    ROOT = "the network's root key"
    SELF = "a member or the root key, about itself"


class Winner(Enum):
    """Which of several owners' entries of one key counts.

    LATEST: highest stamp, then highest owner id. EARLIEST: lowest stamp, then lowest owner id; it
    is as good as the writers' clocks, so what must not be stolen goes by `claims` instead.
    """

    LATEST = "latest"
    EARLIEST = "earliest"


@dataclass(frozen=True, slots=True)
class Bucket:
    """The rule of one bucket.

    ``entries`` and ``bytes`` are per owner, tombstones included. With ``lease_max_ms`` every entry
    has a lease of at most that; without, none has. There is no mixture, so that a lease that ran
    out never uncovers an older entry without one. What is ``final`` can be replaced, never
    deleted.
    """

    name: str
    writers: Writers
    what: str
    entries: int
    bytes: int
    value_max: int = VALUE_MAX
    lease_max_ms: int | None = None
    roles: frozenset[str] = frozenset()
    winner: Winner = Winner.LATEST
    final: bool = False


MEMBER = "member"
FLOOR = "floor"
REVOKED = "revoked"
ADDRESS = "address"
RANGE = "range"
WITNESS = "witness"
ASSIGNED = "assigned"
EPOCH = "epoch"

_KIB = 1024
_ROWS = (
    Bucket(MEMBER, Writers.OWNER, "membership certificates", 1, 8 * _KIB, final=True),
    Bucket(FLOOR, Writers.SELF, "what an owner's older entries are worth", 1, _KIB, 8, final=True),
    Bucket(
        REVOKED,
        Writers.ROOT,
        "nodes and grants that are out",
        65_536,
        16 * _KIB**2,
        256,
        final=True,
    ),
    Bucket(ASSIGNED, Writers.ROOT, "what the operator fixed for a node", 65_536, 32 * _KIB**2, 512),
    Bucket(EPOCH, Writers.ROOT, "secrets of epochs, sealed to each", 131_072, 64 * _KIB**2, 512),
    Bucket(ADDRESS, Writers.OWNER, "claims of overlay addresses", 1, _KIB, 64),
    Bucket(RANGE, Writers.OWNER, "claims of pod ranges", 1, _KIB, 64),
    Bucket(WITNESS, Writers.OWNER, "claims that a member has seen", 4096, _KIB**2, 64),
    Bucket("node", Writers.OWNER, "facts of a node", 32, 64 * _KIB, 2048, DAY_MS),
    Bucket("service", Writers.OWNER, "services a node offers", 128, 64 * _KIB, 1024, HOUR_MS),
    Bucket(
        "cluster",
        Writers.ROLE_OWNER,
        "what a node says of its place in the cluster",
        32,
        32 * _KIB,
        roles=frozenset({"server", "auto"}),
    ),
    Bucket(
        "secret",
        Writers.ROLE,
        "secrets, each sealed to one node",
        1024,
        2 * _KIB**2,
        roles=frozenset({"server", "auto"}),
    ),
    Bucket("shared", Writers.ANY, "whatever people and programs leave", 256, 256 * _KIB),
    Bucket("lease", Writers.ANY, "the same, until a time", 256, 256 * _KIB, lease_max_ms=DAY_MS),
)
BUCKETS = MappingProxyType({row.name: row for row in _ROWS})
