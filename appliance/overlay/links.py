"""Interfaces, addresses and routes through netlink. Calls block: one worker thread makes them."""

from __future__ import annotations

import errno
import ipaddress
import logging
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from appliance.overlay.config import MTU, NEVER_UPLINKS, UPLINKS
from appliance.overlay.endpoint import IPNetwork
from appliance.overlay.errors import OverlayError

# At level DEBUG it logs whole messages, private keys among them.
logging.getLogger("pyroute2").setLevel(logging.WARNING)

# rtnetlink(7): what makes our view of the uplinks stale.
_GROUPS = 0x1 | 0x10 | 0x100  # links, IPv4 addresses, IPv6 addresses
_IFF_UP = 0x1
_IFA_F_UNUSABLE = 0x08 | 0x20 | 0x40  # duplicate, deprecated, tentative
_IFA_F_TEMPORARY = 0x01
# An address that leads to this machine and nowhere else (rtnetlink(7)).
_SCOPE_HOST = 254
_READ_MAX = 65536
SETTLE_SECONDS = 0.3
_POINT_TO_POINT = 31
# Marks our routes beside those of others (rtnetlink(7), rtm_protocol: above 4 is free for users).
ROUTE_PROTOCOL = 83
_RTN_UNREACHABLE = 7
# After every route that anybody sets without thinking of metrics.
_LAST_METRIC = 0x7FFFFFFF
# The bridge of the node's pods: no way to another member, whatever the patterns say.
_PODS = "skerry-pods*"


@dataclass(frozen=True, slots=True)
class UplinkAddress:
    """An address of an uplink; ``mtu`` is the interface's."""

    interface: str
    host: str
    prefix: int
    mtu: int = 1500


def is_uplink(name: str, patterns: tuple[str, ...] | None, *, own: str) -> bool:
    """Say whether members may be looked for on an interface."""
    if name == own or fnmatchcase(name, _PODS):
        return False
    if patterns is not None:
        return any(fnmatchcase(name, one) for one in patterns)
    return any(fnmatchcase(name, one) for one in UPLINKS) and not any(
        fnmatchcase(name, one) for one in NEVER_UPLINKS
    )


def exists(interface: str) -> bool:
    """Say whether there is an interface of this name."""
    try:
        socket.if_nametoindex(interface)
    except OSError:
        return False
    return True


def uplink_addresses(patterns: tuple[str, ...] | None, *, own: str) -> tuple[UplinkAddress, ...]:
    """Return the usable addresses of the uplinks that are up, IPv4 first.

    Without those that are for the machine's own use: the API's address, on the LAN, is one of
    whichever server leads (`appliance.kubernetes.lan_edge`).
    """
    with IPRoute() as netlink:
        links = {
            link["index"]: (str(link.get("ifname")), int(link.get("mtu") or 1500))
            for link in netlink.link("dump")
            if link["flags"] & _IFF_UP
        }
        found = []
        for one in netlink.addr("dump"):
            name, mtu = links.get(one["index"], (None, 0))
            host = one.get("local") or one.get("address")
            flags = one.get("flags") or 0
            if name is None or host is None or not is_uplink(name, patterns, own=own):
                continue
            address = ipaddress.ip_address(host)
            if one["scope"] == _SCOPE_HOST:
                continue
            if address.version == 6 and (
                address.is_link_local or flags & (_IFA_F_UNUSABLE | _IFA_F_TEMPORARY)
            ):
                continue
            found.append(UplinkAddress(name, str(address), one["prefixlen"], mtu))
    return tuple(sorted(found, key=lambda one: (":" in one.host, one.interface, one.host)))


def broadcast_hosts(uplinks: Iterable[UplinkAddress]) -> tuple[str, ...]:
    """Return the addresses that reach everybody on the uplinks: IPv4 broadcast, IPv6 all nodes."""
    found: dict[str, None] = {}
    for one in uplinks:
        if ":" in one.host:
            found[f"ff02::1%{one.interface}"] = None
        elif one.prefix < _POINT_TO_POINT:
            network = ipaddress.IPv4Interface(f"{one.host}/{one.prefix}").network
            found[str(network.broadcast_address)] = None
    return tuple(found)


def set_up(interface: str) -> None:
    """Give the tunnel its MTU and bring it up. Raises OverlayError."""
    with IPRoute() as netlink:
        index = _index(netlink, interface)
        try:
            netlink.link("set", index=index, mtu=MTU, state="up")
        except NetlinkError as error:
            hint = "`journalctl -k` may say more"
            if error.code == errno.EADDRINUSE:
                hint = "another program has WireGuard's UDP port; `ss -ulpn` names it"
            raise OverlayError(f"{interface} can't be brought up: {error}", hint=hint) from error


def set_addresses(
    interface: str,
    addresses: Iterable[ipaddress.IPv4Address | ipaddress.IPv6Address],
    ranges: Iterable[IPNetwork],
) -> None:
    """Make the tunnel's addresses be these and lead the ranges into it. Raises OverlayError.

    Addresses are single ones (/32, /128), with routes of their own: taking one away never takes
    others along, as it would with a common prefix. New ones come before old ones go.
    """
    wanted = {str(one) for one in addresses}
    try:
        with IPRoute() as netlink:
            index = _index(netlink, interface)
            present = {
                str(one.get("local") or one.get("address")): one["prefixlen"]
                for one in netlink.addr("dump", index=index)
            }
            for host in sorted(wanted - present.keys()):
                netlink.addr("add", index=index, address=host, prefixlen=_full(host))
            for network in ranges:
                netlink.route("replace", dst=str(network), oif=index, family=_family(network))
            for host, prefix in present.items():
                if host not in wanted and not ipaddress.ip_address(host).is_link_local:
                    netlink.addr("del", index=index, address=host, prefixlen=prefix)
    except NetlinkError as error:
        raise OverlayError(
            f"the addresses of {interface} can't be set: {error}",
            hint="does the network's host_range clash with a route of this machine? `ip route`",
        ) from error


def refuse_locally(networks: Iterable[IPNetwork]) -> None:
    """Let nothing for these leave the machine unless something here takes it. Raises OverlayError.

    They are this node's own, inside ranges that lead into the tunnel: without the bridge of its
    pods, a packet for one of them would be sent back to where it came from. The bridge's own route
    comes before these. Routes of earlier networks are taken away.
    """
    wanted = {str(one): one for one in networks}
    try:
        with IPRoute() as netlink:
            for family in (socket.AF_INET, socket.AF_INET6):
                for one in netlink.get_routes(family=family):
                    ours = one["proto"] == ROUTE_PROTOCOL and one["type"] == _RTN_UNREACHABLE
                    text = f"{one.get('dst')}/{one['dst_len']}"
                    if ours and wanted.pop(text, None) is None:
                        _refusal(netlink, "del", ipaddress.ip_network(text))
            for network in wanted.values():
                _refusal(netlink, "replace", network)
    except NetlinkError as error:
        raise OverlayError(
            f"the routes of this node's pods can't be set: {error}", hint="`ip route` shows them"
        ) from error


def _refusal(netlink: IPRoute, command: str, network: IPNetwork) -> None:
    netlink.route(
        command,
        dst=str(network),
        type="unreachable",
        proto=ROUTE_PROTOCOL,
        priority=_LAST_METRIC,
        family=_family(network),
    )


def open_monitor() -> socket.socket:
    """Return a netlink socket that becomes readable when links or addresses change."""
    monitor = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
    )
    monitor.settimeout(0)
    monitor.bind((0, _GROUPS))
    return monitor


def drain_monitor(monitor: socket.socket, notify: Callable[[], None]) -> None:
    """Read what there is and say once that something has changed.

    An overrun (ENOBUFS) says so too: messages were lost, so look.
    """
    while True:
        try:
            monitor.recv(_READ_MAX)
        except BlockingIOError:
            break
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                break
    notify()


def _index(netlink: IPRoute, interface: str) -> int:
    found = netlink.link_lookup(ifname=interface)
    if not found:
        raise OverlayError(
            f"there is no interface {interface}",
            hint="it is made when the supervisor starts; who removed it?",
        )
    return int(found[0])


def _full(host: str) -> int:
    return 128 if ":" in host else 32


def _family(network: IPNetwork) -> int:
    return socket.AF_INET if network.version == 4 else socket.AF_INET6
