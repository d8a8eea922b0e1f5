"""A network of ledger nodes in virtual time: loss, delay, repetition, partitions, wrong clocks.

Deterministic: one seeded random generator, one queue of events. Nothing here sleeps or opens a
socket.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random

from appliance.ledger.gossip import Action, Alive, Changed, Gossip, GossipConfig, Note, Send
from appliance.ledger.hlc import Clock
from appliance.ledger.state import Change, Replica
from appliance.ledger.swim import Status
from appliance.ledger.timekeeper import Timekeeper
from appliance.ledger.writer import Writer
from tests.fakes.ledger import NOW, Node, node, replica


@dataclass
class Link:
    """What happens to a datagram; ``delay`` is in seconds."""

    loss: float = 0.0
    repeat: float = 0.0
    delay: tuple[float, float] = (0.001, 0.01)


@dataclass
class Station:
    """A node and what the test sees of it."""

    node: Node
    gossip: Gossip
    sent: int = 0
    received: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    notes: list[Note] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    statuses: dict[bytes, Status] = field(default_factory=dict)
    up: bool = True
    timer: float = float("inf")

    @property
    def replica(self) -> Replica:
        return self.gossip.replica


class Net:
    """Stations and the datagrams between them."""

    def __init__(self, seed: int = 0, link: Link | None = None) -> None:
        self.random = Random(seed)  # noqa: S311 - a simulation
        self.link = link or Link()
        self.now = 0.0
        self.stations: dict[bytes, Station] = {}
        self.cut: Callable[[bytes, bytes], bool] = lambda _one, _other: False
        self.kept_changes = True
        self._events: list[tuple[float, int, bytes, tuple[bytes, bytes] | None]] = []
        self._serial = 0

    def add(
        self,
        node: Node,
        replica: Replica,
        *,
        config: GossipConfig | None = None,
        wall_ms: int | None = NOW,
        synced: bool = True,
        sequence: int = 0,
        floor_ms: int = NOW - 10**10,
    ) -> Station:
        """Add a node; ``wall_ms`` None: it has no clock."""
        keeper = Timekeeper(floor_ms, 0, self.now)
        if wall_ms is not None:
            keeper.wall(wall_ms + int(self.now * 1000), synced=synced, mono=self.now)
        writer = Writer(replica, Clock(), owner=node.node_id, sign=node.sign, sequence=sequence)
        gossip = Gossip(writer, keeper, Random(self.random.random()), self.now, config)  # noqa: S311
        station = self.stations[node.node_id] = Station(node, gossip)
        self._arm(station)
        return station

    def connect(self, peers: Callable[[bytes], Iterable[bytes]] | None = None) -> None:
        """Tell every node its peers: all others, or what ``peers`` says."""
        for node_id, station in self.stations.items():
            station.gossip.set_peers(peers(node_id) if peers else self.stations, self.now)
            self._arm(station)

    def write(self, station: Station, bucket: str, key: str, value: bytes) -> bytes:
        """Write and return the entry's id."""
        gossip = station.gossip
        now_ms = gossip.timekeeper.now_ms(self.now)
        written = gossip.writer.put(bucket, key, value, now_ms)
        self.perform(station, gossip.local(written, self.now))
        return written.entry.entry_id

    def inject(self, source: bytes, to: bytes, data: bytes) -> None:
        """Deliver a datagram as from ``source``."""
        self._push(self.now, to, (source, data))

    def perform(self, station: Station, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Send(peer, data):
                    station.sent += 1
                    station.bytes_sent += len(data)
                    self._transmit(station.node.node_id, peer, data)
                case Changed(change):
                    if self.kept_changes:
                        station.changes.append(change)
                case Alive(node, status):
                    station.statuses[node] = status
                case Note():
                    station.notes.append(action)
        self._arm(station)

    def run(self, seconds: float, until: Callable[[], bool] | None = None) -> bool:
        """Let time pass; True as soon as ``until`` holds (asked after every event)."""
        end = self.now + seconds
        if until is not None and until():
            return True
        while self._events and self._events[0][0] <= end:
            self.now, _, to, content = heapq.heappop(self._events)
            station = self.stations.get(to)
            if station is None or not station.up:
                continue
            if content is None:
                if self.now < station.timer:
                    continue
                station.timer = float("inf")
                self.perform(station, station.gossip.tick(self.now))
            else:
                source, data = content
                station.received += 1
                station.bytes_received += len(data)
                station.gossip.datagram(source, data, self.now)
                while station.gossip.busy:
                    self.perform(station, station.gossip.work(self.now))
            if until is not None and until():
                return True
        self.now = end
        return until() if until is not None else True

    def alike(self) -> bool:
        """Say whether all running nodes hold the same entries."""
        return len({one.replica.ids.digest() for one in self.stations.values() if one.up}) == 1

    def restart(self, station: Station) -> None:
        """Let a node that was down run again."""
        station.up = True
        station.timer = float("inf")
        self._arm(station)

    def _transmit(self, source: bytes, to: bytes, data: bytes) -> None:
        if self.cut(source, to):
            return
        for _ in range(2 if self.random.random() < self.link.repeat else 1):
            if self.random.random() >= self.link.loss:
                delay = self.random.uniform(*self.link.delay)
                self._push(self.now + delay, to, (source, data))

    def _arm(self, station: Station) -> None:
        due = max(station.gossip.next_timer(), self.now)
        if due < station.timer:
            station.timer = due
            self._push(due, station.node.node_id, None)

    def _push(self, at: float, to: bytes, content: tuple[bytes, bytes] | None) -> None:
        self._serial += 1
        heapq.heappush(self._events, (at, self._serial, to, content))


NODES = [node(number) for number in range(10, 42)]
QUIET = GossipConfig(swim=None)


def net_of(count: int, *, seed: int = 1, link: Link | None = None, swim: bool = False) -> Net:
    net = Net(seed, link)
    for one in NODES[:count]:
        net.add(one, replica(NODES[:count]), config=None if swim else QUIET)
    net.connect()
    return net


def stations(net: Net) -> list[Station]:
    return list(net.stations.values())
