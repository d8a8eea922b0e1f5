"""The messages inside sealed datagrams (docs/wire-format.md, "Messages").

Canonical MessagePack by the same strict rule as everything signed: what does not encode to the very
bytes it was decoded from is refused.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TypeVar

import msgspec

from appliance.overlay.endpoint import PackedEndpoint, unpack_endpoint
from appliance.overlay.errors import WireError
from appliance.overlay.frames import MESSAGE_MAX
from appliance.overlay.proof import PROOF_SIZE
from provisioning import codec
from provisioning.errors import FormatError
from provisioning.network import EPOCH_MAX

WIRE_VERSION = 1
NONCE_SIZE = 16
ID_SIZE = 16
BOOT_SIZE = 8
PROBE_TOKEN_SIZE = 8
CANDIDATES_MAX = 8
COUNTER_MAX = 2**48
SESSION_SIZE = 8
MAC_SIZE = 16
# What REPLY says more than HELLO (to, echo, proof), and then some for a REFUSAL's words: an answer
# is no longer than its question.
FILLER = bytes(ID_SIZE + NONCE_SIZE + PROOF_SIZE + 112)
CAUSE_MAX = 32
DETAIL_MAX = 200
CARRIED_MAX = 8192
TIME_MS_MAX = 2**53
QUALITY_MAX = 2
_BODY_MAX = 1024
_SIGNED_LABEL = b"skerry handshake v1\0"


class Kind(IntEnum):
    """What a message is. HELLO, REPLY, CONFIRM authenticate; DONE acknowledges."""

    HELLO = 1
    REPLY = 2
    CONFIRM = 3
    DONE = 4
    PROBE = 5
    ECHO = 6
    GOSSIP = 7
    CATCH_UP = 8
    REFUSAL = 9
    TIME_ASK = 10
    TIME_TELL = 11


HANDSHAKE = frozenset({Kind.HELLO, Kind.REPLY, Kind.CONFIRM, Kind.DONE, Kind.REFUSAL})
PROBES = frozenset({Kind.PROBE, Kind.ECHO})
CARRIES = frozenset({Kind.GOSSIP, Kind.CATCH_UP})
TIMES = frozenset({Kind.TIME_ASK, Kind.TIME_TELL})
# What is still read of an epoch that is over (`ledger.epochs.Reading.CATCH_UP`).
CATCHING_UP = HANDSHAKE | TIMES | {Kind.CATCH_UP}


class _Struct(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    pass


class Envelope(_Struct, frozen=True):
    """Every message."""

    version: int
    kind: int
    payload: bytes


class Signed(_Struct, frozen=True):
    """Payload of the handshake's messages and TIME_TELL; the certificate is empty in DONE."""

    certificate: bytes
    body: bytes
    signature: bytes


class Body(_Struct, frozen=True):
    """What a node signs in a handshake.

    ``epoch`` is the one it is sealed in. ``boot`` is random per start of the supervisor and
    ``serial`` grows within it: the later of two statements is known. ``to`` and ``echo`` are empty
    in HELLO only. ``proof`` (`appliance.overlay.proof`) is in REPLY and CONFIRM, the two messages
    after which a node is accepted; HELLO has `FILLER` there.
    """

    network_id: bytes
    epoch: int
    boot: bytes
    serial: int
    to: bytes
    nonce: bytes
    echo: bytes
    port: int
    candidates: tuple[PackedEndpoint, ...]
    observed: PackedEndpoint | None
    proof: bytes


class Probe(_Struct, frozen=True):
    """Payload of PROBE, and of the ECHO that repeats its token."""

    sender: bytes
    token: bytes


class Carried(_Struct, frozen=True):
    """Payload of GOSSIP and CATCH_UP. Inside the tunnel session and MAC are empty."""

    sender: bytes
    session: bytes
    counter: int
    mac: bytes
    data: bytes


class RefusalBody(_Struct, frozen=True):
    """What a node signs that does not let another one in; ``echo`` is that one's nonce."""

    network_id: bytes
    epoch: int
    to: bytes
    echo: bytes
    cause: str
    detail: str


class TimeAsk(_Struct, frozen=True):
    """Payload of TIME_ASK; the padding is zeros, as long as the answer may be."""

    nonce: bytes
    padding: bytes


class TimeBody(_Struct, frozen=True):
    """What a node signs of its clock: Unix milliseconds and a `timekeeper.Quality`."""

    network_id: bytes
    echo: bytes
    ms: int
    quality: int


Payload = Signed | Probe | Carried | TimeAsk
T = TypeVar("T")


def encode_message(kind: Kind, payload: msgspec.Struct) -> bytes:
    """Return the bytes of a message."""
    return codec.encode(Envelope(WIRE_VERSION, kind, codec.encode(payload)))


def decode_message(data: bytes) -> tuple[Kind, Payload]:
    """Return kind and payload. Raises WireError."""
    # Fixed for all versions: an array (fixarray) whose first element is the version (fixint).
    if len(data) > 2 and data[0] & 0xF0 == 0x90 and WIRE_VERSION < data[1] < 0x80:
        raise WireError("unknown-version", f"a message of version {data[1]}")
    envelope = _decode(data, Envelope, MESSAGE_MAX)
    if envelope.version != WIRE_VERSION:
        raise WireError("unknown-version", f"a message of version {envelope.version}")
    try:
        kind = Kind(envelope.kind)
    except ValueError as error:
        raise WireError("malformed", f"a message of kind {envelope.kind}") from error
    if kind in PROBES:
        probe = _decode(envelope.payload, Probe, MESSAGE_MAX)
        if len(probe.sender) != ID_SIZE or len(probe.token) != PROBE_TOKEN_SIZE:
            raise WireError("malformed", "a probe has a wrong size")
        return kind, probe
    if kind in CARRIES:
        return kind, _carried(envelope.payload)
    if kind is Kind.TIME_ASK:
        ask = _decode(envelope.payload, TimeAsk, MESSAGE_MAX)
        if len(ask.nonce) != NONCE_SIZE or any(ask.padding):
            raise WireError("malformed", "a question for the time has a wrong form")
        return kind, ask
    return kind, _decode(envelope.payload, Signed, MESSAGE_MAX)


def _carried(data: bytes) -> Carried:
    carried = _decode(data, Carried, MESSAGE_MAX)
    sizes = len(carried.session), len(carried.mac)
    right = (
        len(carried.sender) == ID_SIZE
        and sizes in {(0, 0), (SESSION_SIZE, MAC_SIZE)}
        and 0 <= carried.counter <= COUNTER_MAX
        and 0 < len(carried.data) <= CARRIED_MAX
    )
    if not right:
        raise WireError("malformed", "a field of a carried message is out of range")
    return carried


def decode_refusal(data: bytes) -> RefusalBody:
    """Return the signed part of a REFUSAL. Raises WireError."""
    body = _decode(data, RefusalBody, _BODY_MAX)
    right = (
        len(body.network_id) == len(body.to) == ID_SIZE
        and len(body.echo) == NONCE_SIZE
        and 0 <= body.epoch <= EPOCH_MAX
        and 0 < len(body.cause) <= CAUSE_MAX
        and len(body.detail) <= DETAIL_MAX
        and body.cause.isprintable()
        and body.detail.isprintable()
    )
    if not right:
        raise WireError("malformed", "a field of a refusal is out of range")
    return body


def decode_time(data: bytes) -> TimeBody:
    """Return the signed part of a TIME_TELL. Raises WireError."""
    body = _decode(data, TimeBody, _BODY_MAX)
    right = (
        len(body.network_id) == ID_SIZE
        and len(body.echo) == NONCE_SIZE
        and 0 <= body.ms <= TIME_MS_MAX
        and 0 <= body.quality <= QUALITY_MAX
    )
    if not right:
        raise WireError("malformed", "a field of a told time is out of range")
    return body


def decode_body(kind: Kind, data: bytes) -> Body:
    """Return the signed part of a handshake message. Raises WireError."""
    body = _decode(data, Body, _BODY_MAX)
    answered = 0 if kind is Kind.HELLO else 1
    right = (
        len(body.network_id) == ID_SIZE
        and 0 <= body.epoch <= EPOCH_MAX
        and len(body.boot) == BOOT_SIZE
        and 0 <= body.serial <= COUNTER_MAX
        and len(body.to) == answered * ID_SIZE
        and len(body.nonce) == NONCE_SIZE
        and len(body.echo) == answered * NONCE_SIZE
        and 0 < body.port < 65536
        and len(body.candidates) <= CANDIDATES_MAX
        and _proof_fits(kind, body.proof)
    )
    if not right:
        raise WireError("malformed", "a field of a handshake message is out of range")
    for candidate in body.candidates:
        unpack_endpoint(candidate)
    if body.observed is not None:
        unpack_endpoint(body.observed)
    return body


def _proof_fits(kind: Kind, proof: bytes) -> bool:
    if kind is Kind.HELLO:
        return proof == FILLER
    return len(proof) == (0 if kind is Kind.DONE else PROOF_SIZE)


def signed_bytes(kind: Kind, body: bytes) -> bytes:
    """Return what the signature of a handshake message covers."""
    return _SIGNED_LABEL + bytes([kind]) + body


def _decode(data: bytes, kind: type[T], limit: int) -> T:
    try:
        return codec.decode(data, kind, limit=limit)
    except FormatError as error:
        raise WireError("malformed", f"{kind.__name__}: {error}") from error
