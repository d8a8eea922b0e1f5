"""A lean asynchronous client of the supervisor's local API (unix socket).

Not `appliance.api.client`: that one blocks, and believes how much the supervisor says. Every answer
here is bounded in size and time.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from urllib.parse import quote

from appliance.kubernetes.errors import SupervisorError

ANSWER_MAX = 8 * 1024 * 1024
SECONDS = 10.0
_READ = 64 * 1024


class AwayError(SupervisorError):
    """Nobody answers: it may be restarting."""


class Supervisor:
    """The supervisor at a socket."""

    def __init__(self, socket: Path, *, seconds: float = SECONDS) -> None:
        self._socket = socket
        self._seconds = seconds

    async def get(self, path: str) -> bytes:
        """Return what a path answers with. Raises AwayError, SupervisorError (see ``status``)."""
        return await self._ask("GET", path)

    async def put_entry(self, key: str, value: bytes) -> None:
        """Write into the ledger's bucket ``cluster``; it is on the disk afterwards."""
        await self._ask("PUT", f"/v1/ledger/cluster/{quote(key)}", value)

    async def put_secret(self, name: str, value: bytes, roles: tuple[str, ...]) -> None:
        """Seal a secret's next value."""
        await self._ask("PUT", f"/v1/secret/{quote(name)}?roles={','.join(roles)}", value)

    async def _ask(self, method: str, path: str, body: bytes = b"") -> bytes:
        try:
            async with asyncio.timeout(self._seconds):
                head, data = await self._exchange(method, path, body)
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            raise AwayError(
                f"the supervisor at {self._socket} does not answer: "
                f"{reason or type(error).__name__}",
                hint="what runs goes on meanwhile; journalctl -u skerry",
            ) from error
        status = _status(head)
        if status >= 400:
            message, hint = _explained(data, status)
            raise SupervisorError(
                f"{method} {path.partition('?')[0]}: {message}", hint=hint, status=status
            )
        return data

    async def _exchange(self, method: str, path: str, body: bytes) -> tuple[bytes, bytes]:
        reader, writer = await asyncio.open_unix_connection(str(self._socket))
        try:
            writer.write(
                f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                f"Content-Length: {len(body)}\r\n\r\n".encode("ascii")
                + body
            )
            await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
            data = bytearray()
            while part := await reader.read(_READ):
                data += part
                if len(data) > ANSWER_MAX:
                    raise SupervisorError(
                        f"the supervisor's answer to {path.partition('?')[0]} has more than "
                        f"{ANSWER_MAX} bytes"
                    )
        finally:
            writer.close()
        return head, bytes(data)


def _status(head: bytes) -> int:
    words = head.split(b"\r\n", 1)[0].split(b" ")
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
        raise SupervisorError("what answers on the supervisor's socket speaks no HTTP")
    return int(words[1])


def _explained(data: bytes, status: int) -> tuple[str, str | None]:
    try:
        document = json.loads(data)
        return str(document["error"])[:300], str(document.get("hint", ""))[:300] or None
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return f"status {status}", None
