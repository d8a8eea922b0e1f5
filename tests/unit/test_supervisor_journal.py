from __future__ import annotations

import io
import logging
import os
import re
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance import journal
from appliance.journal import JournalHandler, LineHandler, Redactor, encode
from appliance.notify import Notifier
from appliance.people import TOKEN_PATTERNS


def decode(data: bytes) -> dict[str, bytes]:
    """Read the native format as journald does."""
    fields = {}
    while data:
        line, _, rest = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            (length,) = struct.unpack_from("<Q", rest)
            value, rest = rest[8 : 8 + length], rest[8 + length :]
            assert rest[:1] == b"\n"
            rest = rest[1:]
        fields[name.decode()] = value
        data = rest
    return fields


class FakeJournal:
    """A datagram socket where journald's would be."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(30)

    def entry(self) -> dict[str, str]:
        return {name: value.decode() for name, value in decode(self.socket.recv(1 << 20)).items()}


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeJournal]:
    fake = FakeJournal(tmp_path / "journal")
    with fake.socket:
        yield fake


@pytest.fixture
def log(fake: FakeJournal) -> Iterator[logging.Logger]:
    handler = JournalHandler(fake.path, Redactor(TOKEN_PATTERNS))
    logger = logging.Logger("appliance.test")
    logger.addHandler(handler)
    yield logger
    handler.close()


def test_an_entry_has_its_fields(fake: FakeJournal, log: logging.Logger) -> None:
    log.warning("refused %s", "node-2", extra={"skerry_cause": "expired", "skerry_count": 3})
    entry = fake.entry()
    assert entry["MESSAGE"] == "refused node-2"
    assert entry["PRIORITY"] == "4"
    assert entry["SYSLOG_IDENTIFIER"] == "skerry"
    assert (entry["SKERRY_CAUSE"], entry["SKERRY_COUNT"]) == ("expired", "3")
    assert entry["CODE_FILE"] == __file__


@pytest.mark.parametrize(
    ("level", "priority"),
    [(logging.DEBUG, 7), (logging.INFO, 6), (logging.WARNING, 4), (logging.ERROR, 3), (60, 2)],
)
def test_priorities(level: int, priority: int) -> None:
    assert journal.priority_of(level) == priority


def test_a_line_feed_can_not_forge_a_field(fake: FakeJournal, log: logging.Logger) -> None:
    log.info("a name: %s", "x\nPRIORITY=0\nMESSAGE=all is well")
    entry = fake.entry()
    assert entry["PRIORITY"] == "6"
    assert entry["MESSAGE"].endswith("x\nPRIORITY=0\nMESSAGE=all is well")


@given(
    st.dictionaries(
        st.from_regex(re.compile(r"[A-Z][A-Z0-9_]{0,10}", re.ASCII), fullmatch=True),
        st.text(st.characters(), max_size=60),
        max_size=5,
    )
)
def test_what_is_encoded_is_what_journald_reads(fields: dict[str, str]) -> None:
    wanted = {name: value.encode(errors="backslashreplace") for name, value in fields.items()}
    assert decode(encode(fields)) == wanted


@pytest.mark.parametrize("name", ["", "lower", "WITH SPACE", "A=B", "A\nB", "_TRUSTED", "É"])
def test_only_field_names_are_field_names(name: str) -> None:
    with pytest.raises(ValueError, match="can't be the name"):
        encode({name: "value"})


def test_oversized_entries_are_cut(fake: FakeJournal, log: logging.Logger) -> None:
    log.info("é" * 1_000_000)
    entry = fake.entry()
    assert len(entry["MESSAGE"].encode()) < 20_000
    assert "bytes more" in entry["MESSAGE"]
    log.info("many", extra={f"skerry_{number}": "x" * 10_000 for number in range(100)})
    assert fake.entry()["MESSAGE"] == "many"


def test_a_full_journal_does_not_block_and_the_gap_is_said(
    fake: FakeJournal, log: logging.Logger
) -> None:
    count = 0
    handler = log.handlers[0]
    assert isinstance(handler, JournalHandler)
    while not handler._dropped:
        log.info("line %d", count)
        count += 1
        assert count < 10_000
    log.info("lost too")
    for _ in range(count - 1):
        fake.entry()
    log.info("there again")
    entry = fake.entry()
    assert (entry["MESSAGE"], entry["SKERRY_DROPPED"]) == ("there again", "2")
    log.info("and on")
    assert "SKERRY_DROPPED" not in fake.entry()


def test_without_a_journal_lines_go_to_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = JournalHandler(tmp_path / "gone", Redactor())
    handler.emit(logging.LogRecord("n", logging.ERROR, "f", 1, "hello %s", ("you",), None))
    handler.close()
    assert capsys.readouterr().err == "<3>hello you\n"


def test_a_bad_log_call_raises_nothing(
    fake: FakeJournal, log: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    log.info("%d", "not a number")
    log.info("next")
    assert fake.entry()["MESSAGE"] == "next"


SECRET = bytes(range(200, 232))


@pytest.mark.parametrize(
    "form",
    [
        SECRET.hex(),
        str(SECRET),
        "yMnKy8zNzs/Q0dLT1NXW19jZ2tvc3d7f4OHi4+Tl5uc=",
        "yMnKy8zNzs_Q0dLT1NXW19jZ2tvc3d7f4OHi4-Tl5uc",
        "SKERRY1-" + "ABCDEFGHIJKLMNOP234567" * 10,
        "skerry1abcdefghijklmnopqrst",
    ],
)
def test_secrets_are_hidden_in_every_form(form: str) -> None:
    redactor = Redactor(TOKEN_PATTERNS)
    redactor.hide(SECRET)
    record = logging.LogRecord("n", logging.INFO, "f", 1, "key %s!", (form,), None)
    record.skerry_key = form
    fields = journal.fields_of(record, redactor)
    assert "[hidden]" in fields["MESSAGE"]
    assert form.strip("b'=") not in str(fields)
    assert "[hidden]" in fields["SKERRY_KEY"]


def test_secrets_are_hidden_in_tracebacks_and_bytes_are_never_shown() -> None:
    redactor = Redactor()
    redactor.hide(SECRET)
    with pytest.raises(ValueError, match="invalid literal") as caught:
        int(SECRET.hex() + "?")
    error = caught.value
    where = (ValueError, error, error.__traceback__)
    record = logging.LogRecord("n", logging.ERROR, "f", 1, "oh", (), where)
    record.skerry_key = b"anything"
    fields = journal.fields_of(record, redactor)
    assert "ValueError: invalid literal for int() with base 10: '[hidden]?'" in fields["MESSAGE"]
    assert fields["SKERRY_KEY"] == "8 bytes"


def test_innocent_words_stay() -> None:
    redactor = Redactor(TOKEN_PATTERNS)
    redactor.hide(b"short")
    text = "skerry supervisor short skerry-uzs5rv SKERRY partition"
    assert redactor.clean(text) == text


def test_lines_for_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    record = logging.LogRecord("n", logging.INFO, "f", 1, "state", (), None)
    record.skerry_state = "ready"
    LineHandler(Redactor()).emit(record)
    assert stream.getvalue() == "skerry: state state=ready\n"


# The service manager


@pytest.mark.parametrize("abstract", [False, True])
def test_notify(tmp_path: Path, abstract: bool) -> None:
    name = f"@skerry-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name.replace("@", "\0") if abstract else name)
        manager.settimeout(30)
        environment = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "3000000", "OTHER": "1"}
        notifier = Notifier(environment)
        assert environment == {"OTHER": "1"}
        assert notifier.watchdog_seconds == 3.0
        assert notifier.send(READY=1, STATUS="two\nlines")
        assert manager.recv(4096) == b"READY=1\nSTATUS=two lines"
        assert notifier.send(STATUS="x" * 100_000)
        assert len(manager.recv(1 << 20)) == 4096
        notifier.close()
        assert not notifier.send(READY=1)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"NOTIFY_SOCKET": ""},
        {"NOTIFY_SOCKET": "relative"},
        {"NOTIFY_SOCKET": "/nonexistent/socket"},
    ],
)
def test_no_manager_is_no_trouble(environment: dict[str, str]) -> None:
    notifier = Notifier(dict(environment))
    assert notifier.send(READY=1) is False
    notifier.close()


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({"WATCHDOG_USEC": "1000000"}, 1.0),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "many"}, None),
        ({"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": str(os.getpid())}, 1.0),
    ],
)
def test_watchdog(environment: dict[str, str], seconds: float | None) -> None:
    assert Notifier(environment).watchdog_seconds == seconds
