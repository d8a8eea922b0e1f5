"""The node's own DNS server: UDP and TCP on one loopback address, answered from memory.

It asks nobody and forwards nothing. systemd-resolved is its one real client.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Callable
from contextlib import suppress

from appliance.config import RESOLVER_PORT
from appliance.names import wire
from appliance.names.ranges import HOST, NamesError
from appliance.names.zone import TCP_LIMIT, UDP_LIMIT, Zone, answer

log = logging.getLogger(__name__)

PORT = RESOLVER_PORT
# Queries answered before the event loop turns to something else.
PER_TURN = 16
CONNECTIONS = 16
IDLE_SECONDS = 5.0
_LARGEST = 65535


class Resolver:
    """Answers questions about the zone that ``table`` returns at that moment.

    None: nothing is known yet. That is said (SERVFAIL), which is not "there is no such name".
    """

    def __init__(
        self, table: Callable[[], Zone | None], *, host: str = HOST, port: int = PORT
    ) -> None:
        if not _is_loopback(host):
            raise NamesError(
                f"names are served on a loopback address only, not on {host}",
                hint=f"use one of 127.0.0.0/8; the node's is {HOST}",
            )
        self._table = table
        self._host = host
        self._port = port
        self._datagrams: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._defects: set[str] = set()

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens; with port 0, known once it is started."""
        return self._host, self._port

    async def start(self) -> None:
        """Listen on both. Raises NamesError; then nothing is left open."""
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        datagrams.settimeout(0)
        try:
            datagrams.bind(self.address)
            self._port = datagrams.getsockname()[1]
            self._server = await asyncio.start_server(self._accept, *self.address)
        except OSError as error:
            datagrams.close()
            raise NamesError(
                f"names can't be served on {self._host} port {self._port}: "
                f"{error.strerror or error}",
                hint="`ss -lunp` and `ss -ltnp` say who has the port; it is tried again by itself",
            ) from error
        self._datagrams = datagrams
        asyncio.get_running_loop().add_reader(datagrams, self._readable, datagrams)

    async def stop(self) -> None:
        """Stop listening and end what is open."""
        if self._datagrams is not None:
            asyncio.get_running_loop().remove_reader(self._datagrams)
            self._datagrams.close()
            self._datagrams = None
        if self._server is not None:
            self._server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._server.wait_closed()
            self._server = None

    def _readable(self, datagrams: socket.socket) -> None:
        for _ in range(PER_TURN):
            try:
                data, source = datagrams.recvfrom(_LARGEST)
            except OSError:  # nothing is left; or the kernel tells of an answer nobody took
                return
            if not _is_loopback(source[0]):
                continue  # only where route_localnet is on: not for other machines all the same
            reply = self._answer(data, UDP_LIMIT, datagram=True)
            if reply is not None:
                with suppress(OSError):  # a lost answer is asked for again
                    datagrams.sendto(reply, source)

    def _answer(self, data: bytes, limit: int, *, datagram: bool) -> bytes | None:
        try:
            zone = self._table()
            if zone is not None:
                return answer(data, zone, limit=limit, datagram=datagram)
        except Exception as error:  # the server outlives a defect, which is told once
            if (kind := type(error).__name__) not in self._defects:
                self._defects.add(kind)
                log.exception("a defect while answering a question about a name")
        return wire.failure(data)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        source = writer.get_extra_info("peername")
        if task is None or len(self._tasks) >= CONNECTIONS or not _is_loopback(source[0]):
            writer.close()
            return
        self._tasks.add(task)
        try:
            await self._converse(reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # the other end went away, or says nothing (RFC 7766, 6.2.3)
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one question after the other, each behind its length (RFC 1035, 4.2.2)."""
        while True:
            async with asyncio.timeout(IDLE_SECONDS):
                size = int.from_bytes(await reader.readexactly(2))
                data = await reader.readexactly(size)
                reply = self._answer(data, TCP_LIMIT, datagram=False)
                if reply is None:
                    return
                writer.write(len(reply).to_bytes(2) + reply)
                await writer.drain()
            await asyncio.sleep(0)  # who has sent many questions at once is not served in one turn


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.IPv4Address(host).is_loopback
    except ValueError:
        return False
