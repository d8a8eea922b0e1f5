"""A DNS client's half: builds questions and reads answers, with nothing of the code under test."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from appliance.names.wire import Type

HEADER = struct.Struct(">HHHHHH")


def query(
    name: str | bytes,
    qtype: int = Type.A,
    *,
    qclass: int = 1,
    flags: int = 0x0100,
    extra: bytes = b"",
    extras: int = 0,
) -> bytes:
    encoded = name if isinstance(name, bytes) else cased(name)
    header = HEADER.pack(0xBEEF, flags, 1, 0, 0, extras)
    return header + encoded + struct.pack(">HH", qtype, qclass) + extra


def cased(name: str) -> bytes:
    labels = [one.encode() for one in name.split(".") if one]
    return b"".join(bytes((len(one),)) + one for one in labels) + b"\0"


def opt(size: int = 1232, *, ttl: int = 0, data: bytes = b"") -> bytes:
    return b"\0" + struct.pack(">HHIH", Type.OPT, size, ttl, len(data)) + data


@dataclass
class Record:
    owner: str
    rtype: int
    rclass: int
    ttl: int
    data: bytes
    place: int


@dataclass
class Answer:
    """A message read back by a parser that shares nothing with the one under test."""

    raw: bytes
    flags: int
    question: bytes
    sections: list[list[Record]]

    @property
    def rcode(self) -> int:
        return self.flags & 15

    @property
    def authoritative(self) -> bool:
        return bool(self.flags & 0x0400)

    @property
    def truncated(self) -> bool:
        return bool(self.flags & 0x0200)

    @property
    def answers(self) -> list[Record]:
        return self.sections[0]

    @property
    def options(self) -> list[Record]:
        return [one for one in self.sections[2] if one.rtype == Type.OPT]

    def name_at(self, place: int) -> str:
        return read_name(self.raw, place)[0]


def read_name(raw: bytes, place: int) -> tuple[str, int]:
    labels, end, jumps = [], 0, 0
    while raw[place]:
        if raw[place] >= 0xC0:
            end = end or place + 2
            target = int.from_bytes(raw[place : place + 2]) & 0x3FFF
            assert target < place
            place = target
            jumps += 1
            assert jumps < 10
            continue
        labels.append(raw[place + 1 : place + 1 + raw[place]].decode("latin-1"))
        place += 1 + raw[place]
    return ".".join(labels), end or place + 1


def read(raw: bytes | None) -> Answer:
    assert raw is not None
    ident, flags, questions, *counts = HEADER.unpack_from(raw)
    assert ident == 0xBEEF
    assert flags & 0x8000
    assert not flags & 0x00F0  # RA, Z, AD, CD: we offer none of them
    place = 12
    if questions:
        place = read_name(raw, place)[1] + 4
    question = raw[12:place]
    sections = []
    for count in counts:
        records = []
        for _ in range(count):
            owner, place = read_name(raw, place)
            rtype, rclass, ttl, size = struct.unpack_from(">HHIH", raw, place)
            place += 10
            records.append(Record(owner, rtype, rclass, ttl, raw[place : place + size], place))
            place += size
        sections.append(records)
    assert place == len(raw)
    return Answer(raw, flags, question, sections)
