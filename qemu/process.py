"""Processes that outlive us, found again without mistaking another for them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path


def boot_id() -> str:
    """Return the id of this boot of the host."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _start_ticks(pid: int) -> int | None:
    """Return when a process started (clock ticks since boot), or None if it is gone or a zombie."""
    try:
        # The name in parentheses may hold anything; the fields after it are plain (proc(5)).
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process: its number is used again after its end, its start time is not."""

    pid: int
    start_ticks: int
    boot: str

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """Return the identity of a running process."""
        ticks = _start_ticks(pid)
        return None if ticks is None else cls(pid, ticks, boot_id())

    def alive(self) -> bool:
        """Say whether this very process still runs."""
        return self.boot == boot_id() and _start_ticks(self.pid) == self.start_ticks

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Signal it, if it still runs."""
        if not self.alive():
            return
        try:
            # The descriptor pins the process: no other can get its number between check and kill.
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if self.alive():
                signal.pidfd_send_signal(fd, number)
        except ProcessLookupError:
            pass
        finally:
            os.close(fd)

    def wait(self, timeout: float) -> bool:
        """Wait for its end; False: it still runs."""
        deadline = time.monotonic() + timeout
        while self.alive():
            _reap(self.pid)
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.02)
        return True

    def to_json(self) -> dict[str, object]:
        """Return what :meth:`from_json` takes."""
        return {"pid": self.pid, "start_ticks": self.start_ticks, "boot": self.boot}

    @classmethod
    def from_json(cls, data: object) -> ProcessId | None:
        """Return the identity in a state file, or None for anything else."""
        match data:
            case {"pid": int(pid), "start_ticks": int(ticks), "boot": str(boot)} if pid > 1:
                return cls(pid, ticks, boot)
        return None


def _reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
