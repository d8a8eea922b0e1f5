"""Following booting nodes, and the terminal of a guest, without a guest."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from qemu import shell
from qemu.agent import AgentClient
from qemu.errors import AgentError, LabError, MachineError, WaitTimeoutError
from qemu.guest_agent import Channel
from qemu.machine import Machine, State
from qemu.watch import NodeWatch, follow


class FakeAgent:
    """An agent that runs the watcher and prints what the test wants."""

    def __init__(self) -> None:
        self.hello: object | None = None
        self.items: list[Any] = []

    def start(self, _argv: list[str]) -> FakeAgent:
        return self

    def next(self, _timeout: float) -> Any:  # noqa: ANN401
        if not self.items:
            raise_empty()
        item = self.items.pop(0)
        if isinstance(item, Exception):
            raise item
        return item

    def signal(self, number: int) -> None:
        pass


def raise_empty() -> None:
    import queue

    raise queue.Empty


class FakeMachine:
    def __init__(self, console: str = "") -> None:
        self.spec = SimpleNamespace(name="node1")
        self.paths = SimpleNamespace(serial_log=Path("/logs/serial.log"))
        self.state = State.RUNNING
        self.agent = FakeAgent()
        self.console = console
        self.serial = SimpleNamespace(text=lambda: self.console)

    def require_alive(self) -> None:
        if self.state is State.OFF:
            raise MachineError("machine node1 has ended")

    def says(self, status: dict[str, Any]) -> None:
        self.agent.items.append(("out", json.dumps(status).encode() + b"\n"))


@pytest.fixture
def machine() -> FakeMachine:
    return FakeMachine()


@pytest.fixture
def watch(machine: FakeMachine) -> NodeWatch:
    return NodeWatch(cast("Machine", machine))


def test_a_boot_in_words_each_said_once(machine: FakeMachine, watch: NodeWatch) -> None:
    assert watch.poll() == "firmware"
    assert watch.poll() is None
    machine.console = "Skerry 0.1.0, slot A, try 1 of 3\n"
    assert watch.poll() == "boot loader"
    machine.agent.hello = object()
    assert watch.poll() == "system is up, supervisor starting"
    machine.says({"state": "joining"})
    machine.says({"state": "ready"})
    assert watch.poll() == "ready"
    assert watch.poll() is None


def test_a_document_in_pieces(machine: FakeMachine, watch: NodeWatch) -> None:
    machine.agent.hello = object()
    machine.agent.items = [("out", b'{"state": "re'), ("out", b'ady"}\n'), ("err", b"x")]
    assert watch.poll() == "ready"


def test_a_guest_that_restarts_is_not_ready_any_more(
    machine: FakeMachine, watch: NodeWatch
) -> None:
    machine.agent.hello = object()
    machine.says({"state": "ready"})
    assert watch.poll() == "ready"
    machine.agent.hello = None
    machine.agent.items = [AgentError("the guest restarted")]
    machine.console = "EFI stub:"
    assert watch.poll() == "kernel"


def test_a_panic_and_an_end_are_told_with_their_place(
    machine: FakeMachine, watch: NodeWatch
) -> None:
    machine.console, machine.state = "Kernel panic - not syncing", State.PANICKED
    with pytest.raises(LabError, match="panicked:\nKernel panic") as caught:
        watch.poll()
    assert "/logs/serial.log" in str(caught.value.hint)
    machine.state = State.OFF
    with pytest.raises(MachineError, match="has ended"):
        watch.poll()


def test_too_late_says_how_far_each_node_is(machine: FakeMachine, watch: NodeWatch) -> None:
    machine.console = "EFI stub: hangs here\n"
    with pytest.raises(WaitTimeoutError) as caught:
        follow([watch], lambda _all: False, timeout=0, say=lambda _node, _words: None)
    assert "node1: kernel; its last lines are\nEFI stub: hangs here" in str(caught.value)
    assert "/logs/serial.log" in str(caught.value.hint)


def test_too_late_gives_the_reasons_of_a_node_that_talks(
    machine: FakeMachine, watch: NodeWatch
) -> None:
    machine.agent.hello = object()
    reason = {"code": "clock", "message": "The clock is wrong", "hint": "Set it"}
    machine.says({"state": "degraded", "reasons": [reason]})
    with pytest.raises(WaitTimeoutError, match=r"degraded \(clock\)\n    The clock is wrong. Set"):
        follow([watch], lambda _all: False, timeout=0, say=lambda _node, _words: None)


def test_done_is_asked_of_all_documents(machine: FakeMachine, watch: NodeWatch) -> None:
    machine.agent.hello = object()
    machine.says({"state": "ready"})
    watch.poll()
    said: list[tuple[str, str]] = []
    follow(
        [watch],
        lambda every: [one["state"] for one in every] == ["ready"],
        timeout=30,
        say=lambda node, words: said.append((node, words)),
    )
    assert said == []


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Machine]:
    """A machine of which only the agent is real."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "agent0"))
    server.listen()

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            Channel(connection.fileno()).serve(once=True)

    thread = threading.Thread(target=serve)
    thread.start()
    client = AgentClient([tmp_path / "agent0"])
    client.wait_ready(timeout=30)
    fake = SimpleNamespace(agent=client, wait_agent=lambda **_: "boot", spec=None)
    yield cast("Machine", fake)
    client.close()
    thread.join(30)
    server.close()


def keyboard(typed: bytes) -> int:
    reading, writing = os.pipe()
    os.write(writing, typed)
    os.close(writing)
    return reading


def test_a_shell_takes_what_is_typed_and_its_status_comes_back(
    guest: Machine, capfd: pytest.CaptureFixture[str]
) -> None:
    job = guest.agent.start(["/bin/sh"], tty=(24, 80))
    assert shell._carry(job, keyboard(b"echo sum $((40 + 2)); exit 5\n")) == 5
    assert "sum 42" in capfd.readouterr().out


def test_the_leave_key_leaves_a_shell_that_goes_on(guest: Machine) -> None:
    job = guest.agent.start(["/bin/cat"], tty=(24, 80))
    assert shell._carry(job, keyboard(b"text\x1d")) == 0


def test_a_stream_passes_output_and_status_on(
    guest: Machine, capfd: pytest.CaptureFixture[str]
) -> None:
    assert shell.stream(guest, ["/bin/sh", "-c", "echo out; echo err >&2; exit 4"]) == 4
    assert capfd.readouterr() == ("out\n", "err\n")
