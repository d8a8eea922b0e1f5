"""What strangers and members that flood can take of a node's time."""

from __future__ import annotations

import socket

from appliance.overlay import events, guard
from appliance.overlay.control_socket import ControlSocket
from appliance.overlay.endpoint import Endpoint
from appliance.overlay.guard import HOSTS_MAX, Bucket, Guard, HostBuckets
from appliance.overlay.handshake import CHECKS_IN_ALL, CHECKS_OF_HOST
from appliance.overlay.wire import Kind
from tests.unit.overlay_world import PORT, World, make_identity

FLOOD = 700
STRANGER, MEMBER = "192.0.2.66", "192.0.2.1"


def test_a_bucket_refills_and_a_clock_that_goes_back_fills_nothing() -> None:
    bucket = Bucket(2.0, 3.0, 3.0, 0.0)
    assert [bucket.take(0.0) for _ in range(4)] == [True, True, True, False]
    assert bucket.take(0.5)
    assert not bucket.take(0.5)
    assert not bucket.take(0.1)
    assert [bucket.take(100.0) for _ in range(4)] == [True, True, True, False]


def test_one_host_that_floods_leaves_the_others_their_share() -> None:
    buckets = HostBuckets((10.0, 20.0), (100.0, 200.0))
    assert sum(buckets.take(STRANGER, 0.0) for _ in range(5000)) == 20
    assert all(buckets.take(f"10.0.0.{n}", 0.0) for n in range(100))


def test_many_hosts_together_have_an_end_and_are_not_remembered_for_ever() -> None:
    buckets = HostBuckets((10.0, 20.0), (100.0, 200.0))
    taken = sum(buckets.take(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}", 0.0) for n in range(20_000))
    assert taken == 200
    assert len(buckets) == HOSTS_MAX


def test_a_strangers_50000_packets_a_second_cost_200_looks_and_members_nothing() -> None:
    watch = Guard()
    watch.know({MEMBER}, 0.0)
    looked = heard = 0
    for number in range(50_000):
        now = number / 50_000
        looked += watch.admits(STRANGER, now)
        if number % 100 == 0:
            heard += watch.admits(MEMBER, now)
    assert looked <= sum(guard.STRANGER) + 1
    assert heard == 500
    assert watch.dropped == 50_000 - looked
    said = watch.report(1.0)
    assert said is not None
    assert str(watch.dropped) in said
    assert STRANGER in said
    assert watch.report(2.0) is None
    assert not all(watch.admits(STRANGER, 1.0) for _ in range(9))
    assert watch.report(1.0 + guard.REPORT_SECONDS) is not None


def test_a_members_forged_address_has_an_end_too() -> None:
    watch = Guard()
    watch.know({MEMBER}, 0.0)
    assert sum(watch.admits(MEMBER, n / 50_000) for n in range(50_000)) <= sum(guard.MEMBER)
    watch.know({MEMBER, "192.0.2.2"}, 1.0)
    # To be known anew fills no bucket.
    assert sum(watch.admits(MEMBER, 1.0) for _ in range(100)) < 100


def test_the_core_says_at_which_hosts_members_are() -> None:
    world = World()
    one, two = world.add(make_identity("one")), world.add(make_identity("two"))
    world.introduce(one, two)
    assert world.run(5, until=lambda: two.node_id in one.up())
    world.run(1)
    burst = [one.core.guard.admits(two.address, world.now) for _ in range(1000)]
    assert all(burst)
    burst = [one.core.guard.admits(STRANGER, world.now) for _ in range(1000)]
    assert sum(burst) <= guard.STRANGER[1]
    world.feed(one, events.Tick())
    assert any(line.fields["event"] == "flood" for line in one.logs)


def test_a_member_that_floods_hellos_is_checked_a_few_times_only() -> None:
    world = World()
    one, two = world.add(make_identity("one")), world.add(make_identity("two"))
    target, before = Endpoint(one.address, PORT), len(world.sent)
    for number in range(FLOOD):
        nonce = number.to_bytes(16)
        hello = two.core._handshakes._message(Kind.HELLO, target, 0, nonce=nonce)
        (action,) = two.core._post.outside(hello, target, 0, world.moment())
        assert isinstance(action, events.Send)
        place = Endpoint(f"10.3.{number % 9}.1" if number >= 150 else two.address, PORT)
        one_event = events.DatagramReceived(action.data, place)
        world.do(one, one.core.handle(one_event, world.moment()))
    answers = len(world.sent) - before
    assert answers == CHECKS_IN_ALL[1]
    assert one.core._handshakes.dropped == FLOOD - answers
    to_two = [1 for _, target, _ in world.sent[before:] if target.host == two.address]
    assert len(to_two) == CHECKS_OF_HOST[1]


def test_the_socket_drops_what_is_not_welcome_and_yields_to_others() -> None:
    inside, outside = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    with inside, outside:
        inside.bind(("127.0.0.1", 0))
        inside.settimeout(0)
        control = ControlSocket(inside, None, inside.getsockname()[1], raw=False)
        for number in range(100):
            outside.sendto(bytes([7] * 100) + bytes([number]) * 4, inside.getsockname())
        got: list[bytes] = []
        calls: list[str] = []

        def admits(host: str, _now: float) -> bool:
            calls.append(host)
            return len(calls) % 2 == 0

        def receive(data: bytes, _: Endpoint) -> None:
            got.append(data)

        control._drain(inside, receive, admits)
        assert len(calls) == 64  # of the hundred that wait
        assert len(got) == 32
        control._drain(inside, receive, admits)
        assert len(calls) == 100
        assert set(calls) == {"127.0.0.1"}


def test_the_same_question_again_costs_no_signature() -> None:
    world = World()
    one, two = world.add(make_identity("one")), world.add(make_identity("two"))
    world.introduce(two, one)
    world.run(0.0015)
    source, target, hello = world.sent[0]
    one.core._handshakes._checks = HostBuckets((0.0, 0.0), (0.0, 0.0))
    before = len(world.sent)
    world.feed(one, events.DatagramReceived(hello, source))
    assert len(world.sent) == before + 1
    assert target.host == one.address
    # But not for ever, and not a new one.
    world.now += 31
    world.feed(one, events.DatagramReceived(hello, source))
    assert one.core._handshakes.dropped == 1
