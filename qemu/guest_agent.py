"""The lab agent: runs commands as root in a guest, over virtio-serial ports.

Never part of an image: a lab passes this very file to the guest as a systemd credential, so it is
one file with nothing but the standard library. The host imports the framing from here.

A frame is ``magic || length || CRC-32 || payload``; a payload is a JSON object, a newline and raw
bytes. A reader that comes in the middle of a stream finds the next frame by its magic and checksum.

From the host, each with ``session`` (another session's message is ignored: the guest restarted):
``start`` (id, argv, cwd?, env?, tty?: [rows, columns]), ``stdin`` (id, bytes), ``eof`` (id),
``resize`` (id, rows, columns), ``signal`` (id, number).
From the guest: ``hello`` (session, boot_id, uptime) at once and each idle second; ``out`` and
``err`` (id, bytes), ``exit`` (id, status: below 0 for a signal), ``error`` (id, message: not
started).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import queue
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
import uuid
import zlib

MAGIC = b"\xf5SkL"
_HEAD = struct.Struct(">4sII")
LONGEST_PAYLOAD = 1 << 20
_CHUNK = 32768
_HELLO_SECONDS = 1.0
PORTS = "/dev/virtio-ports/skerry.lab."

Fields = dict[str, object]


def encode_frame(fields: Fields, body: bytes = b"") -> bytes:
    """Return one frame."""
    payload = json.dumps(fields, separators=(",", ":")).encode() + b"\n" + body
    if len(payload) > LONGEST_PAYLOAD:
        raise ValueError(f"a frame of {len(payload)} bytes; at most {LONGEST_PAYLOAD}")
    return _HEAD.pack(MAGIC, len(payload), zlib.crc32(payload)) + payload


class FrameDecoder:
    """Finds frames in a stream that may start anywhere and hold anything."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[Fields, bytes]]:
        """Take bytes and return the frames that they complete, in order."""
        self._buffer += data
        found = []
        while (frame := self._next()) is not None:
            found.append(frame)
        return found

    def _next(self) -> tuple[Fields, bytes] | None:
        buffer = self._buffer
        while True:
            start = buffer.find(MAGIC)
            if start < 0:
                # The magic may have begun in the last three bytes.
                del buffer[: max(len(buffer) - len(MAGIC) + 1, 0)]
                return None
            del buffer[:start]
            if len(buffer) < _HEAD.size:
                return None
            _, length, checksum = _HEAD.unpack_from(buffer)
            if length <= LONGEST_PAYLOAD:
                if len(buffer) < _HEAD.size + length:
                    return None
                payload = bytes(buffer[_HEAD.size : _HEAD.size + length])
                if zlib.crc32(payload) == checksum and (frame := _parse(payload)) is not None:
                    del buffer[: _HEAD.size + length]
                    return frame
            del buffer[:1]


def _parse(payload: bytes) -> tuple[Fields, bytes] | None:
    head, _, body = payload.partition(b"\n")
    try:
        fields = json.loads(head)
    except (ValueError, RecursionError):
        return None
    return (fields, body) if isinstance(fields, dict) else None


def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:  # noqa: PTH123 - one light import less
        return file.read().strip()


def _pair(value: object) -> tuple[int, int]:
    if isinstance(value, list) and len(value) == 2 and all(isinstance(one, int) for one in value):
        return max(1, min(value[0], 1000)), max(1, min(value[1], 1000))
    return 24, 80


def _set_size(fd: int, size: tuple[int, int]) -> None:
    with contextlib.suppress(OSError):
        fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))


class _Job:
    """One running command and the threads that carry its streams."""

    def __init__(self, channel: Channel, ident: str, fields: Fields) -> None:
        self._channel = channel
        self._ident = ident
        argv = fields.get("argv")
        if not isinstance(argv, list) or not argv or not all(isinstance(a, str) for a in argv):
            raise ValueError("argv is no list of strings")
        extra = fields.get("env")
        environment = {"HOME": "/root", "LANG": "C.UTF-8", **os.environ}
        if isinstance(extra, dict):
            environment.update({str(key): str(value) for key, value in extra.items()})
        cwd = fields.get("cwd")
        tty = fields.get("tty")
        self._stdin: queue.Queue[bytes | None] = queue.Queue()
        self._master: int | None = None
        slave = None
        if tty is not None:
            self._master, slave = pty.openpty()
            _set_size(slave, _pair(tty))
        try:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE if slave is None else slave,
                stdout=subprocess.PIPE if slave is None else slave,
                stderr=subprocess.PIPE if slave is None else slave,
                cwd=cwd if isinstance(cwd, str) else "/",
                env=environment,
                start_new_session=True,
                preexec_fn=None if slave is None else _take_terminal,  # noqa: PLW1509
            )
        except BaseException:
            if self._master is not None:
                os.close(self._master)
            raise
        finally:
            if slave is not None:
                os.close(slave)
        self._readers: list[threading.Thread] = []

    def begin(self) -> None:
        """Carry the streams; the job must be known to its channel by now."""
        self._readers = [self._thread(self._pump, fd, op) for fd, op in self._outputs()]
        self._thread(self._feed)
        self._thread(self._wait)

    def _thread(self, target: object, *arguments: object) -> threading.Thread:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        thread.start()
        return thread

    def _outputs(self) -> list[tuple[int, str]]:
        if self._master is not None:
            return [(os.dup(self._master), "out")]
        process = self._process
        assert process.stdout is not None  # noqa: S101 - a pipe was asked for
        assert process.stderr is not None  # noqa: S101
        return [(os.dup(process.stdout.fileno()), "out"), (os.dup(process.stderr.fileno()), "err")]

    def _pump(self, fd: int, op: str) -> None:
        while True:
            try:
                data = os.read(fd, _CHUNK)
            except OSError:  # EIO: the last slave of a terminal was closed
                data = b""
            if not data:
                os.close(fd)
                return
            self._channel.send({"op": op, "id": self._ident}, data)

    def _feed(self) -> None:
        process = self._process
        if self._master is not None:
            fd = self._master
        else:
            assert process.stdin is not None  # noqa: S101 - a pipe was asked for
            fd = process.stdin.fileno()
        while (data := self._stdin.get()) is not None:
            with contextlib.suppress(OSError):  # the process has closed its end
                while data:
                    data = data[os.write(fd, data) :]
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()

    def _wait(self) -> None:
        status = self._process.wait()
        # A background child may hold the pipes open for ever: the command itself has ended.
        for reader in self._readers:
            reader.join(1.0)
        self._stdin.put(None)
        self._channel.ended(self._ident)
        self._channel.send({"op": "exit", "id": self._ident, "status": status})
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    def stdin(self, data: bytes | None) -> None:
        """Queue input, or its end."""
        if data is None and self._master is not None:
            data = b"\x04"
        self._stdin.put(data)

    def resize(self, size: tuple[int, int]) -> None:
        """Give the terminal another size."""
        if self._master is not None:
            _set_size(self._master, size)

    def signal(self, number: int) -> None:
        """Signal the command's whole process group."""
        with contextlib.suppress(OSError, ValueError):
            os.killpg(self._process.pid, number)


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Channel:
    """One port, one host at a time."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()
        self._jobs: dict[str, _Job] = {}
        self._session = uuid.uuid4().hex
        self._decoder = FrameDecoder()

    def send(self, fields: Fields, body: bytes = b"") -> None:
        """Write one frame; blocks while no host is connected."""
        frame = encode_frame(fields, body)
        with self._lock, contextlib.suppress(OSError):
            while frame:
                frame = frame[os.write(self._fd, frame) :]

    def ended(self, ident: str) -> None:
        """Forget a job."""
        self._jobs.pop(ident, None)

    def serve(self, *, once: bool = False) -> None:
        """Say hello and obey, for ever; ``once``: until the host is gone."""
        while True:
            self._hello()
            readable, _, _ = select.select([self._fd], [], [], _HELLO_SECONDS)
            if not readable:
                continue
            try:
                data = os.read(self._fd, 65536)
            except OSError:
                data = b""
            if not data:
                for job in list(self._jobs.values()):
                    job.signal(signal.SIGHUP)
                self._decoder = FrameDecoder()
                if once:
                    return
                time.sleep(0.2)  # the port says "end of file" until a host connects
                continue
            for fields, body in self._decoder.feed(data):
                self._obey(fields, body)

    def _hello(self) -> None:
        uptime = time.clock_gettime(time.CLOCK_BOOTTIME)
        boot = {"session": self._session, "boot_id": _boot_id(), "uptime": uptime}
        self.send({"op": "hello", **boot})

    def _obey(self, fields: Fields, body: bytes) -> None:
        ident, op = fields.get("id"), fields.get("op")
        if fields.get("session") != self._session or not isinstance(ident, str):
            return
        if op == "start":
            try:
                job = self._jobs[ident] = _Job(self, ident, fields)
            except (OSError, ValueError, subprocess.SubprocessError) as error:
                self.send({"op": "error", "id": ident, "message": str(error)})
            else:
                job.begin()
            return
        running = self._jobs.get(ident)
        if running is not None:
            self._tell(running, fields, body)

    @staticmethod
    def _tell(job: _Job, fields: Fields, body: bytes) -> None:
        op, number = fields.get("op"), fields.get("number")
        if op == "stdin":
            job.stdin(body)
        elif op == "eof":
            job.stdin(None)
        elif op == "resize":
            job.resize(_pair([fields.get("rows"), fields.get("columns")]))
        elif op == "signal" and isinstance(number, int):
            job.signal(number)


def _serve_port(path: str) -> None:
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            time.sleep(0.5)  # udev has not made it yet
            continue
        try:
            Channel(fd).serve()
        finally:
            os.close(fd)


def main() -> None:
    """Serve every port that the machine has; the count is the one argument."""
    ports = [f"{PORTS}{number}" for number in range(int(sys.argv[1]))]
    threads = [threading.Thread(target=_serve_port, args=(port,)) for port in ports]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
