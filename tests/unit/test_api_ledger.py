"""The ledger at the local API: real socket, real ledger, no network."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import socket
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from appliance.api import ledger as ledger_module
from appliance.api import server as server_module
from appliance.api.client import ApiError, EndedError, StreamEvent, stream
from appliance.api.http import BODY_LIMIT
from appliance.api.ledger import CHUNK, _document, entry_view, event_text
from appliance.ledger.entry import read_entry
from appliance.ledger.subscription import Event, Kind
from provisioning.keys import id_text
from tests.fakes.ledger import NOW, entry, member_entry, network, node, root_entry
from tests.fakes.ledger_access import OTHER, SERVER
from tests.fakes.ledger_api import Served, close, serving


@pytest.fixture(
    params=[
        pytest.param(("asyncio", {}), id="asyncio"),
        pytest.param(("asyncio", {"loop_factory": uvloop.new_event_loop}), id="uvloop"),
    ]
)
def anyio_backend(request: pytest.FixtureRequest) -> object:
    return request.param


async def test_put_get_list_delete(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        put = await api.ask("PUT", "/v1/ledger/shared/app/colour", b"blue")
        assert put == {
            "id": put["id"],
            "bucket": "shared",
            "key": "app/colour",
            "value": "blue",
            "encoding": "utf-8",
            "owner": SERVER.text,
            "owner_name": "n1",
            "written": "2026-11-18T11:06:40.000Z",
            "stamp": str(NOW << 16),
            "expires": None,
            "deleted": False,
        }
        assert await api.ask("GET", "/v1/ledger/shared/app/colour") == put
        assert await api.ask("GET", "/v1/ledger/shared/app%2Fcolour") == put
        assert await api.ask("GET", "/v1/ledger/shared?prefix=app/") == {"entries": [put]}
        assert await api.ask("GET", "/v1/ledger/shared?prefix=b") == {"entries": []}
        gone = await api.ask("DELETE", "/v1/ledger/shared/app/colour")
        assert (gone["deleted"], gone["value"]) == (True, "")
        assert await api.status("GET", "/v1/ledger/shared/app/colour") == 404
        assert await api.status("DELETE", "/v1/ledger/shared/app/colour") == 404


async def test_values_of_every_kind_come_back_as_they_were(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        for value in (
            b"",
            b"a: 1\n\tb: 2\n",
            "Größe".encode(),
            b"\xff\x00",
            b"\x1b[2J",
            bytes(4096),
        ):
            answer = await api.ask("PUT", "/v1/ledger/shared/k", value)
            text = answer["value"]
            decoded = base64.b64decode(text) if answer["encoding"] == "base64" else text.encode()
            assert decoded == value
            assert "\x1b" not in text


async def test_a_lease_ends(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        put = await api.ask("PUT", "/v1/ledger/lease/k?lease=60", b"x")
        assert put["expires"] == "2026-11-18T11:07:40.000Z"
        api.here.mono = 61.0
        assert await api.status("GET", "/v1/ledger/lease/k") == 404


async def test_a_service_is_put_under_the_own_id(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        put = await api.ask("PUT", "/v1/ledger/service/web?lease=60", b"80")
        assert put["key"] == f"{SERVER.text}/web"


@pytest.mark.parametrize(
    ("method", "target", "body", "status"),
    [
        ("GET", "/v1/ledger/nothing", b"", 404),
        ("GET", "/v1/ledger/nothing/k", b"", 404),
        ("GET", "/v1/ledger/nothing?watch=1", b"", 404),
        ("GET", "/v1/ledger/", b"", 404),
        ("GET", "/v1/ledger/shared/", b"", 404),
        ("GET", "/v1/ledger/../shared", b"", 404),
        ("POST", "/v1/ledger/shared/k", b"", 405),
        ("PUT", "/v1/ledger/shared", b"", 405),
        ("PUT", "/v1/ledger/member/k", b"", 403),
        ("DELETE", "/v1/ledger/revoked/k", b"", 403),
        ("PUT", f"/v1/ledger/service/{OTHER.text}/web?lease=9", b"", 403),
        ("PUT", "/v1/ledger/shared/k?lease=60", b"", 400),
        ("PUT", "/v1/ledger/lease/k", b"", 400),
        ("PUT", "/v1/ledger/lease/k?lease=0", b"", 400),
        ("PUT", "/v1/ledger/lease/k?lease=-1", b"", 400),
        ("PUT", "/v1/ledger/lease/k?lease=1e3", b"", 400),
        ("PUT", "/v1/ledger/lease/k?lease=%C2%B2", b"", 400),
        ("PUT", "/v1/ledger/lease/k?lease=99999999999999999999", b"", 400),
        ("PUT", "/v1/ledger/lease/k?lease=60&lease=60", b"", 400),
        ("PUT", "/v1/ledger/lease/k?least=60", b"", 400),
        ("GET", "/v1/ledger/shared?watch=yes", b"", 400),
        ("GET", "/v1/ledger/shared?watch", b"", 400),
        ("GET", "/v1/ledger/shared?prefix=%", b"", 400),
        ("GET", "/v1/ledger/shared?prefix=%zz", b"", 400),
        ("GET", "/v1/ledger/shared?prefix=%ff", b"", 400),
        ("GET", "/v1/ledger/shared?prefix=%00", b"", 400),
        ("GET", "/v1/ledger/shared/%0d%0aX:y", b"", 400),
        ("PUT", "/v1/ledger/shared/a%20b", b"", 400),
        ("PUT", "/v1/ledger/shared/" + "k" * 129, b"", 400),
        ("PUT", "/v1/ledger/shared/" + "k" * 9000, b"", 431),
        ("PUT", "/v1/ledger/shared/k", bytes(4097), 413),
        ("PUT", "/v1/ledger/service/k?lease=60", bytes(1025), 400),
        ("POST", "/v1/ledger-publish", bytes(BODY_LIMIT + 1), 413),
        ("POST", "/v1/ledger-publish", b"", 400),
        ("POST", "/v1/ledger-publish", b'{"records": "x"}', 400),
        ("POST", "/v1/ledger-publish", b'{"records": ["not base64"]}', 400),
        ("POST", "/v1/ledger-publish", b'{"records": [], "more": 1}', 400),
        ("POST", "/v1/ledger-publish", b"[" * 60_000, 400),
        ("GET", "/v1/ledger-dump?x=1", b"", 400),
    ],
)
async def test_what_is_refused_is_refused_with_words_and_changes_nothing(
    tmp_path: Path, method: str, target: str, body: bytes, status: int
) -> None:
    async with serving(tmp_path) as api:
        before = api.here.replica.ids.digest()
        assert await api.status(method, target, body) == status
        assert api.here.replica.ids.digest() == before


FRAGMENTS = [
    *(
        b"GET ",
        b"PUT ",
        b"DELETE ",
        b"POST ",
        b" HTTP/1.1\r\n",
        b"\r\n",
        b"\r\n\r\n",
        b"\0",
        b"\xff",
    ),
    *(b"/v1/ledger", b"/shared", b"/k", b"%2e%2e", b"%", b"?watch=1", b"?lease=9", b"&prefix=a"),
    *(b"Content-Length: 5\r\n", b"Content-Length: 99999\r\n", b"Expect: 100-continue\r\n"),
    *(b'{"records": []}', b"hello", b"/v1/ledger-publish", b"/v1/ledger-dump", b" ", b"a" * 5000),
]


async def test_any_bytes_are_answered_or_let_go(tmp_path: Path) -> None:
    random = Random(4)  # noqa: S311 - the same rubbish in every run
    async with serving(tmp_path) as api:
        answered = 0
        for _ in range(150):
            data = b"".join(random.choices(FRAGMENTS, k=random.randrange(1, 12)))
            reader, writer = await asyncio.open_unix_connection(str(api.path))
            writer.write(data)
            with contextlib.suppress(OSError):
                writer.write_eof()
            first = await asyncio.wait_for(reader.read(100), 30)
            assert first == b"" or first.startswith(b"HTTP/1.1 ")
            answered += bool(first)
            await close(writer)
        assert answered > 30
        await until(lambda: not api.server._tasks)
        assert (await api.ask("GET", "/v1/ledger"))["buckets"]


async def test_a_node_without_a_network_says_what_to_do(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        api.ledger = None
        for method, target in (
            ("GET", "/v1/ledger"),
            ("GET", "/v1/ledger?watch=1"),
            ("GET", "/v1/ledger/shared"),
            ("PUT", "/v1/ledger/shared/k"),
            ("DELETE", "/v1/ledger/shared/k"),
            ("GET", "/v1/ledger-dump"),
            ("POST", "/v1/ledger-publish"),
        ):
            with pytest.raises(ApiError, match="in no network yet") as caught:
                await api.ask(method, target)
            assert caught.value.status == HTTPStatus.CONFLICT
            assert "skerry provision" in (caught.value.hint or "")


async def test_buckets_tell_their_rules(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        found = {one["name"]: one for one in (await api.ask("GET", "/v1/ledger"))["buckets"]}
        assert found["lease"]["lease_max_s"] == 86400
        assert found["cluster"]["roles"] == ["auto", "server"]
        assert (found["member"]["open"], found["shared"]["open"]) == (False, True)


async def test_a_long_list_and_a_dump_are_streamed_whole(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        for number in range(60):
            value = b"%d" % number + bytes(4000)
            api.here.hear(entry(OTHER, "shared", f"k{number:02}", value, sequence=number + 1))
        entries = (await api.ask("GET", "/v1/ledger/shared"))["entries"]
        assert [one["key"] for one in entries] == [f"k{number:02}" for number in range(60)]
        document = await api.ask("GET", "/v1/ledger-dump")
        assert document["network_id"] == id_text(network().network_id)
        assert (document["node_id"], document["now_ms"]) == (SERVER.text, NOW)
        records = [read_entry(base64.b64decode(one)) for one in document["records"]]
        assert {one.entry_id for one in records} == {one.entry_id for one in api.here.replica}


async def test_publish(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        good = root_entry("assigned", f"{OTHER.text}/name", b"kitchen")
        theirs = entry(OTHER, "shared", "k", b"x")
        records = [base64.b64encode(one).decode() for one in (good.record, theirs.record, b"junk")]
        body = json.dumps({"records": records}).encode()
        results = (await api.ask("POST", "/v1/ledger-publish", body))["results"]
        assert [one["verdict"] for one in results] == ["accepted", "rejected", "rejected"]
        assert [one["id"] for one in results] == [
            id_text(good.entry_id),
            id_text(theirs.entry_id),
            None,
        ]
        assert api.here.told() == [good]
        assert api.here.access.owner_name(OTHER.node_id) == "kitchen"


async def test_a_write_that_does_not_reach_the_disk_is_not_called_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "STORED_SECONDS", 0.02)
    async with serving(tmp_path) as api:
        monkeypatch.setattr(api.here.access, "changed", lambda _: None)
        assert await api.status("PUT", "/v1/ledger/shared/k", b"x") == 503


# Events


async def open_stream(
    api: Served, target: str
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_unix_connection(str(api.path))
    writer.write(f"GET {target} HTTP/1.1\r\n\r\n".encode())
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
    assert b"200 OK" in head
    assert b"Content-Type: text/event-stream" in head
    return reader, writer


async def next_event(reader: asyncio.StreamReader) -> tuple[str, dict[str, Any]]:
    while True:
        text = (await asyncio.wait_for(reader.readuntil(b"\n\n"), 30)).decode()
        if not text.startswith(":"):
            fields = dict(line.split(": ", 1) for line in text.rstrip("\n").split("\n"))
            data = json.loads(fields["data"])
            assert fields.get("id") == data.get("id")
            return fields["event"], data


async def test_a_watcher_sees_the_state_then_the_changes(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        api.here.access.put("shared", "a", b"1")
        reader, writer = await open_stream(api, "/v1/ledger/shared?watch=1")
        kind, data = await next_event(reader)
        assert (kind, data["key"], data["value"]) == ("put", "a", "1")
        assert await next_event(reader) == ("ready", {})
        put = await api.ask("PUT", "/v1/ledger/shared/b", b"two\nlines")
        assert await next_event(reader) == ("put", put)
        gone = await api.ask("DELETE", "/v1/ledger/shared/a")
        assert await next_event(reader) == ("delete", gone)
        await close(writer)


async def test_all_buckets_are_watched_with_a_prefix(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        reader, writer = await open_stream(api, "/v1/ledger?watch=1&prefix=app%2F")
        assert await next_event(reader) == ("ready", {})
        api.here.access.put("shared", "x", b"")
        api.here.access.put("lease", "app/x", b"", 60)
        kind, data = await next_event(reader)
        assert (kind, data["bucket"], data["key"]) == ("put", "lease", "app/x")
        api.here.mono = 61.0
        api.here.perform(api.here.gossip.tick(61.0))
        assert await next_event(reader) == (
            "delete",
            {"bucket": "lease", "key": "app/x", "deleted": True},
        )
        await close(writer)


async def test_a_quiet_stream_says_that_it_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "KEEP_ALIVE_SECONDS", 0.01)
    async with serving(tmp_path) as api:
        reader, writer = await open_stream(api, "/v1/ledger/lease?watch=1")
        await next_event(reader)
        assert await asyncio.wait_for(reader.readuntil(b"\n\n"), 30) == b": nothing new\n\n"
        await close(writer)


async def test_who_leaves_is_noticed_at_once(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        reader, writer = await open_stream(api, "/v1/ledger/shared?watch=1")
        await next_event(reader)
        assert api.server._streams == 1
        await close(writer)
        await until(lambda: not api.server._streams)
        assert not api.here.access._subscriptions


async def test_who_ends_the_own_half_goes_on_listening(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        reader, writer = await open_stream(api, "/v1/ledger/shared?watch=1")
        writer.write_eof()
        await next_event(reader)
        await api.ask("PUT", "/v1/ledger/shared/k", b"x")
        assert (await next_event(reader))[0] == "put"
        await close(writer)


async def test_who_never_reads_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "STALLED_SECONDS", 0.05)
    async with serving(tmp_path) as api:
        for member in (node(number) for number in range(50, 55)):
            api.here.hear(member_entry(member))
            for number in range(60):
                key = f"{member.number}/{number}"
                api.here.hear(entry(member, "shared", key, bytes(4096), sequence=number + 1))
        for target in ("/v1/ledger/shared?watch=1", "/v1/ledger-dump"):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(api.path))
                client.send(f"GET {target} HTTP/1.1\r\n\r\n".encode())
                await until(lambda: api.server._tasks)
                await until(lambda: not api.server._tasks)
        assert not api.here.access._subscriptions
        assert (await api.ask("GET", "/v1/ledger"))["buckets"]


async def test_who_says_too_much_on_a_stream_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "DISCARD_LIMIT", 10_000)
    async with serving(tmp_path) as api:
        _, writer = await open_stream(api, "/v1/ledger/shared?watch=1")
        writer.write(bytes(20_000))
        await until(lambda: not api.server._streams)
        await close(writer)


async def test_streams_are_limited_and_questions_still_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "STREAMS", 3)
    async with serving(tmp_path) as api:
        open_ones = [await open_stream(api, "/v1/ledger/shared?watch=1") for _ in range(3)]
        assert await api.status("GET", "/v1/ledger?watch=1") == 503
        assert (await api.ask("GET", "/v1/ledger/shared"))["entries"] == []
        await close(open_ones[0][1])
        await until(lambda: api.server._streams == 2)
        _, writer = await open_stream(api, "/v1/ledger?watch=1")
        for _, one in [*open_ones[1:], (None, writer)]:
            await close(one)


async def test_streams_end_with_the_supervisor_and_with_the_ledger(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        one, writer = await open_stream(api, "/v1/ledger/shared?watch=1")
        await next_event(one)
        api.here.access.close()
        assert await asyncio.wait_for(one.read(), 30) == b""
        await close(writer)
        other, writer = await open_stream(api, "/v1/ledger/shared?watch=1")
        await next_event(other)
    assert await asyncio.wait_for(other.read(), 30) == b""
    await close(writer)


async def test_our_client_follows_events(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        api.here.access.put("shared", "a", b"1")

        def follow() -> list[StreamEvent]:
            events = stream("/v1/ledger/shared?watch=1", socket_path=api.path)
            found = [next(events), next(events)]
            with pytest.raises(EndedError, match="ended the stream"):
                found += list(events)
            return found

        following = asyncio.ensure_future(asyncio.to_thread(follow))
        await until(lambda: api.server._streams)
        await api.ask("PUT", "/v1/ledger/shared/a", b"2")
        await asyncio.sleep(0)
        api.here.access.close()
        found = await following
    assert [one.kind for one in found][:2] == ["put", "ready"]
    assert found[0].id == found[0].data["id"]


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("/v1/ledger/nothing?watch=1", "there is no bucket 'nothing'"),
        ("/v1/ledger/shared", "has no events"),
    ],
)
async def test_our_client_says_what_is_no_stream(tmp_path: Path, target: str, words: str) -> None:
    async with serving(tmp_path) as api:
        with pytest.raises(ApiError, match=words):
            await asyncio.to_thread(lambda: list(stream(target, socket_path=api.path)))


async def until(holds: Callable[[], object]) -> None:
    for _ in range(5000):
        if holds():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never came")


async def test_a_long_document_is_never_whole_in_memory() -> None:
    pulled = 0

    def items() -> Iterator[str]:
        nonlocal pulled
        for pulled in range(1, 1001):  # noqa: B007 - counts for the test
            yield "x" * 1000

    chunks = [(chunk, pulled) async for chunk in _document({"a": 1}, "items", items()).chunks]
    assert max(len(chunk) for chunk, _ in chunks) < CHUNK + 1100
    assert chunks[0][1] < 40
    document = json.loads(b"".join(chunk for chunk, _ in chunks))
    assert document == {"a": 1, "items": ["x" * 1000] * 1000}


# What entries look like


@given(st.binary(max_size=200), st.integers(0, 2**47 - 1), st.integers(1, 2**47 - 1))
def test_any_entry_has_a_view(value: bytes, ms: int, expires: int) -> None:
    made = entry(OTHER, "lease", "k", value, ms=ms, expires=expires)
    view = json.loads(json.dumps(entry_view(made)))
    text = view["value"]
    assert (base64.b64decode(text) if view["encoding"] == "base64" else text.encode()) == value
    assert view["written"].endswith("Z")
    said = event_text(Event(Kind.PUT, "lease", "k", made), lambda _: None)
    assert said.count(b"\n") == 4
    assert said.endswith(b"\n\n")


@given(st.text(st.characters(codec="ascii"), max_size=60))
def test_any_key_can_be_named_in_a_path(key: str) -> None:
    from appliance.api.http import HttpError, Request
    from appliance.api.router import Router

    router = Router(ledger_module.ledger_routes(lambda: None))
    request = Request("GET", f"/v1/ledger/shared/{quote(key, safe='')}")
    if not key or any(ord(one) < 32 or ord(one) == 127 for one in key):
        with pytest.raises(HttpError):
            router.find(request)
    else:
        assert router.find(request)[1].parameters == {"bucket": "shared", "key": key}
