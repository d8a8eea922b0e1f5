"""Nodes that decide their roles over a simulated ledger, in virtual time.

No signatures and no real gossip: each node has a copy of the entries, and copies of entries travel,
late, twice or never. What the file and the ledger of a node hold outlives a restart, unless the
test takes one of them away.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

from appliance.cluster import roles
from appliance.cluster.cluster_entries import Promises, key_of, read, read_promises
from appliance.cluster.growth import Engine
from appliance.cluster.model import Decision, Kind, Member, Memory, Orders, View, Wanted
from provisioning import codec

NETWORK_ID = bytes(range(16))
STEP = 1.0


def node_id(number: int) -> bytes:
    return bytes([number]) * 16


@dataclass(frozen=True)
class Entry:
    owner: bytes
    key: str
    value: bytes
    sequence: int


@dataclass
class Node:
    member: Member
    ledger: dict[str, Entry] = field(default_factory=dict)
    file: bytes = b""
    knows: set[bytes] = field(default_factory=set)
    memory: Memory = field(default_factory=Memory)
    decision: Decision | None = None
    engine: Engine = field(default_factory=Engine)
    sequence: int = 0
    up: bool = True
    side: int = 0
    clock: float = 0.0

    @property
    def node_id(self) -> bytes:
        return self.member.node_id

    @property
    def kind(self) -> Kind | None:
        return self.decision.kind if self.decision else None


class World:
    """Nodes on a network that may be split; every node knows those that it could talk to once."""

    def __init__(
        self,
        members: list[Member],
        *,
        wanted: Wanted | None = None,
        orders: Orders | None = None,
        seed: int = 0,
        loss: float = 0.0,
        delay: float = 0.5,
    ) -> None:
        self.random = random.Random(seed)  # noqa: S311 - chance that can be repeated
        self.nodes = [Node(one) for one in members]
        self.wanted = wanted or Wanted()
        self.orders = orders or Orders()
        self.loss, self.delay = loss, delay
        self.now = 1000.0
        self.founders: set[bytes] = set()
        self.clusters: dict[bytes, set[bytes]] = {}
        self._travelling: list[tuple[float, Node, Entry]] = []

    def node(self, number: int) -> Node:
        return next(one for one in self.nodes if one.node_id == node_id(number))

    def near(self, one: Node, other: Node) -> bool:
        return one.up and other.up and one.side == other.side

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.tick()

    def tick(self) -> None:
        self.now += STEP
        self._deliver()
        for one in self.nodes:
            if one.up:
                one.knows |= {other.node_id for other in self.nodes if self.near(one, other)}
        for one in self.random.sample(self.nodes, len(self.nodes)):
            if one.up:
                self.decide(one)
        self._gossip()

    def decide(self, one: Node) -> None:
        members = {
            other.node_id: replace(other.member, alive=self.near(one, other))
            for other in self.nodes
            if other.node_id in one.knows
        }
        view = View(
            one.node_id,
            NETWORK_ID,
            members,
            self.wanted,
            read(one.ledger.values()),
            self.now,
            int((self.now + one.clock) * 1000),
            read_promises(one.file) or Promises(),
            one.engine,
            self.orders,
            one.memory,
        )
        one.decision = decision = roles.decide(view)
        one.memory = decision.memory
        if decision.keep is not None:
            one.file = codec.encode(decision.keep)
        for key, value in decision.writes:
            one.sequence += 1
            self.take(one, Entry(one.node_id, key, value, one.sequence))
        self._act(one, decision)

    def _act(self, one: Node, decision: Decision) -> None:
        if decision.kind is Kind.FOUND:
            self.founders.add(one.node_id)
        if decision.kind in {Kind.FOUND, Kind.SERVER, Kind.AGENT}:
            assert decision.cluster_id is not None
            self.clusters.setdefault(one.node_id, set()).add(decision.cluster_id)

    def serve(self, one: Node, *, leader: bool = False, members: tuple[Node, ...] = ()) -> None:
        """Let a node's engine answer, as the keeper would tell."""
        others = frozenset(other.node_id for other in members)
        address = f"10.10.0.{one.node_id[0]}"
        one.engine = Engine(
            has_data=True, addresses=(address,), leader=leader, term=1, members=others
        )

    def take(self, one: Node, entry: Entry) -> None:
        """Take an entry in if it is newer; a node learns its own numbers back from others."""
        present = one.ledger.get(entry.key)
        if present is None or present.sequence < entry.sequence:
            one.ledger[entry.key] = entry
        if entry.owner == one.node_id:
            one.sequence = max(one.sequence, entry.sequence)

    def restart(self, one: Node, *, ledger_lost: bool = False, file_lost: bool = False) -> None:
        one.memory, one.decision = Memory(), None
        if ledger_lost:
            one.ledger, one.sequence = {}, 0
        elif file_lost:
            one.file = b""

    def _gossip(self) -> None:
        for one in self.nodes:
            for other in self.nodes:
                if one is other or not self.near(one, other) or not one.ledger:
                    continue
                for entry in one.ledger.values():
                    there = other.ledger.get(entry.key)
                    if there is not None and there.sequence >= entry.sequence:
                        continue
                    for _ in range(self.random.choice((1, 1, 1, 2))):
                        if self.random.random() >= self.loss:
                            late = self.now + self.random.random() * self.delay
                            self._travelling.append((late, other, entry))

    def _deliver(self) -> None:
        due = [one for one in self._travelling if one[0] <= self.now]
        self._travelling = [one for one in self._travelling if one[0] > self.now]
        self.random.shuffle(due)
        for _, other, entry in due:
            if other.up:
                self.take(other, entry)

    def say(self, one: Node, kind: str, value: bytes) -> None:
        """Write whatever a node might write that means harm."""
        one.sequence += 1
        self.take(one, Entry(one.node_id, key_of(one.node_id, kind), value, one.sequence))


def member(
    number: int, *roles_: str, founder: bool = False, name: str = "", cluster: str = ""
) -> Member:
    granted = frozenset(roles_ or ("auto",))
    return Member(node_id(number), name or f"n{number}", granted, founder, cluster=cluster)
