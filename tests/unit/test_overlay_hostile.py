"""A member that seals and signs whatever it likes: it is refused, and nothing else happens."""

from __future__ import annotations

import functools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.overlay import events, wire
from appliance.overlay.endpoint import Endpoint
from appliance.overlay.errors import WireError
from appliance.overlay.wire import (
    Body,
    Carried,
    Kind,
    RefusalBody,
    Signed,
    TimeAsk,
    TimeBody,
    decode_refusal,
    decode_time,
    signed_bytes,
)
from provisioning import codec
from tests.unit.overlay_world import PORT, Host, World, make_identity

INTEGERS = st.one_of(st.integers(-2, 5), st.integers(-(2**63), 2**64 - 1))
SIZES = st.sampled_from([0, 4, 8, 15, 16, 17, 32, 160])
BYTES = st.one_of(st.binary(max_size=40), SIZES.map(bytes))
TEXTS = st.text(max_size=220)
PLACES = st.tuples(st.sampled_from([b"", b"\0" * 4, b"\x0a\0\0\x01", bytes(16)]), INTEGERS)


@functools.cache
def trio() -> tuple[World, Host, Host, Host]:
    """Return two that know each other, and a third with their secret that is up to no good."""
    world = World(vpn=False)
    one, two = world.add(make_identity("one")), world.add(make_identity("two"))
    world.introduce(one, two)
    assert world.run(5, until=lambda: one.node_id in two.up() and two.node_id in one.up())
    world.run(1)
    return world, one, two, world.add(make_identity("evil"))


def fields(value: msgspec.Struct) -> bytes:
    return codec.encode(value)


@functools.cache
def sessions() -> tuple[bytes, ...]:
    """Return sessions that the first node had at the beginning."""
    return tuple(each.keys.identifier for each in trio()[1].core._courier.sessions)


@functools.cache
def bodies() -> st.SearchStrategy[bytes]:
    ids = trio()
    network = st.sampled_from([ids[1].core.identity.network.network_id, b"", b"n" * 16])
    who = st.one_of(st.sampled_from([ids[1].node_id, ids[2].node_id]), BYTES)
    return st.one_of(
        st.builds(
            Body, network, INTEGERS, BYTES, INTEGERS, who, BYTES, BYTES, INTEGERS,
            st.lists(PLACES, max_size=9).map(tuple), st.one_of(st.none(), PLACES), BYTES,
        ).map(fields),
        st.builds(RefusalBody, network, INTEGERS, who, BYTES, TEXTS, TEXTS).map(fields),
        st.builds(TimeBody, network, BYTES, INTEGERS, INTEGERS).map(fields),
        st.binary(max_size=60),
    )  # fmt: skip


def unharmed(world: World, one: Host, two: Host) -> None:
    world.run(0.001)
    assert set(one.core.peers) == {two.node_id}
    assert not one.told


@given(st.data())
def test_whatever_a_member_signs_is_dealt_with(data: st.DataObject) -> None:
    world, one, two, evil = trio()
    kind = data.draw(st.sampled_from(sorted(wire.HANDSHAKE | {Kind.TIME_TELL})))
    body = data.draw(bodies())
    if kind is Kind.CONFIRM and data.draw(st.booleans()):
        body = codec.encode(data.draw(st.lists(INTEGERS, max_size=14)))
    identity = evil.core.identity
    certificate = data.draw(
        st.sampled_from([identity.certificate, two.core.identity.certificate, b""])
    )
    signed = Signed(certificate, body, identity.sign(signed_bytes(kind, body)))
    message = wire.encode_message(kind, signed)
    place, source = Endpoint(one.address, PORT), Endpoint(evil.address, PORT)
    if data.draw(st.booleans()) and len(message) <= 1140:
        sealed = [evil.core._post.timeless(message, 0)]
    else:
        sent = evil.core._post.outside(message, place, 0, world.moment())
        sealed = [action.data for action in sent if isinstance(action, events.Send)]
    for datagram in sealed:
        world.do(one, one.core.handle(events.DatagramReceived(datagram, source), world.moment()))
    unharmed(world, one, two)


@given(
    st.sampled_from([Kind.GOSSIP, Kind.CATCH_UP, Kind.TIME_ASK, Kind.PROBE, Kind.ECHO]),
    st.data(),
    st.booleans(),
)
def test_whatever_else_it_seals_is_dealt_with(kind: Kind, data: st.DataObject, own: bool) -> None:
    world, one, two, evil = trio()
    sender = data.draw(st.sampled_from([two.node_id, evil.node_id, one.node_id, b""]))
    session = data.draw(st.sampled_from([*sessions(), b"", b"s" * 8]))
    payload = data.draw(
        st.one_of(
            st.builds(
                Carried, st.just(sender), st.just(session), INTEGERS, BYTES, st.binary(max_size=9)
            ).map(fields),
            st.builds(TimeAsk, BYTES, BYTES).map(fields),
            st.builds(wire.Probe, st.just(sender), BYTES).map(fields),
            st.binary(max_size=60),
        )
    )
    message = codec.encode(wire.Envelope(wire.WIRE_VERSION, kind, payload))
    place = Endpoint(one.address, PORT)
    source = Endpoint(two.address if own else evil.address, PORT)
    for action in evil.core._post.outside(message, place, 0, world.moment()):
        assert isinstance(action, events.Send)
        datagram = action.data
        world.do(one, one.core.handle(events.DatagramReceived(datagram, source), world.moment()))
        inside = events.ProbeReceived(datagram, str(evil.core.ipv6))
        world.do(one, one.core.handle(inside, world.moment()))
    unharmed(world, one, two)


@given(st.binary(max_size=300))
def test_any_refusal_or_told_time_is_read_or_refused(data: bytes) -> None:
    for decode in (decode_refusal, decode_time):
        with pytest.raises(WireError):
            decode(data)
