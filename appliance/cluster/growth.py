"""From one server to three, and a lost one replaced: what the engine's leader decides.

The leader is the server that holds the engine's lease; its term is a fence: the plan of the highest
term counts. One change at a time, and none that leaves fewer working servers than a quorum.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from appliance.cluster.cluster_entries import VERSION, Plan

# A server that is away for longer is replaced, if the others can do without it.
REPLACE_SECONDS = 30 * 60.0
# Whoever was let in and does not become a server within this time makes way for another.
JOIN_SECONDS = 15 * 60.0


@dataclass(frozen=True, slots=True)
class Engine:
    """What the keeper knows of this node's engine.

    ``has_data``: there is Kubernetes state on the disk. ``addresses``: where its API answers now;
    empty: it does not. ``leader`` and ``term``: it holds the lease. ``members``: the nodes that the
    engine counts as servers (its voting members). ``removed``: it was taken out of the cluster.
    """

    has_data: bool = False
    addresses: tuple[str, ...] = ()
    leader: bool = False
    term: int = 0
    members: frozenset[bytes] = frozenset()
    removed: bool = False


@dataclass(frozen=True, slots=True)
class Waiting:
    """Since when (monotonic) servers are away, whom the leader let in when, and who failed to."""

    away: Mapping[bytes, float] = field(default_factory=dict)
    joining: bytes | None = None
    since: float = 0.0
    failed: frozenset[bytes] = frozenset()


@dataclass(frozen=True, slots=True)
class Growth:
    """``plan``: what the leader has to say; ``remove``: a server to take out of the engine."""

    plan: Plan
    waiting: Waiting
    remove: bytes | None = None


def latest(plans: Iterable[Plan], cluster_id: bytes) -> Plan | None:
    """Return the plan that counts: the highest term's, of one cluster."""
    own = (one for one in plans if one.cluster_id == cluster_id)
    return max(own, key=lambda one: (one.term, one.servers, one.joining or b""), default=None)


def quorum(servers: int) -> int:
    """Return how many of so many servers have to work."""
    return servers // 2 + 1


@dataclass(frozen=True, slots=True)
class Leader:
    """Who leads, which cluster, what its engine says, how many servers are wanted.

    ``serving``: the servers that have said where their API answers: their join is finished.
    """

    own: bytes
    cluster_id: bytes
    engine: Engine
    wanted: int
    serving: frozenset[bytes] = frozenset()

    @property
    def servers(self) -> frozenset[bytes]:
        """Return who is a server now."""
        return self.engine.members | {self.own}


def grow(
    leader: Leader,
    candidates: Sequence[bytes],
    alive: Callable[[bytes], bool],
    members: Collection[bytes],
    before: Plan | None,
    waiting: Waiting,
    now: float,
) -> Growth:
    """Return what a leader says. ``candidates`` are those who may become servers, best first."""
    servers = leader.servers
    joining = before.joining if before is not None else None
    if joining in servers or joining not in members:
        joining = None
    waiting = _watch(waiting, servers, alive, joining, now)
    if joining is not None and now - waiting.since > JOIN_SECONDS:
        waiting = Waiting(waiting.away, None, now, waiting.failed | {joining})
        joining = None
    remove = _to_remove(leader, candidates, alive, members, waiting, now)
    if remove is None and joining is None:
        joining = _next(leader, candidates, alive, waiting)
        waiting = Waiting(waiting.away, joining, now, waiting.failed)
    plan = Plan(VERSION, leader.cluster_id, leader.engine.term, tuple(sorted(servers)), joining)
    return Growth(plan, waiting, remove)


def _watch(
    waiting: Waiting,
    servers: Collection[bytes],
    alive: Callable[[bytes], bool],
    joining: bytes | None,
    now: float,
) -> Waiting:
    away = {one: waiting.away.get(one, now) for one in servers if not alive(one)}
    since = waiting.since if joining == waiting.joining else now
    return Waiting(away, joining, since, waiting.failed)


def _to_remove(
    leader: Leader,
    candidates: Collection[bytes],
    alive: Callable[[bytes], bool],
    members: Collection[bytes],
    waiting: Waiting,
    now: float,
) -> bytes | None:
    """Return a server to take out: one that is no member any more, else one long away.

    The latter only if somebody can take its place, and in any case only if those that are left
    and work are a quorum of those that are left.
    """
    servers = leader.servers
    left = [one for one in servers if alive(one) and one in members]
    if len(left) < quorum(len(servers) - 1):
        return None
    gone = sorted(one for one in servers if one not in members and one != leader.own)
    if gone:
        return gone[0]
    spare = any(one not in servers and alive(one) for one in candidates)
    if len(servers) < leader.wanted or leader.wanted < 3 or not spare:
        return None
    late = [one for one, since in waiting.away.items() if now - since > REPLACE_SECONDS]
    return min((one for one in late if one != leader.own), default=None)


def _next(
    leader: Leader,
    candidates: Sequence[bytes],
    alive: Callable[[bytes], bool],
    waiting: Waiting,
) -> bytes | None:
    """Return the next server, if there is a place and all servers work.

    Two servers stand less than one, so one grows only if there are two more.
    """
    servers = leader.servers
    ready = [one for one in candidates if one not in servers and alive(one)]
    if len(servers) >= leader.wanted or not all(map(alive, servers)):
        return None
    if servers - leader.serving - {leader.own}:
        return None
    if len(servers) == 1 and len(ready) < leader.wanted - 1:
        return None
    ready.sort(key=lambda one: one in waiting.failed)
    return ready[0] if ready else None
