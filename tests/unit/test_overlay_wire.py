"""Everything that reads bytes from the network: seal, frames, messages, and their exact form."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.overlay import frames, otp, seal, wire
from appliance.overlay.endpoint import (
    Endpoint,
    is_candidate,
    parse_endpoint,
    unpack_endpoint,
)
from appliance.overlay.errors import WireError
from appliance.overlay.frames import Reassembler, read_frame, split
from appliance.overlay.handshake import Handshakes
from appliance.overlay.outcomes import Facts, Refused, Transmit
from appliance.overlay.proof import Statement, check_proof, make_proof, shared_secret
from appliance.overlay.seal import Sealer
from appliance.overlay.wire import Body, Kind, Probe, Signed, decode_message, encode_message
from provisioning import codec
from provisioning.keys import wireguard_public_key
from tests.unit.overlay_world import OTP_SEED, UNIX, World, make_identity

SEED = otp.Seed(OTP_SEED, 0)
SOURCE = Endpoint("192.0.2.1", 51820)
BODY = Body(b"n" * 16, 0, b"b" * 8, 1, b"", b"c" * 16, b"", 51820, (), None, wire.FILLER)
HOUR = 3600
# Points of order 1, 2, 4 and 8 of Curve25519 and its twist, and other spellings of theirs.
LOW_ORDER = (
    "00" * 32,
    "01" + "00" * 31,
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ec" + "ff" * 30 + "7f",
    "ed" + "ff" * 30 + "7f",
    "ee" + "ff" * 30 + "7f",
    "00" * 31 + "80",
)


def fixed(_: int) -> bytes:
    return bytes(range(0x80, 0x8C))


# Vectors: docs/wire-format.md shows the same figures.


def test_vectors_of_the_derived_keys_and_names() -> None:
    key = SEED.discovery_key(500_000)
    assert SEED.sealing_key(500_000).hex() == (
        "3b37a5b64a3fa58c6d3a2f1d4bda24838ab2a12091490ddae6b6528865a58e36"
    )
    assert key.hex() == "a835e31acb28d11a50ec92ebd07e58891f482cec0119ddf89fcd020163e60995"
    assert SEED.time_key().hex() == (
        "3fdf485ec00213f5f4521c38dea5dddbc358c52096f900cf4896cdaf4785ec5b"
    )
    assert otp.service_name(key) == "uq5bcdgenpt3hin"
    assert otp.instance_name(key, b"\x01" * 16) == "tfvwmegxmnhbolq"
    assert otp.host_name(key, b"\x01" * 16) == "kbq3yc6dkwdp7yn"


def test_vector_of_a_sealed_probe() -> None:
    message = encode_message(Kind.PROBE, Probe(b"\x01" * 16, b"\x02" * 8))
    assert message == bytes.fromhex("930105c41d92c410" + "01" * 16 + "c408" + "02" * 8)
    (frame,) = split(message, lambda size: b"\x03" * size)
    assert frame == bytes.fromhex("0100" + "03" * 8 + "0022") + message + bytes(18)
    sealed = Sealer(SEED, random=fixed).seal(frame, 500_000 * HOUR)
    assert sealed.hex() == (
        "808182838485868788898a8b09a6c12531b98327e805ac863993041114008b71"
        "80068259c62284f73a41e680e80843a3199d3f744ce4361a6af1fcd0a5fe3c9a"
        "d4ad1633a2239f994ba459c88e3cafeac1ac9f475731f03fa47949e2"
    )


def test_vector_of_the_proof_of_a_tunnel_key() -> None:
    one, two = b"\x0a" * 32, b"\x0b" * 32
    keys = [
        "f77ff4b10788bfdca62ca0bb160d427cf5762d85f2b5cad6807ec9c3febbde09",
        "73b2d8b76aa9b53660032bc8f5d8bee3a3ae4e3b3a7fd49ade81f7347a34aa68",
    ]
    assert [wireguard_public_key(private).hex() for private in (one, two)] == keys
    said = Statement(Kind.REPLY, b"\x01" * 16, b"\x02" * 16, b"\x03" * 16, b"\x04" * 16)
    proof = make_proof(shared_secret(one, bytes.fromhex(keys[1])), said)
    assert proof.hex() == "606dc09b345504294387b99978b10377"
    assert check_proof(shared_secret(two, bytes.fromhex(keys[0])), said, proof)


# Proof of a tunnel key


STATEMENT = Statement(Kind.CONFIRM, b"\x01" * 16, b"\x02" * 16, b"\x03" * 16, b"\x04" * 16)


@pytest.mark.parametrize(
    "changed",
    [
        {"kind": Kind.REPLY},
        {"sender": b"\x02" * 16, "receiver": b"\x01" * 16},
        {"sender": b"\x05" * 16},
        {"receiver": b"\x05" * 16},
        {"nonce": b"\x05" * 16},
        {"echo": b"\x05" * 16},
    ],
)
def test_a_proof_is_good_for_one_message_of_one_node_to_one_other(changed: dict[str, Any]) -> None:
    one, two = b"\x0a" * 32, b"\x0b" * 32
    proof = make_proof(shared_secret(one, wireguard_public_key(two)), STATEMENT)
    shared = shared_secret(two, wireguard_public_key(one))
    assert check_proof(shared, STATEMENT, proof)
    assert not check_proof(shared, dataclasses.replace(STATEMENT, **changed), proof)
    other = shared_secret(two, wireguard_public_key(b"\x0c" * 32))
    assert not check_proof(other, STATEMENT, proof)


@pytest.mark.parametrize("point", LOW_ORDER)
def test_a_key_of_low_order_proves_nothing(point: str) -> None:
    with pytest.raises(WireError, match="low order") as caught:
        shared_secret(b"\x0a" * 32, bytes.fromhex(point))
    assert caught.value.cause == "unproven-tunnel-key"


# Seal


@pytest.mark.parametrize("drift", [-HOUR, 0, HOUR])
def test_a_neighbouring_slot_is_accepted(drift: int) -> None:
    sealed = Sealer(SEED).seal(bytes(64), UNIX + drift)
    assert Sealer(SEED).unseal(sealed, UNIX) == seal.Opened(bytes(64), 0)


@pytest.mark.parametrize("drift", [-2 * HOUR, 2 * HOUR, -UNIX])
def test_a_slot_further_off_is_not(drift: float) -> None:
    sealed = Sealer(SEED).seal(bytes(64), UNIX + drift)
    assert Sealer(SEED).unseal(sealed, UNIX) is None


def test_another_epoch_or_seed_is_noise() -> None:
    sealed = Sealer(SEED).seal(bytes(64), UNIX)
    assert Sealer(otp.Seed(OTP_SEED, 1)).unseal(sealed, UNIX) is None
    assert Sealer(otp.Seed(b"\x08" * 32, 0)).unseal(sealed, UNIX) is None


@given(st.binary(max_size=1300))
def test_noise_is_not_unsealed(data: bytes) -> None:
    assert Sealer(SEED).unseal(data, UNIX) is None


@given(st.integers(0, 28 + 64 - 1), st.integers(1, 255))
def test_a_flipped_bit_is_noticed(place: int, flip: int) -> None:
    sealed = bytearray(Sealer(SEED).seal(bytes(64), UNIX))
    sealed[place] ^= flip
    assert Sealer(SEED).unseal(bytes(sealed), UNIX) is None


def test_a_sealed_datagram_never_looks_like_wireguard_or_stun() -> None:
    bad = [bytes([kind, 0, 0, 0]) + bytes(8) for kind in range(1, 5)]
    bad.append(b"\x77" * 4 + b"\x21\x12\xa4\x42" + bytes(4))
    draws = iter([*bad, b"\x05" + bytes(11)])
    sealed = Sealer(SEED, random=lambda _: next(draws)).seal(bytes(64), UNIX)
    assert sealed[:12] == b"\x05" + bytes(11)
    assert all(seal.looks_foreign(one) for one in bad)
    assert not seal.looks_foreign(sealed)


def test_the_seed_shows_in_no_repr() -> None:
    assert OTP_SEED.hex() not in repr(SEED)
    assert repr(OTP_SEED) not in repr(SEED) + repr(Sealer(SEED))


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_any_clock_has_a_slot(unix: float) -> None:
    assert 0 <= SEED.slot_at(unix) <= otp.SLOT_MAX
    assert len(otp.neighbours(SEED.slot_at(unix))) in {2, 3}


# Frames


@given(st.binary(min_size=1, max_size=frames.MESSAGE_MAX), st.randoms())
@settings(max_examples=30)
def test_a_message_survives_its_parts_in_any_order(message: bytes, chance: object) -> None:
    parts = list(split(message, os.urandom))
    assert all(len(part) % 64 == 0 and len(part) <= seal.PLAINTEXT_MAX for part in parts)
    getattr(chance, "shuffle")(parts)  # noqa: B009
    reassembler = Reassembler()
    results = [reassembler.add(SOURCE, part, 0.0) for part in parts]
    assert results[-1] == message
    assert results[:-1] == [None] * (len(parts) - 1)
    assert len(reassembler) == 0


@given(st.binary(max_size=1152))
def test_any_plaintext_is_a_frame_or_refused(data: bytes) -> None:
    try:
        frame = read_frame(data)
    except WireError:
        return
    assert frame.index < frame.count <= frames.PARTS_MAX


def test_unfinished_messages_are_bounded() -> None:
    reassembler = Reassembler()
    for number in range(500):
        first, _ = split(bytes(1500), os.urandom)
        source = Endpoint(f"192.0.2.{number % 200}", 1)
        assert reassembler.add(source, first, 0.0) is None
    assert len(reassembler) <= frames.PENDING_MAX
    for _ in range(50):
        reassembler.add(SOURCE, split(bytes(1500), os.urandom)[0], 100.0)
    assert len(reassembler) <= frames.PENDING_PER_SOURCE


def test_a_frame_of_another_version_says_so() -> None:
    (frame,) = split(b"x", os.urandom)
    with pytest.raises(WireError) as caught:
        read_frame(b"\x02" + frame[1:])
    assert caught.value.cause == "unknown-version"


def test_parts_that_disagree_are_refused() -> None:
    first, _ = split(bytes(1500), bytes)
    other = split(bytes(2500), bytes)[1]
    reassembler = Reassembler()
    reassembler.add(SOURCE, first, 0.0)
    with pytest.raises(WireError):
        reassembler.add(SOURCE, other, 0.0)


# Messages


@given(st.binary(max_size=400))
def test_any_message_is_decoded_or_refused(data: bytes) -> None:
    try:
        kind, payload = decode_message(data)
    except WireError:
        return
    assert encode_message(kind, payload) == data


@given(st.integers(0, 300), st.integers(0, 255))
def test_a_spoilt_message_is_never_read_as_another(place: int, value: int) -> None:
    message = bytearray(encode_message(Kind.HELLO, Signed(b"c" * 40, b"d" * 40, b"s" * 64)))
    message[place % len(message)] = value
    try:
        kind, payload = decode_message(bytes(message))
    except WireError:
        return
    assert encode_message(kind, payload) == bytes(message)


@given(st.binary(max_size=300))
def test_any_body_is_decoded_or_refused(data: bytes) -> None:
    for kind in (Kind.HELLO, Kind.REPLY):
        with pytest.raises(WireError):
            wire.decode_body(kind, data)


@pytest.mark.parametrize(
    "change",
    [
        {"network_id": b""},
        {"boot": b"x" * 9},
        {"serial": -1},
        {"to": b"t" * 16},
        {"nonce": b"short"},
        {"echo": b"e" * 16},
        {"port": 0},
        {"port": 65536},
        {"candidates": ((b"\x01\x02\x03", 5),)},
        {"candidates": ((b"\x01\x02\x03\x04", 0),)},
        {"candidates": ((b"\x01\x02\x03\x04", 1),) * 9},
        {"observed": (b"\x01" * 16, 70000)},
        {"proof": b""},
        {"proof": b"p" * 16},
        {"proof": b"p" * len(wire.FILLER)},
    ],
)
def test_a_body_out_of_range_is_refused(change: dict[str, object]) -> None:
    fields = {name: getattr(BODY, name) for name in BODY.__struct_fields__} | change
    with pytest.raises(WireError) as caught:
        wire.decode_body(Kind.HELLO, codec.encode(Body(**fields)))
    assert caught.value.cause == "malformed"
    assert wire.decode_body(Kind.HELLO, codec.encode(BODY)) == BODY


def test_a_message_of_a_later_version_says_so_whatever_its_shape() -> None:
    for data in (codec.encode((2, 1, b"x")), codec.encode((7, "new", {}, 5))):
        with pytest.raises(WireError) as caught:
            decode_message(data)
        assert caught.value.cause == "unknown-version"


# Handshake messages that are wrong in one thing


def test_each_wrong_thing_has_its_cause() -> None:
    world = World()
    me, peer = make_identity("me"), make_identity("peer")
    mine = Handshakes(me, lambda _, __: None, lambda _: Facts(51820), os.urandom)
    theirs = Handshakes(peer, lambda _, __: None, lambda _: Facts(51820), os.urandom)
    (hello,) = theirs.initiate(SOURCE, world.moment(), 0)
    assert isinstance(hello, Transmit)
    kind, signed = decode_message(hello.message)
    assert isinstance(signed, Signed)

    def cause(kind: Kind, certificate: bytes, body: bytes, signature: bytes) -> str:
        wrong = Signed(certificate, body, signature)
        (outcome,) = mine.receive(kind, wrong, SOURCE, world.moment(), 0)
        assert isinstance(outcome, Refused)
        return outcome.cause

    certificate, body, signature = signed.certificate, signed.body, signed.signature
    assert cause(kind, certificate, body, bytes(64)) == "bad-signature"
    assert cause(kind, me.certificate, body, signature) == "bad-signature"
    assert cause(kind, certificate[:-1], body, signature) == "malformed"
    assert cause(kind, b"", body, signature) == "malformed"
    flipped = bytearray(certificate)
    flipped[-100] ^= 1
    assert cause(kind, bytes(flipped), body, signature) == "tampered"
    assert cause(Kind.CONFIRM, certificate, body, signature) == "malformed"
    assert cause(kind, certificate, body + b"\0", signature) == "malformed"
    answer = Body(
        *(me.network.network_id, 0, b"b" * 8, 1, b"t" * 16, b"c" * 16, b"e" * 16),
        *(1, (), None, b"p" * 16),
    )
    reply = codec.encode(answer)
    done = codec.encode(msgspec.structs.replace(answer, proof=b""))
    assert cause(Kind.REPLY, certificate, reply, signature) == "replayed"
    assert cause(Kind.DONE, b"", done, signature) == "replayed"
    assert cause(Kind.REPLY, certificate, done, signature) == "malformed"
    assert cause(Kind.DONE, b"", reply, signature) == "malformed"
    (sent,) = mine.receive(kind, signed, SOURCE, world.moment(), 0)
    assert isinstance(sent, Transmit)


@given(st.binary(max_size=200), st.binary(max_size=200), st.binary(max_size=80))
@settings(max_examples=50)
def test_any_signed_message_is_refused_with_a_cause(c: bytes, b: bytes, s: bytes) -> None:
    mine = Handshakes(IDENTITY, lambda _, __: None, lambda _: Facts(51820), os.urandom)
    for kind in (Kind.HELLO, Kind.REPLY, Kind.CONFIRM, Kind.DONE):
        (outcome,) = mine.receive(kind, Signed(c, b, s), SOURCE, World().moment(), 0)
        assert isinstance(outcome, Refused)


IDENTITY = make_identity("me")


# Endpoints


@pytest.mark.parametrize("text", ["192.0.2.1:51820", "[2001:db8::1]:51820"])
def test_endpoints_have_a_text_and_a_packed_form(text: str) -> None:
    endpoint = parse_endpoint(text)
    assert endpoint is not None
    assert str(endpoint) == text
    assert unpack_endpoint(endpoint.pack()) == endpoint


def test_a_host_name_is_no_endpoint() -> None:
    assert parse_endpoint("node.example:51820") is None


@pytest.mark.parametrize(
    "host",
    [
        "",
        "x",
        "0.0.0.0",  # noqa: S104
        "127.0.0.1",
        "224.0.0.251",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "ff02::fb",
        "::ffff:1.2.3.4",
        "192.0.2.7",
    ],
)
def test_what_leads_to_no_member(host: str) -> None:
    assert not is_candidate(host, own=("192.0.2.7",), refused=())
