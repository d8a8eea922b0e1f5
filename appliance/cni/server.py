"""The socket that our shim talks to: root only, one request each, bounded in size and time.

Both ways a frame is a big-endian 4-byte length and that many bytes. A request is the JSON that
`spec.read_request` reads, with the opened namespace of the container (SCM_RIGHTS) beside its first
bytes where there is one; an answer is one byte, the exit status, and what the shim is to print.
"""

from __future__ import annotations

import array
import asyncio
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from appliance.cni.errors import CniError, Code
from appliance.cni.results import render_error
from appliance.cni.spec import BODY_MAX

log = logging.getLogger(__name__)

SOCKET = "cni.sock"
LENGTH = struct.Struct(">I")
# Twice what may wait in the queues; who is turned away tries again.
CONNECTIONS_MAX = 2048
_BACKLOG = 512
_READ_SECONDS = 10.0
_WRITE_SECONDS = 10.0
_READ_MAX = 1 << 16
_RIGHTS_MAX = 4
_CREDENTIALS = struct.Struct("3i")


@dataclass(frozen=True, slots=True)
class Answer:
    """What the shim prints, and what it exits with."""

    status: int
    text: bytes

    def encode(self) -> bytes:
        """Return the frame."""
        return LENGTH.pack(len(self.text) + 1) + bytes([self.status]) + self.text


class Caller:
    """Who waits for an answer."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def gone(self) -> bool:
        """Say whether nobody waits any more."""
        try:
            return not self._connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True


# The body, the opened namespace (closed by the server afterwards), and who asks.
Handle = Callable[[bytes, int | None, Caller], Awaitable[Answer]]


class CniServer:
    """Listens in a folder of its own, which only root can enter."""

    def __init__(self, folder: Path, handle: Handle, *, uid: int = 0) -> None:
        self._path = folder / SOCKET
        self._handle = handle
        self._uid = uid
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._calls: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen; a socket left by a process before us is replaced. Raises OSError."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path.parent.chmod(0o700)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        fresh = self._path.with_name(f".{SOCKET}.new")
        try:
            fresh.unlink(missing_ok=True)
            listener.settimeout(0)
            listener.bind(str(fresh))
            # Bound under another name until its mode is right and it listens.
            fresh.chmod(0o600)
            listener.listen(_BACKLOG)
            fresh.rename(self._path)
        except OSError:
            listener.close()
            raise
        self._listener = listener
        self._accepting = asyncio.create_task(self._accept(listener))

    async def stop(self) -> None:
        """Stop listening, and end the calls: what they had begun is put right at the next start."""
        if self._listener is None or self._accepting is None:
            return
        tasks = [self._accepting, *self._calls]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._listener.close()
        self._listener = None
        self._path.unlink(missing_ok=True)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:
                # Out of file descriptors, say: what is open ends, and then there are some.
                log.warning("a CNI call can't be taken: %s", error)
                await asyncio.sleep(0.1)
                continue
            if len(self._calls) >= CONNECTIONS_MAX or not self._may_call(connection):
                connection.close()
                continue
            task = asyncio.create_task(self._serve(connection))
            self._calls.add(task)
            task.add_done_callback(self._calls.discard)

    def _may_call(self, connection: socket.socket) -> bool:
        data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, _ = _CREDENTIALS.unpack(data)
        if uid != self._uid:
            log.warning("process %d of user %d may not make CNI calls", pid, uid)
        return bool(uid == self._uid)

    async def _serve(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        connection.settimeout(0)
        rights: list[int] = []
        try:
            async with asyncio.timeout(_READ_SECONDS):
                body = await _receive(connection, rights)
            namespace = rights[0] if rights else None
            if body is None:
                answer = refusal(CniError(Code.IO, f"a request has {BODY_MAX} bytes at most"))
            else:
                answer = await self._handle(body, namespace, Caller(connection))
            async with asyncio.timeout(_WRITE_SECONDS):
                await loop.sock_sendall(connection, answer.encode())
        except (OSError, EOFError, TimeoutError) as error:
            log.info("a CNI call broke off: %s", str(error) or type(error).__name__)
        finally:
            for one in rights:
                os.close(one)
            connection.close()


def refusal(error: CniError) -> Answer:
    """Return what answers a call that came to nothing."""
    return Answer(1, render_error(error))


async def _receive(connection: socket.socket, rights: list[int]) -> bytes | None:
    """Return the body of a request, None if it is too long; add the descriptors to ``rights``."""
    data = bytearray()
    while len(data) < LENGTH.size:
        data += await _read(connection, rights)
    (length,) = LENGTH.unpack_from(data)
    if length > BODY_MAX:
        return None
    while len(data) < LENGTH.size + length:
        data += await _read(connection, rights)
    return bytes(data[LENGTH.size : LENGTH.size + length])


async def _read(connection: socket.socket, rights: list[int]) -> bytes:
    """Return some bytes. Raises EOFError at the end."""
    while True:
        try:
            data, ancillary, _, _ = connection.recvmsg(
                _READ_MAX, socket.CMSG_SPACE(_RIGHTS_MAX * 4), socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            await _readable(connection)
            continue
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                found = array.array("i")
                found.frombytes(content[: len(content) - len(content) % found.itemsize])
                rights += found
        if not data:
            raise EOFError("the caller went away")
        return data


async def _readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def wake() -> None:
        with suppress(asyncio.InvalidStateError):
            ready.set_result(None)

    loop.add_reader(connection, wake)
    try:
        await ready
    finally:
        loop.remove_reader(connection)
