"""The host's side of the lab agent (:mod:`qemu.guest_agent`): commands in a running guest.

The agent comes with systemd credentials, never with an image; see :func:`credentials`.
"""

from __future__ import annotations

import contextlib
import fcntl
import queue
import shlex
import socket
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from qemu import guest_agent
from qemu.errors import AgentError, CommandError, WaitTimeoutError
from qemu.guest_agent import Fields, FrameDecoder, encode_frame
from qemu.spec import AGENT_CHANNELS

UNIT = f"""[Unit]
Description=Skerry lab agent (comes with a lab's machine, not with the image)
DefaultDependencies=no
After=systemd-journald.socket
Conflicts=shutdown.target
Before=shutdown.target

[Service]
ImportCredential=lab.agent
ExecStart=/usr/bin/python3 -IS %d/lab.agent {AGENT_CHANNELS}
Restart=always
RestartSec=1
OOMScoreAdjust=-500
"""
_CHUNK = 64 * 1024


def credentials() -> dict[str, bytes]:
    """Return the systemd credentials that start the agent in a guest (systemd 256 or newer).

    The names are as short as fw_cfg wants them: the unit may have 9 characters. Every boot
    starts the root slice and so the agent, as early as Python can run (the root mount would not
    do: without a line in fstab nothing starts it).
    """
    return {
        "lab.agent": Path(guest_agent.__file__).read_bytes(),
        "systemd.extra-unit.x.service": UNIT.encode(),
        "systemd.unit-dropin.-.slice": b"[Unit]\nWants=x.service\n",
    }


@dataclass(frozen=True, slots=True)
class Result:
    """How a command in the guest ended; below 0: killed by that signal."""

    command: str
    exit_status: int
    stdout: str
    stderr: str

    def check(self) -> Result:
        """Return self; raises :class:`CommandError` unless the status is 0."""
        if self.exit_status:
            said = (self.stderr or self.stdout).strip()[-2000:]
            raise CommandError(f"`{self.command}` ended with {self.exit_status}: {said}")
        return self


@dataclass(frozen=True, slots=True)
class Hello:
    """Which agent, on which boot of the guest, speaks."""

    session: str
    boot_id: str
    uptime: float


Chunk = tuple[str, bytes]
"""``("out"|"err", bytes)``."""


class Job:
    """A command that runs in the guest; :meth:`chunks` or :meth:`wait` ends with its status."""

    def __init__(self, client: AgentClient, ident: str) -> None:
        self._client = client
        self.ident = ident
        self.queue: queue.Queue[Chunk | int | AgentError] = queue.Queue()

    def next(self, timeout: float | None = None) -> Chunk | int:
        """Return the next output, or the exit status; raises :class:`AgentError`, `queue.Empty`."""
        item = self.queue.get(timeout=timeout)
        if isinstance(item, AgentError):
            raise item
        return item

    def wait(
        self, *, timeout: float, on_chunk: Callable[[Chunk], None] | None = None
    ) -> tuple[int, bytes, bytes]:
        """Wait for the end; returns status and both streams. Kills it when time is up."""
        deadline = time.monotonic() + timeout
        streams = {"out": bytearray(), "err": bytearray()}
        while True:
            try:
                item = self.next(max(deadline - time.monotonic(), 0))
            except queue.Empty:
                self.signal(9)
                raise WaitTimeoutError(
                    f"a command in the guest did not end within {timeout:.0f} s; it printed: "
                    + bytes(streams["out"] + streams["err"])[-500:].decode(errors="replace")
                ) from None
            if isinstance(item, int):
                return item, bytes(streams["out"]), bytes(streams["err"])
            streams[item[0]] += item[1]
            if on_chunk:
                on_chunk(item)

    def write(self, data: bytes) -> None:
        """Send bytes to the command's standard input."""
        for start in range(0, len(data), _CHUNK):
            self._client.send({"op": "stdin", "id": self.ident}, data[start : start + _CHUNK])

    def end_input(self) -> None:
        """Close the command's standard input."""
        self._client.send({"op": "eof", "id": self.ident})

    def resize(self, rows: int, columns: int) -> None:
        """Tell the terminal's new size."""
        self._client.send({"op": "resize", "id": self.ident, "rows": rows, "columns": columns})

    def signal(self, number: int) -> None:
        """Signal the command's process group."""
        self._client.send({"op": "signal", "id": self.ident, "number": number})


class AgentClient:
    """A conversation with one guest on the first of its channels that nobody else uses."""

    def __init__(self, channels: Sequence[Path]) -> None:
        self._jobs: dict[str, Job] = {}
        self._hello: Hello | None = None
        self._changed = threading.Condition()
        self._gone = False
        self._write_lock = threading.Lock()
        self._lock_file, self._socket = _connect(channels)
        self._thread = threading.Thread(target=self._read, name="lab agent", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Hang up; the agent ends what it still runs for us."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._socket.close()
        self._lock_file.close()

    @property
    def gone(self) -> bool:
        """QEMU has ended (or closed the port)."""
        return self._gone

    @property
    def hello(self) -> Hello | None:
        """Who spoke last, or None so far."""
        return self._hello

    def wait_ready(self, *, timeout: float, other_than: str | None = None) -> Hello:
        """Wait for the agent, if wanted on another boot than ``other_than``."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                if self._hello and self._hello.boot_id != other_than:
                    return self._hello
                if self._gone:
                    raise AgentError("the machine ended before its lab agent spoke")
                if time.monotonic() >= deadline:
                    raise WaitTimeoutError(f"the guest's lab agent was silent for {timeout:.0f} s")
                self._changed.wait(0.5)

    def start(
        self,
        argv: Sequence[str],
        *,
        tty: tuple[int, int] | None = None,
        env: dict[str, str] | None = None,
        cwd: str | None = None,
    ) -> Job:
        """Start a command, on a terminal of so many (rows, columns) if wanted."""
        job = Job(self, uuid.uuid4().hex)
        fields: Fields = {"op": "start", "id": job.ident, "argv": list(argv)}
        if tty:
            fields["tty"] = list(tty)
        if env:
            fields["env"] = env
        if cwd:
            fields["cwd"] = cwd
        with self._changed:
            self._jobs[job.ident] = job
        self.send(fields)
        return job

    def run_bytes(
        self, argv: Sequence[str] | str, *, timeout: float = 120.0, stdin: bytes = b""
    ) -> tuple[int, bytes, bytes]:
        """Run a command (a string: by the shell) to its end."""
        job = self.start(["/bin/sh", "-c", argv] if isinstance(argv, str) else argv)
        if stdin:
            job.write(stdin)
        job.end_input()
        return job.wait(timeout=timeout)

    def run(
        self, argv: Sequence[str] | str, *, timeout: float = 120.0, stdin: bytes = b""
    ) -> Result:
        """Run a command (a string: by the shell) and return status and text."""
        status, out, err = self.run_bytes(argv, timeout=timeout, stdin=stdin)
        named = argv if isinstance(argv, str) else shlex.join(argv)
        return Result(named, status, out.decode(errors="replace"), err.decode(errors="replace"))

    def send(self, fields: Fields, body: bytes = b"") -> None:
        """Send one message in the present session."""
        hello = self._hello
        if hello is None or self._gone:
            raise AgentError("the guest's lab agent is not there")
        try:
            with self._write_lock:
                self._socket.sendall(encode_frame({**fields, "session": hello.session}, body))
        except OSError as error:
            raise AgentError(f"the guest's lab agent is gone: {error.strerror}") from None

    def _read(self) -> None:
        decoder = FrameDecoder()
        try:
            while data := self._socket.recv(65536):
                for fields, body in decoder.feed(data):
                    self._take(fields, body)
        except OSError:
            pass
        with self._changed:
            self._gone = True
            self._fail_jobs("the machine has ended")
            self._changed.notify_all()

    def _take(self, fields: Fields, body: bytes) -> None:
        match fields:
            case {"op": "hello", "session": str(session), "boot_id": str(boot), "uptime": uptime}:
                now = Hello(session, boot, float(uptime) if isinstance(uptime, (int, float)) else 0)
                with self._changed:
                    if self._hello and self._hello.session != session:
                        self._fail_jobs("the guest or its lab agent restarted")
                    self._hello = now
                    self._changed.notify_all()
            case {"op": ("out" | "err") as stream, "id": str(ident)}:
                if job := self._jobs.get(ident):
                    job.queue.put((stream, body))
            case {"op": "exit", "id": str(ident), "status": int(status)}:
                if job := self._jobs.pop(ident, None):
                    job.queue.put(status)
            case {"op": "error", "id": str(ident), "message": str(message)}:
                if job := self._jobs.pop(ident, None):
                    job.queue.put(AgentError(f"the guest could not start it: {message}"))

    def _fail_jobs(self, why: str) -> None:
        for job in self._jobs.values():
            job.queue.put(AgentError(f"{why} while a command ran"))
        self._jobs.clear()


def _connect(channels: Sequence[Path]) -> tuple[IO[bytes], socket.socket]:
    for path in channels:
        # QEMU takes one connection a port; a second would wait unheard.
        lock = path.with_suffix(".lock").open("wb")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(path))
        except OSError as error:
            connection.close()
            lock.close()
            raise AgentError(f"no machine behind {path}: {error.strerror}") from None
        return lock, connection
    raise AgentError(
        f"all {len(channels)} channels to the machine are in use",
        hint="close a shell or a journal that is open on it",
    )
