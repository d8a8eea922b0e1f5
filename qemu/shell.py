"""An interactive root shell in a guest, and commands whose output is passed on as it comes."""

from __future__ import annotations

import contextlib
import os
import queue
import select
import shutil
import signal
import sys
import termios
import tty
from collections.abc import Sequence
from types import FrameType

from qemu.agent import Job
from qemu.errors import AgentError
from qemu.machine import Machine
from skerry import console

LEAVE = b"\x1d"
"""Ctrl-], as in telnet."""


def split_leave(data: bytes) -> tuple[bytes, bool]:
    """Return what was typed before the leave key, and whether the key was among it."""
    before, key, _ = data.partition(LEAVE)
    return before, bool(key)


def interact(machine: Machine) -> int:
    """Connect our terminal to a shell in the guest; returns the shell's exit status."""
    machine.wait_agent(timeout=300)
    size = shutil.get_terminal_size()
    term = os.environ.get("TERM", "linux")
    job = machine.agent.start(
        ["/bin/bash", "-l"], tty=(size.lines, size.columns), env={"TERM": term}, cwd="/root"
    )
    console.note(f"root shell on {machine.spec.name}; Ctrl-] leaves")

    def resized(_number: int, _frame: FrameType | None) -> None:
        now = shutil.get_terminal_size()
        job.resize(now.lines, now.columns)

    keyboard = sys.stdin.fileno()
    if not sys.stdin.isatty():
        return _carry(job, keyboard)
    kept = termios.tcgetattr(keyboard)
    former = signal.signal(signal.SIGWINCH, resized)
    try:
        tty.setraw(keyboard)
        return _carry(job, keyboard)
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, kept)
        signal.signal(signal.SIGWINCH, former)
        console.note("")


def _carry(job: Job, keyboard: int) -> int:
    typing = True
    while True:
        if typing and select.select([keyboard], [], [], 0.01)[0]:
            typed, leave = split_leave(os.read(keyboard, 4096))
            job.write(typed)
            if leave:
                job.signal(signal.SIGHUP)
                return 0
            if not typed:
                job.end_input()
                typing = False
        try:
            while True:
                item = job.next(0 if typing else 0.1)
                if isinstance(item, int):
                    return status_of(item)
                _write(sys.stdout.fileno(), item[1])
        except queue.Empty:
            continue


def stream(machine: Machine, argv: Sequence[str]) -> int:
    """Run a command in the guest and pass its output on; returns its exit status."""
    machine.wait_agent(timeout=300)
    job = machine.agent.start(argv)
    job.end_input()
    try:
        while True:
            item = job.next()
            if isinstance(item, int):
                return status_of(item)
            _write((sys.stdout if item[0] == "out" else sys.stderr).fileno(), item[1])
    except BaseException:
        with contextlib.suppress(AgentError):
            job.signal(signal.SIGTERM)
        raise


def status_of(status: int) -> int:
    """Return an exit status as a shell shows it: 128 + signal."""
    return status if status >= 0 else 128 - status


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
