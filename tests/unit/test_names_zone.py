"""The node's DNS answers, without a socket: what is asked, byte by byte, and what is said."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.names import wire
from appliance.names.ranges import Ranges
from appliance.names.wire import Rcode, Type, wire_name
from appliance.names.zone import (
    NEGATIVE_TTL,
    TCP_LIMIT,
    TTL,
    UDP_LIMIT,
    NodeName,
    Zone,
    answer,
    zone_of,
)
from provisioning.keys import id_text
from tests.fakes.dns import HEADER, Answer, cased, opt, query, read

RANGES = Ranges(ipaddress.IPv4Network("10.10.0.0/16"), ipaddress.IPv6Network("fd11:2233:4455::/48"))
V6 = ipaddress.IPv6Address("fd11:2233:4455::9")
ONE = NodeName(bytes(16), "kitchen", ipaddress.IPv4Address("10.10.0.2"), V6, since=5)
TWO = NodeName(
    b"\1" * 16,
    "attic",
    ipaddress.IPv4Address("10.10.3.4"),
    ipaddress.IPv6Address("fd11:2233:4455:1::1"),
    since=5,
)
ONLY_SIX = NodeName(b"\2" * 16, "six", None, ipaddress.IPv6Address("fd11:2233:4455:2::1"))
ZONE = zone_of([ONE, TWO, ONLY_SIX], RANGES)


def ask(name: str | bytes, qtype: int = Type.A, *, qclass: int = 1, flags: int = 0x0100) -> Answer:
    return ask_raw(query(name, qtype, qclass=qclass, flags=flags))


def ask_raw(data: bytes, limit: int = UDP_LIMIT) -> Answer:
    return read(answer(data, ZONE, limit=limit))


# What there is


def test_an_address() -> None:
    said = ask("kitchen.skerry.internal")
    assert (said.rcode, said.authoritative, said.truncated) == (Rcode.NOERROR, True, False)
    (record,) = said.answers
    assert (record.rtype, record.rclass, record.ttl) == (Type.A, 1, TTL)
    assert record.owner == "kitchen.skerry.internal"
    assert record.data == bytes((10, 10, 0, 2))
    assert said.flags & 0x0100  # RD as it was asked (RFC 1035, 4.1.1)


def test_an_ipv6_address_and_the_node_id() -> None:
    for name in ("kitchen", id_text(ONE.node_id)):
        (record,) = ask(f"{name}.skerry.internal", Type.AAAA).answers
        assert (record.rtype, record.data) == (Type.AAAA, V6.packed)


def test_case_does_not_matter_and_is_given_back() -> None:
    name = "kItChEn.SKERRY.inTERnal"
    said = ask(name)
    assert said.answers[0].owner == name
    assert said.question[:-4] == cased(name)


@pytest.mark.parametrize("member", [ONE, TWO, ONLY_SIX])
def test_every_address_leads_back_to_its_name(member: NodeName) -> None:
    for address in (member.ipv4, member.ipv6):
        if address is None:
            continue
        said = ask(address.reverse_pointer, Type.PTR)
        (record,) = said.answers
        assert (record.rtype, said.authoritative) == (Type.PTR, True)
        assert said.name_at(record.place) == f"{member.name}.skerry.internal"


def test_any_gives_all_there_is() -> None:
    assert [one.rtype for one in ask("kitchen.skerry.internal", Type.ANY).answers] == [
        Type.A,
        Type.AAAA,
    ]


def test_the_zone_itself_says_who_it_is() -> None:
    (soa,) = ask("skerry.internal", Type.SOA).answers
    (ns,) = ask("skerry.internal", Type.NS).answers
    assert (soa.rtype, ns.rtype) == (Type.SOA, Type.NS)
    assert ask("skerry.internal", Type.NS).name_at(ns.place) == "skerry.internal"


def test_services_that_this_node_reaches_have_a_domain_of_their_own() -> None:
    address = ipaddress.IPv4Address("198.19.1.2")
    member = NodeName(b"\3" * 16, "svc", ipaddress.IPv4Address("10.10.9.9"), None)
    services = {"db": address, "kitchen": address, "no name": address}
    zone = zone_of([ONE, member], RANGES, services)

    def said(name: str, qtype: int = Type.A, zone: Zone = zone) -> tuple[int, list[bytes]]:
        found = read(answer(query(f"{name}.skerry.internal", qtype), zone, limit=UDP_LIMIT))
        return found.rcode, [one.data for one in found.answers]

    assert said("db.svc") == said("DB.Svc") == (Rcode.NOERROR, [address.packed])
    assert said("db.svc", Type.AAAA) == (Rcode.NOERROR, [])
    # Members of a service's name, or of the domain's, are not mistaken for services.
    assert said("kitchen") == (Rcode.NOERROR, [bytes((10, 10, 0, 2))])
    assert said("svc") == (Rcode.NOERROR, [bytes((10, 10, 9, 9))])
    for name in ("db", "web.svc", "x.db.svc"):
        assert said(name) == (Rcode.NXDOMAIN, [])
    # What stands above a name is there (RFC 8020), and is not where nothing stands below it.
    assert said("svc", zone=zone_of([ONE], RANGES, services)) == (Rcode.NOERROR, [])
    assert said("svc", zone=zone_of([ONE], RANGES)) == (Rcode.NXDOMAIN, [])


# What there is not: RFC 2308


@pytest.mark.parametrize(
    ("name", "qtype", "rcode"),
    [
        ("nobody.skerry.internal", Type.A, Rcode.NXDOMAIN),
        ("www.kitchen.skerry.internal", Type.A, Rcode.NXDOMAIN),
        ("skerry.internal", Type.A, Rcode.NOERROR),
        ("six.skerry.internal", Type.A, Rcode.NOERROR),
        ("kitchen.skerry.internal", 65, Rcode.NOERROR),  # HTTPS, which browsers ask for
        ("kitchen.skerry.internal", Type.PTR, Rcode.NOERROR),
        ("9.9.10.10.in-addr.arpa", Type.PTR, Rcode.NXDOMAIN),
        ("0.10.10.in-addr.arpa", Type.PTR, Rcode.NOERROR),  # RFC 8020: a name is below it
        ("7.10.10.in-addr.arpa", Type.PTR, Rcode.NXDOMAIN),
        ("1.2.0.10.10.in-addr.arpa", Type.PTR, Rcode.NXDOMAIN),
        ("2.00.10.10.in-addr.arpa", Type.PTR, Rcode.NXDOMAIN),
        ("0.0.0.5.5.4.4.3.3.2.2.1.1.d.f.ip6.arpa", Type.PTR, Rcode.NOERROR),
        ("f.5.5.4.4.3.3.2.2.1.1.d.f.ip6.arpa", Type.PTR, Rcode.NXDOMAIN),
        ("10.10.in-addr.arpa", Type.PTR, Rcode.NOERROR),
    ],
)
def test_no_such_name_or_no_such_record(name: str, qtype: int, rcode: Rcode) -> None:
    said = ask(name, qtype)
    assert (said.rcode, said.authoritative, said.answers) == (rcode, True, [])
    (soa,) = said.sections[1]
    assert (soa.rtype, soa.ttl) == (Type.SOA, NEGATIVE_TTL)
    assert int.from_bytes(soa.data[-4:]) == NEGATIVE_TTL
    assert name.endswith(soa.owner)


@pytest.mark.parametrize(
    ("name", "qtype", "qclass", "rcode"),
    [
        ("example.org", Type.A, 1, Rcode.REFUSED),
        ("internal", Type.A, 1, Rcode.REFUSED),
        ("", Type.NS, 1, Rcode.REFUSED),
        ("notskerry.internal", Type.A, 1, Rcode.REFUSED),
        ("1.0.11.10.in-addr.arpa", Type.PTR, 1, Rcode.REFUSED),
        ("10.in-addr.arpa", Type.PTR, 1, Rcode.REFUSED),
        ("kitchen.skerry.internal", Type.A, 3, Rcode.REFUSED),  # CHAOS
        ("skerry.internal", Type.AXFR, 1, Rcode.REFUSED),
        ("skerry.internal", Type.IXFR, 1, Rcode.REFUSED),
        ("skerry.internal", 249, 1, Rcode.NOTIMP),  # TKEY
        ("skerry.internal", Type.OPT, 1, Rcode.FORMERR),
    ],
)
def test_what_is_not_ours(name: str, qtype: int, qclass: int, rcode: Rcode) -> None:
    said = ask(name, qtype, qclass=qclass)
    assert (said.rcode, said.authoritative) == (rcode, False)
    assert said.sections == [[], [], []]


# Form


@pytest.mark.parametrize("flags", [0x8100, 0x8000])
def test_an_answer_is_not_answered(flags: int) -> None:
    assert answer(query("kitchen.skerry.internal", flags=flags), ZONE, limit=UDP_LIMIT) is None


@pytest.mark.parametrize("size", range(12))
def test_a_stump_is_not_answered(size: int) -> None:
    assert answer(query("kitchen.skerry.internal")[:size], ZONE, limit=UDP_LIMIT) is None


@pytest.mark.parametrize("opcode", [1, 2, 4, 5, 6, 15])
def test_other_operations_are_not_implemented(opcode: int) -> None:
    said = ask("kitchen.skerry.internal", flags=opcode << 11 | 0x0100)
    assert said.rcode == Rcode.NOTIMP
    assert said.flags >> 11 & 15 == opcode


NAME = cased("kitchen.skerry.internal")
MALFORMED = {
    "no question": HEADER.pack(0xBEEF, 0, 0, 0, 0, 0),
    "two questions": HEADER.pack(0xBEEF, 0, 2, 0, 0, 0) + (NAME + b"\0\1\0\1") * 2,
    "an answer in a question": HEADER.pack(0xBEEF, 0, 1, 1, 0, 0) + NAME + b"\0\1\0\1",
    "ends within the name": query(NAME)[:20],
    "ends within the type": query(NAME)[:-3],
    "more than it says": query(NAME) + b"\0",
    "a pointer to itself": query(b"\xc0\x0c"),
    "a pointer into the header": query(b"\xc0\x00"),
    "a label, then a pointer to it": query(b"\1a\xc0\x0c"),
    "a label of a kind that is not": query(b"\x41" + bytes(65)),
    "a name of 256 bytes": query((b"\x3f" + b"a" * 63) * 3 + b"\x3e" + b"a" * 62 + b"\0"),
    "additional that is missing": query(NAME, extras=1),
    "two OPT": query(NAME, extra=opt() * 2, extras=2),
    "OPT not of the root": query(NAME, extra=b"\1a" + opt(), extras=1),
    "OPT under a pointer": query(NAME, extra=b"\xc0\x0c" + opt()[1:], extras=1),
    "an option longer than OPT": query(NAME, extra=opt(data=b"\0\3\0\5abcd"), extras=1),
    "half an option": query(NAME, extra=opt(data=b"\0\3\0"), extras=1),
    "OPT longer than the message": query(NAME, extra=opt(data=bytes(8))[:-1], extras=1),
    "65535 additional": query(NAME, extra=opt(), extras=65535),
    "half a pointer": query(NAME, extra=b"\xc0", extras=1),
}


@pytest.mark.parametrize("why", MALFORMED)
def test_what_is_malformed_is_said_to_be(why: str) -> None:
    said = read(answer(MALFORMED[why], ZONE, limit=UDP_LIMIT))
    assert (said.rcode, said.sections) == (Rcode.FORMERR, [[], [], []])


def test_the_longest_name_is_fine() -> None:
    name = (b"\x3f" + b"a" * 63) * 3 + b"\x2d" + b"a" * 45 + cased("skerry.internal")
    assert len(name) == wire.NAME_MAX
    assert ask(name).rcode == Rcode.NXDOMAIN


def test_labels_are_not_split_or_joined_at_dots() -> None:
    assert ask(b"\x0ekitchen.skerry\x08internal\0").rcode == Rcode.REFUSED
    assert ask(b"\x03a.b" + cased("skerry.internal")).rcode == Rcode.NXDOMAIN
    # A label that looks like the end of a reverse name with its length.
    assert ask(b"\x030\x012" + cased("10.10.in-addr.arpa"), Type.PTR).rcode == Rcode.NXDOMAIN


def test_other_records_behind_the_question_are_passed_over() -> None:
    signature = b"\1k\0" + struct.pack(">HHIH", 250, 255, 0, 3) + b"abc"
    said = ask_raw(query(NAME, extra=opt() + signature, extras=2))
    assert (said.rcode, len(said.answers), len(said.options)) == (Rcode.NOERROR, 1, 1)


# EDNS: RFC 6891


def test_edns_is_answered_by_edns_and_only_then() -> None:
    (option,) = ask_raw(query(NAME, extra=opt(), extras=1)).options
    assert (option.owner, option.ttl, option.data) == ("", 0, b"")
    assert not ask(NAME).options


def test_the_dnssec_bit_comes_back_and_no_other() -> None:
    (option,) = ask_raw(query(NAME, extra=opt(ttl=0xFFFF), extras=1)).options
    assert option.ttl == 0x8000


def test_a_later_edns_is_told_ours() -> None:
    said = ask_raw(query(NAME, extra=opt(ttl=1 << 16), extras=1))
    (option,) = said.options
    assert said.rcode | option.ttl >> 24 << 4 == Rcode.BADVERS
    assert option.ttl >> 16 & 0xFF == 0
    assert said.answers == []


def test_unknown_options_are_ignored() -> None:
    cookie = b"\0\x0a\0\x08" + bytes(8)
    said = ask_raw(query(NAME, extra=opt(data=cookie), extras=1))
    assert (said.rcode, len(said.answers)) == (Rcode.NOERROR, 1)
    assert said.options[0].data == b""


def test_errors_have_edns_too() -> None:
    assert ask_raw(query("example.org", extra=opt(), extras=1)).options


@pytest.mark.parametrize("room", range(12, 90))
def test_what_does_not_fit_is_left_out_and_that_is_said(room: int) -> None:
    full = ask_raw(query(NAME, extra=opt(), extras=1))
    said = ask_raw(query(NAME, extra=opt(), extras=1), limit=room)
    assert len(said.raw) <= room
    assert said.truncated == (len(full.raw) > room)
    assert said.truncated == (not said.answers)


def test_no_room_no_answer() -> None:
    assert answer(query(NAME), ZONE, limit=11) is None


def test_a_datagram_is_never_larger_than_the_asker_takes() -> None:
    small = wire.parse(query(NAME, extra=opt(100), extras=1))
    large = wire.parse(query(NAME, extra=opt(4096), extras=1))
    plain = wire.parse(query(NAME))
    assert [one.payload for one in (small, large, plain) if one] == [512, 4096, 512]


# Names that clash


def test_the_earliest_has_the_name_and_the_other_its_id() -> None:
    late = NodeName(bytes(16), "attic", ipaddress.IPv4Address("10.10.9.9"), V6, since=6)
    for members in ([TWO, late], [late, TWO]):
        zone = zone_of(members, RANGES)
        said = read(answer(query("attic.skerry.internal"), zone, limit=UDP_LIMIT))
        assert said.answers[0].data == bytes((10, 10, 3, 4))
        other = read(answer(query(f"{id_text(bytes(16))}.skerry.internal"), zone, limit=UDP_LIMIT))
        assert other.answers[0].data == bytes((10, 10, 9, 9))
        back = read(answer(query("9.9.10.10.in-addr.arpa", Type.PTR), zone, limit=UDP_LIMIT))
        assert back.name_at(back.answers[0].place) == f"{id_text(bytes(16))}.skerry.internal"


def test_at_the_same_time_the_lower_id_has_it() -> None:
    twin = NodeName(b"\0" * 16, "attic", ipaddress.IPv4Address("10.10.9.9"), V6, since=5)
    zone = zone_of([TWO, twin], RANGES)
    said = read(answer(query("attic.skerry.internal"), zone, limit=UDP_LIMIT))
    assert said.answers[0].data == bytes((10, 10, 9, 9))


def test_nobody_takes_the_id_of_another_for_a_name() -> None:
    thief = NodeName(b"\7" * 16, id_text(TWO.node_id), ipaddress.IPv4Address("10.10.9.9"), V6, -1)
    zone = zone_of([thief, TWO], RANGES)
    said = read(answer(query(f"{id_text(TWO.node_id)}.skerry.internal"), zone, limit=UDP_LIMIT))
    assert said.answers[0].data == bytes((10, 10, 3, 4))


@pytest.mark.parametrize("name", ["", "a.b", "UPPER", "x" * 64, "ä", "a\0b", "-a"])
def test_what_can_not_be_a_name_is_not_served_as_one(name: str) -> None:
    bad = NodeName(b"\7" * 16, name, ipaddress.IPv4Address("10.10.9.9"), V6)
    zone = zone_of([bad], RANGES)
    assert len(zone.hosts) == 1
    said = read(answer(query("9.9.10.10.in-addr.arpa", Type.PTR), zone, limit=UDP_LIMIT))
    assert said.name_at(said.answers[0].place).startswith(id_text(bad.node_id))


# Reverse zones


@pytest.mark.parametrize(
    ("host_range", "count", "first"),
    [
        ("10.0.0.0/8", 1, "10.in-addr.arpa"),
        ("10.10.0.0/16", 1, "10.10.in-addr.arpa"),
        ("10.10.0.0/15", 2, "10.10.in-addr.arpa"),
        ("192.168.7.0/24", 1, "7.168.192.in-addr.arpa"),
        ("172.16.0.0/17", 128, "0.16.172.in-addr.arpa"),
        ("172.16.0.0/9", 128, "0.172.in-addr.arpa"),
    ],
)
def test_reverse_zones_cover_the_range_and_nothing_else(
    host_range: str, count: int, first: str
) -> None:
    network = ipaddress.IPv4Network(host_range, strict=False)
    zones = Ranges(network, RANGES.ipv6).reverse_zones()
    fours = [one for one in zones if one.endswith(".in-addr.arpa")]
    assert (len(fours), fours[0]) == (count, first)
    assert zones[-1] == "5.5.4.4.3.3.2.2.1.1.d.f.ip6.arpa"
    for edge in (network[0], network[-1]):
        assert any(edge.reverse_pointer.endswith(f".{one}") for one in fours)
    for outside in (network[0] - 1, network[-1] + 1):
        assert not any(outside.reverse_pointer.endswith(f".{one}") for one in fours)


# Anything at all


@given(st.binary(max_size=600), st.integers(0, 1300), st.booleans())
def test_no_bytes_harm_it(data: bytes, limit: int, datagram: bool) -> None:
    said = answer(data, ZONE, limit=limit, datagram=datagram)
    assert said is None or len(said) <= limit


@given(
    st.sampled_from(
        [query(NAME, extra=opt(), extras=1), *MALFORMED.values(), query(V6.reverse_pointer, 12)]
    ),
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), max_size=6),
    st.integers(0, 1300),
)
def test_no_damage_to_a_query_harms_it(
    data: bytes, changes: list[tuple[int, int]], limit: int
) -> None:
    damaged = bytearray(data)
    for place, value in changes:
        damaged[place % len(damaged)] = value
    said = answer(bytes(damaged), ZONE, limit=limit)
    if said is None:
        assert limit < 12 or len(damaged) < 12 or damaged[2] & 0x80
    else:
        assert len(said) <= min(limit, TCP_LIMIT)
        assert said[:2] == bytes(damaged[:2])
        assert said[2] & 0x80


LABEL = st.binary(min_size=1, max_size=20)


@given(st.lists(LABEL, max_size=12), st.integers(0, 65535), st.integers(0, 65535))
def test_every_question_that_is_one_has_its_answer(
    labels: list[bytes], qtype: int, qclass: int
) -> None:
    name = b"".join(bytes((len(one),)) + one for one in labels)[:200] + b"\0"
    if wire.parse(query(name, qtype, qclass=qclass)) is None:
        raise AssertionError
    said = read(answer(query(name, qtype, qclass=qclass), ZONE, limit=UDP_LIMIT))
    if said.rcode != Rcode.FORMERR:
        assert said.question == name + struct.pack(">HH", qtype, qclass)


@settings(max_examples=25)
@given(
    st.lists(
        st.builds(
            NodeName,
            st.binary(min_size=16, max_size=16),
            st.sampled_from(["a", "b", "c", "", "Bad"]),
            st.none() | st.integers(0, 9).map(lambda one: RANGES.ipv4[one]),
            st.none() | st.integers(0, 9).map(lambda one: RANGES.ipv6[one]),
            st.integers(0, 3),
        ),
        max_size=12,
        unique_by=lambda one: one.node_id,
    ),
    st.integers(0, 11),
)
def test_the_zone_does_not_depend_on_the_order(members: list[NodeName], cut: int) -> None:
    zone = zone_of(members, RANGES)
    assert zone_of(members[cut:] + members[:cut], RANGES) == zone
    assert zone_of(members[::-1], RANGES) == zone
    for one in members:
        assert zone.hosts[wire_name(f"{id_text(one.node_id)}.skerry.internal")] == (
            one.ipv4,
            one.ipv6,
        )


def test_failure_is_said_in_the_form_of_an_answer() -> None:
    said = read(wire.failure(query(NAME, extra=opt(), extras=1)))
    assert (said.rcode, len(said.options)) == (Rcode.SERVFAIL, 1)
    assert wire.failure(b"x") is None
