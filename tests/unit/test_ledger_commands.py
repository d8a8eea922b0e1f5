"""``skerry ledger``, as people call it, against a real socket and ledger in another thread."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.ledger import commands
from appliance.ledger.entry import read_entry
from skerry.__main__ import main
from tests.fakes.ledger import NOW, entry, root_entry
from tests.fakes.ledger_access import OTHER, SERVER
from tests.fakes.ledger_api import Served, serving


class Lab:
    """A served ledger whose event loop runs in a thread of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = directory / "api.sock"
        self.served: Served
        self._loop = asyncio.new_event_loop()
        self._up = threading.Event()
        self._down: asyncio.Event
        self._thread: threading.Thread

    def start(self) -> None:
        self._up.clear()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve()))
        self._thread.start()
        assert self._up.wait(30)

    async def _serve(self) -> None:
        self._down = asyncio.Event()
        async with serving(self.directory) as self.served:
            self._up.set()
            await self._down.wait()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._down.set)
        self._thread.join(30)

    def close(self) -> None:
        self.stop()
        self._loop.close()

    def do(self, work: Callable[[], object]) -> None:
        """Do something where the ledger lives, and wait for it."""
        done = threading.Event()

        def run() -> None:
            work()
            done.set()

        self._loop.call_soon_threadsafe(run)
        assert done.wait(30)

    def run(self, *arguments: str) -> int:
        action, *rest = arguments
        return main(["ledger", action, "--socket", str(self.socket), *rest])


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path)
    made.start()
    try:
        yield made
    finally:
        made.close()


Capture = pytest.CaptureFixture[str]


def test_put_get_del(lab: Lab, capsys: Capture) -> None:
    assert lab.run("put", "shared", "colour", "blue") == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "shared/colour: 4 bytes\n")
    assert lab.run("get", "shared", "colour") == 0
    assert capsys.readouterr().out == "blue"
    assert lab.run("get", "--json", "shared", "colour") == 0
    assert json.loads(capsys.readouterr().out)["owner_name"] == "n1"
    assert lab.run("del", "shared", "colour") == 0
    assert capsys.readouterr().err == "shared/colour has no value any more\n"
    assert lab.run("get", "shared", "colour") == 1
    assert capsys.readouterr() == ("", "shared/colour has no value\n")
    assert lab.run("del", "shared", "colour") == 1
    assert "has no value" in capsys.readouterr().err


def test_get_of_an_unknown_bucket_says_so(lab: Lab, capsys: Capture) -> None:
    assert lab.run("get", "nothing", "k") == 1
    assert "there is no bucket 'nothing'" in capsys.readouterr().err


class Stdin:
    def __init__(self, data: bytes) -> None:
        self.buffer = io.BytesIO(data)


def test_values_from_a_file_and_from_stdin(
    lab: Lab,
    tmp_path: Path,
    capfdbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    value = bytes(range(256))
    (tmp_path / "v").write_bytes(value)
    assert lab.run("put", "shared", "file", f"@{tmp_path / 'v'}") == 0
    monkeypatch.setattr(sys, "stdin", Stdin(value[::-1]))
    assert lab.run("put", "shared", "stdin", "-") == 0
    capfdbinary.readouterr()
    assert lab.run("get", "shared", "file") == 0
    assert lab.run("get", "shared", "stdin") == 0
    assert capfdbinary.readouterr().out == value + value[::-1]


def test_what_is_no_value(
    lab: Lab, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "large").write_bytes(bytes(4097))
    monkeypatch.setattr(sys, "stdin", Stdin(bytes(10_000)))
    for value in ("x" * 4097, f"@{tmp_path / 'large'}", f"@{tmp_path}", "@/nowhere", "@", "-"):
        assert lab.run("put", "shared", "k", value) == 2
        assert "Traceback" not in capsys.readouterr().err
    assert lab.run("get", "shared", "k") == 1


def test_binary_is_not_sent_to_a_terminal(
    lab: Lab, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.do(lambda: lab.served.here.access.put("shared", "evil", b"\x1b]0;owned\x07"))
    lab.do(lambda: lab.served.here.access.put("shared", "good", b"blue"))
    capsys.readouterr()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert lab.run("get", "shared", "evil") == 2
    assert lab.run("ls", "shared") == 0
    assert lab.run("get", "shared", "good") == 0
    captured = capsys.readouterr()
    assert "not for a terminal" in captured.err
    assert "\x1b" not in captured.out
    assert captured.out.endswith("blue\n")


def test_leases(lab: Lab, capsys: Capture) -> None:
    assert lab.run("put", "lease", "k", "x", "--lease", "1h") == 0
    assert ", until 2026-11-18T12:06:40.000Z" in capsys.readouterr().err
    for lease, words in (("never", "never ends"), ("soon", "is no time"), ("0s", "has passed")):
        assert lab.run("put", "lease", "k", "x", "--lease", lease) == 2
        assert words in capsys.readouterr().err
    assert lab.run("put", "lease", "k", "x") == 1
    assert "need a lease of at most 86400 s: --lease 60s" in capsys.readouterr().err
    # As the local API has them.
    assert lab.run("put", "lease", "k", "x", "--lease", "60") == 0


def test_ls_tells_age_and_owner(lab: Lab, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    here = lab.served.here
    lab.do(lambda: here.hear(root_entry("assigned", f"{OTHER.text}/name", b"kitchen")))
    lab.do(lambda: here.hear(entry(OTHER, "shared", "app/a", b"two\nlines", ms=NOW - 3_700_000)))
    lab.do(lambda: here.access.put("shared", "b", b"x" * 100))
    monkeypatch.setattr(time, "time", lambda: NOW / 1000)
    assert lab.run("ls", "shared") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["key", "value", "age", "written", "by", "until"],
        ["app/a", "two\\nlines", "1h", "1m", "kitchen"],
        ["b", "x" * 57 + "...", "0s", "n1"],
    ]
    assert lab.run("ls", "--json", "shared", "app/") == 0
    assert [one["key"] for one in json.loads(capsys.readouterr().out)["entries"]] == ["app/a"]
    assert lab.run("ls", "nothing") == 1


def test_buckets(lab: Lab, capsys: Capture) -> None:
    assert lab.run("buckets") == 0
    out = capsys.readouterr().out
    assert "members whose grant has the role (auto, server)" in out
    assert lab.run("buckets", "--json") == 0
    assert json.loads(capsys.readouterr().out)["buckets"][0]["name"] == "member"


def test_dump(lab: Lab, capsys: Capture) -> None:
    lab.do(lambda: lab.served.here.access.put("shared", "k", b"1"))
    lab.do(lambda: lab.served.here.access.delete("shared", "k"))
    assert lab.run("dump", "--json") == 0
    records = json.loads(capsys.readouterr().out)["records"]
    assert {read_entry(base64.b64decode(one)).entry_id for one in records} == {
        one.entry_id for one in lab.served.here.replica
    }
    assert lab.run("dump") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["shared/k", SERVER.text, "3", "deleted"] in lines


@pytest.mark.parametrize("arguments", [["get", "shared", "k"], ["watch"], ["dump"], ["ls", "x"]])
def test_nobody_listens(tmp_path: Path, capsys: Capture, arguments: list[str]) -> None:
    action, *rest = arguments
    assert main(["ledger", action, "--socket", str(tmp_path / "none"), *rest]) == 1
    assert "does not run here" in capsys.readouterr().err


class Said:
    """Takes what the command prints, and lets the test wait for words."""

    def __init__(self) -> None:
        self.text = ""
        self._grown = threading.Condition()

    def write(self, text: str) -> int:
        with self._grown:
            self.text += text
            self._grown.notify_all()
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False

    def wait_for(self, words: str) -> None:
        with self._grown:
            assert self._grown.wait_for(lambda: words in self.text, 30), self.text


def test_watch_goes_on_when_the_supervisor_restarts(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = Said()
    monkeypatch.setattr(sys, "stdout", said)
    monkeypatch.setattr(sys, "stderr", said)
    monkeypatch.setattr(commands, "AGAIN_SECONDS", 0.01)
    over = threading.Event()

    def sleep(seconds: float) -> None:
        if over.wait(seconds):
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", sleep)
    status: list[int] = []
    watching = threading.Thread(target=lambda: status.append(lab.run("watch", "shared")))
    watching.start()
    said.wait_for("that is there")
    lab.do(lambda: lab.served.here.access.put("shared", "one", b"1\x1b[2J"))
    said.wait_for("shared/one = (5 bytes)  (n1)")
    lab.do(lambda: lab.served.here.access.delete("shared", "one"))
    said.wait_for("shared/one deleted  (n1)")
    lab.stop()
    said.wait_for("waiting for it to come back")
    lab.start()
    said.wait_for("the supervisor is back")
    lab.do(lambda: lab.served.here.access.put("shared", "two", b"2"))
    said.wait_for("shared/two = 2  (n1)")
    over.set()
    lab.do(lab.served.here.access.close)
    watching.join(30)
    assert status == [130]
    assert "\x1b" not in said.text


def test_watch_for_machines(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    said = Said()
    monkeypatch.setattr(sys, "stdout", said)
    monkeypatch.setattr(time, "sleep", _interrupt)
    watching = threading.Thread(target=lambda: lab.run("watch", "--json", "lease", "app/"))
    watching.start()
    said.wait_for("ready")
    lab.do(lambda: lab.served.here.access.put("lease", "app/x", b"1", 60))
    said.wait_for("app/x")
    lab.do(lab.served.here.access.close)
    watching.join(30)
    lines = [json.loads(line) for line in said.text.splitlines()]
    assert [one["event"] for one in lines] == ["ready", "put"]
    assert (lines[1]["key"], lines[1]["value"]) == ("app/x", "1")


def _interrupt(_: float) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("key", ["", "a b", "a?b=1", "#", "ö", "a%2Fb", "\udcff", "k" * 9000, "\n"])
def test_keys_that_are_none(lab: Lab, capsys: Capture, key: str) -> None:
    before = len(lab.served.here.replica)
    assert lab.run("put", "shared", key, "x") == (1 if key else 2)
    assert capsys.readouterr().err.startswith("skerry: ")
    assert lab.run("get", "shared", key) == (1 if key else 2)
    assert len(lab.served.here.replica) == before


@pytest.mark.parametrize("bucket", ["", ".", "..", "a/b", "\udcff", "x" * 9000])
def test_buckets_that_are_none(lab: Lab, capsys: Capture, bucket: str) -> None:
    for words in (["put", bucket, "k", "x"], ["get", bucket, "k"], ["ls", bucket]):
        assert lab.run(*words) == 1
        assert capsys.readouterr().err.startswith("skerry: ")


def test_words_that_look_odd_are_taken_as_they_are(lab: Lab) -> None:
    assert lab.run("put", "shared", "../../x", "\udcff") == 0
    made = lab.served.here.access.get("shared", "../../x")
    assert made is not None
    assert made.value == b"\xff"
