"""`lan_address.Lan` on a machine: netlink for the address, a packet socket for ARP. Root."""

from __future__ import annotations

import ipaddress
import logging
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from appliance.kubernetes import arp
from appliance.kubernetes.lan_address import Port

# At level DEBUG it logs whole messages.
logging.getLogger("pyroute2").setLevel(logging.WARNING)

_FULL = 32
# By its scope the address is known again. Nor does the kernel take it for what it sends itself.
_SCOPE_HOST = 254
_ETHERNET = 1
# Machines of a LAN answer within milliseconds; the first question may get lost.
_QUESTIONS = 3
_PAUSE_SECONDS = 0.2
_FRAME_MAX = 256
_FRAMES_MAX = 4096


class MachineLan:
    """The LAN of this network namespace."""

    def __init__(self) -> None:
        self._ear: tuple[int, socket.socket] | None = None

    def find(self, node_address: str) -> Port | None:
        """Return the interface that has a node's address."""
        with IPRoute() as netlink, _as_os_errors():
            found = list(netlink.addr("dump", family=socket.AF_INET))
            index = next((one["index"] for one in found if _host(one) == node_address), None)
            if index is None:
                return None
            (link, *_) = netlink.link("get", index=index)
        mac = bytes.fromhex(str(link.get("address") or "").replace(":", ""))
        addresses = tuple(
            ipaddress.IPv4Interface(f"{_host(one)}/{one['prefixlen']}")
            for one in found
            if one["index"] == index and not _is_ours(one)
        )
        ethernet = link["ifi_type"] == _ETHERNET
        return Port(index, str(link.get("ifname")), mac if ethernet else b"", addresses)

    def ask(self, port: Port, address: ipaddress.IPv4Address) -> bytes | None:
        """Ask thrice whether anybody has an address; return the MAC of who does."""
        question = arp.probe(port.mac, address)
        with _open(port) as channel:
            for _ in range(_QUESTIONS):
                channel.send(question)
                until = time.monotonic() + _PAUSE_SECONDS
                while (left := until - time.monotonic()) > 0:
                    channel.settimeout(left)
                    try:
                        frame = channel.recv(_FRAME_MAX)
                    except TimeoutError:
                        break
                    if (other := arp.claims(frame, address, own=port.mac)) is not None:
                        return other
        return None

    def put(self, port: Port, address: ipaddress.IPv4Address, seconds: int) -> None:
        """Put an address on an interface for so long, or for so long again."""
        with IPRoute() as netlink, _as_os_errors():
            netlink.addr(
                "replace",
                index=port.index,
                address=str(address),
                prefixlen=_FULL,
                scope=_SCOPE_HOST,
                valid_lft=seconds,
                preferred_lft=seconds,
            )

    def announce(self, port: Port, address: ipaddress.IPv4Address) -> None:
        """Tell everybody, and listen from then on.

        The question besides is for who has it too: many answer that, and say nothing to the rest.
        """
        channel = self._listen(port)
        for frame in (*arp.announcements(port.mac, address), arp.probe(port.mac, address)):
            channel.send(frame)

    def heard(self, port: Port, address: ipaddress.IPv4Address) -> bytes | None:
        """Return the MAC of another machine that said since that it has the address."""
        found = None
        for frame in self._frames(port):
            found = arp.claims(frame, address, own=port.mac) or found
        return found

    def remove(self, address: ipaddress.IPv4Address) -> None:
        """Take the address away from wherever it was put."""
        self._deafen()
        with IPRoute() as netlink, _as_os_errors():
            for one in netlink.addr("dump", family=socket.AF_INET):
                if _is_ours(one) and _host(one) == str(address):
                    netlink.addr("del", index=one["index"], address=str(address), prefixlen=_FULL)

    def _listen(self, port: Port) -> socket.socket:
        if self._ear is None or self._ear[0] != port.index:
            self._deafen()
            channel = _open(port)
            channel.settimeout(0)
            self._ear = port.index, channel
        return self._ear[1]

    def _frames(self, port: Port) -> Iterator[bytes]:
        if self._ear is None or self._ear[0] != port.index:
            return
        with suppress(BlockingIOError):
            for _ in range(_FRAMES_MAX):
                yield self._ear[1].recv(_FRAME_MAX)

    def _deafen(self) -> None:
        if self._ear is not None:
            self._ear[1].close()
            self._ear = None


class _as_os_errors:  # noqa: N801 - reads as a word
    """Turns netlink's errors into OSErrors."""

    def __enter__(self) -> None:
        """Nothing to begin."""

    def __exit__(self, _kind: object, error: object, _traceback: object) -> None:
        if isinstance(error, NetlinkError):
            raise OSError(error.code, str(error)) from error


def _open(port: Port) -> socket.socket:
    # Protocol 0 until it is bound: else it would hear all interfaces for a moment.
    channel = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    try:
        channel.bind((port.name, arp.ETHERTYPE))
    except OSError:
        channel.close()
        raise
    return channel


def _host(one: Any) -> str:  # noqa: ANN401 - pyroute2's messages have no types
    return str(one.get("local") or one.get("address"))


def _is_ours(one: Any) -> bool:  # noqa: ANN401 - pyroute2's messages have no types
    return bool(one["prefixlen"] == _FULL and one["scope"] == _SCOPE_HOST)
