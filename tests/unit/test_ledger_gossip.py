"""Nodes that lose, repeat and delay each other's datagrams come to one ledger; abuse is bounded."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.ledger.entry import ENTRY_MAX, read_entry
from appliance.ledger.errors import MessageError
from appliance.ledger.messages import (
    DATAGRAM,
    Ack,
    Digests,
    Entries,
    Ids,
    Ping,
    PingRequest,
    Want,
    decode_message,
    encode_message,
    pack_entries,
)
from appliance.ledger.push import tellings
from appliance.ledger.reconcile import REPLY_MAX, on_digests, on_ids, on_want, opening
from appliance.ledger.rules import DAY_MS
from appliance.ledger.state import Replica
from tests.fakes.ledger import NOW, entry, member_entry, replica, revocation
from tests.fakes.ledger_net import NODES, QUIET, Link, Net, Station, net_of, stations

SALT = b"saltsalt"


# Reconciliation


def exchange(left: Replica, right: Replica) -> tuple[int, int]:
    """Let two replicas reconcile over a perfect wire; return rounds and bytes."""
    sides = left, right
    total = rounds = 0
    while left.ids.digest() != right.ids.digest():
        queue = [(1, encode_message(opening(left, SALT)))]
        rounds += 1
        assert rounds < 200
        while queue:
            to, data = queue.pop(0)
            total += len(data)
            message = decode_message(data)
            replies: list[object] = []
            match message:
                case Entries(_, records):
                    for record in records:
                        sides[to].apply(read_entry(record), NOW)
                case Digests():
                    replies += on_digests(sides[to], message)
                case Ids():
                    replies += on_ids(sides[to], message)
                case Want():
                    replies += on_want(sides[to], message)
            for reply in replies:
                assert isinstance(reply, Entries | Digests | Ids | Want)
                encoded = encode_message(reply)
                alone = isinstance(reply, Entries) and len(reply.records) == 1
                assert len(encoded) <= DATAGRAM or alone
                queue.append((1 - to, encoded))
    return rounds, total


@settings(max_examples=40)
@given(st.sets(st.integers(0, 99)), st.sets(st.integers(0, 99)), st.booleans())
def test_two_replicas_find_every_difference(left: set[int], right: set[int], big: bool) -> None:
    one, other = replica(NODES[:1]), replica(NODES[:1])
    for into, numbers in ((one, left), (other, right)):
        for number in numbers:
            size = 900 if big else 1
            made = entry(NODES[0], "shared", f"k{number}", bytes(size), sequence=number + 2)
            into.apply(made, NOW)
    exchange(one, other)
    assert {item.entry_id for item in one} == {item.entry_id for item in other}
    assert len(one) == 1 + len(left | right)


def test_the_cost_goes_with_the_difference_not_with_the_ledger() -> None:
    costs = {}
    for size in (50, 800):
        one, other = replica(NODES), replica(NODES)
        for number in range(size):
            of = NODES[number % len(NODES)]
            made = entry(of, "shared", f"k{number}", bytes(20), sequence=number + 2)
            one.apply(made, NOW)
            if number != 7:
                other.apply(made, NOW)
        _, costs[size] = exchange(other, one)
    assert costs[800] < 2.5 * costs[50]
    assert costs[800] < 2000


def test_an_empty_replica_is_filled() -> None:
    full, empty = replica(NODES), replica()
    for number in range(300):
        full.apply(entry(NODES[number % 32], "shared", f"k{number}", sequence=number + 2), NOW)
    exchange(empty, full)
    assert len(empty) == 332


def test_one_message_makes_a_replica_send_a_bounded_answer() -> None:
    full = replica(NODES)
    for number in range(240):
        full.apply(entry(NODES[0], "shared", f"k{number}", bytes(800), sequence=number + 2), NOW)
    ask = Ids(SALT, ((b"", b""),) * 60)
    sent = sum(len(encode_message(one)) for one in on_ids(full, ask))
    assert sent < REPLY_MAX + 2 * ENTRY_MAX
    everywhere = Digests(SALT, tuple((bytes([one]), bytes(96)) for one in range(16)) * 4)
    sent = sum(len(encode_message(one)) for one in on_digests(full, everywhere))
    assert sent < REPLY_MAX + 2 * ENTRY_MAX
    assert on_want(full, Want(SALT, ((b"", bytes(600)),))) == []


# Messages


SHORTS = st.binary(min_size=6, max_size=6)
RUMOURS = st.lists(
    st.tuples(st.binary(min_size=16, max_size=16), st.integers(0, 2), st.integers(0, 99)),
    max_size=16,
).map(tuple)
RANGES = st.lists(
    st.tuples(st.lists(st.integers(0, 15), max_size=6).map(bytes), SHORTS), max_size=4
).map(tuple)
TOKENS = st.integers(0, 2**32 - 1)
MESSAGES = st.one_of(
    st.builds(Entries, st.booleans(), st.lists(st.binary(min_size=1, max_size=9)).map(tuple)),
    st.builds(Digests, st.just(SALT), RANGES),
    st.builds(Ids, st.just(SALT), RANGES),
    st.builds(Want, st.just(SALT), RANGES),
    st.builds(Ping, TOKENS, TOKENS, st.integers(0, 2**47 - 1), st.integers(0, 2), RUMOURS),
    st.builds(PingRequest, TOKENS, st.binary(min_size=16, max_size=16)),
    st.builds(
        Ack,
        TOKENS,
        TOKENS,
        st.integers(0, 2**47 - 1),
        st.integers(0, 2),
        RUMOURS,
        st.binary(min_size=16, max_size=16),
        st.booleans(),
    ),
)


@settings(max_examples=120)
@given(MESSAGES)
def test_messages_come_out_as_they_went_in(message: Ping) -> None:
    assert decode_message(encode_message(message)) == message


@settings(max_examples=200)
@given(st.one_of(st.binary(max_size=300), MESSAGES.map(encode_message)), st.data())
def test_whatever_arrives_is_a_message_or_refused_and_never_stops_a_node(
    data: bytes, draw: st.DataObject
) -> None:
    if data and draw.draw(st.booleans()):
        at = draw.draw(st.integers(0, len(data) - 1))
        data = data[:at] + bytes([draw.draw(st.integers(0, 255))]) + data[at + 1 :]
    with suppress(MessageError):
        decode_message(data)
    net = net_of(2, swim=True)
    one, other = net.stations.values()
    before = one.replica.ids.digest()
    net.inject(other.node.node_id, one.node.node_id, data)
    net.run(0.0)
    assert one.replica.ids.digest() == before


@pytest.mark.parametrize(
    "message",
    [
        Digests(b"short", ()),
        Digests(SALT, ((b"\x10", bytes(6)),)),
        Digests(SALT, ((bytes(33), bytes(6)),)),
        Digests(SALT, ((b"", bytes(7)),)),
        Ids(SALT, ((b"", bytes(7)),)),
        Want(SALT, ((b"", b""),) * 65),
        Ping(2**32, 0, 0, 0, ()),
        Ping(0, 0, 0, 3, ()),
        Ping(0, 0, 2**47, 0, ()),
        Ping(0, 0, 0, 0, ((bytes(15), 0, 0),)),
        Ping(0, 0, 0, 0, ((bytes(16), 0, 0),) * 17),
        PingRequest(0, b""),
        Entries(reply=False, records=(b"",)),
    ],
)
def test_messages_out_of_range_are_refused(message: Ping) -> None:
    with pytest.raises(MessageError):
        decode_message(encode_message(message))


def test_a_message_of_a_later_release_is_no_offence() -> None:
    net = net_of(2)
    one, other = net.stations.values()
    for _ in range(50):
        net.inject(other.node.node_id, one.node.node_id, b"\x93\x02\x01\xc4\x00")
    net.run(0.0)
    assert one.notes == []


def test_entries_are_packed_into_datagrams() -> None:
    packed = pack_entries([bytes(300)] * 10 + [bytes(4000)] + [bytes(10)], reply=True)
    sizes = [len(encode_message(one)) for one in packed]
    assert sum(len(one.records) for one in packed) == 12
    assert all(
        size <= DATAGRAM or len(one.records) == 1 for size, one in zip(sizes, packed, strict=True)
    )


# Networks


def test_news_reaches_32_nodes_in_less_than_a_second() -> None:
    net = net_of(32)
    net.run(5.0)
    sent = {one.node.node_id: one.sent for one in stations(net)}
    entry_id = net.write(stations(net)[3], "shared", "k", b"v")
    begun = net.now

    def have() -> bool:
        return all(one.replica.by_id(entry_id) is not None for one in stations(net))

    assert net.run(1.0, have)
    assert net.now - begun < 0.5
    net.run(3.0)
    told = [one.sent - sent[one.node.node_id] for one in stations(net)]
    assert sum(told) / len(told) <= tellings(32) + 1


@settings(max_examples=12)
@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.1, 0.4]), st.sampled_from([0.0, 0.5]))
def test_loss_delay_and_repetition_only_cost_time(seed: int, loss: float, repeat: float) -> None:
    net = net_of(5, seed=seed, link=Link(loss=loss, repeat=repeat, delay=(0.001, 0.8)))
    for number, station in enumerate(stations(net)):
        for key in range(3):
            net.write(station, "shared", f"k{key}", bytes([number]))
            net.run(net.random.random())
        net.write(station, "address", station.node.text, b"x")
    assert net.run(3000.0, net.alike)
    assert len(stations(net)[0].replica) == 5 * 5
    views = {tuple(one.replica.entries("shared", NOW)) for one in stations(net)}
    assert len(views) == 1


def test_a_partition_heals_and_nothing_is_lost() -> None:
    net = net_of(8)
    half = set(list(net.stations)[:4])
    net.cut = lambda one, other: (one in half) != (other in half)
    for station in stations(net):
        net.write(station, "shared", station.node.text[:9], b"v")
    net.run(40.0)
    assert len({one.replica.ids.digest() for one in stations(net)}) == 2
    net.cut = lambda _one, _other: False
    assert net.run(120.0, net.alike)
    assert len(stations(net)[0].replica.entries("shared", NOW)) == 8


def test_a_node_that_joins_gets_everything_and_is_known_to_all() -> None:
    net = net_of(6)
    for station in stations(net):
        net.write(station, "shared", station.node.text[:9], bytes(500))
    new = net.add(NODES[6], replica(NODES[6:7]), config=QUIET)
    net.connect()
    assert net.run(10.0, net.alike)
    assert len(new.replica) == 13
    assert all(one.replica.directory.member(NODES[6].node_id) for one in stations(net))


def test_entries_that_come_before_their_owners_certificate_wait_for_it() -> None:
    net = Net()
    one = net.add(NODES[0], replica(NODES[:2]), config=QUIET)
    other = net.add(NODES[1], replica(NODES[:2]), config=QUIET)
    net.connect()
    orphan = entry(NODES[2], "shared", "k", b"v", sequence=2)
    for made in (orphan, member_entry(NODES[2])):
        data = encode_message(Entries(reply=False, records=(made.record,)))
        net.inject(other.node.node_id, one.node.node_id, data)
        net.run(0.0)
    assert one.replica.by_id(orphan.entry_id) is not None
    assert one.gossip._orphans == {}


def test_a_revocation_reaches_everybody_and_takes_the_entries_along() -> None:
    net = net_of(8)
    out = stations(net)[7]
    net.write(out, "shared", "mine", b"v")
    net.run(2.0)
    data = encode_message(Entries(reply=False, records=(revocation(out.node).record,)))
    first = stations(net)[0]
    net.inject(stations(net)[1].node.node_id, first.node.node_id, data)
    rest = stations(net)[:7]

    def gone() -> bool:
        return all(one.replica.directory.member(out.node.node_id) is None for one in rest)

    assert net.run(3.0, gone)
    assert all(one.replica.get("shared", "mine", NOW) is None for one in rest)


def test_a_lost_database_comes_back_with_its_sequence() -> None:
    net = net_of(3)
    station = stations(net)[0]
    for number in range(5):
        net.write(station, "shared", "k", bytes([number]))
    net.run(2.0)
    fresh = net.add(station.node, replica(NODES[:1]), config=QUIET)
    net.connect()
    net.write(fresh, "shared", "k", b"written before anything was heard")
    assert net.run(90.0, net.alike)
    assert fresh.gossip.writer.sequence >= 6
    assert "own-entry" in {one.code for one in fresh.notes}
    net.write(fresh, "shared", "k", b"after")
    net.run(2.0)
    for one in stations(net):
        found = one.replica.get("shared", "k", NOW)
        assert found is not None
        assert found.value == b"after"


@pytest.mark.parametrize("wall", [None, 0, NOW - 2 * DAY_MS, NOW + DAY_MS])
def test_a_node_with_a_wrong_clock_joins_and_poisons_nothing(wall: int | None) -> None:
    net = net_of(4, swim=True)
    odd = net.add(NODES[4], replica(NODES[4:5]), wall_ms=wall, synced=False)
    net.write(odd, "shared", "early", b"before it knew the time")
    net.connect()
    net.write(odd, "shared", "k", b"v")

    def have() -> bool:
        return all(one.replica.get("shared", "k", NOW) is not None for one in stations(net))

    assert net.run(90.0, lambda: have() and net.alike())
    for one in stations(net):
        assert one.replica.get("shared", "early", NOW) is not None
        clock = one.gossip.writer.clock.last >> 16
        assert clock < NOW + 200_000
    net.write(stations(net)[0], "shared", "k", b"later")
    assert net.run(90.0, net.alike)
    found = odd.replica.get("shared", "k", NOW)
    assert found is not None
    assert found.value == b"later"


def set_clock(net: Net, station: Station, offset_ms: int, *, synced: bool) -> None:
    wall = NOW + int(net.now * 1000) + offset_ms
    station.gossip.timekeeper.wall(wall, synced=synced, mono=net.now)


@pytest.mark.parametrize("offset", [DAY_MS, -DAY_MS])
@pytest.mark.parametrize("synced", [True, False])
def test_a_clock_that_steps_for_a_while_loses_nothing(offset: int, synced: bool) -> None:
    net = net_of(5, swim=True)
    for station in stations(net):
        set_clock(net, station, 0, synced=False)
    odd = stations(net)[2]
    net.run(30.0)
    set_clock(net, odd, offset, synced=synced)
    net.write(odd, "shared", "meanwhile", b"v")
    net.write(stations(net)[0], "shared", "other", b"v")
    net.run(60.0)
    set_clock(net, odd, 0, synced=False)

    def have() -> bool:
        keys = {one.key for one in odd.replica.entries("shared", NOW)}
        return keys == {"meanwhile", "other"} and net.alike()

    assert net.run(120.0, have)
    for station in stations(net):
        assert station.gossip.writer.clock.last >> 16 < NOW + 400_000


def test_half_of_the_nodes_go_and_the_rest_carries_on() -> None:
    net = net_of(8, swim=True, link=Link(loss=0.1))
    for station in stations(net)[:4]:
        station.up = False
    live = stations(net)[4:]
    net.write(live[0], "shared", "k", b"v")
    assert net.run(60.0, net.alike)
    for station in stations(net)[:4]:
        net.restart(station)
    assert net.run(120.0, net.alike)
    assert len(live[0].replica) == 9
