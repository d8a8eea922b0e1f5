"""The parts a machine is driven by: states, monitor, console, processes."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemu.errors import QmpError, WaitTimeoutError
from qemu.machine import EXIT, State, following
from qemu.process import ProcessId
from qemu.qmp import LineDecoder, QmpClient, QmpEvent, answer_of, event_of
from qemu.serial import SerialLog, Transcript, last_lines, plain


def test_the_life_of_a_machine() -> None:
    state = State.RUNNING
    for event, expected in (
        ("STOP", State.PAUSED),
        ("RESUME", State.RUNNING),
        ("GUEST_PANICKED", State.PANICKED),
        ("RESET", State.RUNNING),
        ("NIC_RX_FILTER_CHANGED", State.RUNNING),
        ("SHUTDOWN", State.SHUT_DOWN),
        ("STOP", State.SHUT_DOWN),
        ("RESUME", State.SHUT_DOWN),
    ):
        state = following(state, QmpEvent(event))
        assert state is expected
    assert following(state, EXIT) is State.OFF


@pytest.mark.parametrize("state", State)
def test_whatever_it_did_its_end_is_off(state: State) -> None:
    assert following(state, EXIT) is State.OFF


def test_monitor_lines_in_pieces() -> None:
    decoder = LineDecoder()
    assert decoder.feed(b'{"event": "RES') == []
    assert decoder.feed(b'ET"}\r\n\n{"return": {}}\n') == [{"event": "RESET"}, {"return": {}}]


@given(st.binary(max_size=100))
def test_monitor_rubbish_is_one_kind_of_error(data: bytes) -> None:
    # No other error may come out.
    with contextlib.suppress(QmpError):
        LineDecoder().feed(data + b"\n")


def test_events_and_answers_are_told_apart() -> None:
    event = event_of({"event": "SHUTDOWN", "data": {"guest": True}})
    assert event == QmpEvent("SHUTDOWN", {"guest": True})
    assert event_of({"return": {}}) is None
    assert answer_of({"return": 5}, "x") == 5
    with pytest.raises(QmpError, match="refused eject: Device busy"):
        answer_of({"error": {"class": "GenericError", "desc": "Device busy"}}, "eject")


class _FakeQemu:
    """A monitor that greets, answers from a script and says an event before each answer."""

    def __init__(self, path: Path, answers: dict[str, object]) -> None:
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen()
        self._answers = answers
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._server.accept()
        with connection, connection.makefile("rwb") as stream:
            stream.write(b'{"QMP": {"version": {}}}\n')
            stream.flush()
            for line in stream:
                request = json.loads(line)
                answer = self._answers.get(request["execute"], {"return": {}})
                if answer == "hang up":
                    return
                assert isinstance(answer, dict)
                stream.write(b'{"event": "RTC_CHANGE", "data": {}}\n')
                stream.write(json.dumps({**answer, "id": request["id"]}).encode() + b"\n")
                stream.flush()

    def end(self) -> None:
        self._thread.join(30)
        self._server.close()


@pytest.fixture
def monitor(tmp_path: Path) -> Iterator[Path]:
    answers: dict[str, object] = {
        "query-status": {"return": {"status": "running"}},
        "eject": {"error": {"desc": "no such device"}},
        "quit": "hang up",
    }
    fake = _FakeQemu(tmp_path / "qmp", answers)
    yield tmp_path / "qmp"
    fake.end()


def test_a_conversation_with_the_monitor(monitor: Path) -> None:
    events: list[QmpEvent] = []
    client = QmpClient(monitor, on_event=events.append)
    assert client.execute("query-status") == {"status": "running"}
    with pytest.raises(QmpError, match="refused eject: no such device"):
        client.execute("eject", {"id": "x"})
    with pytest.raises(QmpError, match="monitor is gone"):
        client.execute("quit")
    client.close()
    assert {event.name for event in events} == {"RTC_CHANGE"}


def test_no_monitor_at_all(tmp_path: Path) -> None:
    with pytest.raises(QmpError, match="no monitor"):
        QmpClient(tmp_path / "qmp")


def test_console_text_is_plain() -> None:
    assert plain(b"\x1b[2J\x1b[01;01H\x1b[0;32m  OK  \x1b[0m\r\nnext\x1b]0;title\x07 line\x00") == (
        "  OK  \nnext line"
    )
    assert last_lines("a\n\n  \nb\nc\n", 2) == "b\nc"


@given(st.binary(max_size=200))
def test_any_console_bytes_can_be_shown(data: bytes) -> None:
    plain(data).encode()


def test_a_mark_is_when_the_pattern_was_complete() -> None:
    transcript = Transcript()
    transcript.add(b"GRUB loading\r\nLinux ver", 1.0)
    transcript.add(b"", 1.5)
    transcript.add(b"sion 6\r\nlogin: ", 2.0)
    assert transcript.find("GRUB") == 1.0
    assert transcript.find("Linux version") == 2.0
    assert transcript.find("panic") is None
    assert transcript.find("GRUB", start=5) is None
    assert transcript.text() == "GRUB loading\nLinux version 6\nlogin: "


def test_waiting_for_the_console(tmp_path: Path) -> None:
    path = tmp_path / "serial.log"
    path.write_bytes(b"old power cycle\n")
    log = SerialLog(path, offset=path.stat().st_size)
    with path.open("ab") as file:
        file.write(b"skerry login: ")
    assert log.wait_for("login: ", timeout=30) >= 0
    assert "old" not in log.text()
    with pytest.raises(WaitTimeoutError, match=r"QEMU ended; the last lines are\s+skerry login"):
        log.wait_for("never", timeout=30, give_up=lambda: "QEMU ended")
    with pytest.raises(WaitTimeoutError, match="not within 0 s"):
        log.wait_for("never", timeout=0)
    log.close()


def test_a_process_is_not_mistaken_for_another() -> None:
    child = subprocess.Popen(["sleep", "60"])
    known = ProcessId.of(child.pid)
    assert known is not None
    assert known.alive()
    assert ProcessId.from_json(json.loads(json.dumps(known.to_json()))) == known
    earlier = ProcessId(known.pid, known.start_ticks - 1, known.boot)
    other_boot = ProcessId(known.pid, known.start_ticks, "another")
    for stranger in (earlier, other_boot):
        assert not stranger.alive()
        stranger.kill()
    assert child.poll() is None
    known.kill()
    assert child.wait(30) == -9
    assert not known.alive()
    known.kill()
    assert ProcessId.of(child.pid) is None


@pytest.mark.parametrize(
    "data", [None, 3, {}, {"pid": 1, "start_ticks": 1, "boot": "b"}, {"pid": "1"}]
)
def test_a_state_file_that_names_no_process(data: object) -> None:
    assert ProcessId.from_json(data) is None


def test_we_are_alive() -> None:
    us = ProcessId.of(os.getpid())
    assert us is not None
    assert us.alive()
