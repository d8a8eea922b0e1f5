"""Asking members for the time, whatever the clock shows."""

from __future__ import annotations

import pytest

from appliance.ledger.timekeeper import Quality, Reading
from appliance.overlay import events, wire
from appliance.overlay.admission import Denied
from appliance.overlay.clock import Now
from appliance.overlay.endpoint import Endpoint
from appliance.overlay.frames import Reassembler, split
from appliance.overlay.seal import Sealer
from appliance.overlay.timing import ASK_SIZE
from appliance.overlay.wire import Kind, Signed, TimeAsk, TimeBody, signed_bytes
from provisioning import codec
from tests.unit.overlay_world import PORT, UNIX, Host, World, make_identity

MS = int(UNIX * 1000)


def clock(mono: float) -> Reading:
    return Reading(MS + int(mono * 1000), Quality.SYNCED)


def ask(world: World, host: Host) -> None:
    world.do(host, host.core.ask_time(world.moment()))
    world.run(0.5)


def lan(*, count: int = 2) -> tuple[World, list[Host]]:
    world = World()
    return world, [world.add(make_identity(f"node-{n}"), reading=clock) for n in range(count)]


def test_a_node_in_1970_learns_the_time_from_those_it_has_never_met() -> None:
    world, (one, two, three) = lan(count=3)
    world.do(one, one.core.ask_time(Now(world.now, 0.0)))
    world.run(0.5)
    told = world.said(one, events.TimeTold)
    assert {each.node_id for each in told} == {two.node_id, three.node_id}
    assert all(each.quality == Quality.SYNCED and 0 <= each.ms - MS < 100 for each in told)


def test_a_node_without_a_clock_to_show_answers_nobody() -> None:
    world = World()
    one, _two = world.add(make_identity("one")), world.add(make_identity("two"))
    ask(world, one)
    assert not world.said(one, events.TimeTold)


def test_an_answer_is_no_longer_than_its_question_or_there_is_none() -> None:
    world, (one, two) = lan()
    labels = {f"label-{number:02}{'x' * 40}": "y" * 60 for number in range(16)}
    three = world.add(make_identity("three", labels=labels), reading=clock)
    ask(world, one)
    assert [each.node_id for each in world.said(one, events.TimeTold)] == [two.node_id]
    assert not [sent for sent in world.sent if sent[0].host == three.address]
    answers = [data for source, _, data in world.sent if source.host == two.address]
    assert all(len(data) <= 1180 for data in answers)
    short = TimeAsk(b"n" * 16, b"")
    assert two.core._time.answer(short, Endpoint(one.address, PORT), 0.0) is None


def test_leads_and_peers_are_asked_directly() -> None:
    world, (one, two) = lan()
    world.introduce(one, two)
    world.feed(one, events.Discovered("seed:x", (Endpoint("203.0.113.5", PORT),)))
    world.run(1)
    before = len(world.sent)
    ask(world, one)
    asked = {target.host for source, target, _ in world.sent[before:] if source.host == one.address}
    assert asked == {two.address, "203.0.113.5"}
    # By broadcast and directly: heard once.
    assert len(world.said(one, events.TimeTold)) == 1


# Hostile


def tell(world: World, by: Host, to: Host, nonce: bytes, **wrong: object) -> None:
    """Let ``by`` tell the time to ``to``, for a nonce."""
    fields: dict[str, object] = {
        "network_id": to.core.identity.network.network_id,
        "echo": nonce,
        "ms": MS,
        "quality": 2,
    }
    body = codec.encode(TimeBody(**{**fields, **wrong}))  # type: ignore[arg-type]
    signature = by.core.identity.sign(signed_bytes(Kind.TIME_TELL, body))
    signed = Signed(by.core.identity.certificate, body, signature)
    message = wire.encode_message(Kind.TIME_TELL, signed)
    sealed = to.core._post.timeless(message, 0)
    world.deliver(Endpoint(by.address, PORT), Endpoint(to.address, PORT), sealed)
    world.run(0.01)


def pending(host: Host) -> bytes:
    return host.core._time._asked[-1].nonce


def test_only_an_answer_to_a_question_of_just_now_counts_and_once() -> None:
    world = World()
    one = world.add(make_identity("one"))
    two = world.add(make_identity("two"))
    tell(world, two, one, b"n" * 16)
    assert not world.said(one, events.TimeTold)
    world.do(one, one.core.ask_time(world.moment()))
    tell(world, two, one, pending(one), ms=2**60)
    tell(world, two, one, pending(one), quality=3)
    tell(world, two, one, pending(one), network_id=b"x" * 16)
    assert not world.said(one, events.TimeTold)
    tell(world, two, one, pending(one))
    tell(world, two, one, pending(one), ms=MS + 5)
    assert world.said(one, events.TimeTold) == [events.TimeTold(two.node_id, MS, 2)]
    world.run(11)
    three = world.add(make_identity("three"))
    tell(world, three, one, pending(one))
    assert len(world.said(one, events.TimeTold)) == 1
    assert {"replayed", "malformed", "other-network"} <= one.causes()


def test_who_is_no_member_or_is_out_tells_nothing() -> None:
    world = World()
    out: set[bytes] = set()
    one = world.add(
        make_identity("one"),
        admits=lambda member: Denied("revoked", "") if member.node_id in out else None,
    )
    stranger = world.add(make_identity("stranger", root_seed=b"\x09" * 32))
    revoked = world.add(make_identity("revoked"))
    out.add(revoked.node_id)
    world.do(one, one.core.ask_time(world.moment()))
    tell(world, stranger, one, pending(one))
    tell(world, revoked, one, pending(one))
    assert not world.said(one, events.TimeTold)
    assert one.causes() & {"forged-grant", "other-network"}


def test_a_told_time_that_another_signed_is_refused() -> None:
    world = World()
    one, two = world.add(make_identity("one")), world.add(make_identity("two"))
    evil = world.add(make_identity("evil"))
    world.do(one, one.core.ask_time(world.moment()))
    body = codec.encode(TimeBody(one.core.identity.network.network_id, pending(one), MS, 2))
    signature = evil.core.identity.sign(signed_bytes(Kind.TIME_TELL, body))
    signed = Signed(two.core.identity.certificate, body, signature)
    sealed = one.core._post.timeless(wire.encode_message(Kind.TIME_TELL, signed), 0)
    world.feed(one, events.DatagramReceived(sealed, Endpoint(evil.address, PORT)))
    assert not world.said(one, events.TimeTold)
    assert "bad-signature" in one.causes()


def test_questions_are_answered_twice_a_second_for_one_host_and_twenty_in_all() -> None:
    _, (one, _two) = lan()
    answers: list[object] = []
    for number in range(200):
        asker = TimeAsk(number.to_bytes(16), bytes(1000))
        source = Endpoint(f"10.1.{number}.1", PORT)
        answers.append(one.core._time.answer(asker, source, 5.0))
    assert sum(one is not None for one in answers) == 20
    asker = TimeAsk(b"z" * 16, bytes(1000))
    again = [
        one.core._time.answer(asker, Endpoint("10.9.9.9", PORT), 7.0 + n / 9) for n in range(45)
    ]
    assert 10 <= sum(one is not None for one in again) <= 4 + 2 * 5


@pytest.mark.parametrize("kind", [Kind.GOSSIP, Kind.PROBE, Kind.HELLO])
def test_the_timeless_key_is_for_nothing_else(kind: Kind) -> None:
    world = World(vpn=False)
    one, two = world.add(make_identity("one")), world.add(make_identity("two"))
    world.introduce(one, two)
    world.run(3)
    session = two.core._courier.sessions.latest(one.node_id)
    assert session is not None
    messages = {
        Kind.GOSSIP: wire.encode_message(kind, session.seal(kind, two.node_id, 0, b"x")),
        Kind.PROBE: wire.encode_message(kind, wire.Probe(two.node_id, b"t" * 8)),
        Kind.HELLO: two.core._handshakes.initiate(
            Endpoint("192.168.1.66", PORT), world.moment(), 0
        )[0].message,  # type: ignore[union-attr]
    }
    before = one.actions
    for frame in split(messages[kind], world.random.randbytes):
        sealed = two.core._post._sealer.seal_timeless(frame)
        world.feed(one, events.DatagramReceived(sealed, Endpoint(two.address, PORT)))
    assert "misplaced" in one.causes()
    assert one.actions == before + 1  # the log line
    assert not world.said(one, events.Delivered)


def test_and_the_time_travels_under_no_other_key() -> None:
    world, (one, two) = lan()
    asked = wire.encode_message(Kind.TIME_ASK, TimeAsk(b"n" * 16, bytes(900)))
    for action in two.core._post.outside(asked, Endpoint(one.address, PORT), 0, world.moment()):
        assert isinstance(action, events.Send)
        world.feed(one, events.DatagramReceived(action.data, Endpoint(two.address, PORT)))
    assert one.causes() == {"misplaced"}


def test_a_link_local_source_gets_an_answer_and_no_handshake() -> None:
    world, (one, two) = lan()
    place = Endpoint("fe80::1%eth0", PORT)
    data = two.core.ask_time(world.moment())[0]
    assert isinstance(data, events.Broadcast)
    (answer,) = one.core.handle(events.DatagramReceived(data.data, place), world.moment())
    assert isinstance(answer, events.Send)
    assert answer.destination == place
    hello = two.core._handshakes._message(
        Kind.HELLO, Endpoint("192.168.1.10", PORT), 0, nonce=b"n" * 16
    )
    for action in two.core._post.outside(hello, place, 0, world.moment()):
        assert isinstance(action, events.Send)
        got = one.core.handle(events.DatagramReceived(action.data, place), world.moment())
        assert not got


def test_a_question_fills_one_datagram() -> None:
    world, (one, _) = lan()
    broadcast = one.core.ask_time(world.moment())[0]
    assert isinstance(broadcast, events.Broadcast)
    opened = Sealer(one.core.keyring).unseal(broadcast.data, 0.0)
    assert opened is not None
    message = Reassembler().add("x", opened.plaintext, 0.0)
    assert message is not None
    assert len(message) == ASK_SIZE
