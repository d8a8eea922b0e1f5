"""The control socket: sealed datagrams from and to WireGuard's own UDP port.

With a tunnel it is a pair of raw sockets with a BPF filter beside WireGuard's socket; without one
(setting ``vpn: off``) a pair of plain UDP sockets on the port.
"""

from __future__ import annotations

import array
import asyncio
import logging
import socket
import struct
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from appliance.overlay.bpf import assemble, control_filter
from appliance.overlay.config import FWMARK
from appliance.overlay.endpoint import Endpoint
from appliance.overlay.errors import OverlayError
from appliance.overlay.seal import DATAGRAM_MAX, DATAGRAM_MIN, looks_foreign

log = logging.getLogger(__name__)

Receiver = Callable[[bytes, Endpoint], None]
Admits = Callable[[str, float], bool]

# A burst must fit in between two turns of the loop (MACHINE.md: 222 of 2,000 packets by default).
RECEIVE_BUFFER = 2 * 1024 * 1024
# Then others have their turn, whatever is still waiting.
_DRAIN_AT_ONCE = 64
_SO_ATTACH_FILTER = 26
_IPV6_CHECKSUM = 7
_SOL_IPV6 = 41
_UDP = struct.Struct(">HHHH")
_READ_MAX = 2048
_SCOPE = 3


class ControlSocket:
    """Sends and receives datagrams of one UDP port. Made by `open_raw` or `open_plain`."""

    def __init__(
        self, ipv4: socket.socket, ipv6: socket.socket | None, port: int, *, raw: bool
    ) -> None:
        self._ipv4 = ipv4
        self._ipv6 = ipv6
        self._port = port
        self._raw = raw

    def listen(self, loop: asyncio.AbstractEventLoop, receiver: Receiver, admits: Admits) -> None:
        """Call ``receiver`` with every datagram from now on.

        ``admits(host, monotonic seconds)`` says whether to look at one from there at all.
        """
        loop.add_reader(self._ipv4, self._drain, self._ipv4, receiver, admits)
        if self._ipv6 is not None:
            loop.add_reader(self._ipv6, self._drain, self._ipv6, receiver, admits)

    def broadcast(self, data: bytes, hosts: Iterable[str]) -> None:
        """Send a datagram to the same port of these broadcast or multicast addresses."""
        for host in hosts:
            self.send(data, Endpoint(host, self._port))

    def send(self, data: bytes, destination: Endpoint) -> None:
        """Send a datagram if that can be done now; a lost one is repeated by the core."""
        sender = self._ipv6 if destination.is_ipv6 else self._ipv4
        if sender is None:
            return
        try:
            if self._raw:
                # A checksum of 0 means none (RFC 768); over IPv6 the kernel fills it in.
                header = _UDP.pack(self._port, destination.port, _UDP.size + len(data), 0)
                sender.sendto(header + data, (destination.host, 0))
            else:
                sender.sendto(data, (destination.host, destination.port))
        except OSError as error:
            log.debug("nothing sent to %s: %s", destination, error)

    def close(self, loop: asyncio.AbstractEventLoop) -> None:
        """Stop listening."""
        for one in (self._ipv4, self._ipv6):
            if one is not None:
                loop.remove_reader(one)
                one.close()

    def _drain(self, receiver_socket: socket.socket, receiver: Receiver, admits: Admits) -> None:
        now = time.monotonic()
        for _ in range(_DRAIN_AT_ONCE):
            try:
                packet, address = receiver_socket.recvfrom(_READ_MAX)
            except OSError:
                return  # drained, or an ICMP error of an earlier datagram
            if not admits(address[0], now):
                continue
            got = self._read(receiver_socket, packet, address)
            if got is not None:
                receiver(*got)

    def _read(
        self,
        receiver_socket: socket.socket,
        packet: bytes,
        address: tuple[str, int] | tuple[str, int, int, int],
    ) -> tuple[bytes, Endpoint] | None:
        if not self._raw:
            data, port = packet, address[1]
        else:
            ipv4 = receiver_socket.family == socket.AF_INET
            start = (packet[0] & 15) * 4 if ipv4 and packet else 0
            if len(packet) < start + _UDP.size:
                return None
            port, our_port, length, _ = _UDP.unpack_from(packet, start)
            data = packet[start + _UDP.size : start + length]
            if our_port != self._port:
                return None
        # The filter has said so already; the plain sockets have none.
        fits = DATAGRAM_MIN <= len(data) <= DATAGRAM_MAX
        if not fits or port == 0 or looks_foreign(data):
            return None
        # The fourth part is the interface of a link-local address, which means nothing without it.
        scope = f"%{address[_SCOPE]}" if len(address) > _SCOPE and address[_SCOPE] else ""
        return data, Endpoint(address[0] + scope, port)


def open_raw(port: int) -> ControlSocket:
    """Return the control socket beside WireGuard's. Needs CAP_NET_RAW and CAP_NET_ADMIN."""
    ipv4 = _raw(socket.AF_INET, port)
    ipv6 = None
    with suppress(OSError):  # a kernel without IPv6
        ipv6 = _raw(socket.AF_INET6, port)
    return ControlSocket(ipv4, ipv6, port, raw=True)


def open_plain(port: int) -> ControlSocket:
    """Return a control socket that owns the UDP port."""
    ipv4 = _plain(socket.AF_INET, "0.0.0.0", port)  # noqa: S104 - every uplink
    ipv6 = None
    with suppress(OSError):
        ipv6 = _plain(socket.AF_INET6, "::", port)
    return ControlSocket(ipv4, ipv6, port, raw=False)


def _raw(family: socket.AddressFamily, port: int) -> socket.socket:
    try:
        made = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_UDP)
    except PermissionError as error:
        raise OverlayError(
            "a raw socket is not allowed",
            hint="the supervisor needs CAP_NET_RAW and CAP_NET_ADMIN, as skerry.service gives it",
        ) from error
    try:
        attach_filter(made, assemble(control_filter(port, ipv6=family == socket.AF_INET6)))
        made.settimeout(0)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        if family == socket.AF_INET6:
            made.setsockopt(_SOL_IPV6, _IPV6_CHECKSUM, 6)
        _enlarge(made)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, FWMARK)
        # What came in before the filter was there.
        with suppress(OSError):
            while True:
                made.recv(_READ_MAX)
    except OSError:
        made.close()
        raise
    return made


def _plain(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_DGRAM)
    try:
        if family == socket.AF_INET6:
            made.setsockopt(_SOL_IPV6, socket.IPV6_V6ONLY, 1)
        made.settimeout(0)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        _enlarge(made)
        made.bind((host, port))
    except OSError as error:
        made.close()
        if family == socket.AF_INET6:
            raise
        raise OverlayError(
            f"UDP port {port} can't be used: {error.strerror}",
            hint="is another program listening there? `ss -ulpn` names it",
        ) from error
    return made


def attach_filter(target: socket.socket, program: bytes) -> None:
    """Attach a classic BPF program (socket(7), SO_ATTACH_FILTER)."""
    instructions = array.array("B", program)
    # struct sock_fprog: number of instructions, pointer; native alignment.
    fprog = struct.pack("HP", len(program) // 8, instructions.buffer_info()[0])
    target.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)


def _enlarge(target: socket.socket) -> None:
    force = 33  # SO_RCVBUFFORCE goes beyond net.core.rmem_max, given CAP_NET_ADMIN
    try:
        target.setsockopt(socket.SOL_SOCKET, force, RECEIVE_BUFFER)
    except OSError:
        target.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
