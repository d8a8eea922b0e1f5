"""The local API: HTTP on a unix socket, for root, the supervisor's user and its group only.

The kernel tells who is at the other end (SO_PEERCRED), so there is nothing to steal or to guess.
Errors are JSON: ``{"error": ..., "hint": ...}``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path

import msgspec

from appliance.api.http import HEAD_LIMIT, HttpError, Request, parse_head, response
from skerry.errors import SkerryError

log = logging.getLogger(__name__)

REQUEST_SECONDS = 10.0
CONNECTIONS = 32
DISCARD_LIMIT = 1024 * 1024
SOCKET_MODE = 0o660
_SO_PEERGROUPS = 59  # socket(7); Python has no name for it
_CREDENTIALS = struct.Struct("3i")
_GETSOCKOPT_LIMIT = 1024  # bytes; Python's own

# A body is what is sent as JSON.
Answer = tuple[HTTPStatus, object]
Handler = Callable[[Request], Awaitable[Answer]]


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
        routes: Mapping[tuple[str, str], Handler],
        *,
        own_uid: int | None = None,
        own_gid: int | None = None,
    ) -> None:
        self._path = path
        self._routes = dict(routes)
        self._own_uid = os.geteuid() if own_uid is None else own_uid
        self._own_gid = os.getegid() if own_gid is None else own_gid
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

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
                writer.write(await self._answer(reader, writer.get_extra_info("socket")))
                await writer.drain()
                # A socket closed with unread data in it would take our answer with it.
                writer.write_eof()
                await _discard(reader)
        except (ConnectionError, EOFError, TimeoutError):
            log.debug("a client of the local API went away")
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, connection: socket.socket) -> bytes:
        try:
            self._check(connection)
            request = await _read_request(reader)
            status, body = await self._handle(request)
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

    def _check(self, connection: socket.socket) -> None:
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

    async def _handle(self, request: Request) -> Answer:
        handler = self._routes.get((request.method, request.path))
        if handler is not None:
            return await handler(request)
        methods = sorted(method for method, path in self._routes if path == request.path)
        if methods:
            raise HttpError(
                HTTPStatus.METHOD_NOT_ALLOWED,
                f"{request.path} does not take {request.method}",
                f"Use {' or '.join(methods)}.",
            )
        raise HttpError(
            HTTPStatus.NOT_FOUND,
            f"there is no {request.path}",
            "There are: " + ", ".join(f"{method} {path}" for method, path in sorted(self._routes)),
        )


async def _discard(reader: asyncio.StreamReader) -> None:
    left = DISCARD_LIMIT
    while left > 0 and (data := await reader.read(HEAD_LIMIT)):
        left -= len(data)


async def _read_request(reader: asyncio.StreamReader) -> Request:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        head = b" " * (HEAD_LIMIT + 1)
    request, length = parse_head(head)
    return replace(request, body=await reader.readexactly(length)) if length else request
