"""The overlay's core in a simulated network."""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.overlay import events
from appliance.overlay.endpoint import Endpoint
from appliance.overlay.liveness import Change, Liveness
from tests.unit.overlay_world import PORT, UNIX, Host, World, make_identity, make_network

LOW_ORDER = b"\x01" + bytes(31)


def rough(chance: random.Random) -> tuple[float, ...]:
    """Lose, double and shuffle."""
    copies = chance.choice((0, 1, 1, 1, 2))
    return tuple(chance.uniform(0.001, 0.5) for _ in range(copies))


def meet(world: World, one: Host, two: Host, seconds: float = 60) -> bool:
    world.introduce(one, two)
    world.introduce(two, one)
    return world.run(seconds, until=lambda: know_each_other(one, two))


def know_each_other(one: Host, two: Host) -> bool:
    return two.node_id in one.up() and one.node_id in two.up()


def pair(world: World) -> tuple[Host, Host]:
    return world.add(make_identity("one")), world.add(make_identity("two"))


def test_two_nodes_meet_within_half_a_second() -> None:
    world = World()
    one, two = pair(world)
    assert meet(world, one, two, 0.5)
    peer = one.wireguard[two.key]
    assert peer.endpoint == Endpoint(two.address, PORT)
    assert set(peer.allowed) == {
        f"{two.ipv4}/32",
        f"{two.core.ipv6}/128",
    }


@given(st.integers(0, 10**6), st.booleans())
@settings(max_examples=7, deadline=None)
def test_they_meet_whatever_the_network_does_to_datagrams(seed: int, vpn: bool) -> None:
    world = World(seed, fate=rough, vpn=vpn)
    one, two = pair(world)
    assert meet(world, one, two)
    assert one.causes() <= {"replayed"}
    assert two.causes() <= {"replayed"}


def test_probes_that_cross_do_not_go_on_for_ever() -> None:
    world = World()
    one, two = pair(world)
    assert meet(world, one, two)
    before = one.actions
    world.run(100)
    assert one.actions - before < 100


def test_everything_that_was_ever_sent_sent_again_changes_nothing() -> None:
    world = World()
    one, two = pair(world)
    assert meet(world, one, two)
    world.run(5)
    seen = list(world.sent)
    tables = dict(one.wireguard), dict(two.wireguard)
    thief = Endpoint("192.168.1.99", PORT)
    answers = len(world.sent)
    for _, destination, data in seen:
        world.deliver(thief, destination, data)
    world.run(40)
    assert (one.wireguard, two.wireguard) == tables
    # A replayed HELLO is answered, once and by no more bytes than it had; nothing else is.
    to_thief = [data for _, target, data in world.sent[answers:] if target == thief]
    assert len(to_thief) <= len(seen)
    assert sum(map(len, to_thief)) <= sum(len(data) for _, _, data in seen)


def test_a_replayed_hello_gets_one_answer_not_longer_than_itself() -> None:
    world = World()
    one, two = pair(world)
    world.introduce(one, two)
    _, destination, hello = world.sent[0]
    assert meet(world, one, two)
    world.run(5)
    thief, before = Endpoint("192.168.1.99", PORT), len(world.sent)
    world.deliver(thief, destination, hello)
    world.run(4)
    answers = [data for _, target, data in world.sent[before:] if target == thief]
    assert len(answers) == 1
    assert len(answers[0]) <= len(hello)


@pytest.mark.parametrize(
    ("stranger", "cause"),
    [
        (lambda: make_identity(network=make_network(otp_seed=b"\x09" * 32)), "unsealed"),
        (lambda: make_identity(root_seed=b"\x09" * 32), "other-network"),
        (lambda: make_identity(expires=int(UNIX) - 10), "grant-expired"),
    ],
)
def test_a_stranger_is_refused_and_the_cause_named(stranger: object, cause: str) -> None:
    world = World()
    assert callable(stranger)
    one, two = world.add(make_identity("one")), world.add(stranger())
    assert not meet(world, one, two, 20)
    assert cause in one.causes()
    assert two.key not in one.wireguard
    lines = [line for line in one.logs if line.fields["event"] == "refused"]
    assert lines[0].fields["cause"] == cause
    assert lines[0].fields["source"] == f"{two.address}:{PORT}"
    assert len(lines) == 1  # one line, however often it tries


@pytest.mark.parametrize("thief_begins", [True, False])
@pytest.mark.parametrize("victim_first", [True, False])
def test_nobody_takes_the_tunnel_key_of_another(thief_begins: bool, victim_first: bool) -> None:
    world = World()
    one, victim = pair(world)
    thief = world.add_careless(make_identity("thief", wg_key=victim.key))
    if victim_first:
        assert meet(world, one, victim)
    entry = one.wireguard.get(victim.key)
    world.introduce(*((thief, one) if thief_begins else (one, thief)))
    world.run(20)
    assert "unproven-tunnel-key" in one.causes()
    assert thief.node_id not in one.core.peers
    assert one.wireguard.get(victim.key) == entry
    assert "does not hold the WireGuard key" in next(
        line.message for line in one.logs if line.fields.get("cause") == "unproven-tunnel-key"
    )
    # And it does not keep the victim out.
    assert meet(world, one, victim)
    assert one.wireguard[victim.key].endpoint == Endpoint(victim.address, PORT)


@pytest.mark.parametrize("thief_begins", [True, False])
def test_nobody_takes_our_own_tunnel_key(thief_begins: bool) -> None:
    world = World()
    one = world.add(make_identity("one"))
    thief = world.add_careless(make_identity("thief", wg_key=one.key))
    world.introduce(*((thief, one) if thief_begins else (one, thief)))
    world.run(20)
    assert "unproven-tunnel-key" in one.causes()
    assert not one.core.peers


@pytest.mark.parametrize("begins", [True, False])
def test_a_tunnel_key_of_low_order_is_refused(begins: bool) -> None:
    world = World()
    one = world.add(make_identity("one"))
    bad = world.add_careless(make_identity("bad", wg_key=LOW_ORDER))
    world.introduce(*((bad, one) if begins else (one, bad)))
    world.run(20)
    assert "unproven-tunnel-key" in one.causes()
    assert not one.core.peers


def test_a_second_node_with_a_tunnel_key_is_refused_even_if_it_holds_it() -> None:
    world = World()
    one, two = pair(world)
    assert meet(world, one, two)
    entry, identity = one.wireguard[two.key], two.core.identity
    copy = make_identity("copy", wg_key=two.key)
    copy = dataclasses.replace(copy, wg_private=identity.wg_private)
    other = world.add(copy)
    assert not meet(world, one, other, 20)
    assert "tunnel-key-taken" in one.causes()
    assert one.wireguard[two.key] == entry
    assert know_each_other(one, two)


def test_an_expired_grant_throws_nobody_out() -> None:
    world = World()
    one = world.add(make_identity("one"))
    two = world.add(make_identity("two", expires=int(UNIX) + 30))
    assert meet(world, one, two)
    world.run(60)
    world.restart(one)
    world.restart(two)
    assert world.run(20, until=lambda: know_each_other(one, two))


def test_a_certificate_with_many_labels_travels_in_parts() -> None:
    world = World(fate=rough)
    labels = {f"label-{number:02}{'x' * 40}": "y" * 60 for number in range(16)}
    one = world.add(make_identity("one"))
    two = world.add(make_identity("two", labels=labels))
    assert meet(world, one, two)
    assert one.core.peers[two.node_id].member.labels == labels
    assert all(len(data) <= 1200 for _, _, data in world.sent)


def test_restarted_nodes_meet_without_discovery() -> None:
    world = World()
    one, two = pair(world)
    assert meet(world, one, two)
    for host in (one, two):
        host.wireguard.clear()
        world.restart(host)
    assert world.run(10, until=lambda: know_each_other(one, two))


def test_a_silent_member_is_down_within_forty_seconds_and_comes_back() -> None:
    world = World()
    one, two = pair(world)
    assert meet(world, one, two)
    two.alive = False
    assert world.run(40, until=lambda: two.node_id not in one.up())
    assert two.key in one.wireguard  # it may come back
    two.alive = True
    assert world.run(61, until=lambda: two.node_id in one.up())


def test_a_node_that_moves_tells_its_members() -> None:
    world = World()
    one, two = pair(world)
    assert meet(world, one, two)
    one.address = "192.168.7.7"
    world.feed(one, events.LocalAddresses((one.address,)))
    assert world.run(
        3, until=lambda: two.wireguard[one.key].endpoint == Endpoint("192.168.7.7", PORT)
    )
    assert world.run(10, until=lambda: know_each_other(one, two))


def test_the_table_of_an_earlier_run_is_taken_up_with_the_addresses_as_they_are_now() -> None:
    world = World()
    one, two = pair(world)
    assert meet(world, one, two)
    before = one.wireguard[two.key]
    assert before.allowed == (f"{two.ipv4}/32", f"{two.core.ipv6}/128")
    world.restart(one)
    assert one.wireguard[two.key] == before
    two.ipv4 = None
    world.restart(one)
    assert one.wireguard[two.key].allowed == (f"{two.core.ipv6}/128",)


def test_nobody_has_an_address_that_was_not_assigned() -> None:
    world = World(vpn=False)
    one, two = pair(world)
    assert meet(world, one, two)
    world.restart(one)
    assert (one.core.ipv4, one.core.peers[two.node_id].ipv4) == (None, None)


def test_peers_of_an_earlier_run_that_nobody_knows_go_after_a_while() -> None:
    world = World()
    one, two = pair(world)
    one.wireguard[b"\x55" * 32] = events.SetPeer(b"\x55" * 32, None, ())
    assert meet(world, one, two)
    assert b"\x55" * 32 in one.wireguard
    world.run(120)
    assert set(one.wireguard) == {two.key}


@given(
    st.lists(st.tuples(st.binary(max_size=1300), st.sampled_from(["192.168.1.10", "10.10.3.3"])))
)
@settings(max_examples=50, deadline=None)
def test_noise_is_refused_quietly(noise: list[tuple[bytes, str]]) -> None:
    world = World()
    one = world.add(make_identity("one"))
    for data, source in noise:
        world.feed(one, events.DatagramReceived(data, Endpoint(source, 4000)))
        world.feed(one, events.ProbeReceived(data, "fd00::1"))
    assert one.causes() <= {"unsealed"}
    assert len(one.logs) <= 2


def test_a_flood_from_everywhere_writes_few_lines() -> None:
    world = World()
    one = world.add(make_identity("one"))
    for number in range(1000):
        source = Endpoint(f"172.16.{number % 250}.{number // 250 + 1}", 4000)
        world.feed(one, events.DatagramReceived(bytes(200), source))
    assert 0 < len([line for line in one.logs if line.fields["event"] == "refused"]) <= 20
    assert len(list(one.core.refusals)) <= 64


def test_no_way_leads_into_the_overlay_or_to_oneself() -> None:
    world = World()
    one = world.add(make_identity("one"))
    before = len(world.sent)
    places = (one.address, "10.10.1.1", "127.0.0.1", "fe80::1", "224.0.0.1", "0.0.0.0")  # noqa: S104
    for place in places:
        found = (Endpoint(place, PORT),)
        world.feed(one, events.Discovered(f"mdns:{place}", found))
    world.run(5)
    assert len(world.sent) == before


def test_a_member_that_is_up_is_not_greeted_because_it_has_a_new_name() -> None:
    world = World()
    one, two = pair(world)
    assert meet(world, one, two)
    world.run(5)
    before = len(world.sent)
    world.feed(one, events.Discovered("mdns:new", (Endpoint(two.address, PORT),)))
    world.run(5)
    assert len(world.sent) == before
    two.alive = False
    assert world.run(40, until=lambda: two.node_id not in one.up())
    world.run(1)
    assert len(world.sent) > before


def test_an_answer_that_takes_longer_than_the_next_probe_counts() -> None:
    world = World()
    one, two = pair(world)
    assert meet(world, one, two)
    peer = one.core.peers[two.node_id]
    peer.up = False
    watch = Liveness(one.node_id, one.core.peers, world.random.randbytes)
    watch.hurry(peer, 100.0, 0.0)
    ((_, _, first),) = watch.due(100.0)
    ((_, _, second),) = watch.due(100.3)
    assert watch.answered(peer, first.token, 100.7) is Change.UP
    assert peer.rtt == pytest.approx(0.7)
    assert watch.answered(peer, second.token, 101.0) is Change.NONE
    assert peer.misses == 0
