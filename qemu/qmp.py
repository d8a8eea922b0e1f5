"""QEMU's machine protocol (QMP): JSON lines over a unix socket.

The protocol is qemu.org's "QEMU Machine Protocol Specification": a greeting, ``qmp_capabilities``,
then commands with an ``id``, their answers, and events at any time.
"""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qemu.errors import QmpError

Json = dict[str, object]
_LONGEST_LINE = 16 << 20


@dataclass(frozen=True, slots=True)
class QmpEvent:
    """Something that happened to the machine, such as ``SHUTDOWN`` or ``GUEST_PANICKED``."""

    name: str
    data: Mapping[str, object] = field(default_factory=dict)


class LineDecoder:
    """Splits a byte stream into JSON objects; raises :class:`QmpError` on anything else."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> list[Json]:
        """Take bytes and return the objects that they complete."""
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        if len(self._buffer) > _LONGEST_LINE:
            raise QmpError(f"QMP: a line of more than {_LONGEST_LINE} bytes")
        found: list[Json] = []
        for line in lines:
            if not line.strip():
                continue
            try:
                message = json.loads(line)
            except (ValueError, RecursionError):
                raise QmpError(f"QMP: not JSON: {line[:80]!r}") from None
            if not isinstance(message, dict):
                raise QmpError(f"QMP: not an object: {line[:80]!r}")
            found.append(message)
        return found


def event_of(message: Json) -> QmpEvent | None:
    """Return the event that a message is, or None."""
    name, data = message.get("event"), message.get("data")
    if not isinstance(name, str):
        return None
    return QmpEvent(name, data if isinstance(data, dict) else {})


def answer_of(message: Json, command: str) -> object:
    """Return what a command returned; raises :class:`QmpError` with QEMU's own words."""
    if "return" in message:
        return message["return"]
    error = message.get("error")
    why = error.get("desc") if isinstance(error, dict) else message
    raise QmpError(f"QEMU refused {command}: {why}")


class QmpClient:
    """A connection to one machine's monitor; events go to ``on_event`` in a reader thread."""

    def __init__(self, path: Path, *, on_event: Callable[[QmpEvent], None] | None = None) -> None:
        self._on_event = on_event
        self._answers: queue.Queue[Json | None] = queue.Queue()
        self._lock = threading.Lock()
        self._number = 0
        self._decoder = LineDecoder()
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise QmpError(f"QMP: no monitor at {path}: {error.strerror}") from None
        self._thread = threading.Thread(target=self._read, name=f"qmp {path}", daemon=True)
        self._thread.start()
        self.execute("qmp_capabilities", timeout=30)

    def close(self) -> None:
        """Hang up; the machine goes on."""
        self._answers.put(None)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        if threading.current_thread() is not self._thread:
            self._thread.join(5)

    def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *, timeout: float = 30.0
    ) -> object:
        """Run one command and return its answer; raises :class:`QmpError`."""
        with self._lock:
            self._number += 1
            message: Json = {"execute": command, "id": self._number}
            if arguments:
                message["arguments"] = dict(arguments)
            try:
                self._socket.sendall(json.dumps(message).encode() + b"\n")
            except OSError as error:
                raise QmpError(f"QMP: {command}: the monitor is gone ({error})") from None
            return answer_of(self._answer(command, self._number, timeout), command)

    def _answer(self, command: str, number: int, timeout: float) -> Json:
        deadline = time.monotonic() + timeout
        while True:
            try:
                answer = self._answers.get(timeout=max(deadline - time.monotonic(), 0))
            except queue.Empty:
                raise QmpError(f"QMP: no answer to {command} within {timeout:.0f} s") from None
            if answer is None:
                raise QmpError(f"QMP: {command}: the monitor is gone")
            if answer.get("id") == number:
                return answer

    def _read(self) -> None:
        try:
            while data := self._socket.recv(65536):
                for message in self._decoder.feed(data):
                    event = event_of(message)
                    if event is None:
                        self._answers.put(message)
                    elif self._on_event:
                        self._on_event(event)
        except (OSError, QmpError):
            pass
        finally:
            self._answers.put(None)
