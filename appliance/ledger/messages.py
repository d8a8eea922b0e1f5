"""What replicas say to each other (docs/ledger.md, "Messages"): canonical, versioned, small.

A message fits one sealed datagram, except one that carries a single large entry: that is for the
overlay's frames to split. Everything read here is in range; whether it is true is asked elsewhere.
"""

from __future__ import annotations

import msgspec

from appliance.ledger.entry import ENTRY_MAX
from appliance.ledger.errors import MessageError
from appliance.ledger.hlc import MS_MAX
from appliance.ledger.trie import DEPTH_MAX
from provisioning import codec
from provisioning.errors import FormatError
from provisioning.keys import ID_SIZE

MESSAGE_VERSION = 1
# What a sealed datagram carries, less what the overlay's own envelope and frame need.
DATAGRAM = 1100
MESSAGE_MAX = ENTRY_MAX + 64
SALT_SIZE = 8
SHORT = 6
FANOUT = 16
RANGES_MAX = 64
RUMOURS_MAX = 16
TOKEN_MAX = 2**32
INCARNATION_MAX = 2**32
_OVERHEAD = 16


class _Struct(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    pass


class Entries(_Struct, frozen=True):
    """Entry records; ``reply`` if they were asked for by Ids or Want."""

    reply: bool
    records: tuple[bytes, ...]


class Digests(_Struct, frozen=True):
    """``(range, digests)``: one salted digest of the range, or sixteen of the ranges below it."""

    salt: bytes
    ranges: tuple[tuple[bytes, bytes], ...]


class Ids(_Struct, frozen=True):
    """``(range, salted ids)``: all that the sender has there."""

    salt: bytes
    ranges: tuple[tuple[bytes, bytes], ...]


class Want(_Struct, frozen=True):
    """``(range, salted ids)``: what the sender asks for."""

    salt: bytes
    ranges: tuple[tuple[bytes, bytes], ...]


Rumour = tuple[bytes, int, int]


class Ping(_Struct, frozen=True):
    """Are you there? With the sender's clock, and ``(node, status, incarnation)`` of some."""

    token: int
    incarnation: int
    ms: int
    quality: int
    rumours: tuple[Rumour, ...]


class Ack(_Struct, frozen=True):
    """I am; or, if ``about`` is another node: it answered me. ``alive`` False: it did not."""

    token: int
    incarnation: int
    ms: int
    quality: int
    rumours: tuple[Rumour, ...]
    about: bytes
    alive: bool


class PingRequest(_Struct, frozen=True):
    """Please ask ``target`` whether it is there."""

    token: int
    target: bytes


Message = Entries | Digests | Ids | Want | Ping | Ack | PingRequest

_KINDS: dict[int, type[Message]] = {
    1: Entries,
    2: Digests,
    3: Ids,
    4: Want,
    5: Ping,
    6: Ack,
    7: PingRequest,
}
_NUMBERS = {kind: number for number, kind in _KINDS.items()}


class Envelope(_Struct, frozen=True):
    """Every message."""

    version: int
    kind: int
    payload: bytes


def encode_message(message: Message) -> bytes:
    """Return the bytes of a message."""
    kind = _NUMBERS[type(message)]
    return codec.encode(Envelope(MESSAGE_VERSION, kind, codec.encode(message)))


def decode_message(data: bytes) -> Message:
    """Return the message. Raises MessageError."""
    # Fixed for all versions: an array (fixarray) whose first element is the version (fixint).
    if len(data) > 2 and data[0] & 0xF0 == 0x90 and MESSAGE_VERSION < data[1] < 0x80:
        raise MessageError(f"a message of version {data[1]}", newer=True)
    try:
        envelope = codec.decode(data, Envelope, limit=MESSAGE_MAX)
        kind = _KINDS.get(envelope.kind)
        if envelope.version != MESSAGE_VERSION or kind is None:
            raise MessageError(f"a message of kind {envelope.kind}, version {envelope.version}")
        message: Message = codec.decode(envelope.payload, kind, limit=MESSAGE_MAX)
    except FormatError as error:
        raise MessageError(f"malformed message: {error}") from error
    if not _in_range(message):
        raise MessageError(f"a field of {type(message).__name__} is out of range")
    return message


def _in_range(message: Message) -> bool:
    match message:
        case Entries(_, records):
            return all(0 < len(one) <= ENTRY_MAX for one in records)
        case Digests(salt, ranges):
            sizes = {SHORT, SHORT * FANOUT}
            fits = all(len(digests) in sizes for _, digests in ranges)
            return fits and _ranges_fit(salt, ranges)
        case Ids(salt, ranges) | Want(salt, ranges):
            fits = all(len(ids) % SHORT == 0 for _, ids in ranges)
            return fits and _ranges_fit(salt, ranges)
        case Ping(token, incarnation, ms, quality, rumours):
            return _probe_fits(token, incarnation, ms, quality, rumours)
        case Ack(token, incarnation, ms, quality, rumours, about):
            fits = _probe_fits(token, incarnation, ms, quality, rumours)
            return fits and len(about) == ID_SIZE
        case PingRequest(token, target):
            return 0 <= token < TOKEN_MAX and len(target) == ID_SIZE


def _ranges_fit(salt: bytes, ranges: tuple[tuple[bytes, bytes], ...]) -> bool:
    return (
        len(salt) == SALT_SIZE
        and len(ranges) <= RANGES_MAX
        and all(len(one) <= DEPTH_MAX and max(one, default=0) < FANOUT for one, _ in ranges)
    )


def _probe_fits(
    token: int, incarnation: int, ms: int, quality: int, rumours: tuple[Rumour, ...]
) -> bool:
    return (
        0 <= token < TOKEN_MAX
        and 0 <= incarnation <= INCARNATION_MAX
        and 0 <= ms <= MS_MAX
        and 0 <= quality <= 2
        and len(rumours) <= RUMOURS_MAX
        and all(
            len(node) == ID_SIZE and 0 <= status <= 2 and 0 <= known <= INCARNATION_MAX
            for node, status, known in rumours
        )
    )


def pack_entries(records: list[bytes], *, reply: bool) -> list[Entries]:
    """Return messages that carry the records in order, each small enough for one datagram."""
    packed: list[Entries] = []
    batch: list[bytes] = []
    room = DATAGRAM - _OVERHEAD
    for record in records:
        size = len(record) + 3
        if batch and size > room:
            packed.append(Entries(reply, tuple(batch)))
            batch, room = [], DATAGRAM - _OVERHEAD
        batch.append(record)
        room -= size
    if batch:
        packed.append(Entries(reply, tuple(batch)))
    return packed


def pack_ranges(ranges: list[tuple[bytes, bytes]]) -> list[tuple[tuple[bytes, bytes], ...]]:
    """Return the ranges in batches that fit a message each."""
    packed: list[tuple[tuple[bytes, bytes], ...]] = []
    batch: list[tuple[bytes, bytes]] = []
    room = first = DATAGRAM - _OVERHEAD - SALT_SIZE - 4
    for one in ranges:
        size = len(one[0]) + len(one[1]) + 6
        if batch and (size > room or len(batch) == RANGES_MAX):
            packed.append(tuple(batch))
            batch, room = [], first
        batch.append(one)
        room -= size
    if batch:
        packed.append(tuple(batch))
    return packed
