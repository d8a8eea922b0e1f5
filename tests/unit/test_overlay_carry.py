"""Messages for the ledger between members: inside the tunnel, or outside in a session."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.overlay import events, wire
from appliance.overlay.endpoint import Endpoint
from appliance.overlay.frames import split
from appliance.overlay.sessions import (
    SESSIONS_PER_PEER,
    WINDOW,
    Session,
    SessionKey,
    Sessions,
    session_key,
)
from appliance.overlay.wire import Carried, Kind
from tests.unit.overlay_world import PORT, UNIX, Host, World, make_identity

ONE, TWO, EVIL = b"\x01" * 16, b"\x02" * 16, b"\x03" * 16
KEYS = SessionKey(b"s" * 8, b"k" * 32)


def pair(*, vpn: bool = False) -> tuple[World, Host, Host]:
    """Return two members that know each other and have a session."""
    world = World(vpn=vpn)
    one, two = world.add(make_identity("one")), world.add(make_identity("two"))
    world.introduce(one, two)
    assert world.run(5, until=lambda: one.node_id in two.up() and two.node_id in one.up())
    world.run(1)
    return world, one, two


def carry(world: World, host: Host, to: Host, data: bytes) -> list[bytes]:
    """Send a ledger message; return the datagrams that it became."""
    before = len(world.sent)
    world.do(host, host.core.carry(to.node_id, data, world.moment()))
    return [sent for _, _, sent in world.sent[before:]]


def delivered(world: World, host: Host) -> list[tuple[bytes, bytes]]:
    return [(one.peer, one.data) for one in world.said(host, events.Delivered)]


# In the network


@pytest.mark.parametrize("vpn", [True, False])
@pytest.mark.parametrize("size", [1, 1000, 4544, wire.CARRIED_MAX])
def test_a_message_arrives_as_it_was_sent(vpn: bool, size: int) -> None:
    world, one, two = pair(vpn=vpn)
    data = world.random.randbytes(size)
    outside = carry(world, one, two, data)
    assert bool(outside) is not vpn
    assert carry(world, two, one, data[::-1]) is not None
    world.run(1)
    assert delivered(world, two) == [(one.node_id, data)]
    assert delivered(world, one) == [(two.node_id, data[::-1])]


def test_before_the_tunnel_is_up_it_goes_outside() -> None:
    world, one, two = pair(vpn=True)
    one.core.peers[two.node_id].up = False
    assert two.node_id in one.core.contacts()
    assert carry(world, one, two, b"early")
    world.run(0.1)
    assert delivered(world, two) == [(one.node_id, b"early")]


@given(st.integers(0, 10**6))
@settings(max_examples=5, deadline=None)
def test_both_begin_at_once_and_datagrams_are_shuffled(seed: int) -> None:
    def rough(chance: random.Random) -> tuple[float, ...]:
        copies = chance.choice((0, 1, 1, 1, 2))
        return tuple(chance.uniform(0.001, 0.5) for _ in range(copies))

    world = World(seed, fate=rough, vpn=False)
    one, two = world.add(make_identity("one")), world.add(make_identity("two"))
    world.introduce(one, two)
    world.introduce(two, one)
    both = lambda: two.node_id in one.core.contacts() and one.node_id in two.core.contacts()  # noqa: E731
    assert world.run(60, until=both)
    world.run(5)
    world.fate = lambda _: (0.001,)
    carry(world, one, two, b"from one")
    carry(world, two, one, b"from two")
    world.run(1)
    assert (one.node_id, b"from one") in delivered(world, two)
    assert (two.node_id, b"from two") in delivered(world, one)


def test_nobody_is_a_contact_before_it_was_accepted() -> None:
    world = World(vpn=False)
    one, two = world.add(make_identity("one")), world.add(make_identity("two"))
    assert one.core.contacts() == frozenset()
    assert one.core.carry(two.node_id, b"x", world.moment()) == []
    before = one.core.generation
    world.introduce(one, two)
    world.run(1)
    assert one.core.contacts() == {two.node_id}
    assert one.core.generation > before


def test_who_fell_silent_is_no_contact_until_it_is_back() -> None:
    world, one, two = pair(vpn=False)
    two.alive = False
    assert world.run(60, until=lambda: one.core.contacts() == frozenset())
    generation = one.core.generation
    two.alive = True
    assert world.run(70, until=lambda: two.node_id in one.core.contacts())
    assert one.core.generation > generation


def test_a_session_lost_by_a_restart_is_made_anew_by_what_comes_in_it() -> None:
    world, one, two = pair(vpn=False)
    two.core._courier.sessions.forget(one.node_id)
    carry(world, one, two, b"lost")
    world.run(1)
    assert delivered(world, two) == []
    carry(world, one, two, b"heard")
    world.run(1)
    assert delivered(world, two) == [(one.node_id, b"heard")]


# What is no good


def test_everything_sent_again_is_delivered_once() -> None:
    world, one, two = pair()
    carry(world, one, two, b"pay 5")
    world.run(1)
    for source, destination, data in list(world.sent):
        world.deliver(source, destination, data)
        world.deliver(Endpoint("192.168.1.99", PORT), destination, data)
    world.run(5)
    assert delivered(world, two) == [(one.node_id, b"pay 5")]
    assert "unproven" in two.causes()


def forged(world: World, victim: Host, source: Endpoint, carried: Carried) -> None:
    """Let a member that has the network's secret send this."""
    post = victim.core._post
    message = wire.encode_message(Kind.GOSSIP, carried)
    for action in post.outside(message, Endpoint(victim.address, PORT), 0, world.moment()):
        assert isinstance(action, events.Send)
        world.deliver(source, action.destination, action.data)
    world.run(0.5)


@pytest.mark.parametrize("wrong", ["mac", "data", "counter", "sender", "kind"])
def test_a_member_cannot_speak_in_anothers_name(wrong: str) -> None:
    world, one, two = pair()
    session = one.core._courier.sessions.latest(two.node_id)
    assert session is not None
    kind = Kind.CATCH_UP if wrong == "kind" else Kind.GOSSIP
    good = session.seal(kind, one.node_id, 0, b"truth")
    changes: dict[str, dict[str, object]] = {
        "mac": {"mac": bytes(16)},
        "data": {"data": b"lies!"},
        "counter": {"counter": good.counter + 1},
        "sender": {"sender": EVIL},
        "kind": {},
    }
    fields = {name: getattr(good, name) for name in good.__struct_fields__} | changes[wrong]
    forged(world, two, Endpoint(one.address, PORT), Carried(**fields))
    assert delivered(world, two) == []


def test_a_session_with_one_peer_is_no_good_for_another() -> None:
    world, one, two = pair()
    evil = world.add(make_identity("evil"))
    world.introduce(evil, two)
    world.run(3)
    session = evil.core._courier.sessions.latest(two.node_id)
    assert session is not None
    forged(world, two, Endpoint(one.address, PORT), session.seal(Kind.GOSSIP, one.node_id, 0, b"x"))
    assert delivered(world, two) == []
    forged(
        world, two, Endpoint(evil.address, PORT), session.seal(Kind.GOSSIP, evil.node_id, 0, b"x")
    )
    assert delivered(world, two) == [(evil.node_id, b"x")]


def test_our_own_message_sent_back_is_not_the_peers() -> None:
    world, one, two = pair()
    (data,) = carry(world, one, two, b"echo?")
    world.deliver(Endpoint(two.address, PORT), Endpoint(one.address, PORT), data)
    world.run(1)
    assert delivered(world, one) == []


def test_inside_the_tunnel_the_source_vouches_and_outside_a_bare_message_does_not() -> None:
    world, one, two = pair(vpn=True)
    evil = world.add(make_identity("evil"))
    world.introduce(evil, two)
    world.run(3)
    bare = Carried(one.node_id, b"", 0, b"", b"trust me")
    forged(world, two, Endpoint(one.address, PORT), bare)
    (frame,) = split(wire.encode_message(Kind.GOSSIP, bare), world.random.randbytes)
    sealed = evil.core._post._sealer.seal(frame, UNIX + world.now)
    world.feed(two, events.ProbeReceived(sealed, str(evil.core.ipv6)))
    assert delivered(world, two) == []
    world.feed(two, events.ProbeReceived(sealed, str(one.core.ipv6)))
    assert delivered(world, two) == [(one.node_id, b"trust me")]


# Sessions


def test_vector_of_a_session_key_and_a_carried_message() -> None:
    shared = bytes.fromhex("c09d8a17f54f06a53f844eacbc6273017581b9bc53b5f31f3d338cc3ffd7b86b")
    keys = session_key(shared, (b"\x03" * 16, b"\x04" * 16), (b"\x01" * 16, b"\x02" * 16))
    assert keys.identifier.hex() == "57ea95a6ebf18fa8"
    assert keys.key.hex() == "7792e4df7808d4c2f8e61fe7b1e67e2b17517fc766b70f1c8305e0ab47de34e3"
    carried = Session(keys, TWO, ready=True).seal(Kind.GOSSIP, ONE, 0, b"hello")
    assert carried.counter == 1
    assert carried.mac.hex() == "57009b39c25de768de736d23f323508b"
    assert "k" * 8 not in repr(Session(KEYS, TWO, ready=True))


@given(st.lists(st.integers(1, 3 * WINDOW), max_size=200))
def test_no_counter_is_taken_twice_whatever_the_order(counters: list[int]) -> None:
    receiver = Session(KEYS, ONE, ready=True)
    taken: set[int] = set()
    highest = 0
    for counter in counters:
        sender = Session(KEYS, TWO, ready=True, sent=counter - 1)
        good = receiver.open(Kind.GOSSIP, 0, sender.seal(Kind.GOSSIP, ONE, 0, b"x"))
        assert good is (counter not in taken and counter > highest - WINDOW)
        if good:
            taken.add(counter)
            highest = max(highest, counter)


@pytest.mark.parametrize("epoch", [0, 2])
def test_a_message_belongs_to_its_epoch(epoch: int) -> None:
    carried = Session(KEYS, TWO, ready=True).seal(Kind.GOSSIP, ONE, 1, b"x")
    assert not Session(KEYS, ONE, ready=True).open(Kind.GOSSIP, epoch, carried)
    assert Session(KEYS, ONE, ready=True).open(Kind.GOSSIP, 1, carried)


def test_the_latest_sessions_are_kept_and_the_latest_ready_one_is_spoken_in() -> None:
    sessions = Sessions()
    for number in range(SESSIONS_PER_PEER + 3):
        sessions.add(ONE, SessionKey(bytes([number] * 8), b"k" * 32), ready=number == 4)
    assert len(list(sessions)) == SESSIONS_PER_PEER
    latest = sessions.latest(ONE)
    assert latest is not None
    assert latest.keys.identifier == bytes([4] * 8)
    sessions.confirm(bytes([6] * 8))
    latest = sessions.latest(ONE)
    assert latest is not None
    assert latest.keys.identifier == bytes([6] * 8)
    sessions.forget(ONE)
    assert not list(sessions)


def test_both_sides_of_a_handshake_have_one_session_and_no_other_has_it() -> None:
    world, one, two = pair()
    (mine,), (theirs,) = list(one.core._courier.sessions), list(two.core._courier.sessions)
    assert mine.keys == theirs.keys
    world.run(1)
