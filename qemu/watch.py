"""How far a booting node is, from its console and from its supervisor."""

from __future__ import annotations

import contextlib
import json
import queue
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from qemu.agent import Job
from qemu.errors import AgentError, LabError, WaitTimeoutError
from qemu.machine import Machine, State
from qemu.serial import last_lines

# Later stages last; the last one that was seen counts.
_STAGES = (
    ("boot loader", re.compile(r"GRUB|Booting `|Loading Linux|U-Boot 2|slot [AB], try")),
    ("kernel", re.compile(r"Linux version \d|Booting Linux|EFI stub:")),
    ("initrd", re.compile(r"\] skerry: ")),
    ("systemd", re.compile(r"systemd\[1\]: |systemd \d+[^\n]* running in system mode|Welcome to ")),
    ("login prompt", re.compile(r" login: ")),
)

# Runs in the guest: asks the supervisor once a second without starting a program each time, and
# prints the document whenever the state, the addresses or the peers changed.
STATUS_WATCHER = """
import json, socket, time
last = None
while True:
    try:
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(10)
            s.connect("/run/skerry/api.sock")
            s.sendall(b"GET /v1/status HTTP/1.0\\r\\nHost: localhost\\r\\n\\r\\n")
            data = b""
            while chunk := s.recv(65536):
                data += chunk
        status = json.loads(data.partition(b"\\r\\n\\r\\n")[2])
        overlay = status.get("overlay") or {}
        now = (status.get("state"), status.get("reasons"), overlay.get("addresses"),
               [(p["name"], p["up"], p["rtt_ms"] is None) for p in overlay.get("peers", [])])
        if now != last:
            last = now
            print(json.dumps(status), flush=True)
    except (OSError, ValueError):
        pass
    time.sleep(1)
"""


def stage_of(console: str) -> str:
    """Return how far the console says a boot is."""
    reached = "firmware"
    for name, pattern in _STAGES:
        if pattern.search(console):
            reached = name
    return reached


def peers_up(status: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the peers that a status document says are reachable."""
    overlay = status.get("overlay") or {}
    return [peer for peer in overlay.get("peers", []) if peer.get("up")]


def describe(status: dict[str, Any]) -> str:
    """Return a status document in a few words."""
    words = str(status.get("state"))
    overlay = status.get("overlay") or {}
    if addresses := overlay.get("addresses"):
        words += f", {addresses[0]}"
    if names := [str(peer.get("name")) for peer in peers_up(status)]:
        words += f", peers up: {', '.join(names)}"
    if codes := [str(one.get("code")) for one in status.get("reasons") or []]:
        words += f" ({', '.join(codes)})"
    return words


def reasons(status: dict[str, Any]) -> list[str]:
    """Return what a node says is wrong, and the ways out."""
    return [f"{one.get('message')}. {one.get('hint')}" for one in status.get("reasons") or []]


@dataclass(slots=True)
class NodeWatch:
    """Follows one node; :meth:`poll` returns words when there is something new to say.

    ``command`` runs in the guest and prints a JSON document a line; ``words`` and ``trouble`` say
    what such a document means.
    """

    machine: Machine
    status: dict[str, Any] = field(default_factory=dict)
    command: Sequence[str] = ("/usr/bin/python3", "-ISc", STATUS_WATCHER)
    words: Callable[[dict[str, Any]], str] = describe
    trouble: Callable[[dict[str, Any]], list[str]] = reasons
    # Said until the first document comes.
    before: str = "system is up, supervisor starting"
    _said: str = ""
    _job: Job | None = None
    _line: bytes = b""

    def poll(self) -> str | None:
        """Look, without waiting; raises :class:`LabError` when the machine has ended."""
        self.machine.require_alive()
        if self.machine.state is State.PANICKED:
            raise LabError(
                f"{self.machine.spec.name}: the kernel panicked:\n"
                + last_lines(self.machine.serial.text(), 15),
                hint=f"the whole console is in {self.machine.paths.serial_log}",
            )
        self._follow_supervisor()
        if self.status:
            words = self.words(self.status)
        elif self._job:
            words = self.before
        else:
            words = stage_of(self.machine.serial.text())
        if words == self._said:
            return None
        self._said = words
        return words

    def close(self) -> None:
        """Stop the watcher in the guest."""
        if self._job:
            with contextlib.suppress(AgentError):
                self._job.signal(9)
            self._job = None

    def _follow_supervisor(self) -> None:
        try:
            if self._job is None:
                agent = self.machine.agent
                if agent.hello is None:
                    return
                self._job = agent.start(self.command)
            while True:
                item = self._job.next(0)
                if isinstance(item, int):
                    self._job = None
                    return
                if item[0] == "out":
                    self._take(item[1])
        except queue.Empty:
            pass
        except AgentError:
            self._job = None  # the guest restarts: what it was is no more
            self.status = {}

    def _take(self, data: bytes) -> None:
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            status = json.loads(line)
            if isinstance(status, dict):
                self.status = status


def follow(
    watches: list[NodeWatch],
    done: Callable[[list[dict[str, Any]]], bool],
    *,
    timeout: float,
    say: Callable[[str, str], None],
) -> None:
    """Say what each node does until ``done`` (given all status documents), or time is up."""
    deadline = time.monotonic() + timeout
    try:
        while not done([watch.status for watch in watches]):
            for watch in watches:
                if words := watch.poll():
                    say(watch.machine.spec.name, words)
            if time.monotonic() >= deadline:
                raise WaitTimeoutError(_stuck(watches, timeout), hint=_where(watches))
            time.sleep(0.2)
        for watch in watches:
            if words := watch.poll():
                say(watch.machine.spec.name, words)
    finally:
        for watch in watches:
            watch.close()


def _stuck(watches: list[NodeWatch], timeout: float) -> str:
    parts = [f"the nodes are not ready after {timeout:.0f} s"]
    for watch in watches:
        name = watch.machine.spec.name
        if watch.status:
            parts.append(f"{name}: {watch.words(watch.status)}")
            parts += [f"    {line}" for line in watch.trouble(watch.status)]
        else:
            console = watch.machine.serial.text()
            parts.append(f"{name}: {stage_of(console)}; its last lines are")
            parts.append(last_lines(console, 12))
    return "\n".join(parts)


def _where(watches: list[NodeWatch]) -> str:
    logs = ", ".join(str(watch.machine.paths.serial_log) for watch in watches)
    return f"consoles: {logs}; journals: make logs NODE=1"
