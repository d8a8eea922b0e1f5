"""Members, tokens and operators that go wrong, and what it costs the others: nothing."""

from __future__ import annotations

import pytest

from appliance.control import keyring
from appliance.control.admission import INFORMED_SECONDS
from appliance.ledger import assigned
from appliance.ledger.directory import Directory
from appliance.ledger.entry import Entry, make_entry, read_entry
from appliance.ledger.epochs import OVERLAP_MS, Reading
from appliance.ledger.errors import WriteError
from appliance.ledger.hlc import Clock
from appliance.ledger.rules import ASSIGNED, MEMBER
from appliance.ledger.state import Replica, Verdict
from appliance.ledger.writer import Writer
from appliance.overlay import events
from provisioning import codec
from provisioning.keys import id_text
from tests.fakes.control_world import (
    UNIX,
    Node,
    Operator,
    World,
    join,
    make_grant_token,
    make_network,
)

NETWORK = make_network()
TOKEN = make_grant_token(NETWORK)


def formed(world: World, count: int) -> list[Node]:
    nodes = world.form(*(join(TOKEN, f"n{number}") for number in range(count)))
    assert world.run(10, until=lambda: world.connected(nodes))
    return nodes


def operator_of(world: World, node: Node) -> Operator:
    operator = Operator(node.identity.network)
    operator.learn(node.plane.gossip.replica, world.ms)
    return operator


# Addresses


def test_one_address_fixed_for_two_by_mistake_is_held_by_one() -> None:
    """Two operators at once: neither command sees the other's statement."""
    world = World()
    nodes = formed(world, 3)
    operator = operator_of(world, nodes[0])
    wanted = bytes([10, 10, 77, 7])
    world.publish(
        nodes[0],
        [
            operator.write(
                ASSIGNED, assigned.node_key(one.node_id, assigned.ADDRESS), wanted, world.ms
            )
            for one in nodes[:2]
        ],
    )
    world.run(10)
    assert world.connected(nodes), [one.ipv4 for one in nodes]
    assert [one.ipv4 for one in nodes].count("10.10.77.7") == 1
    before = [one.ipv4 for one in nodes]
    world.run(60)
    for one in nodes:
        world.boot(one)
    assert world.run(20, until=lambda: world.connected(nodes))
    assert [one.ipv4 for one in nodes] == before
    loser = next(one for one in nodes[:2] if one.ipv4 != "10.10.77.7")
    assert "10.10.77.7" in " ".join(one.message for one in loser.plane.problems)


# Epochs


def test_an_overlap_that_began_by_a_clock_a_year_ahead_ends_all_the_same() -> None:
    world = World()
    nodes = formed(world, 2)
    operator = operator_of(world, nodes[0])
    secret = b"\x01" * 32
    node = nodes[1]
    for one in nodes:
        one.clock = 365 * 86_400.0
        one.plane.wall(world.clock(one), world.now)
        world.feed(one, events.Tick())
    world.publish(nodes[0], operator.new_epoch(1, secret, without=[], now_ms=world.ms))
    assert world.run(
        20, until=lambda: all(one.plane.policies.secrets.current == 1 for one in nodes)
    )
    for one in nodes:
        one.clock = 0.0
        one.plane.wall(world.clock(one), world.now)
        world.feed(one, events.Tick())
    world.run(OVERLAP_MS / 1000 + 400)
    now_ms = node.plane.timekeeper.now_ms(world.now)
    assert abs(now_ms - world.ms) < 5000
    assert node.plane.policies.secrets.reading(0, now_ms) is Reading.CATCH_UP
    assert node.plane.core.keyring.reading(0, now_ms / 1000) is Reading.CATCH_UP
    world.boot(node)
    assert node.plane.policies.secrets.reading(0, now_ms) is Reading.CATCH_UP


def test_a_member_that_floods_forged_catch_ups_is_heard_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each would cost the check of some forty signatures."""
    world = World()
    nodes = formed(world, 3)
    here, bad = nodes[0], nodes[1]
    operator, checked = operator_of(world, here), 0
    secret = b"\x01" * 32
    good = operator.new_epoch(1, secret, without=[], now_ms=world.ms)
    forged = [
        make_entry(
            bad.identity.sign,
            NETWORK.network_id,
            owner=NETWORK.network_id,
            sequence=number,
            stamp=world.ms << 16,
            bucket=ASSIGNED,
            key=f"x{number}",
            value=b"",
            expires=None,
            deleted=False,
        ).record
        for number in range(1000, 1020)
    ]
    real = Entry.signed_by

    def counted(entry: Entry, key: bytes, network_id: bytes) -> bool:
        nonlocal checked
        checked += 1
        return real(entry, key, network_id)

    monkeypatch.setattr(Entry, "signed_by", counted)
    message = codec.encode(keyring.CatchUp(tuple(forged), b"box"))
    for _ in range(200):
        now = bad.plane._moment(world.now)
        for action in bad.plane.core.catch_up(here.node_id, message, now):
            bad_send(world, bad, action)
    world.run(0.5)
    assert checked < 10
    # Who is honest is heard meanwhile.
    message = codec.encode(keyring.CatchUp(tuple(good), b""))
    for action in nodes[2].plane.core.catch_up(
        here.node_id, message, nodes[2].plane._moment(world.now)
    ):
        bad_send(world, nodes[2], action)
    assert world.run(5, until=lambda: here.plane.policies.secrets.current == 1)


def bad_send(world: World, node: Node, action: events.Action) -> None:
    world._perform(node, [action])


# Who is in


def test_a_newcomer_that_restarts_at_once_does_not_take_whom_it_met_for_good() -> None:
    """Its first contact came with a leaked, expired token; the power goes before it judges."""
    old = make_grant_token(NETWORK, expires=int(UNIX + 150))
    world = World()
    member_ids = [join(old, "one"), join(old, "two")]
    real = world.form(*member_ids)
    assert world.run(10, until=lambda: world.connected(real))
    world.run(300)
    for one in real:
        one.side = 1
    thief = world.add(join(old, "thief", now=UNIX))
    newcomer = world.add(join(TOKEN, "newcomer"))
    assert world.run(INFORMED_SECONDS, until=lambda: newcomer.node_id in thief.up())
    world.run(INFORMED_SECONDS / 2)
    world.boot(newcomer)
    world.heal()
    assert world.run(120, until=lambda: {one.node_id for one in real} <= newcomer.up())
    world.run(30)
    assert thief.node_id not in newcomer.plane.peers


def test_a_closed_grant_lets_nobody_in_at_a_node_that_is_alone() -> None:
    """`skerry token rotate` said so; there is nobody left whom it would have to trust."""
    world = World()
    alone = world.add(join(make_grant_token(NETWORK), "alone"))
    world.run(5)
    leaked = make_grant_token(NETWORK)
    operator = operator_of(world, alone)
    key = assigned.closed_key(leaked.grant.grant_id)
    world.publish(alone, [operator.write(ASSIGNED, key, assigned.MARK, world.ms)])
    world.run(5)
    thief = world.add(join(leaked, "thief"))
    world.run(30)
    assert thief.node_id not in alone.plane.peers
    assert alone.node_id not in alone.wireguard


def test_the_second_newcomer_finds_those_whose_tokens_have_expired() -> None:
    """Whoever came before it by a new token cannot speak for those who were there before both."""
    old = make_grant_token(NETWORK, expires=int(UNIX + 1000))
    world = World()
    nodes = world.form(join(old, "one"), join(old, "two"))
    assert world.run(10, until=lambda: world.connected(nodes))
    world.run(1000)
    for name in ("first", "second"):
        nodes.append(world.add(join(TOKEN, name)))
        assert world.run(60, until=lambda: world.connected(nodes)), name
        world.run(10)
    for one in nodes:
        world.boot(one)
    assert world.run(60, until=lambda: world.connected(nodes))


def test_once_the_root_key_has_said_who_is_in_a_newcomer_takes_nobody_else_on_trust() -> None:
    old = make_grant_token(NETWORK, expires=int(UNIX + 300))
    world = World()
    nodes = world.form(join(old, "one"), join(old, "two"))
    assert world.run(10, until=lambda: world.connected(nodes))
    world.run(400)
    operator = operator_of(world, nodes[0])
    world.publish(
        nodes[0],
        [
            operator.write(
                ASSIGNED, assigned.node_key(one.node_id, assigned.ADMITTED), b"\x01", world.ms
            )
            for one in nodes
        ],
    )
    thieves = [world.add(join(old, name, now=UNIX)) for name in ("thief", "accomplice")]
    newcomer = world.add(join(TOKEN, "newcomer"))
    assert world.run(60, until=lambda: world.connected([*nodes, newcomer]))
    world.run(60)
    assert not {one.node_id for one in thieves} & newcomer.plane.peers.keys()
    assert world.connected([*nodes, newcomer])


# A ledger that somebody filled


def test_who_filled_the_ledger_can_be_revoked() -> None:
    """The root key had said nothing before: it was refused as a new owner."""
    full = Replica(Directory(NETWORK), total_bytes_max=600)
    operator, member, now_ms = Operator(NETWORK), join(TOKEN, "m"), int(UNIX * 1000)
    writer = Writer(full, Clock(), owner=member.node_id, sign=member.sign)
    writer.put(MEMBER, id_text(member.node_id), member.certificate, now_ms)
    assert full.bytes > 400
    record = operator.revoke(member.node_id, now_ms)
    assert full.apply(read_entry(record), now_ms).verdict is Verdict.ACCEPTED
    assert not len(full.directory)


def test_a_full_ledger_does_not_grow_by_members_that_are_in_it() -> None:
    full = Replica(Directory(NETWORK), total_bytes_max=2000)
    member, now_ms = join(TOKEN, "m"), int(UNIX * 1000)
    writer = Writer(full, Clock(), owner=member.node_id, sign=member.sign)
    writer.put(MEMBER, id_text(member.node_id), member.certificate, now_ms)
    writer.put("shared", "key", bytes(500), now_ms)
    writer.put("shared", "second", bytes(400), now_ms)
    with pytest.raises(WriteError, match="full"):
        writer.put("shared", "third", bytes(500), now_ms)
    writer.put("shared", "key", bytes(499), now_ms)
    assert full.bytes <= 2000
