"""The local API: HTTP on a unix socket, for root, the supervisor's user and its group only.

The kernel tells who is at the other end (SO_PEERCRED), so there is nothing to steal or to guess.
Errors are JSON: ``{"error": ..., "hint": ...}``. A streamed answer goes as fast as its client
reads; who does not read for a while is cut off.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path

import msgspec

from appliance.api.http import (
    HEAD_LIMIT,
    HttpError,
    Streamed,
    parse_head,
    response,
    stream_head,
)
from appliance.api.router import Answer, Handler, Router, Table
from skerry.errors import SkerryError

log = logging.getLogger(__name__)

REQUEST_SECONDS = 10.0
CONNECTIONS = 32
# Of these, so many may last: the others stay free for questions.
STREAMS = 16
STALLED_SECONDS = 10.0
STREAM_SECONDS = 300.0
STREAM_BUFFER = 64 * 1024
DISCARD_LIMIT = 1024 * 1024
SOCKET_MODE = 0o660
_SO_PEERGROUPS = 59  # socket(7); Python has no name for it
_CREDENTIALS = struct.Struct("3i")
_GETSOCKOPT_LIMIT = 1024  # bytes; Python's own

__all__ = ["Answer", "ApiServer", "Handler", "Peer", "is_allowed", "peer_of"]


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of a unix socket."""

    pid: int
    uid: int
    groups: frozenset[int]


def peer_of(connection: socket.socket) -> Peer:
    """Return what the kernel knows of the process that connected. Raises OSError."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(data)
    groups = {gid}
    with suppress(OSError):  # more groups than fit: then only the first one counts
        raw = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GETSOCKOPT_LIMIT)
        groups.update(struct.unpack(f"{len(raw) // 4}I", raw))
    return Peer(pid, uid, frozenset(groups))


def is_allowed(peer: Peer, *, own_uid: int, own_gid: int) -> bool:
    """Say whether the peer may use the API: root, our own user, members of our group."""
    return peer.uid in (0, own_uid) or own_gid in peer.groups


class ApiServer:
    """Serves ``routes``, a table of ``(method, path)``, on a unix socket."""

    def __init__(
        self,
        path: Path,
        routes: Table,
        *,
        own_uid: int | None = None,
        own_gid: int | None = None,
    ) -> None:
        self._path = path
        self._router = Router(routes)
        self._own_uid = os.geteuid() if own_uid is None else own_uid
        self._own_gid = os.getegid() if own_gid is None else own_gid
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._streams = 0

    async def start(self) -> None:
        """Listen. A socket left by a process before us is replaced. Raises OSError."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        # Bound under another name until its mode is right: nobody can connect in between.
        fresh = self._path.with_name(f".{self._path.name}.new")
        try:
            fresh.unlink(missing_ok=True)
            listener.bind(str(fresh))
            fresh.chmod(SOCKET_MODE)
            fresh.rename(self._path)
            self._server = await asyncio.start_unix_server(
                self._accept, sock=listener, limit=HEAD_LIMIT
            )
        except OSError:
            listener.close()
            raise

    async def stop(self) -> None:
        """Stop listening, end what is open, and remove the socket."""
        if self._server is None:
            return
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()
        self._server = None
        self._path.unlink(missing_ok=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                answer = await self._answer(reader, writer.get_extra_info("socket"))
                if isinstance(answer, bytes):
                    writer.write(answer)
                    await _end(reader, writer)
                    return
            await self._stream(reader, writer, answer)
        except (ConnectionError, EOFError, TimeoutError):
            log.debug("a client of the local API went away")
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _answer(
        self, reader: asyncio.StreamReader, connection: socket.socket
    ) -> bytes | Streamed:
        try:
            peer = self._check(connection)
            answer = await self._handle(reader, peer)
            if isinstance(answer, Streamed):
                return answer
            status, body = answer
        except (ConnectionError, EOFError, TimeoutError):
            raise
        except HttpError as error:
            status, body = error.status, {"error": error.message, "hint": error.hint}
        except SkerryError as error:
            status = HTTPStatus.BAD_REQUEST
            body = {"error": str(error), "hint": error.hint or ""}
        except Exception as error:
            log.exception("a defect: the local API failed on a request")
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            body = {
                "error": f"a defect in the supervisor: {type(error).__name__}",
                "hint": "The journal has the details: journalctl -u skerry -p err",
            }
        return response(status, msgspec.json.encode(body))

    async def _stream(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: Streamed
    ) -> None:
        self._streams += answer.lasting
        try:
            await (_last if answer.lasting else _pump)(reader, writer, answer)
        except (ConnectionError, EOFError, TimeoutError):
            # What the client has not taken by now must not keep the connection open.
            writer.transport.abort()
            raise
        except Exception:
            # The status has been sent: an answer that breaks off is all that can be said.
            log.exception("a defect: the local API failed while it answered")
            writer.transport.abort()
        finally:
            self._streams -= answer.lasting

    def _check(self, connection: socket.socket) -> Peer:
        if len(self._tasks) > CONNECTIONS:
            raise HttpError(HTTPStatus.SERVICE_UNAVAILABLE, "too many requests at once")
        peer = peer_of(connection)
        if not is_allowed(peer, own_uid=self._own_uid, own_gid=self._own_gid):
            log.warning(
                "refused a process of user id %d at the local API",
                peer.uid,
                extra={"skerry_peer_uid": peer.uid, "skerry_peer_pid": peer.pid},
            )
            raise HttpError(
                HTTPStatus.FORBIDDEN,
                "only root and members of the group skerry may ask the supervisor",
                "Use sudo, or join the group: usermod -aG skerry USER",
            )
        return peer

    async def _handle(self, reader: asyncio.StreamReader, peer: Peer) -> Answer:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            head = b" " * (HEAD_LIMIT + 1)
        request, length = parse_head(head)
        route, request = self._router.find(request)
        if route.private and peer.uid not in (0, self._own_uid):
            raise HttpError(
                HTTPStatus.FORBIDDEN,
                f"{request.method} {request.path[:80]} is for root and the supervisor's own user",
                "Use sudo.",
            )
        if length > route.body_limit:
            raise HttpError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the request has {length} bytes, {request.path[:80]} takes {route.body_limit}",
                "Send less at once, or leave it elsewhere and say where.",
            )
        if length:
            request = replace(request, body=await reader.readexactly(length))
        answer = await route.handler(request)
        if isinstance(answer, Streamed) and answer.lasting and self._streams >= STREAMS:
            raise HttpError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"{STREAMS} programs watch already",
                "End one of them: `ss -xp | grep api.sock` shows who they are.",
            )
        return answer


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: Streamed
) -> None:
    """Send what there is, as fast as the client takes it."""
    writer.transport.set_write_buffer_limits(STREAM_BUFFER)
    async with (
        aclosing(answer.chunks) as chunks,
        asyncio.timeout(None if answer.lasting else STREAM_SECONDS),
    ):
        writer.write(stream_head(answer.content_type))
        async for chunk in chunks:
            writer.write(chunk)
            async with asyncio.timeout(STALLED_SECONDS):
                await writer.drain()
    if not answer.lasting:
        async with asyncio.timeout(STALLED_SECONDS):
            await _end(reader, writer)


async def _last(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: Streamed
) -> None:
    """Send events until the client is gone, even while there is nothing to send."""
    tasks = [
        asyncio.ensure_future(_pump(reader, writer, answer)),
        asyncio.ensure_future(_gone(reader, writer)),
    ]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _gone(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Wait until the client has left, or says so much that it must be meant for somebody else."""
    await _discard(reader)
    if reader.at_eof():
        # It may only have ended its own half: a comment tells (nobody there: a broken pipe).
        writer.write(b":\n\n")
        await writer.wait_closed()


async def _end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """End the answer and wait for the client to go.

    A socket closed with unread data in it would take our answer with it.
    """
    await writer.drain()
    writer.write_eof()
    await _discard(reader)


async def _discard(reader: asyncio.StreamReader) -> None:
    left = DISCARD_LIMIT
    while left > 0 and (data := await reader.read(HEAD_LIMIT)):
        left -= len(data)
