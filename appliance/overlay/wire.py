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

WIRE_VERSION = 1
NONCE_SIZE = 16
ID_SIZE = 16
BOOT_SIZE = 8
PROBE_TOKEN_SIZE = 8
CANDIDATES_MAX = 8
ATTEMPT_MAX = 2**24
COUNTER_MAX = 2**48
# What REPLY says more than HELLO (to, echo, proof): an answer is no longer than its question.
FILLER = bytes(ID_SIZE + NONCE_SIZE + PROOF_SIZE)
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


class _Struct(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    pass


class Envelope(_Struct, frozen=True):
    """Every message."""

    version: int
    kind: int
    payload: bytes


class Signed(_Struct, frozen=True):
    """Payload of the handshake's messages; the certificate is empty in DONE."""

    certificate: bytes
    body: bytes
    signature: bytes


class Body(_Struct, frozen=True):
    """What a node signs in a handshake.

    ``boot`` is random per start of the supervisor and ``serial`` grows within it: the later of two
    statements is known. ``to`` and ``echo`` are empty in HELLO only. ``address`` is empty while the
    node has no IPv4 overlay address. ``proof`` (`appliance.overlay.proof`) is in REPLY and CONFIRM,
    the two messages after which a node is accepted; HELLO has `FILLER` there.
    """

    network_id: bytes
    boot: bytes
    serial: int
    to: bytes
    nonce: bytes
    echo: bytes
    port: int
    attempt: int
    address: bytes
    candidates: tuple[PackedEndpoint, ...]
    observed: PackedEndpoint | None
    proof: bytes


class Probe(_Struct, frozen=True):
    """Payload of PROBE, and of the ECHO that repeats its token."""

    sender: bytes
    token: bytes


T = TypeVar("T")


def encode_message(kind: Kind, payload: msgspec.Struct) -> bytes:
    """Return the bytes of a message."""
    return codec.encode(Envelope(WIRE_VERSION, kind, codec.encode(payload)))


def decode_message(data: bytes) -> tuple[Kind, Signed | Probe]:
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
    if kind in {Kind.PROBE, Kind.ECHO}:
        probe = _decode(envelope.payload, Probe, MESSAGE_MAX)
        if len(probe.sender) != ID_SIZE or len(probe.token) != PROBE_TOKEN_SIZE:
            raise WireError("malformed", "a probe has a wrong size")
        return kind, probe
    return kind, _decode(envelope.payload, Signed, MESSAGE_MAX)


def decode_body(kind: Kind, data: bytes) -> Body:
    """Return the signed part of a handshake message. Raises WireError."""
    body = _decode(data, Body, _BODY_MAX)
    answered = 0 if kind is Kind.HELLO else 1
    right = (
        len(body.network_id) == ID_SIZE
        and len(body.boot) == BOOT_SIZE
        and 0 <= body.serial <= COUNTER_MAX
        and len(body.to) == answered * ID_SIZE
        and len(body.nonce) == NONCE_SIZE
        and len(body.echo) == answered * NONCE_SIZE
        and 0 < body.port < 65536
        and 0 <= body.attempt <= ATTEMPT_MAX
        and len(body.address) in {0, 4}
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
