"""The control plane of whole networks, in virtual time: real cores, gossip and signatures."""

from __future__ import annotations

from functools import partial

import pytest

from appliance.control.actions import LedgerChanged
from appliance.ledger import assigned
from appliance.ledger.rules import ASSIGNED
from appliance.overlay import events
from provisioning.identity import Identity
from tests.fakes.control_world import (
    UNIX,
    Node,
    Operator,
    World,
    clashing,
    join,
    make_grant_token,
    make_network,
)

NETWORK = make_network()
TOKEN = make_grant_token(NETWORK)


def members(count: int, prefix: str = "n") -> list[Identity]:
    return [join(TOKEN, f"{prefix}{number}") for number in range(count)]


def formed(world: World, count: int) -> list[Node]:
    nodes = world.form(*members(count))
    assert world.run(10, until=lambda: world.connected(nodes))
    return nodes


def operator_of(world: World, node: Node) -> Operator:
    operator = Operator(node.identity.network)
    operator.learn(node.plane.gossip.replica, world.ms)
    return operator


def revoke(world: World, via: Node, gone: Node, *, epoch: int = 1) -> bytes:
    """Do what `skerry revoke node` does; return the new secret."""
    operator, secret = operator_of(world, via), bytes([epoch]) * 32
    records = operator.new_epoch(epoch, secret, without=[gone.node_id], now_ms=world.ms)
    world.publish(via, [*records, operator.revoke(gone.node_id, world.ms)])
    return secret


def everywhere(world: World, nodes: list[Node], key: str, value: bytes) -> bool:
    return all(one.value(key, world.ms) == value for one in nodes)


@pytest.mark.parametrize("count", [2, 5, 8])
def test_a_network_forms(count: int) -> None:
    world = World()
    nodes = world.form(*members(count))
    assert world.run(4, until=lambda: world.connected(nodes))
    assert world.run(20, until=lambda: world.same_ledger(nodes))


def test_it_forms_over_a_network_that_loses_every_fifth_datagram() -> None:
    world = World(seed=3, loss=0.2)
    nodes = world.form(*members(4))
    assert world.run(60, until=lambda: world.connected(nodes) and world.same_ledger(nodes))


def test_what_one_writes_all_read_soon() -> None:
    world = World()
    nodes = formed(world, 6)
    world.put(nodes[0], "greeting", b"hello")
    assert world.run(0.5, until=lambda: everywhere(world, nodes, "greeting", b"hello"))


def test_what_a_node_wrote_is_on_the_disk_before_it_leaves() -> None:
    world = World()
    nodes = formed(world, 2)
    ledger = nodes[0].plane.gossip
    written = ledger.writer.put("shared", "key", b"value", world.ms)
    actions = nodes[0].plane.perform(ledger.local(written, world.now), world.now)
    kinds = [type(one) for one in actions]
    kept = kinds.index(LedgerChanged)
    assert kept < min(kinds.index(one) for one in (events.Send, events.SendInside) if one in kinds)
    action = actions[kept]
    assert isinstance(action, LedgerChanged)
    assert action.own
    assert action.sequence == ledger.writer.sequence


def test_of_two_that_want_one_address_one_moves_and_stays_there() -> None:
    network = make_network("10.10.0.0/24")
    world = World()
    nodes = world.form(*clashing(network, 2))
    assert world.run(15, until=lambda: world.connected(nodes))
    before = [one.ipv4 for one in nodes]
    for node in nodes:
        world.boot(node)
    assert world.run(15, until=lambda: world.connected(nodes))
    assert [one.ipv4 for one in nodes] == before, "an address is kept for life"


def test_a_fixed_address_is_taken_by_the_node_and_left_by_who_had_it() -> None:
    world = World()
    nodes = formed(world, 3)
    operator, wanted = operator_of(world, nodes[0]), nodes[2].ipv4
    key = assigned.node_key(nodes[1].node_id, assigned.ADDRESS)
    value = bytes(int(part) for part in wanted.split("."))
    world.publish(nodes[0], [operator.write(ASSIGNED, key, value, world.ms)])
    assert world.run(10, until=lambda: nodes[1].ipv4 == wanted and world.connected(nodes))
    assert nodes[2].ipv4 != wanted


def test_a_lost_ledger_comes_back_with_the_address_and_the_count_of_writes() -> None:
    world = World()
    nodes = formed(world, 3)
    world.put(nodes[0], "mine", b"1")
    world.run(5)
    address, sequence = nodes[0].ipv4, nodes[0].plane.gossip.writer.sequence
    nodes[0].disk.clear()
    nodes[0].sequence = nodes[0].high_water = 0
    world.boot(nodes[0])
    assert world.run(15, until=lambda: nodes[0].value("mine", world.ms) == b"1")
    assert world.run(10, until=lambda: world.connected(nodes))
    assert nodes[0].ipv4 == address
    assert nodes[0].plane.gossip.writer.sequence >= sequence


def test_all_restarted_at_once_keep_their_addresses_and_the_ledger() -> None:
    world = World()
    nodes = formed(world, 5)
    world.put(nodes[0], "kept", b"yes")
    world.run(3)
    before = [one.ipv4 for one in nodes]
    for node in nodes:
        world.boot(node)
    assert world.run(10, until=lambda: world.connected(nodes))
    assert [one.ipv4 for one in nodes] == before
    assert everywhere(world, nodes, "kept", b"yes")


def test_halves_go_on_alone_and_heal_without_loss_or_double_address() -> None:
    network = make_network("10.10.0.0/24")
    pair = clashing(network, 2)
    token = make_grant_token(network)
    world = World()
    nodes = world.form(*(join(token, f"n{number}") for number in range(4)))
    assert world.run(15, until=lambda: world.connected(nodes))
    left, right = nodes[:2], nodes[2:]
    world.split(left, right)
    for side, half in enumerate((left, right)):
        half.append(world.add(pair[side], side=side))
        world.put(half[0], f"side{side}", b"written meanwhile")
    world.put(left[0], "both", b"left")
    world.put(right[0], "both", b"right")
    assert world.run(60, until=lambda: world.connected(left) and world.connected(right))
    world.run(120)
    world.heal()
    everybody = left + right
    assert world.run(120, until=lambda: world.connected(everybody) and world.same_ledger(everybody))
    for key in ("side0", "side1"):
        assert everywhere(world, everybody, key, b"written meanwhile")
    assert len({one.value("both", world.ms) for one in everybody}) == 1


# Revocation and epochs


def in_epoch(nodes: list[Node], number: int) -> bool:
    return all(one.plane.policies.secrets.current == number for one in nodes)


def test_a_revoked_node_is_out_at_once_and_learns_nothing_new() -> None:
    world = World()
    nodes = formed(world, 4)
    gone, rest = nodes[3], nodes[:3]
    revoke(world, nodes[0], gone)
    assert world.run(1, until=lambda: all(gone.key not in one.wireguard for one in rest))
    for one in rest:
        assert any(f"{gone.ipv4}/32" in flushed for flushed in one.flushed)
    assert world.run(5, until=lambda: all(one.plane.policies.secrets.current == 1 for one in rest))
    world.put(nodes[0], "secret-plan", b"x")
    world.run(900)
    assert everywhere(world, rest, "secret-plan", b"x")
    assert gone.value("secret-plan", world.ms) is None
    assert gone.plane.policies.secrets.current == 0
    assert {one.code for one in gone.plane.problems} & {"revoked", "not-let-in"}
    assert world.connected(rest)


def test_a_restarted_supervisor_does_not_let_a_revoked_one_back_in() -> None:
    world = World()
    nodes = formed(world, 3)
    revoke(world, nodes[0], nodes[2])
    world.run(10)
    for node in nodes:
        world.boot(node)
    world.run(60)
    assert all(nodes[2].key not in one.wireguard for one in nodes[:2])
    assert world.connected(nodes[:2])


def test_a_node_that_was_away_for_the_whole_overlap_catches_up() -> None:
    world = World()
    nodes = formed(world, 4)
    away, gone = nodes[2], nodes[3]
    world.kill(away)
    revoke(world, nodes[0], gone)
    world.run(3600)
    world.boot(away)
    stay = nodes[:3]
    assert world.run(120, until=lambda: away.plane.policies.secrets.current == 1)
    assert world.run(120, until=lambda: world.connected(stay))
    world.put(nodes[0], "after", b"1")
    assert world.run(60, until=lambda: everywhere(world, stay, "after", b"1"))


def test_a_member_without_a_box_is_handed_the_secret() -> None:
    """The operator's machine had not heard of it when the epoch began."""
    world = World()
    nodes = formed(world, 3)
    operator = operator_of(world, nodes[0])
    late = world.add(join(TOKEN, "late"))
    everybody = [*nodes[:2], late]
    records = operator.new_epoch(1, b"\x01" * 32, without=[nodes[2].node_id], now_ms=world.ms)
    world.publish(nodes[0], [*records, operator.revoke(nodes[2].node_id, world.ms)])
    assert world.run(60, until=lambda: late.plane.policies.secrets.current == 1)
    assert world.run(30, until=lambda: world.connected(everybody))


def test_a_newcomer_with_a_token_of_an_older_epoch_is_let_in() -> None:
    world = World()
    nodes = formed(world, 3)
    revoke(world, nodes[0], nodes[2])
    world.run(3600)
    new = world.add(join(TOKEN, "new"))
    assert world.run(60, until=lambda: world.connected([*nodes[:2], new]))
    assert new.plane.policies.secrets.current == 1


def test_epochs_survive_a_restart_and_follow_each_other() -> None:
    world = World()
    nodes = formed(world, 5)
    for number, gone in ((1, nodes[4]), (2, nodes[3]), (3, nodes[2])):
        revoke(world, nodes[0], gone, epoch=number)
        assert world.run(30, until=partial(in_epoch, nodes[:2], number))
    for node in nodes[:2]:
        world.boot(node)
        assert node.plane.policies.secrets.current == 3
    assert world.run(30, until=lambda: world.connected(nodes[:2]))


# Grants


def test_the_third_of_two_is_refused_and_told_why() -> None:
    token = make_grant_token(NETWORK, count=2)
    world = World()
    nodes = world.form(join(token, "one"), join(token, "two"))
    assert world.run(10, until=lambda: world.connected(nodes))
    world.run(5)
    third = world.add(join(token, "three"))
    world.run(20)
    assert not third.up()
    problems = {one.code: one.message for one in third.plane.problems}
    assert "good for 2 nodes" in " ".join(problems.values())
    assert world.connected(nodes)


def test_a_grant_used_up_on_both_sides_of_a_partition_is_settled_alike_by_all() -> None:
    token = make_grant_token(NETWORK, count=2)
    world = World()
    nodes = world.form(*members(4))
    assert world.run(10, until=lambda: world.connected(nodes))
    left, right = nodes[:2], nodes[2:]
    world.split(left, right)
    guests = [world.add(join(token, f"guest{side}"), side=side) for side in (0, 0, 1)]
    world.run(30)
    world.heal()
    world.run(180)
    inside = [one for one in guests if one.up()]
    assert len(inside) == 2
    assert world.connected([*nodes, *inside])


def test_an_expired_grant_lets_nobody_in_and_throws_nobody_out() -> None:
    token = make_grant_token(NETWORK, expires=int(UNIX + 1000))
    world = World()
    nodes = world.form(join(token, "one"), join(token, "two"))
    assert world.run(10, until=lambda: world.connected(nodes))
    late_identity = join(token, "late")
    world.run(2000)
    assert world.connected(nodes)
    for node in nodes:
        world.boot(node)
    assert world.run(30, until=lambda: world.connected(nodes))
    late = world.add(late_identity)
    world.run(30)
    assert not late.up()
    fresh = world.add(join(TOKEN, "fresh"))
    assert world.run(90, until=lambda: world.connected([*nodes, fresh]))


# Clocks


def test_a_node_that_boots_in_1970_joins_through_its_neighbours() -> None:
    world = World()
    nodes = formed(world, 3)
    old = make_grant_token(NETWORK, now=UNIX - 5_000_000)
    lost = world.add(join(old, "lost", now=0), has_clock=False)
    assert world.run(30, until=lambda: world.connected([*nodes, lost]))
    assert abs(lost.plane.unix(world.now) - (UNIX + world.now)) < 1
    world.put(lost, "from-1970", b"1")
    assert world.run(5, until=lambda: everywhere(world, nodes, "from-1970", b"1"))


@pytest.mark.parametrize("hours", [-24, 24])
def test_a_clock_a_day_off_among_three_right_ones_joins_and_moves_nobody(hours: int) -> None:
    world = World()
    nodes = formed(world, 3)
    # Its identity was made by that clock, too.
    made = max(UNIX + hours * 3600.0, 0.0)
    off = world.add(join(TOKEN, "off", now=made), clock=hours * 3600.0)
    assert world.run(120, until=lambda: world.connected([*nodes, off]))
    assert abs(off.plane.unix(world.now) - (UNIX + world.now)) < 5
    for node in nodes:
        assert abs(node.plane.unix(world.now) - (UNIX + world.now)) < 5


def test_whose_clock_jumps_before_it_heard_the_time_asks_at_once() -> None:
    """By the new time nobody's messages open, so it would hear nothing more of the right one."""
    world = World()
    nodes = formed(world, 3)
    jumper, *others = nodes
    for other in others:
        jumper.plane.timekeeper.forget(other.identity.node_id)
    jumper.clock = 86_400.0
    jumper.plane.wall(world.clock(jumper), world.now)
    assert jumper.plane.unix(world.now) > UNIX + world.now + 80_000
    assert world.run(3, until=lambda: abs(jumper.plane.unix(world.now) - (UNIX + world.now)) < 1)
    assert world.connected(nodes)


def test_what_was_written_under_a_clock_ahead_survives_a_restart_under_a_right_one() -> None:
    world = World()
    nodes = formed(world, 2)
    world.kill(nodes[1])
    nodes[0].clock = 86_400.0
    world.run(10)
    world.put(nodes[0], "tomorrow", b"1")
    assert nodes[0].plane.unix(world.now) > UNIX + world.now + 80_000
    nodes[0].clock = 0.0
    for node in nodes:
        world.boot(node)
    assert world.run(120, until=lambda: everywhere(world, nodes, "tomorrow", b"1"))


# Coordination only


def test_without_a_vpn_ledger_and_membership_work_and_no_tunnel_is_made() -> None:
    network = make_network(vpn=False)
    token = make_grant_token(network)
    world = World()
    nodes = world.form(*(join(token, f"n{number}") for number in range(3)))
    assert world.run(10, until=lambda: world.all_up(nodes))
    world.put(nodes[0], "greeting", b"hello")
    assert world.run(2, until=lambda: everywhere(world, nodes, "greeting", b"hello"))
    assert not any(one.wireguard or one.own for one in nodes)
    revoke(world, nodes[0], nodes[2])
    world.run(30)
    world.put(nodes[0], "later", b"1")
    world.run(30)
    assert everywhere(world, nodes[:2], "later", b"1")
    assert nodes[2].value("later", world.ms) is None
