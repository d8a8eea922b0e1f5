"""The socket of the CNI server: frames, descriptors, who may call."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from appliance.cni.server import SOCKET, Answer, Caller, CniServer
from appliance.cni.spec import BODY_MAX

pytestmark = pytest.mark.anyio

NAMESPACE = Path("/proc/self/ns/net")


class Handler:
    """Answers with what it was asked; remembers the descriptors it was given."""

    def __init__(self) -> None:
        self.given: list[int | None] = []
        self.asked = asyncio.Event()
        self.done = asyncio.Event()
        self.gone = False
        self.hold = asyncio.Event()
        self.hold.set()

    async def __call__(self, body: bytes, namespace: int | None, caller: Caller) -> Answer:
        self.given.append(None if namespace is None else os.fstat(namespace).st_ino)
        self.asked.set()
        await self.hold.wait()
        self.gone = caller.gone()
        self.done.set()
        return Answer(0, body)


@contextlib.asynccontextmanager
async def serving(folder: Path, *, uid: int | None = None) -> AsyncIterator[Handler]:
    handler = Handler()
    server = CniServer(folder, handler, uid=os.getuid() if uid is None else uid)
    await server.start()
    try:
        yield handler
    finally:
        await server.stop()
    assert not (folder / SOCKET).exists()


async def asked(folder: Path, *data: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(folder / SOCKET)
    try:
        for part in data:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


def frame(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


async def test_a_request_comes_in_any_pieces(tmp_path: Path) -> None:
    async with serving(tmp_path) as handler:
        whole = frame(b"x" * 5000)
        for data in ((whole,), (whole[:2], whole[2:3], whole[3:]), (whole[:4000], whole[4000:])):
            assert await asked(tmp_path, *data) == struct.pack(">I", 5001) + b"\0" + b"x" * 5000
        assert handler.given == [None] * 3
        assert not handler.gone


async def test_the_folder_and_the_socket_are_ours_alone(tmp_path: Path) -> None:
    folder = tmp_path / "cni"
    async with serving(folder):
        assert folder.stat().st_mode & 0o777 == 0o700
        assert (folder / SOCKET).stat().st_mode & 0o777 == 0o600


async def test_nobody_else_is_answered(tmp_path: Path) -> None:
    async with serving(tmp_path, uid=os.getuid() + 1) as handler:
        assert await asked(tmp_path, frame(b"{}")) == b""
        assert handler.given == []


async def test_too_long_a_request_is_refused_before_it_is_read(tmp_path: Path) -> None:
    async with serving(tmp_path) as handler:
        said = await asked(tmp_path, struct.pack(">I", BODY_MAX + 1))
        assert said[4:5] == b"\1"
        assert b'"code":5' in said
        assert handler.given == []


def own_namespace() -> int:
    return NAMESPACE.stat().st_ino


async def test_a_namespace_is_handed_over_and_closed_again(tmp_path: Path) -> None:
    def send() -> bytes:
        with socket.socket(socket.AF_UNIX) as connection, NAMESPACE.open() as file:
            connection.connect(str(tmp_path / SOCKET))
            socket.send_fds(connection, [frame(b"{}")], [file.fileno()] * 3)
            return connection.recv(100)

    def descriptors() -> list[str]:
        return [one.name for one in Path("/proc/self/fd").iterdir()]

    before = len(descriptors())
    async with serving(tmp_path) as handler:
        assert await asyncio.to_thread(send) == frame(b"\0{}")
        assert handler.given == [own_namespace()]
    assert len(descriptors()) == before


async def test_who_goes_away_is_seen(tmp_path: Path) -> None:
    async with serving(tmp_path) as handler:
        handler.hold.clear()
        _, writer = await asyncio.open_unix_connection(tmp_path / SOCKET)
        writer.write(frame(b"{}"))
        await handler.asked.wait()
        writer.close()
        await writer.wait_closed()
        handler.hold.set()
        await handler.done.wait()
        assert handler.gone


async def test_a_server_that_stops_ends_its_calls(tmp_path: Path) -> None:
    async with serving(tmp_path) as handler:
        handler.hold.clear()
        reader, writer = await asyncio.open_unix_connection(tmp_path / SOCKET)
        writer.write(frame(b"{}"))
        await handler.asked.wait()
    assert await reader.read() == b""
    writer.close()


async def test_a_socket_left_behind_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / SOCKET))
    async with serving(tmp_path):
        assert await asked(tmp_path, frame(b"hello")) == frame(b"\0hello")
