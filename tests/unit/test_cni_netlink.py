"""What we say to the kernel by netlink, and what it says."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.cni import netlink as nl
from appliance.cni.netlink import Flag, Kind
from appliance.cni.netlink_socket import KernelError, Netlink

# Recorded from Linux 6.18: an end of a pair, as a port of a bridge, and its address and routes.
HEAD = struct.Struct("=IHHII")


def parts(request: nl.Request) -> tuple[int, int, bytes]:
    data = request.encode(7)
    length, kind, flags, sequence, port = HEAD.unpack_from(data)
    assert (length, sequence, port) == (len(data), 7, 0)
    assert length % 4 == 0
    return kind, flags, data[HEAD.size :]


def test_a_pair_is_made_with_one_end_in_the_container() -> None:
    kind, flags, body = parts(nl.make_veth("skpabc", 5, "eth0", 1380, "0a:73:0a:f4:07:02"))
    assert kind == Kind.NEW_LINK
    assert flags == Flag.REQUEST | Flag.ACK | Flag.CREATE | Flag.EXCLUSIVE
    found = nl.attributes(body[16:])
    assert found[3] == b"skpabc\0"
    assert found[1].hex(":") == "0e:73:0a:f4:07:02"
    info = nl.attributes(found[18])
    assert info[1] == b"veth"
    peer = nl.attributes(nl.attributes(info[2])[1][16:])
    assert peer[3] == b"eth0\0"
    assert peer[4] == struct.pack("=I", 1380)
    assert peer[1].hex(":") == "0a:73:0a:f4:07:02"
    assert peer[28] == struct.pack("=I", 5)


@pytest.mark.parametrize(
    ("address", "family", "prefix"), [("10.244.7.2/32", 2, 32), ("fd42::2/80", 10, 80)]
)
def test_an_address_comes_back_as_it_was_given(address: str, family: int, prefix: int) -> None:
    kind, _, body = parts(nl.add_address(3, address))
    assert kind == Kind.NEW_ADDRESS
    assert body[:2] == bytes([family, prefix])
    # Nobody is asked whether they have it (IFA_F_NODAD).
    assert body[2] == 2
    assert nl.read_address(body) == nl.LinkAddress(3, address)


@pytest.mark.parametrize(
    ("destination", "gateway"),
    [
        ("10.244.7.1/32", ""),
        ("0.0.0.0/0", "10.244.7.1"),
        ("fd42::1/128", ""),
        ("::/0", "fd42::1"),
        ("10.0.0.0/8", "10.244.7.1"),
    ],
)
def test_a_route_comes_back_as_it_was_given(destination: str, gateway: str) -> None:
    kind, flags, body = parts(nl.add_route(3, destination, gateway))
    assert kind == Kind.NEW_ROUTE
    assert flags & Flag.REPLACE
    assert nl.read_route(body) == nl.LinkRoute(3, destination, gateway)
    # On the link, or anywhere: rtm_scope.
    assert body[6] == (0 if gateway or ":" in destination else 253)


def test_routes_of_other_tables_and_kinds_are_none_of_ours() -> None:
    body = bytearray(nl.add_route(3, "10.0.0.0/8", "10.244.7.1").body)
    for place, value in ((0, 7), (4, 255), (7, 6)):
        other = bytearray(body)
        other[place] = value
        assert nl.read_route(bytes(other)) is None
    high = bytes(body) + nl.attribute(15, struct.pack("=I", 1000))
    assert nl.read_route(high) is None
    # One with several ways has no link of its own.
    assert nl.read_route(nl.add_route(3, "::/0", "fd42::1").body[:12]) is None


def test_a_link_tells_what_it_is() -> None:
    body = struct.pack("=BxHiII", 0, 1, 4, 0x1003, 0)
    body += nl.attribute(3, b"skpabc\0") + nl.attribute(4, struct.pack("=I", 1380))
    body += nl.attribute(1, bytes.fromhex("0e730af40702"))
    body += nl.attribute(10, struct.pack("=I", 2)) + nl.attribute(18, nl.attribute(1, b"veth\0"))
    link = nl.read_link(body)
    assert link == nl.Link(4, "skpabc", True, 1380, "0e:73:0a:f4:07:02", 2, "veth", False)  # noqa: FBT003 - as it is defined
    assert nl.read_link(body + nl.attribute(37, struct.pack("=i", 0))).elsewhere


def test_changes_of_a_link() -> None:
    _, _, body = parts(nl.set_link(4, "this", up=True, mtu=1280, master=2))
    assert struct.unpack_from("=iII", body, 4) == (4, 1, 1)
    found = nl.attributes(body[16:])
    assert (found[4], found[10]) == (struct.pack("=I", 1280), struct.pack("=I", 2))
    _, _, body = parts(nl.set_link(4, "that", mac="02:00:00:00:00:01"))
    assert struct.unpack_from("=iII", body, 4) == (4, 0, 0)
    for isolated in (True, False):
        _, _, body = parts(nl.set_port(4, "that", isolated=isolated))
        info = nl.attributes(nl.attributes(body[16:])[18])
        assert info[4] == b"bridge"
        assert nl.attributes(info[5]) == {4: b"\1", 8: b"\0", 33: bytes([isolated])}


def test_who_is_behind_a_port_and_who_has_an_address_is_said_and_not_learnt() -> None:
    mac = "0a:73:0a:f4:07:02"
    kind, flags, body = parts(nl.add_behind(4, mac))
    assert (kind, flags) == (28, Flag.REQUEST | Flag.ACK | Flag.CREATE | Flag.REPLACE)
    # Family bridge, static, of the bridge that the port is one of.
    assert struct.unpack_from("=BxHiHBB", body) == (7, 0, 4, 0x40, 4, 0)
    assert nl.attributes(body[12:])[2].hex(":") == mac
    for address, family, packed in (("10.244.7.2", 2, 4), ("fd42::2", 10, 16)):
        kind, _, body = parts(nl.add_neighbour(2, address, mac))
        assert kind == 28
        # Permanent.
        assert struct.unpack_from("=BxHiHBB", body) == (family, 0, 2, 0x80, 0, 0)
        found = nl.attributes(body[12:])
        assert (len(found[1]), found[2].hex(":")) == (packed, mac)
        kind, _, body = parts(nl.delete_neighbour(2, address))
        assert kind == 29
        assert nl.attributes(body[12:]) == {1: found[1]}


def test_answers_are_told_apart_by_number_and_kind() -> None:
    refused = HEAD.pack(20, Kind.ERROR, 0, 9, 0) + struct.pack("=i", -17)
    fine = HEAD.pack(20, Kind.DONE, 2, 10, 0) + struct.pack("=i", 0)
    found = list(nl.messages(refused + fine))
    assert [one[:2] for one in found] == [(Kind.ERROR, 9), (Kind.DONE, 10)]
    assert [nl.error_of(one[2]) for one in found] == [17, 0]
    # Half a message is none.
    assert list(nl.messages(refused[:19])) == []
    assert nl.error_of(b"") == 0


def test_a_table_is_told_from_another_of_its_name() -> None:
    kind, _, body = parts(nl.get_table("skerry-pods"))
    assert kind == Kind.GET_TABLE
    assert body[:4] == b"\1\0\0\0"
    assert nl.attributes(body[4:])[1] == b"skerry-pods\0"
    assert nl.read_table_handle(body[:4] + nl.attribute(4, b"\0" * 7 + b"\3")) == b"\0" * 7 + b"\3"


@given(st.binary(max_size=100))
def test_any_bytes_end(data: bytes) -> None:
    list(nl.messages(data))
    nl.attributes(data)


# The socket


class FakeKernel:
    """A socket whose other end answers each request with what is given for it, in turn."""

    def __init__(self, *answers: Callable[[int], bytes]) -> None:
        self.answers = list(answers)
        self.asked: list[int] = []

    def setsockopt(self, *_: object) -> None:
        pass

    def settimeout(self, _: float) -> None:
        pass

    def close(self) -> None:
        pass

    def send(self, data: bytes) -> None:
        self.asked.append(struct.unpack_from("=IHHII", data)[3])

    def recv(self, _: int) -> bytes:
        return self.answers.pop(0)(self.asked[-1])


def link_message(name: str, sequence: int, flags: int) -> bytes:
    body = struct.pack("=BxHiII", 0, 0, 7, 0, 0) + nl.attribute(3, name.encode() + b"\0")
    return struct.pack("=IHHII", 16 + len(body), Kind.NEW_LINK, flags, sequence, 0) + body


def listed(*names: str, flags: int = 0) -> Callable[[int], bytes]:
    def answer(sequence: int) -> bytes:
        done = struct.pack("=IHHIIi", 20, Kind.DONE, flags, sequence, 0, 0)
        return b"".join(link_message(name, sequence, 0) for name in names) + done

    return answer


def names_of(*answers: Callable[[int], bytes]) -> list[str]:
    kernel = FakeKernel(*answers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "socket", lambda *_: kernel)
        with Netlink() as netlink:
            return [one.name for one in netlink.links()]


def test_a_list_that_changed_while_it_was_given_is_asked_for_anew() -> None:
    """What was skipped in it may be the link of a running container."""
    assert names_of(listed("a", flags=0x10), listed("a", "b")) == ["a", "b"]
    with pytest.raises(KernelError) as caught:
        names_of(*[listed("a", flags=0x10)] * 16)
    assert caught.value.code == errno.EINTR


@given(st.binary(max_size=100))
def test_any_bytes_are_torn_or_not(data: bytes) -> None:
    assert nl.torn(data) in {True, False}
