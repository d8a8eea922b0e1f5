"""How the ledger's gossip grows: the node's own core in virtual time, 32 to 10,000 nodes.

Real: every entry, signature, message and decision. Simulated: the network (1 to 10 ms one way) and
the clock. Two savings, which touch no message: all nodes of one network share one directory of
members, of whom only the writer has a real certificate; and liveness probes are off (their cost
per node does not depend on n). Each node talks to 2 ring neighbours and about log2(n) links, as
the overlay's topology gives it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from random import Random

from appliance.ledger.directory import Directory
from appliance.ledger.gossip import GossipConfig
from appliance.ledger.messages import Entries, encode_message
from appliance.ledger.state import Replica
from provisioning.membership import Member
from skerry.errors import SkerryError
from tests.bench.harness import Benchmark, Figure
from tests.fakes.ledger import NOW, Node, entry, member_entry, network, node, replica, seed
from tests.fakes.ledger_net import Net, Station

SIZES = (32, 1_000, 10_000)
UPDATES = 3
ENTRIES_PER_OWNER = 100
CONFIG = GossipConfig(swim=None)


class GossipFailedError(SkerryError):
    """The simulation did not come to one state."""


def run() -> list[Figure]:
    """Return the figures of all sizes."""
    figures: list[Figure] = []
    per_node: dict[int, float] = {}
    for size in SIZES:
        for figure in _update(size):
            figures.append(figure)
            if "bytes" in figure.name:
                per_node[size] = figure.value
        figures += _catch_up(size)
    figures += _flood()
    least, most = SIZES[0], SIZES[-1]
    growth = per_node[most] / per_node[least]
    figures.append(
        Figure(
            f"update: bytes per node, {most} against {least} nodes",
            growth,
            "times",
            goal=round(1.5 * math.log(most) / math.log(least), 2),
        )
    )
    return figures


def links(nodes: list[bytes], random: Random) -> dict[bytes, set[bytes]]:
    """Return who knows whom: a ring and about log2(n) more links per node."""
    found: dict[bytes, set[bytes]] = {one: set() for one in nodes}
    ring = sorted(nodes)
    extra = max(1, math.ceil(math.log2(len(nodes)) / 2))
    for place, one in enumerate(ring):
        others = [ring[(place + 1) % len(ring)], *random.sample(ring, extra)]
        for other in others:
            if other != one:
                found[one].add(other)
                found[other].add(one)
    return found


def _crowd(size: int) -> Iterator[Node]:
    """Yield nodes that never write: an id and no certificate."""
    for number in range(size):
        yield Node(number, seed("crowd", number)[:16], b"", seed("crowd", number))


def _stand_in(one: Node) -> Member:
    return Member(
        one.node_id, bytes(32), bytes(32), f"c{one.number}", frozenset(), {}, bytes(16), None, 0
    )


def _network(size: int) -> tuple[Net, Station]:
    writer = node(1)
    directory = Directory(network())
    first = Replica(directory)
    first.apply(member_entry(writer), NOW)
    net = Net(seed=size)
    net.kept_changes = False
    station = net.add(writer, first, config=CONFIG)
    for one in _crowd(size - 1):
        directory.add(_stand_in(one))
        other = Replica(directory)
        other.apply(member_entry(writer), NOW)
        net.add(one, other, config=CONFIG)
    known = links(list(net.stations), net.random)
    net.connect(lambda node_id: known[node_id])
    return net, station


def _update(size: int) -> list[Figure]:
    """Let one node write a few entries, one after the other, in a settled network."""
    net, writer = _network(size)
    net.run(70.0)
    idle = _traffic(net, 60.0)
    seconds: list[float] = []
    spent: list[float] = []
    worst = 0
    for number in range(UPDATES):
        before = {one.node.node_id: one.bytes_sent for one in net.stations.values()}
        begun = net.now
        entry_id = net.write(writer, "shared", f"k{number}", bytes(64))
        waiting = set(net.stations)

        def done(entry_id: bytes = entry_id, waiting: set[bytes] = waiting) -> bool:
            # One that has it is not asked again: cheap enough to ask after every event.
            while waiting:
                one = waiting.pop()
                if net.stations[one].replica.by_id(entry_id) is None:
                    waiting.add(one)
                    return False
            return True

        if not net.run(120.0, done):
            raise GossipFailedError(f"an update did not reach all of {size} nodes in 120 s")
        seconds.append(net.now - begun)
        net.run(5.0)
        sent = [one.bytes_sent - before[one.node.node_id] for one in net.stations.values()]
        elapsed = net.now - begun
        spent.append(sum(sent) / size - idle * elapsed)
        worst = max(worst, *sent)
    # A hop takes 5.5 ms on average: what the time to reach all would be in rounds of the network.
    return [
        Figure(f"update: {size} nodes, slowest to reach all", max(seconds), "s", goal=1.0),
        Figure(f"update: {size} nodes, hops of 5.5 ms", max(seconds) / 0.0055, "hops"),
        Figure(f"update: {size} nodes, bytes per node", sum(spent) / UPDATES, "B"),
        Figure(f"update: {size} nodes, busiest node", worst, "B"),
        Figure(f"idle: {size} nodes, reconciliation per node and day", idle * 86400 / 1e6, "MB"),
    ]


def _traffic(net: Net, duration: float) -> float:
    before = sum(one.bytes_sent for one in net.stations.values())
    net.run(duration)
    after = sum(one.bytes_sent for one in net.stations.values())
    return (after - before) / len(net.stations) / duration


def _catch_up(size: int) -> list[Figure]:
    """Let a node without anything join two that hold ``size`` entries, then miss ten of them."""
    owners = [node(number) for number in range(1, 4 + size // ENTRIES_PER_OWNER)]
    held = [
        entry(owners[number % len(owners)], "shared", f"k{number}", bytes(64), sequence=number + 2)
        for number in range(size)
    ]
    net = Net(seed=size)
    net.kept_changes = False
    for one in owners[:2]:
        full = replica(owners)
        full.restore(held, NOW)
        net.add(one, full, config=CONFIG)
    net.connect()
    net.run(60.0)
    cold = net.add(owners[2], replica(owners[2:3]), config=CONFIG)
    net.connect()
    begun, cpu = net.now, time.process_time()
    if not net.run(300.0, _alike(net, size + len(owners))):
        raise GossipFailedError(f"a cold node did not catch up with {size} entries in 300 s")
    took, worked = net.now - begun, time.process_time() - cpu
    ledger = cold.replica.bytes
    figures = [
        Figure(f"cold node: {size} entries, until complete", took, "s"),
        Figure(f"cold node: {size} entries, received", cold.bytes_received / 1e3, "kB"),
        Figure(
            f"cold node: {size} entries, received per byte of ledger",
            cold.bytes_received / ledger,
            "times",
            goal=1.5,
        ),
        Figure(f"cold node: {size} entries, CPU of all three nodes", worked, "s"),
    ]
    return figures + _difference(net, cold, owners, size)


def _difference(net: Net, cold: Station, owners: list[Node], size: int) -> list[Figure]:
    """The cold node is away while ten entries are written, and comes back."""
    net.run(30.0)
    cold.up = False
    writer = net.stations[owners[0].node_id]
    for number in range(10):
        net.write(writer, "shared", f"new{number}", bytes(64))
        net.run(1.0)
    net.run(10.0)
    net.restart(cold)
    before = cold.bytes_received + cold.bytes_sent
    if not net.run(120.0, _alike(net, size + len(owners) + 10)):
        raise GossipFailedError("a node that was away did not catch up")
    moved = cold.bytes_received + cold.bytes_sent - before
    return [Figure(f"back after 10 of {size} entries: sent and received", moved / 1e3, "kB")]


FLOOD = 50_000


def _flood() -> list[Figure]:
    """Let a member send forged entries at 50,000 a second while an honest one writes now and then.

    Two forgeries mute it: the rest is dropped unread. Then the same by a member that sends what is
    right but old, again and again: nothing to mute, so the rate and the queue hold it.
    """
    owners = [node(number) for number in range(1, 4)]
    figures = []
    for what in ("forged", "repeated"):
        net = Net(seed=1)
        one, flooder, honest = (net.add(of, replica(owners), config=CONFIG) for of in owners)
        net.connect()
        good = entry(owners[1], "shared", "k", sequence=2)
        record = good.record if what == "repeated" else good.record[:-64] + bytes(64)
        data = encode_message(Entries(reply=False, records=(record,)))
        longest = worked = 0.0
        for number in range(FLOOD):
            now = number / FLOOD
            if number % 500 == 0:
                name = f"h{number}"
                made = entry(owners[2], "shared", name, sequence=2 + number)
                fine = encode_message(Entries(reply=False, records=(made.record,)))
                one.gossip.datagram(honest.node.node_id, fine, now)
            begun = time.perf_counter()
            one.gossip.datagram(flooder.node.node_id, data, now)
            if number % 10 == 0:
                one.gossip.work(now)
            took = time.perf_counter() - begun
            worked += took
            longest = max(longest, took)
        taken = sum(item.owner == owners[2].node_id for item in one.replica) - 1
        if taken != FLOOD // 500:
            raise GossipFailedError(f"under a flood only {taken} honest entries got through")
        figures += [
            Figure(f"flood of 50k/s, {what}: CPU", worked * 100, "%"),
            Figure(f"flood of 50k/s, {what}: longest hold-up", longest * 1000, "ms", goal=50),
        ]
    return figures


def _alike(net: Net, entries: int) -> Callable[[], bool]:
    def done() -> bool:
        return all(len(one.replica) == entries for one in net.stations.values()) and net.alike()

    return done


BENCHMARK = Benchmark("gossip", "the ledger's gossip at 32, 1,000 and 10,000 nodes", run)
