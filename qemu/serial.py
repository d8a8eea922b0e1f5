"""What a machine said on its serial console, and when."""

from __future__ import annotations

import bisect
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

from qemu.errors import WaitTimeoutError

_POLL_SECONDS = 0.05
_CONTROL = re.compile(
    rb"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-Z\\-_=>78]"
    rb"|[\x00-\x08\x0e-\x1f]"
)


def plain(data: bytes) -> str:
    """Return console output without escape sequences and carriage returns."""
    return _CONTROL.sub(b"", data).replace(b"\r", b"").decode(errors="replace")


def last_lines(text: str, count: int) -> str:
    """Return the last lines that are not empty."""
    return "\n".join([line for line in text.splitlines() if line.strip()][-count:])


class Transcript:
    """Bytes with the time at which each arrived; the pure part of :class:`SerialLog`."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._ends: list[int] = []
        self._times: list[float] = []

    def add(self, data: bytes, at: float) -> None:
        """Note that ``data`` arrived at time ``at`` (seconds since power-on)."""
        if data:
            self._data += data
            self._ends.append(len(self._data))
            self._times.append(at)

    def __len__(self) -> int:
        return len(self._data)

    def text(self, start: int = 0) -> str:
        """Return what was said from a byte offset on, as plain text."""
        return plain(bytes(self._data[start:]))

    def find(self, pattern: str, start: int = 0) -> float | None:
        """Return when the pattern (a regular expression over raw bytes) first was complete."""
        match = re.compile(pattern.encode()).search(self._data, start)
        if match is None:
            return None
        return self._times[bisect.bisect_left(self._ends, match.end())]


class SerialLog:
    """Follows the log file of a running machine (by looking every 50 ms).

    Times are seconds since ``started`` (``time.monotonic()``); with a file that was there before,
    what it held already counts as said at once.
    """

    def __init__(self, path: Path, *, started: float | None = None, offset: int = 0) -> None:
        self.path = path
        self._started = time.monotonic() if started is None else started
        self._offset = offset
        self._transcript = Transcript()
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, name=f"serial {path}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take in the rest and stop following."""
        self._stopping.set()
        self._thread.join(5)

    @property
    def position(self) -> int:
        """Where the log ends now: a start for :meth:`wait_for`."""
        with self._changed:
            return len(self._transcript)

    def text(self, start: int = 0) -> str:
        """Return everything said from a position on, without escape sequences."""
        with self._changed:
            return self._transcript.text(start)

    def mark(self, pattern: str, start: int = 0) -> float | None:
        """Return the seconds from power-on until the pattern was on the console, or None."""
        with self._changed:
            return self._transcript.find(pattern, start)

    def wait_for(
        self,
        pattern: str,
        *,
        timeout: float,
        start: int = 0,
        give_up: Callable[[], str | None] | None = None,
    ) -> float:
        """Wait until the pattern is on the console; returns its time mark.

        ``give_up`` returns a reason once waiting is pointless. Raises :class:`WaitTimeoutError`.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            while (mark := self._transcript.find(pattern, start)) is None:
                reason = give_up() if give_up else None
                if reason is None and time.monotonic() >= deadline:
                    reason = f"not within {timeout:.0f} s"
                if reason is not None:
                    raise WaitTimeoutError(
                        f"{pattern!r} is not on the console: {reason}; the last lines are\n"
                        + last_lines(self._transcript.text(start), 15),
                        hint=f"the whole console is in {self.path}",
                    )
                self._changed.wait(0.5)
            return mark

    def _follow(self) -> None:
        file = None
        while True:
            stopping = self._stopping.is_set()
            if file is None and self.path.exists():
                file = self.path.open("rb", buffering=0)
                file.seek(self._offset)
            data = file.read() if file else b""
            if data:
                with self._changed:
                    self._transcript.add(data, time.monotonic() - self._started)
                    self._changed.notify_all()
            if stopping:
                break
            if not data:
                self._stopping.wait(_POLL_SECONDS)
        if file:
            file.close()
