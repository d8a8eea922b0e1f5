"""What this node knows of the members' names, and what it answers about them. Pure.

The forward zone is ``skerry.internal``. Every member is there under its node id, and under its
name; of several with one name the earliest has it. Services that this node reaches are below
``svc.skerry.internal``. The reverse zones are those of the network's
host range and of its IPv6 prefix. We are the authority for these, and answer about nothing else.
"""

from __future__ import annotations

import ipaddress
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from appliance.names import wire
from appliance.names.ranges import DOMAIN, Ranges
from appliance.names.wire import Query, Rcode, Record, Reply, Type, wire_name
from provisioning.keys import id_text
from provisioning.names import is_name

# Short: a name may go to another node, and an address to another name.
TTL = 10
# Shorter still: who asks for a node that is about to join should not wait for it twice.
NEGATIVE_TTL = 2
UDP_LIMIT = 1232
TCP_LIMIT = 65535

_DOMAIN = wire_name(DOMAIN)
_SERVICES = wire_name(f"svc.{DOMAIN}")
_IP6_ARPA = wire_name("ip6.arpa")
# Zones without servers in the public tree name themselves and nobody (RFC 6303, 3).
_SERIAL, _REFRESH, _RETRY, _EXPIRE = 1, 3600, 1200, 604800
_NOBODY = wire_name("nobody.invalid")
_META_TYPES = range(128, 256)

Host = tuple[ipaddress.IPv4Address | None, ipaddress.IPv6Address | None]


@dataclass(frozen=True, slots=True)
class NodeName:
    """A member: its name, its overlay addresses, and since when it has the name (any clock)."""

    node_id: bytes
    name: str
    ipv4: ipaddress.IPv4Address | None
    ipv6: ipaddress.IPv6Address | None
    since: int = 0


@dataclass(frozen=True, slots=True)
class Zone:
    """All names and addresses, by names in wire form. Made by :func:`zone_of`.

    ``branches`` are the reverse names backwards and sorted: what stands above a name that exists,
    exists too, if without records (RFC 8020).
    """

    hosts: Mapping[bytes, Host]
    pointers: Mapping[bytes, bytes]
    branches: tuple[bytes, ...]
    apexes: frozenset[bytes]
    services: Mapping[bytes, ipaddress.IPv4Address] = field(default_factory=dict)


def zone_of(
    members: Iterable[NodeName],
    ranges: Ranges,
    services: Mapping[str, ipaddress.IPv4Address] | None = None,
) -> Zone:
    """Return the zone of these members. Of those with one name the lowest (since, id) has it.

    A node's id is never anybody's name; what can't be a name is not served as one.
    ``services`` have their own domain, so no member is mistaken for one.
    """
    ordered = sorted(members, key=lambda one: (one.since, one.node_id))
    ids = [_member(id_text(one.node_id)) for one in ordered]
    hosts: dict[bytes, Host] = {
        own: (one.ipv4, one.ipv6) for own, one in zip(ids, ordered, strict=True)
    }
    pointers: dict[bytes, bytes] = {}
    for own, one in zip(ids, ordered, strict=True):
        known_as = own
        if is_name(one.name) and (named := _member(one.name)) not in hosts:
            hosts[named] = hosts[own]
            known_as = named
        for address in (one.ipv4, one.ipv6):
            if address is not None:
                pointers.setdefault(_reverse_name(address), known_as)
    return Zone(
        hosts,
        pointers,
        tuple(sorted(name[::-1] for name in pointers)),
        frozenset((_DOMAIN, *map(wire_name, ranges.reverse_zones()))),
        {
            _label(name) + _SERVICES: address
            for name, address in (services or {}).items()
            if is_name(name)
        },
    )


def answer(query: bytes, zone: Zone, *, limit: int, datagram: bool = True) -> bytes | None:
    """Return the answer to a DNS message, of at most ``limit`` bytes; None: say nothing.

    In a ``datagram`` it is also no larger than the asker said it takes, else 512 bytes.
    """
    asked = wire.parse(query)
    if asked is None:
        return None
    reply = Reply(asked.rcode) if asked.rcode else _reply(asked, zone)
    return wire.pack(asked, reply, min(limit, asked.payload) if datagram else limit)


def _reply(query: Query, zone: Zone) -> Reply:
    if query.qclass != wire.CLASS_IN:
        return Reply(Rcode.REFUSED)
    if query.qtype in _META_TYPES and query.qtype != Type.ANY:
        # Nobody copies zones from us; the other meta types we do not know.
        transfer = query.qtype in (Type.AXFR, Type.IXFR)
        return Reply(Rcode.REFUSED if transfer else Rcode.NOTIMP)
    if query.qtype == Type.OPT:
        return Reply(Rcode.FORMERR)
    apex = next((place for place in _places(query.name) if query.name[place:] in zone.apexes), None)
    if apex is None:
        return Reply(Rcode.REFUSED)
    records = _records(query.name, apex, zone)
    start_of_authority = Record(apex, Type.SOA, NEGATIVE_TTL, _soa(apex))
    if records is None:
        return Reply(Rcode.NXDOMAIN, authoritative=True, authority=(start_of_authority,))
    wanted = tuple(one for one in records if query.qtype in (one.rtype, Type.ANY))
    authority = () if wanted else (start_of_authority,)
    return Reply(Rcode.NOERROR, authoritative=True, answers=wanted, authority=authority)


def _records(name: bytes, apex: int, zone: Zone) -> tuple[Record, ...] | None:
    """Return the records that a name has, maybe none; None: there is no such name."""
    if apex == 0:
        itself = _pointer(0)
        return (Record(0, Type.SOA, TTL, _soa(0)), Record(0, Type.NS, TTL, itself))
    if name in zone.hosts:
        ipv4, ipv6 = zone.hosts[name]
        four = (Record(0, Type.A, TTL, ipv4.packed),) if ipv4 else ()
        six = (Record(0, Type.AAAA, TTL, ipv6.packed),) if ipv6 else ()
        return four + six
    if name in zone.services:
        return (Record(0, Type.A, TTL, zone.services[name].packed),)
    if name == _SERVICES and zone.services:
        return ()
    if name in zone.pointers:
        return (Record(0, Type.PTR, TTL, zone.pointers[name]),)
    backwards = name[::-1]
    place = bisect_left(zone.branches, backwards)
    # Labels of reverse names are digits: a length byte can't be taken for a part of one.
    if place < len(zone.branches) and zone.branches[place].startswith(backwards):
        return ()
    return None


def _soa(apex: int) -> bytes:
    numbers = (_SERIAL, _REFRESH, _RETRY, _EXPIRE, NEGATIVE_TTL)
    return _pointer(apex) + _NOBODY + b"".join(one.to_bytes(4) for one in numbers)


def _pointer(place: int) -> bytes:
    """Return a compressed name: the rest of the question's name from ``place`` on."""
    return (0xC000 | (wire.HEADER_SIZE + place)).to_bytes(2)


def _places(name: bytes) -> Iterator[int]:
    """Yield where the name and each of its parents begin, down to the root's child."""
    place = 0
    while name[place]:
        yield place
        place += 1 + name[place]


def _member(label: str) -> bytes:
    return _label(label) + _DOMAIN


def _label(label: str) -> bytes:
    return bytes((len(label),)) + label.encode("ascii")


def _reverse_name(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bytes:
    """Return the name under which an address is looked up: 32 labels, if it is an IPv6 one."""
    if address.version == 4:
        return wire_name(address.reverse_pointer)
    return ("\x01" + "\x01".join(address.packed.hex()[::-1])).encode("ascii") + _IP6_ARPA
