"""What we say to the kernel by netlink, and what it says, as bytes (rtnetlink(7), if_link.h).

pyroute2 is not used here: a container waits for each of these messages, and sockets in other
namespaces have to be made by hand anyway. Nothing in this module touches a socket.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

_HEAD = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_NEIGHBOUR = struct.Struct("=BxHiHBB")
_FILTER = struct.Struct(">BBH")
_ROUTE = struct.Struct("=BBBBBBBBI")
_ERRNO = struct.Struct("=i")
_TYPE_MASK = 0x3FFF
# Of an answer: what was listed changed meanwhile, so something may be missing (linux/netlink.h).
_DUMP_TORN = 0x10
_AF_INET, _AF_INET6 = 2, 10
_UP = 0x1
_NO_DAD = 0x02
# Locally administered, and different from the container's.
_HOST_MAC = "0e"
_MAIN_TABLE = 254
_PROTO_STATIC, _SCOPE_UNIVERSE, _SCOPE_LINK, _UNICAST = 4, 0, 253, 1


class Kind(IntEnum):
    """Types of messages."""

    ERROR = 2
    DONE = 3
    NEW_LINK = 16
    DEL_LINK = 17
    GET_LINK = 18
    NEW_ADDRESS = 20
    GET_ADDRESS = 22
    NEW_ROUTE = 24
    GET_ROUTE = 26
    NEW_NEIGHBOUR = 28
    DEL_NEIGHBOUR = 29
    GET_TABLE = 0x0A01


class Flag(IntEnum):
    """Flags of requests."""

    REQUEST = 0x1
    ACK = 0x4
    DUMP = 0x300
    REPLACE = 0x100
    EXCLUSIVE = 0x200
    CREATE = 0x400


_IFLA_ADDRESS, _IFLA_NAME, _IFLA_MTU, _IFLA_MASTER, _IFLA_INFO = 1, 3, 4, 10, 18
_IFLA_NETNS_FD, _IFLA_NETNS_ID = 28, 37
_INFO_KIND, _INFO_DATA, _INFO_PORT_KIND, _INFO_PORT_DATA = 1, 2, 4, 5
_VETH_PEER = 1
_BRIDGE_SNOOPING = 23
_PORT_HAIRPIN, _PORT_LEARNING, _PORT_ISOLATED = 4, 8, 33
# linux/neighbour.h
_AF_BRIDGE, _OF_THE_BRIDGE, _STATIC, _PERMANENT = 7, 0x04, 0x40, 0x80
_NDA_ADDRESS, _NDA_MAC = 1, 2
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
# linux/netfilter/nf_tables.h
_NFPROTO_INET, _TABLE_NAME, _TABLE_HANDLE = 1, 1, 4
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_TABLE = 1, 4, 5, 15


@dataclass(frozen=True, slots=True)
class Request:
    """One message to send; ``what`` tells a person what it was for."""

    kind: Kind
    flags: int
    body: bytes
    what: str

    def encode(self, sequence: int) -> bytes:
        """Return its bytes."""
        flags = Flag.REQUEST | self.flags
        return _HEAD.pack(_HEAD.size + len(self.body), self.kind, flags, sequence, 0) + self.body


@dataclass(frozen=True, slots=True)
class Link:
    """A link as the kernel tells of it; ``elsewhere``: its peer is in another namespace."""

    index: int
    name: str
    up: bool
    mtu: int
    mac: str
    master: int
    kind: str
    elsewhere: bool


@dataclass(frozen=True, slots=True)
class LinkAddress:
    """An address of a link, with its prefix."""

    index: int
    address: str


@dataclass(frozen=True, slots=True)
class LinkRoute:
    """A route of the main table."""

    index: int
    destination: str
    gateway: str


def attribute(kind: int, data: bytes) -> bytes:
    """Return one attribute, padded."""
    return _ATTRIBUTE.pack(4 + len(data), kind) + data + bytes(-len(data) % 4)


def attributes(data: bytes) -> dict[int, bytes]:
    """Return the attributes in a buffer by kind. What does not fit any more is left out."""
    found = {}
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if not _ATTRIBUTE.size <= length <= len(data):
            break
        found[kind & _TYPE_MASK] = data[4:length]
        data = data[(length + 3) & ~3 :]
    return found


def messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield kind, sequence and body of each message in a datagram."""
    while len(data) >= _HEAD.size:
        length, kind, _, sequence, _ = _HEAD.unpack_from(data)
        if not _HEAD.size <= length <= len(data):
            break
        yield kind, sequence, data[_HEAD.size : length]
        data = data[(length + 3) & ~3 :]


def torn(data: bytes) -> bool:
    """Say whether a datagram is of a list that is not one moment's: it has to be asked for anew."""
    while len(data) >= _HEAD.size:
        length, _, flags, _, _ = _HEAD.unpack_from(data)
        if flags & _DUMP_TORN:
            return True
        if not _HEAD.size <= length <= len(data):
            break
        data = data[(length + 3) & ~3 :]
    return False


def error_of(body: bytes) -> int:
    """Return the errno in an ERROR or DONE message, 0 if all went well."""
    return -int(_ERRNO.unpack_from(body)[0]) if len(body) >= _ERRNO.size else 0


# Requests


def make_bridge(name: str, mtu: int, mac: str) -> Request:
    """Make a bridge; there must be none of this name."""
    data = attribute(_BRIDGE_SNOOPING, b"\0")
    info = attribute(_INFO_KIND, b"bridge") + attribute(_INFO_DATA, data)
    body = _link(name=name, mtu=mtu, mac=mac) + attribute(_IFLA_INFO, info)
    return Request(Kind.NEW_LINK, _NEW, body, f"making the bridge {name}")


def make_veth(host: str, namespace: int, ifname: str, mtu: int, mac: str) -> Request:
    """Make a pair, one end of it in an opened namespace; ``mac`` is that one's.

    The node's end gets one as well: udev would change it later on.
    """
    peer = _link(name=ifname, mtu=mtu, mac=mac)
    peer += attribute(_IFLA_NETNS_FD, struct.pack("=I", namespace))
    data = attribute(_VETH_PEER, peer)
    info = attribute(_INFO_KIND, b"veth") + attribute(_INFO_DATA, data)
    own = _HOST_MAC + mac[2:]
    body = _link(name=host, mtu=mtu, mac=own) + attribute(_IFLA_INFO, info)
    return Request(Kind.NEW_LINK, _NEW, body, f"making {ifname} in the container")


def set_link(
    index: int, what: str, *, up: bool = False, mtu: int = 0, mac: str = "", master: int = 0
) -> Request:
    """Change a link: what is given of it, and set it up if ``up``."""
    body = _link(index=index, up=up, mtu=mtu, mac=mac)
    if master:
        body += attribute(_IFLA_MASTER, struct.pack("=I", master))
    return Request(Kind.NEW_LINK, Flag.ACK, body, what)


def set_port(index: int, what: str, *, isolated: bool) -> Request:
    """Say how a port of a bridge is to be; who is behind it, it does not learn from frames."""
    data = attribute(_PORT_HAIRPIN, b"\1") + attribute(_PORT_LEARNING, b"\0")
    data += attribute(_PORT_ISOLATED, bytes([isolated]))
    info = attribute(_INFO_PORT_KIND, b"bridge") + attribute(_INFO_PORT_DATA, data)
    return Request(Kind.NEW_LINK, Flag.ACK, _link(index=index) + attribute(_IFLA_INFO, info), what)


def delete_link(name: str) -> Request:
    """Remove a link."""
    return Request(Kind.DEL_LINK, Flag.ACK, _link(name=name), f"removing {name}")


def get_link(name: str) -> Request:
    """Ask for one link."""
    return Request(Kind.GET_LINK, Flag.ACK, _link(name=name), f"looking for {name}")


def get_links() -> Request:
    """Ask for all links."""
    return Request(Kind.GET_LINK, Flag.DUMP, _link(), "listing links")


def add_address(index: int, address: str) -> Request:
    """Give a link an address with its prefix; it is used at once, nobody is asked whose it is."""
    given = ipaddress.ip_interface(address)
    body = _ADDRESS.pack(_family(given.version), given.network.prefixlen, _NO_DAD, 0, index)
    body += attribute(_IFA_LOCAL, given.ip.packed) + attribute(_IFA_ADDRESS, given.ip.packed)
    body += attribute(_IFA_FLAGS, struct.pack("=I", _NO_DAD))
    flags = Flag.ACK | Flag.CREATE | Flag.REPLACE
    return Request(Kind.NEW_ADDRESS, flags, body, f"setting the address {address}")


def get_addresses(index: int) -> Request:
    """Ask for the addresses of all links; a kernel that can gives only those of this one."""
    return Request(Kind.GET_ADDRESS, Flag.DUMP, _ADDRESS.pack(0, 0, 0, 0, index), "listing them")


def add_behind(index: int, mac: str) -> Request:
    """Have a bridge know who is behind a port."""
    body = _NEIGHBOUR.pack(_AF_BRIDGE, 0, index, _STATIC, _OF_THE_BRIDGE, 0)
    body += attribute(_NDA_MAC, _packed(mac))
    flags = Flag.ACK | Flag.CREATE | Flag.REPLACE
    return Request(Kind.NEW_NEIGHBOUR, flags, body, f"saying where {mac} is")


def add_neighbour(index: int, address: str, mac: str) -> Request:
    """Have the node know who has an address on a link; it asks nobody and believes nobody."""
    body = _neighbour(index, address) + attribute(_NDA_MAC, _packed(mac))
    flags = Flag.ACK | Flag.CREATE | Flag.REPLACE
    return Request(Kind.NEW_NEIGHBOUR, flags, body, f"saying who has {address}")


def delete_neighbour(index: int, address: str) -> Request:
    """Have the node forget who has an address."""
    body = _neighbour(index, address)
    return Request(Kind.DEL_NEIGHBOUR, Flag.ACK, body, f"forgetting who has {address}")


def add_route(index: int, destination: str, gateway: str) -> Request:
    """Have a route; without a gateway the destination is on the link."""
    network = ipaddress.ip_network(destination)
    scope = _SCOPE_UNIVERSE if gateway or network.version == 6 else _SCOPE_LINK
    body = _ROUTE.pack(
        *(_family(network.version), network.prefixlen, 0, 0),
        *(_MAIN_TABLE, _PROTO_STATIC, scope, _UNICAST, 0),
    )
    if network.prefixlen:
        body += attribute(_RTA_DST, network.network_address.packed)
    if gateway:
        body += attribute(_RTA_GATEWAY, ipaddress.ip_address(gateway).packed)
    body += attribute(_RTA_OIF, struct.pack("=I", index))
    flags = Flag.ACK | Flag.CREATE | Flag.REPLACE
    return Request(Kind.NEW_ROUTE, flags, body, f"setting the route to {destination}")


def get_routes() -> Request:
    """Ask for all routes."""
    return Request(Kind.GET_ROUTE, Flag.DUMP, _ROUTE.pack(*[0] * 9), "listing routes")


def get_table(name: str) -> Request:
    """Ask nftables for a table of family inet."""
    body = _FILTER.pack(_NFPROTO_INET, 0, 0) + attribute(_TABLE_NAME, name.encode() + b"\0")
    return Request(Kind.GET_TABLE, Flag.ACK, body, f"looking for the table {name}")


# Answers


def read_link(body: bytes) -> Link:
    """Return the link in the body of a NEW_LINK."""
    _, _, index, flags, _ = _LINK.unpack_from(body)
    found = attributes(body[_LINK.size :])
    info = attributes(found.get(_IFLA_INFO, b""))
    return Link(
        index,
        _text(found.get(_IFLA_NAME, b"")),
        bool(flags & _UP),
        _number(found.get(_IFLA_MTU, b"")),
        found.get(_IFLA_ADDRESS, b"").hex(":"),
        _number(found.get(_IFLA_MASTER, b"")),
        _text(info.get(_INFO_KIND, b"")),
        _IFLA_NETNS_ID in found,
    )


def read_address(body: bytes) -> LinkAddress | None:
    """Return the address in the body of a NEW_ADDRESS."""
    family, prefix, _, _, index = _ADDRESS.unpack_from(body)
    found = attributes(body[_ADDRESS.size :])
    packed = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)
    if packed is None or family not in (_AF_INET, _AF_INET6):
        return None
    return LinkAddress(index, f"{ipaddress.ip_address(packed)}/{prefix}")


def read_route(body: bytes) -> LinkRoute | None:
    """Return the route in the body of a NEW_ROUTE, None for those that lead nowhere by one link."""
    family, prefix, _, _, table, _, _, kind, _ = _ROUTE.unpack_from(body)
    found = attributes(body[_ROUTE.size :])
    table = _number(found.get(_RTA_TABLE, b"")) or table
    wrong = family not in (_AF_INET, _AF_INET6) or kind != _UNICAST or table != _MAIN_TABLE
    if wrong or _RTA_OIF not in found:
        return None
    packed = found.get(_RTA_DST) or bytes(4 if family == _AF_INET else 16)
    gateway = found.get(_RTA_GATEWAY)
    return LinkRoute(
        _number(found[_RTA_OIF]),
        f"{ipaddress.ip_address(packed)}/{prefix}",
        str(ipaddress.ip_address(gateway)) if gateway else "",
    )


def read_table_handle(body: bytes) -> bytes:
    """Return what tells a table from any other that has its name before or after it."""
    return attributes(body[_FILTER.size :]).get(_TABLE_HANDLE, b"")


_NEW = Flag.ACK | Flag.CREATE | Flag.EXCLUSIVE


def _link(
    *, index: int = 0, name: str = "", up: bool = False, mtu: int = 0, mac: str = ""
) -> bytes:
    flags = _UP if up else 0
    body = _LINK.pack(0, 0, index, flags, flags)
    if name:
        body += attribute(_IFLA_NAME, name.encode() + b"\0")
    if mtu:
        body += attribute(_IFLA_MTU, struct.pack("=I", mtu))
    if mac:
        body += attribute(_IFLA_ADDRESS, _packed(mac))
    return body


def _neighbour(index: int, address: str) -> bytes:
    given = ipaddress.ip_address(address)
    body = _NEIGHBOUR.pack(_family(given.version), 0, index, _PERMANENT, 0, 0)
    return body + attribute(_NDA_ADDRESS, given.packed)


def _packed(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def _family(version: int) -> int:
    return _AF_INET if version == 4 else _AF_INET6


def _number(data: bytes) -> int:
    return int.from_bytes(data[:4], "little" if struct.pack("=H", 1) == b"\1\0" else "big")


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode(errors="replace")
