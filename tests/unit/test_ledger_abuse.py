"""What a member can do that wants harm, and what becomes of it."""

from __future__ import annotations

from appliance.ledger import limits
from appliance.ledger.entry import ENTRY_MAX, EntryRecord
from appliance.ledger.gossip import ORPHANS_MAX
from appliance.ledger.messages import (
    Entries,
    encode_message,
    pack_entries,
)
from appliance.ledger.rules import FLOOR
from provisioning import codec
from tests.fakes.ledger import NOW, Node, entry, member_entry, network, node, revocation
from tests.fakes.ledger_net import NODES, net_of, stations


def forged_record(of: Node, key: str) -> bytes:
    made = entry(of, "shared", key, sequence=9)
    record = codec.decode(made.record, EntryRecord, limit=ENTRY_MAX)
    return codec.encode(EntryRecord(1, record.body, bytes(64)))


def test_a_forger_is_muted_for_longer_each_time_and_the_others_are_heard() -> None:
    net = net_of(3)
    one, liar, honest = stations(net)
    data = b""
    for number in range(5):
        record = forged_record(honest.node, f"k{number}")
        data = encode_message(Entries(reply=False, records=(record,)))
        net.inject(liar.node.node_id, one.node.node_id, data)
        net.run(0.0)
    assert [note.code for note in one.notes] == ["peer-muted"]
    assert one.notes[0].peer == liar.node.node_id
    before = one.received, one.gossip._accounts[liar.node.node_id].dropped
    net.inject(liar.node.node_id, one.node.node_id, data)
    net.run(0.0)
    assert one.gossip._accounts[liar.node.node_id].dropped == before[1] + 1
    net.write(honest, "shared", "k", b"v")
    net.run(2.0)
    assert one.replica.get("shared", "k", NOW) is not None
    account = one.gossip._accounts[liar.node.node_id]
    one.gossip.set_peers([honest.node.node_id], net.now)
    one.gossip.set_peers(net.stations, net.now)
    assert one.gossip._accounts[liar.node.node_id] is account
    first = account.muted_until - 0.0
    for _ in range(2):
        account.offence(limits.Offence.FORGED, account.muted_until)
    assert account.muted_until - first >= 2 * limits.MUTE_SECONDS


def test_a_flood_waits_in_line_while_others_pass() -> None:
    net = net_of(3)
    one, flooder, honest = stations(net)
    data = encode_message(Entries(reply=False, records=(bytes(40),)))
    fine = entry(honest.node, "shared", "k", b"v", sequence=2)
    good = encode_message(Entries(reply=False, records=(fine.record,)))
    taken = sum(one.gossip.datagram(flooder.node.node_id, data, 0.0) for _ in range(5000))
    assert taken == limits.QUEUE_MAX
    assert one.gossip.datagram(honest.node.node_id, good, 0.0)
    one.gossip.work(0.0, budget=6)
    assert one.replica.by_id(fine.entry_id) is not None
    assert not one.gossip.datagram(b"stranger........", good, 0.0)


def test_work_stays_within_its_budget() -> None:
    net = net_of(2)
    one, other = stations(net)
    records = [entry(other.node, "shared", f"k{n}", sequence=n + 2).record for n in range(100)]
    for message in pack_entries(records, reply=False):
        one.gossip.datagram(other.node.node_id, encode_message(message), 0.0)
    held = len(one.replica)
    one.gossip.work(0.0, budget=10)
    largest = max(len(message.records) for message in pack_entries(records, reply=False))
    assert 0 < len(one.replica) - held <= 10 + largest
    assert one.gossip.busy


def test_orphans_are_bounded() -> None:
    net = net_of(2)
    one, other = stations(net)
    for number in range(200):
        made = entry(node(900 + number % 40), "shared", f"k{number}", sequence=2)
        data = encode_message(Entries(reply=False, records=(made.record,)))
        one.gossip.datagram(other.node.node_id, data, float(number))
        one.gossip.work(float(number))
    held = sum(map(len, one.gossip._orphans.values()))
    assert 0 < held <= ORPHANS_MAX
    assert len(one.gossip._orphans) <= held


def test_a_member_that_rewrites_one_key_for_ever_leaves_one_entry() -> None:
    net = net_of(4)
    noisy = stations(net)[0]
    for number in range(60):
        net.write(noisy, "shared", "k", bytes([number]))
    net.run(60.0)
    assert net.alike()
    assert len(stations(net)[1].replica) == 5
    assert all(len(one.gossip._news) == 0 for one in stations(net))


def test_one_member_more_and_one_less_are_noticed_together() -> None:
    net = net_of(3, swim=True)
    one = stations(net)[0]
    net.run(1.0)
    detector = one.gossip.detector
    assert detector is not None
    for record in (revocation(NODES[2]).record, member_entry(NODES[5]).record):
        data = encode_message(Entries(reply=False, records=(record,)))
        net.inject(NODES[1].node_id, one.node.node_id, data)
    net.run(10.0)
    assert detector.status(NODES[2].node_id) is None
    assert detector.status(NODES[5].node_id) is not None


def test_replayed_entries_change_nothing() -> None:
    net = net_of(3)
    one, other, third = stations(net)
    old = entry(other.node, "shared", "k", b"old", sequence=2)
    new = entry(other.node, "shared", "k", b"new", sequence=3)
    floor = entry(other.node, FLOOR, other.node.text, (3).to_bytes(8), sequence=4)
    foreign = entry(node(10, net=1), "shared", "k", b"x", sequence=9, net=1)
    for record in (old, new, floor, old, new, foreign, old):
        data = encode_message(Entries(reply=False, records=(record.record,)))
        net.inject(third.node.node_id, one.node.node_id, data)
        net.run(0.0)
    found = one.replica.get("shared", "k", NOW)
    assert found == new
    assert network(1).network_id != network().network_id
