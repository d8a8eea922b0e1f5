"""The local API in a thread of its own, for commands that block while they ask."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

from appliance.api.openapi import described
from appliance.api.router import Table
from appliance.api.server import ApiServer


@contextlib.contextmanager
def served(table: Table, socket: Path, **options: int) -> Iterator[None]:
    """Serve routes until the block ends; ``options`` are ApiServer's."""
    loop = asyncio.new_event_loop()
    up, down = threading.Event(), asyncio.Event()

    async def serve() -> None:
        server = ApiServer(socket, described(table), **options)
        await server.start()
        up.set()
        await down.wait()
        await server.stop()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        assert up.wait(30)
        yield
    finally:
        loop.call_soon_threadsafe(down.set)
        thread.join(30)
        loop.close()
