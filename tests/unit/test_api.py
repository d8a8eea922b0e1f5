from __future__ import annotations

import asyncio
import contextlib
import grp
import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from appliance.api import server as api_module
from appliance.api.client import ApiError, NotRunningError, call
from appliance.api.http import BODY_LIMIT, HEAD_LIMIT, HttpError, Request, parse_head
from appliance.api.server import Answer, ApiServer, Peer, is_allowed, peer_of
from skerry.errors import SkerryError


@pytest.fixture(
    params=[
        pytest.param(("asyncio", {}), id="asyncio"),
        pytest.param(("asyncio", {"loop_factory": uvloop.new_event_loop}), id="uvloop"),
    ]
)
def anyio_backend(request: pytest.FixtureRequest) -> object:
    return request.param


async def echo(request: Request) -> Answer:
    return HTTPStatus.OK, {"path": request.path, "body": request.body.decode(errors="replace")}


async def refuse(_: Request) -> Answer:
    raise SkerryError("this can't be", hint="do that")


async def crash(_: Request) -> Answer:
    raise KeyError("a secret")


ROUTES = {
    ("POST", "/echo"): echo,
    ("GET", "/echo"): echo,
    ("GET", "/refuse"): refuse,
    ("GET", "/crash"): crash,
}


@contextlib.asynccontextmanager
async def serving(directory: Path, **options: int) -> AsyncIterator[Path]:
    path = directory / "api.sock"
    server = ApiServer(path, ROUTES, **options)
    await server.start()
    try:
        yield path
    finally:
        await server.stop()


async def ask(path: Path, method: str, target: str, body: bytes | None = None) -> dict[str, Any]:
    return await asyncio.to_thread(call, method, target, body, socket_path=path, timeout=30)


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def raw(path: Path, data: bytes) -> tuple[int, dict[str, Any]]:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(data)
    with contextlib.suppress(OSError):
        writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), 30)
    await close(writer)
    head, _, rest = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(rest)


async def test_it_answers_and_leaves_no_socket(tmp_path: Path) -> None:
    async with serving(tmp_path) as path:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert await ask(path, "POST", "/echo", b"hello") == {"path": "/echo", "body": "hello"}
        assert (await ask(path, "GET", "/echo"))["body"] == ""
    assert not await asyncio.to_thread(os.listdir, tmp_path)


async def test_a_socket_left_by_a_killed_process_is_replaced(tmp_path: Path) -> None:
    for name in ("api.sock", ".api.sock.new"):
        left = socket.socket(socket.AF_UNIX)
        left.bind(str(tmp_path / name))
        left.close()
    async with serving(tmp_path) as path:
        assert (await ask(path, "GET", "/echo"))["path"] == "/echo"


async def test_errors_carry_the_way_out(tmp_path: Path) -> None:
    async with serving(tmp_path) as path:
        for method, target, message, hint in (
            ("GET", "/refuse", "this can't be", "do that"),
            ("GET", "/nothing", "there is no /nothing", "GET /echo"),
            ("DELETE", "/echo", "does not take DELETE", "GET or POST"),
        ):
            with pytest.raises(ApiError, match=message) as caught:
                await ask(path, method, target)
            assert hint in (caught.value.hint or "")


async def test_a_defect_is_one_bad_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(tmp_path) as path:
        with pytest.raises(ApiError, match="a defect in the supervisor: KeyError") as caught:
            await ask(path, "GET", "/crash")
        assert "a secret" not in f"{caught.value} {caught.value.hint}"
        assert (await ask(path, "GET", "/echo"))["path"] == "/echo"
    assert "local API failed" in caplog.text


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /echo\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n", 400),
        (b"GET echo HTTP/1.1\r\n\r\n", 400),
        (b"GET /echo HTTP/2\r\n\r\n", 400),
        (b"GET /echo HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET /echo HTTP/1.1\r\na: b\r\na: c\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nContent-Length: 1e3\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nContent-Length: \xb2\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", 413),
        (b"POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 501),
        (b"GET /" + b"a" * HEAD_LIMIT + b" HTTP/1.1\r\n\r\n", 431),
        (b"a" * (HEAD_LIMIT * 4), 431),
    ],
)
async def test_bad_requests(tmp_path: Path, data: bytes, status: int) -> None:
    async with serving(tmp_path) as path:
        got, document = await raw(path, data)
        assert got == status
        assert document["error"]
        assert (await ask(path, "GET", "/echo"))["path"] == "/echo"


async def test_clients_that_leave_or_dawdle_do_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_module, "REQUEST_SECONDS", 0.05)
    async with serving(tmp_path) as path:
        for data in (b"", b"GET /ec", b"POST /echo HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc"):
            _, gone = await asyncio.open_unix_connection(str(path))
            gone.write(data)
            await close(gone)
            reader, slow = await asyncio.open_unix_connection(str(path))
            slow.write(data)
            assert await asyncio.wait_for(reader.read(), 30) == b""
            await close(slow)
        assert (await ask(path, "GET", "/echo"))["path"] == "/echo"


async def test_too_many_at_once_are_turned_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_module, "CONNECTIONS", 3)
    async with serving(tmp_path) as path:
        idle = [await asyncio.open_unix_connection(str(path)) for _ in range(3)]
        assert (await raw(path, b"GET /echo HTTP/1.1\r\n\r\n"))[0] == 503
        for _, writer in idle:
            await close(writer)


async def test_a_stranger_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_module, "peer_of", lambda _: Peer(1, 4711, frozenset({4711})))
    async with serving(tmp_path, own_uid=642, own_gid=642) as path:
        with pytest.raises(ApiError, match="only root and members of the group") as caught:
            await ask(path, "GET", "/echo")
        assert "usermod" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("peer", "allowed"),
    [
        (Peer(1, 0, frozenset({0})), True),
        (Peer(1, 642, frozenset({642})), True),
        (Peer(1, 1000, frozenset({1000, 642})), True),
        (Peer(1, 1000, frozenset({1000})), False),
        (Peer(1, 65534, frozenset({65534, 0})), False),
    ],
)
def test_who_may_ask(peer: Peer, allowed: bool) -> None:
    assert is_allowed(peer, own_uid=642, own_gid=642) is allowed


CONNECT_AS = """
import os, socket, sys
os.setgroups([int(group) for group in sys.argv[2].split(",")])
os.setgid(4711)
os.setuid(4711)
client = socket.socket(socket.AF_UNIX)
client.connect(sys.argv[1])
client.recv(1)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can connect as somebody else")
def test_the_kernel_names_user_and_all_groups(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for parent in list(tmp_path.parents)[:2]:
        parent.chmod(0o755)
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o777)
        listener.listen()
        child = subprocess.Popen([sys.executable, "-S", "-c", CONNECT_AS, str(path), "642,643"])
        with listener.accept()[0] as connection:
            peer = peer_of(connection)
        assert child.wait(10) == 0
    assert (peer.uid, peer.groups) == (4711, frozenset({4711, 642, 643}))


def test_the_kernel_names_ourselves() -> None:
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        peer = peer_of(one)
    assert (peer.pid, peer.uid) == (os.getpid(), os.geteuid())
    assert grp.getgrgid(os.getegid()).gr_gid in peer.groups


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(NotRunningError, match="does not run here") as caught:
        call("GET", "/v1/status", socket_path=tmp_path / "none")
    assert "systemctl status skerry" in (caught.value.hint or "")


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", denied)
    with pytest.raises(ApiError, match="no permission") as caught:
        call("GET", "/v1/status", socket_path=tmp_path / "some")
    assert "sudo" in (caught.value.hint or "")


@pytest.mark.parametrize("answer", [b"", b"nonsense\r\n", b"HTTP/1.1 200 OK\r\n\r\n[1]"])
def test_an_answer_that_is_none(tmp_path: Path, answer: bytes) -> None:
    import threading

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(ApiError):
            call("GET", "/v1/status", socket_path=tmp_path / "s")
        thread.join(30)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_an_error(data: bytes) -> None:
    with contextlib.suppress(HttpError):
        request, length = parse_head(data + b"\r\n\r\n")
        assert 0 <= length <= BODY_LIMIT
        assert request.path.startswith("/")


@given(
    st.lists(
        st.sampled_from(
            [b"GET", b"POST", b" ", b"/a", b"?q", b"HTTP/1.1", b"\r\n", b"Content-Length: 5", b"x:"]
        ),
        max_size=12,
    )
)
def test_nearly_requests_are_a_request_or_an_error(parts: list[bytes]) -> None:
    with contextlib.suppress(HttpError):
        request, length = parse_head(b"".join(parts) + b"\r\n\r\n")
        assert "?" not in request.path
        assert length in (0, 5)
