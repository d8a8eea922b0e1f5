"""Many keepers and a ledger between them that loses and reorders: for the tests of secrets."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from random import Random

from appliance.ledger.entry import Entry
from appliance.ledger.keeper import Info, Keeper, Write
from appliance.ledger.secrets import SECRET, SecretError, read_shelves
from appliance.ledger.state import Replica
from appliance.ledger.writer import Writer
from tests.fakes.ledger import NOW, Node, member_entry, node, replica, seed, writer

SERVERS = [node(number, roles=("server",), by=1) for number in (1, 2, 3)]
AGENT = node(4, roles=("agent",), by=4)
AUTO = node(5, roles=("auto",), by=5)
LATE = node(6, roles=("server",), by=1)
START = [*SERVERS, AGENT]


@dataclass
class Place:
    """One node: its copy of the ledger, its keeper, and what it wrote."""

    node: Node
    replica: Replica
    writer: Writer
    keeper: Keeper
    up: bool = True
    writes: list[Write] = field(default_factory=list)

    def value(self, name: str = "k3s") -> bytes | None:
        try:
            return self.keeper.get(name).value
        except SecretError:
            return None


class World:
    """Places and what is on its way between them; time moves when nothing else does."""

    def __init__(self, nodes: Collection[Node], choice: int = 0) -> None:
        self.random = Random(choice)  # noqa: S311 - a simulation
        self.mono = 0.0
        self.places: dict[int, Place] = {}
        self.flying: list[tuple[Place, Entry]] = []
        self.cut: Callable[[Place, Place], bool] = lambda _one, _other: False
        for one in nodes:
            self.add(one, nodes)

    def add(self, one: Node, known: Collection[Node]) -> Place:
        into = replica(known)
        keeper = Keeper(into, own=one.node_id, wg_private=seed("wg", one.number), mono=self.mono)
        self.places[one.number] = Place(one, into, writer(one, into), keeper)
        return self.places[one.number]

    def join(self, one: Node) -> Place:
        place = self.add(one, [])
        self.publish(member_entry(one))
        for other in self.places.values():
            for entry in other.replica:
                self.flying.append((place, entry))
        return place

    def publish(self, entry: Entry) -> None:
        self.flying += [(place, entry) for place in self.places.values()]

    def perform(self, place: Place, writes: list[Write]) -> None:
        for one in writes:
            place.writes.append(one)
            if one.value is None:
                entry = place.writer.delete(SECRET, one.key, NOW).entry
            else:
                entry = place.writer.put(SECRET, one.key, one.value, NOW).entry
            for other in self.places.values():
                if other is not place and not self.cut(place, other):
                    self.flying.append((other, entry))

    def put(self, number: int, value: bytes, *roles: str, name: str = "k3s") -> None:
        place = self.places[number]
        writes = place.keeper.put(name, value, roles, place.replica.directory, NOW)
        self.perform(place, writes)

    def look(self, place: Place) -> None:
        if place.up:
            self.perform(place, place.keeper.look(place.replica.directory, NOW, self.mono))

    def sync(self) -> None:
        """Reconciliation: everybody gets what the others have."""
        for place in self.places.values():
            for other in self.places.values():
                if other is not place and not self.cut(other, place):
                    self.flying += [(place, entry) for entry in other.replica]

    def settle(self, seconds: float = 200.0) -> int:
        """Let it come to rest; return how many writes there were."""
        before = self.written
        syncs = 0
        while True:
            for place in self.places.values():
                self.look(place)
            self.deliver()
            if syncs < 2:
                self.sync()
                syncs += 1
                continue
            restless = self.restless()
            later = [
                due
                for place in self.places.values()
                if place.up and (due := place.keeper.next_timer()) is not None
            ]
            if not later and not restless:
                return self.written - before
            assert self.mono < seconds, "no rest"
            assert self.written - before < 2000, "a storm"
            self.mono = max(self.mono, min(later, default=self.mono)) + 0.001
            syncs = 0 if not later else syncs

    @property
    def written(self) -> int:
        return sum(len(one.writes) for one in self.places.values())

    def deliver(self, count: int | None = None) -> None:
        """Deliver what is on its way, in any order; now and then somebody looks in between."""
        for _ in range(len(self.flying) if count is None else min(count, len(self.flying))):
            place, entry = self.flying.pop(int(self.random.random() * len(self.flying)))
            if place.up:
                place.replica.apply(entry, NOW)
                if self.random.random() < 0.1:
                    self.look(place)

    def restless(self) -> bool:
        """Look once more: rest means that nobody wants to write."""
        before = self.written
        for place in self.places.values():
            self.look(place)
        return before != self.written

    def info(self, number: int = 1, name: str = "k3s") -> Info:
        place = self.places[number]
        (found,) = [
            one for one in place.keeper.infos(place.replica.directory, NOW) if one.name == name
        ]
        return found

    def values(self, name: str = "k3s") -> dict[int, bytes | None]:
        return {number: place.value(name) for number, place in self.places.items() if place.up}

    def boxes(self, number: int = 1) -> set[int]:
        """The nodes that have a box of what counts, as one place sees it."""
        shelf = read_shelves(self.places[number].replica, NOW)["k3s"]
        assert shelf.version is not None
        found = shelf.boxed(shelf.version)
        return {one.node.number for one in self.places.values() if one.node.node_id in found}
