"""DNS messages, as little of them as a server of our own names needs.

Not python-zeroconf's parser, though it is loaded anyway: it is made for multicast DNS. It takes the
top bit of a class for "cache flush", does not give EDNS to its caller, follows compression
wherever it leads, and passes over what is malformed where RFC 1035 wants FORMERR said.

Sources: RFC 1035 (messages), RFC 6891 (EDNS), RFC 9619 (one question), RFC 3225 (DO).
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass, replace

HEADER_SIZE = 12
# What every asker takes without saying so (RFC 1035, 4.2.1).
PLAIN_SIZE = 512
CLASS_IN = 1
NAME_MAX = 255
LABEL_MAX = 63

_HEADER = struct.Struct(">HHHHHH")
_RECORD = struct.Struct(">HHIH")
_QR, _AA, _TC, _RD = 0x8000, 0x0400, 0x0200, 0x0100
_OPCODE = 0x7800
_POINTER = 0xC000
_DO = 0x8000
_VERSION_SHIFT = 16
_RCODE_BITS = 4
# What we say that we take ourselves; what crosses no network needs no care for fragments.
_OUR_SIZE = 1232


class Rcode(enum.IntEnum):
    """RFC 1035, 4.1.1; RFC 6891, 9."""

    NOERROR = 0
    FORMERR = 1
    SERVFAIL = 2
    NXDOMAIN = 3
    NOTIMP = 4
    REFUSED = 5
    BADVERS = 16


class Type(enum.IntEnum):
    """The record types that mean something to us."""

    A = 1
    NS = 2
    SOA = 6
    PTR = 12
    AAAA = 28
    OPT = 41
    IXFR = 251
    AXFR = 252
    ANY = 255


@dataclass(frozen=True, slots=True)
class Query:
    """A message that wants an answer. ``rcode`` is the error that its form alone already makes.

    ``name`` is the name asked for in wire form, lower case; ``question`` the question just as it
    came. ``payload`` is the largest datagram that the asker takes.
    """

    ident: int
    flags: int
    rcode: Rcode = Rcode.NOERROR
    question: bytes = b""
    name: bytes = b""
    qtype: int = 0
    qclass: int = 0
    edns: bool = False
    dnssec_ok: bool = False
    payload: int = PLAIN_SIZE


@dataclass(frozen=True, slots=True)
class Record:
    """A record of the answer. ``owner`` is an offset into the name that was asked for."""

    owner: int
    rtype: Type
    ttl: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """What there is to say to a query."""

    rcode: Rcode
    authoritative: bool = False
    answers: tuple[Record, ...] = ()
    authority: tuple[Record, ...] = ()


class _MalformedError(Exception):
    pass


def parse(data: bytes) -> Query | None:
    """Return the query in a message; None if nothing may be said to it: a stump, or an answer."""
    if len(data) < HEADER_SIZE:
        return None
    ident, flags, questions, answers, authority, additional = _HEADER.unpack_from(data)
    if flags & _QR:
        return None
    query = Query(ident, flags & (_OPCODE | _RD))
    if flags & _OPCODE:
        return replace(query, rcode=Rcode.NOTIMP)
    if questions != 1 or answers or authority:
        return replace(query, rcode=Rcode.FORMERR)
    try:
        query, place = _question(query, data)
        return _additional(query, data, place, additional)
    except _MalformedError:
        return Query(ident, query.flags, Rcode.FORMERR)


def _question(query: Query, data: bytes) -> tuple[Query, int]:
    """Read the question. It stands first: a compressed name in it could point at nothing but it."""
    place = HEADER_SIZE
    while True:
        if place >= len(data):
            raise _MalformedError
        size = data[place]
        if size > LABEL_MAX:
            raise _MalformedError
        place += 1 + size
        if place - HEADER_SIZE > NAME_MAX:
            raise _MalformedError
        if size == 0:
            break
    end = place + 4
    if end > len(data):
        raise _MalformedError
    qtype, qclass = struct.unpack_from(">HH", data, place)
    name = data[HEADER_SIZE:place].lower()  # a length is at most 63, so no upper-case letter
    question = data[HEADER_SIZE:end]
    return replace(query, question=question, name=name, qtype=qtype, qclass=qclass), end


def _additional(query: Query, data: bytes, place: int, count: int) -> Query:
    """Walk what stands behind the question; each record takes 11 bytes, so the walk ends."""
    for _ in range(count):
        root, place = _skip_name(data, place)
        if place + _RECORD.size > len(data):
            raise _MalformedError
        rtype, rclass, ttl, size = _RECORD.unpack_from(data, place)
        place += _RECORD.size
        if place + size > len(data):
            raise _MalformedError
        if rtype == Type.OPT:
            if query.edns or not root:
                raise _MalformedError  # RFC 6891, 6.1.1 and 6.1.2
            _check_options(data[place : place + size])
            query = replace(
                query,
                edns=True,
                dnssec_ok=bool(ttl & _DO),
                payload=max(rclass, PLAIN_SIZE),  # 6.2.3
                rcode=Rcode.BADVERS if ttl >> _VERSION_SHIFT & 0xFF else Rcode.NOERROR,
            )
        place += size
    if place != len(data):
        raise _MalformedError
    return query


def _skip_name(data: bytes, place: int) -> tuple[bool, int]:
    """Return whether the name is the root, and where it ends. Pointers are not followed."""
    start = place
    while place < len(data):
        size = data[place]
        if size == 0:
            return place == start, place + 1
        if size > LABEL_MAX:
            if size << 8 & _POINTER != _POINTER or place + 2 > len(data):
                break
            return False, place + 2
        place += 1 + size
        if place - start > NAME_MAX:
            break
    raise _MalformedError


def _check_options(data: bytes) -> None:
    """Options are ignored, all of them, but they have to be options (6.1.2)."""
    place = 0
    while place < len(data):
        if place + 4 > len(data):
            raise _MalformedError
        place += 4 + int.from_bytes(data[place + 2 : place + 4])
    if place != len(data):
        raise _MalformedError


def pack(query: Query, reply: Reply, room: int) -> bytes | None:
    """Return the message that answers ``query``; None if not even a header has room.

    What does not fit is left out whole, and the message says that it is truncated (RFC 2181, 9).
    """
    option = _option(query, reply.rcode) if query.edns else b""
    flags = _QR | query.flags | (_AA if reply.authoritative else 0)
    flags |= reply.rcode & (1 << _RCODE_BITS) - 1
    body = b"".join(_record(one) for one in (*reply.answers, *reply.authority))
    counts = (1 if query.question else 0, len(reply.answers), len(reply.authority))
    if HEADER_SIZE + len(query.question) + len(body) + len(option) <= room:
        header = _HEADER.pack(query.ident, flags, *counts, 1 if option else 0)
        return header + query.question + body + option
    for question, extra in ((query.question, option), (query.question, b""), (b"", b"")):
        if HEADER_SIZE + len(question) + len(extra) <= room:
            some = (1 if question else 0, 0, 0, 1 if extra else 0)
            return _HEADER.pack(query.ident, flags | _TC, *some) + question + extra
    return None


def failure(data: bytes) -> bytes | None:
    """Return SERVFAIL to a message that a defect of ours kept from being answered."""
    query = parse(data)
    return pack(query, Reply(Rcode.SERVFAIL), PLAIN_SIZE) if query else None


def _record(one: Record) -> bytes:
    owner = _POINTER | (HEADER_SIZE + one.owner)
    return owner.to_bytes(2) + _RECORD.pack(one.rtype, CLASS_IN, one.ttl, len(one.data)) + one.data


def _option(query: Query, rcode: Rcode) -> bytes:
    """RFC 6891, 6.1.3: the upper bits of the rcode, version 0, and DO as it was asked."""
    ttl = (rcode >> _RCODE_BITS) << 24 | (_DO if query.dnssec_ok else 0)
    return b"\0" + _RECORD.pack(Type.OPT, _OUR_SIZE, ttl, 0)


def wire_name(text: str) -> bytes:
    """Return a name of ours in wire form. It has to be lower-case ASCII, and short enough."""
    labels = [label.encode("ascii") for label in text.split(".") if label]
    return b"".join(bytes((len(label),)) + label for label in labels) + b"\0"
