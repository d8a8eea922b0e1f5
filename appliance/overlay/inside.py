"""The socket for our datagrams inside the tunnel, on the node's IPv6 overlay address only."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Callable

from appliance.overlay.errors import OverlayError

log = logging.getLogger(__name__)

Receiver = Callable[[bytes, str], None]
_DRAIN_AT_ONCE = 256
_READ_MAX = 2048
_RECEIVE_BUFFER = 256 * 1024


class InsideSocket:
    """A UDP socket bound to the overlay address and the tunnel's interface."""

    def __init__(self, made: socket.socket, port: int) -> None:
        self._socket = made
        self._port = port

    @classmethod
    def open(cls, address: ipaddress.IPv6Address, port: int, interface: str) -> InsideSocket:
        """Return the socket. Raises OverlayError."""
        made = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        try:
            made.settimeout(0)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode() + b"\0")
            made.bind((str(address), port))
        except OSError as error:
            made.close()
            raise OverlayError(
                f"port {port} of {address} on {interface} can't be used: {error.strerror}",
                hint="is another supervisor running on this interface?",
            ) from error
        return cls(made, port)

    def listen(self, loop: asyncio.AbstractEventLoop, receiver: Receiver) -> None:
        """Call ``receiver`` with every datagram and its source address from now on."""
        loop.add_reader(self._socket, self._drain, receiver)

    def send(self, data: bytes, destination: str) -> None:
        """Send a datagram if that can be done now."""
        try:
            self._socket.sendto(data, (destination, self._port))
        except OSError as error:
            log.debug("nothing sent to %s: %s", destination, error)

    def close(self, loop: asyncio.AbstractEventLoop) -> None:
        """Stop listening."""
        loop.remove_reader(self._socket)
        self._socket.close()

    def _drain(self, receiver: Receiver) -> None:
        for _ in range(_DRAIN_AT_ONCE):
            try:
                data, address = self._socket.recvfrom(_READ_MAX)
            except OSError:
                return
            receiver(data, str(address[0]).partition("%")[0])
