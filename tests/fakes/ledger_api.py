"""The local API over a real unix socket, with a real ledger below and no network."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.api.client import call
from appliance.api.ledger import ledger_routes
from appliance.api.openapi import described
from appliance.api.server import ApiServer
from appliance.ledger.access import LedgerAccess
from tests.fakes.ledger_access import World, world


@dataclass
class Served:
    """A ledger at a socket."""

    here: World
    path: Path
    server: ApiServer
    ledger: LedgerAccess | None

    async def ask(self, method: str, target: str, body: bytes | None = None) -> dict[str, Any]:
        """Ask as our own client does. Raises ApiError."""
        return await asyncio.to_thread(
            call, method, target, body, socket_path=self.path, timeout=30
        )

    async def raw(self, data: bytes) -> tuple[int, bytes]:
        """Send bytes, hang up one's own half, and return the status and body of the answer."""
        reader, writer = await asyncio.open_unix_connection(str(self.path))
        writer.write(data)
        with contextlib.suppress(OSError):
            writer.write_eof()
        answer = await asyncio.wait_for(reader.read(), 30)
        await close(writer)
        head, _, rest = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), rest

    async def status(self, method: str, target: str, body: bytes = b"") -> int:
        """Return the status of an answer; what is refused has words and is JSON."""
        head = f"{method} {target} HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n"
        status, answer = await self.raw(head.encode("latin-1") + body)
        if status != 200:
            assert json.loads(answer)["error"]
        return status


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


@contextlib.asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[Served]:
    here = world()
    path = directory / "api.sock"
    served: Served
    server = ApiServer(path, described(ledger_routes(lambda: served.ledger)))
    served = Served(here, path, server, here.access)
    await server.start()
    try:
        yield served
    finally:
        await server.stop()
