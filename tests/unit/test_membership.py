"""Certificates: the chain root -> grant -> node, and every way in which it can be wrong."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning import codec
from provisioning.errors import FormatError
from provisioning.grant import Grant, GrantRecord, issue, read_grant
from provisioning.keys import Context, public_key, sign, verify, wireguard_public_key
from provisioning.membership import (
    CERTIFICATE_LIMIT,
    CertificateBody,
    CertificateError,
    CertificateRecord,
    Refusal,
    make_certificate,
    node_id,
    verify_certificate,
)
from provisioning.network import NetworkInfo

ROOT, GRANT, NODE, WG = (bytes([number]) * 32 for number in range(1, 5))
NOW = 1_795_000_000
EXPIRES = NOW + 3600
NETWORK = NetworkInfo("home", public_key(ROOT), b"\x07" * 32)
OTHER = NetworkInfo("home", public_key(b"\x08" * 32), b"\x07" * 32)


def make_grant(
    root: bytes = ROOT, *, expires: int | None = EXPIRES, count: int | None = 3
) -> Grant:
    return issue(
        root,
        public_key(GRANT),
        roles=frozenset({"agent", "server"}),
        labels={"site": "berlin"},
        issued=NOW,
        expires=expires,
        count=count,
    )


def make(
    network: NetworkInfo = NETWORK, grant: Grant | None = None, grant_seed: bytes = GRANT
) -> bytes:
    return make_certificate(
        network,
        grant or make_grant(),
        grant_seed,
        node_seed=NODE,
        wg_key=wireguard_public_key(WG),
        name="kitchen",
        issued=NOW + 1,
    )


CERTIFICATE = make()


def refusal(data: bytes, *, now: float = NOW, admitted: bool = False) -> Refusal:
    with pytest.raises(CertificateError) as caught:
        verify_certificate(data, network=NETWORK, now=now, admitted=lambda _: admitted)
    assert caught.value.cause.value in str(caught.value)
    return caught.value.cause


def rebuilt(**changes: bytes | int) -> bytes:
    record = codec.decode(CERTIFICATE, CertificateRecord, limit=CERTIFICATE_LIMIT)
    fields = {name: getattr(record, name) for name in record.__struct_fields__}
    return codec.encode(CertificateRecord(**(fields | changes)))


def body_with(**changes: bytes | int | str) -> bytes:
    record = codec.decode(CERTIFICATE, CertificateRecord, limit=CERTIFICATE_LIMIT)
    body = codec.decode(record.body, CertificateBody, limit=CERTIFICATE_LIMIT)
    fields = {name: getattr(body, name) for name in body.__struct_fields__}
    return codec.encode(CertificateBody(**(fields | changes)))


def signed_anew(body: bytes) -> bytes:
    return rebuilt(
        body=body,
        grant_signature=sign(Context.CERTIFICATE, GRANT, body),
        node_signature=sign(Context.NODE_PROOF, NODE, body),
    )


def test_a_good_certificate_proves_the_member() -> None:
    member = verify_certificate(CERTIFICATE, network=NETWORK, now=NOW, admitted=lambda _: False)
    assert member.node_id == node_id(public_key(NODE))
    assert member.node_key == public_key(NODE)
    assert member.wg_key == wireguard_public_key(WG)
    assert (member.name, member.labels) == ("kitchen", {"site": "berlin"})
    assert member.roles == {"agent", "server"}
    assert (member.grant_expires, member.grant_count, member.issued) == (EXPIRES, 3, NOW + 1)
    assert member.grant_id == make_grant().grant_id
    assert not member.founder
    assert len({member}) == 1


def test_an_expired_grant_lets_nobody_new_in_and_throws_nobody_out() -> None:
    assert refusal(CERTIFICATE, now=EXPIRES) is Refusal.GRANT_EXPIRED
    verify_certificate(CERTIFICATE, network=NETWORK, now=EXPIRES - 1, admitted=lambda _: False)
    asked: list[bytes] = []

    def admitted(who: bytes) -> bool:
        asked.append(who)
        return True

    verify_certificate(CERTIFICATE, network=NETWORK, now=EXPIRES + 10**9, admitted=admitted)
    assert asked == [node_id(public_key(NODE))]


@pytest.mark.parametrize("now", [0.0, -1.0])
def test_a_clock_in_1970_locks_nobody_out(now: float) -> None:
    verify_certificate(CERTIFICATE, network=NETWORK, now=now, admitted=lambda _: False)


def test_a_clock_that_is_no_number_lets_nobody_new_in() -> None:
    for now in (math.nan, math.inf, -math.inf):
        assert refusal(CERTIFICATE, now=now) is Refusal.GRANT_EXPIRED


def test_a_grant_without_end_never_expires() -> None:
    endless = make(grant=make_grant(expires=None))
    verify_certificate(endless, network=NETWORK, now=2.0**60, admitted=lambda _: False)


def test_another_network_is_named_as_such() -> None:
    stranger = make(OTHER, make_grant(b"\x08" * 32))
    assert refusal(stranger) is Refusal.OTHER_NETWORK


def test_a_grant_that_the_root_did_not_sign_is_forged() -> None:
    assert refusal(make(grant=make_grant(b"\x08" * 32))) is Refusal.FORGED_GRANT


def test_a_grant_with_more_roles_than_were_signed_is_forged() -> None:
    signed = codec.decode(make_grant().record, GrantRecord, limit=CERTIFICATE_LIMIT)
    wider = make_grant(count=None)
    body = codec.decode(wider.record, GrantRecord, limit=CERTIFICATE_LIMIT).body
    forged = read_grant(codec.encode(GrantRecord(body, signed.signature)))
    assert refusal(make(grant=forged)) is Refusal.FORGED_GRANT


def test_a_certificate_that_its_grant_did_not_sign_is_tampered_with() -> None:
    assert refusal(make(grant_seed=b"\x09" * 32)) is Refusal.TAMPERED
    for change in ({"name": "cellar"}, {"wg_key": b"\x05" * 32}, {"issued": 7}):
        assert refusal(rebuilt(body=body_with(**change))) is Refusal.TAMPERED


def test_a_grant_cannot_be_put_under_a_certificate_of_another() -> None:
    other = make_grant(expires=None)
    assert refusal(rebuilt(grant=other.record)) is Refusal.TAMPERED


def test_a_key_that_the_node_does_not_own_is_refused() -> None:
    body = body_with(node_key=public_key(b"\x0a" * 32))
    assert refusal(signed_anew(body)) is Refusal.UNPROVEN_KEY


@pytest.mark.parametrize(
    "change",
    [
        {"name": "Kitchen"},
        {"name": ""},
        {"name": "a" * 64},
        {"name": "x\n<0>skerry: forged log line"},
        {"wg_key": b"\x05" * 31},
        {"wg_key": bytes(32)},
        {"node_key": b""},
        {"network_id": b"\x05" * 15},
        {"issued": -1},
        {"issued": 2**60},
    ],
)
def test_a_signed_field_out_of_range_is_malformed(change: dict[str, bytes | int | str]) -> None:
    assert refusal(signed_anew(body_with(**change))) is Refusal.MALFORMED


@pytest.mark.parametrize("version", [0, 2, 127, 128, 10**9])
def test_other_versions_are_named(version: int) -> None:
    assert refusal(rebuilt(version=version)) is Refusal.UNKNOWN_VERSION


def test_a_newer_version_is_told_from_rubbish_whatever_follows() -> None:
    assert refusal(b"\x97\x02\xc0\xc0\xc0\xc0\xc0\xc0") is Refusal.UNKNOWN_VERSION
    assert refusal(b"\x97\x01\xc0\xc0\xc0\xc0\xc0\xc0") is Refusal.MALFORMED


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc0",
        CERTIFICATE[:-1],
        CERTIFICATE + b"\0",
        b"\x91" * 4000,
        b"\xdd\xff\xff\xff\xff",
        b"\x95\x01" + b"\xc6\xff\xff\xff\xff",
        bytes(CERTIFICATE_LIMIT + 1),
        # The same content spelled with a longer length: no second form is read.
        CERTIFICATE.replace(b"\xc4\x40", b"\xc5\x00\x40", 1),
        b"\xdc\x00\x05" + CERTIFICATE[1:],
    ],
)
def test_malformed_bytes(data: bytes) -> None:
    assert refusal(data, admitted=True) is Refusal.MALFORMED


@given(st.integers(0, len(CERTIFICATE) * 8 - 1))
def test_no_flipped_bit_goes_unnoticed(bit: int) -> None:
    flipped = bytearray(CERTIFICATE)
    flipped[bit // 8] ^= 1 << bit % 8
    refusal(bytes(flipped), admitted=True)


@given(st.binary(max_size=600))
def test_rubbish_is_refused(data: bytes) -> None:
    refusal(data, admitted=True)


@given(st.integers(0, len(CERTIFICATE)), st.integers(0, 60), st.binary(max_size=60))
def test_spliced_certificates_are_refused(place: int, drop: int, insert: bytes) -> None:
    spliced = CERTIFICATE[:place] + insert + CERTIFICATE[place + drop :]
    if spliced != CERTIFICATE:
        refusal(spliced, admitted=True)


@given(st.binary(max_size=300))
def test_rubbish_is_no_grant(data: bytes) -> None:
    with pytest.raises(FormatError):
        read_grant(data)


def test_a_signature_of_one_kind_is_none_of_another() -> None:
    for made in Context:
        signature = sign(made, NODE, b"data")
        for asked in Context:
            assert verify(asked, public_key(NODE), b"data", signature) is (made is asked)


def test_a_point_of_small_order_signs_nothing() -> None:
    # The neutral point as key accepts a constant signature in careless implementations.
    assert not verify(Context.MESSAGE, b"\x01" + bytes(31), b"data", b"\x01" + bytes(63))


@pytest.mark.parametrize(
    ("roles", "labels", "expires", "count"),
    [
        ({"king"}, {}, None, None),
        (set(), {}, None, None),
        ({"auto"}, {"": "x"}, None, None),
        ({"auto"}, {"a b": "x"}, None, None),
        ({"auto"}, {"a": "x" * 64}, None, None),
        ({"auto"}, {str(number): "x" for number in range(17)}, None, None),
        ({"auto"}, {}, NOW, None),
        ({"auto"}, {}, None, 0),
    ],
)
def test_no_grant_says_what_no_grant_can_say(
    roles: set[str], labels: dict[str, str], expires: int | None, count: int | None
) -> None:
    with pytest.raises(FormatError):
        issue(
            ROOT,
            public_key(GRANT),
            roles=frozenset(roles),
            labels=labels,
            issued=NOW,
            expires=expires,
            count=count,
        )
