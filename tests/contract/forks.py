"""Real supervisor processes by the dozen: forked from one that has loaded everything.

A supervisor needs most of a second to load and a few milliseconds to start; a test that starts a
hundred would be slow otherwise. Recipe::

    with Forks() as forks:
        node = forks.start(directory, kill_at=7)   # SIGKILL before its 7th step on the disk
        node.wait()
        print(node.log())

Overlay and file systems below are fake and real: `tests.fakes.overlay` and ``directory``.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from appliance.api.client import ApiError, call
from skerry.errors import SkerryError

ROOT = Path(__file__).resolve().parents[2]
# What Python tells before it does something to a file (sys.addaudithook).
_STEPS = frozenset({"open", "os.rename", "os.remove", "os.mkdir", "os.chmod", "sqlite3.connect"})
_CLONE_NEWNS = 0x20000


@dataclass
class Node:
    """One supervisor, by its process and its directories."""

    pid: int
    directory: Path
    _handle: int = field(repr=False)

    @property
    def state_dir(self) -> Path:
        return self.directory / "state"

    @property
    def inbox(self) -> Path:
        return self.directory / "run" / "inbox"

    def status(self) -> dict[str, Any]:
        """Return the status document; empty while nobody answers."""
        try:
            return call("GET", "/v1/status", socket_path=self.directory / "run" / "api.sock")
        except ApiError:
            return {}

    def until(self, *states: str, seconds: float = 30) -> dict[str, Any]:
        """Return the status as soon as the state is one of these."""
        deadline = time.monotonic() + seconds
        while (status := self.status()).get("state") not in states:
            assert time.monotonic() < deadline, f"{status}\n{self.log()}"
            assert not self.wait(0), self.log()
            time.sleep(0.02)
        return status

    def joined(self, seconds: float = 30) -> dict[str, Any]:
        """Return the status as soon as the node has an identity, whatever else is wrong."""
        deadline = time.monotonic() + seconds
        while not (status := self.status()).get("overlay"):
            assert time.monotonic() < deadline, f"{status}\n{self.log()}"
            time.sleep(0.02)
        return status

    def wait(self, seconds: float = 30) -> bool:
        """Say whether it ended within the time."""
        return bool(select.select([self._handle], [], [], seconds)[0])

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        assert self.wait()

    def log(self) -> str:
        """Return what it and those before it wrote."""
        return (self.directory / "log").read_text()


class Forks:
    """The process that has loaded everything."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.contract.forks"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._nodes: list[Node] = []
        return self

    def __exit__(self, *_: object) -> None:
        for node in self._nodes:
            node.kill()
            os.close(node._handle)
        self._process.communicate(timeout=10)

    def start(self, directory: Path, **options: object) -> Node:
        """Start a supervisor on ``directory``; options: see `_child`."""
        directory.mkdir(exist_ok=True)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"directory": str(directory), **options}) + "\n")
        self._process.stdin.flush()
        pid = int(self._process.stdout.readline())
        # The child stays a zombie until the next start, so the number is still its own.
        node = Node(pid, directory, os.pidfd_open(pid))
        self._nodes.append(node)
        return node


def _child(
    directory: str,
    *,
    kill_at: int = 0,
    clock: float | None = None,
    token_file: str | None = None,
    disk: str = "",
    uid: int = 0,
) -> int:
    """Be a supervisor.

    ``kill_at``: SIGKILL before this step on the disk below the directory; ``clock``: Unix seconds
    at which time stands still; ``disk``: mount options of a tmpfs (or ``ro``: what is there, but
    read-only) for the state directory, seen by this process only; ``uid``: become this user.
    """
    from appliance import supervisor
    from appliance.config import SupervisorConfig
    from appliance.launch import run
    from tests.fakes.overlay import FakeOverlay

    # It looks around more often than a real one: tests wait for what it finds.
    vars(supervisor)["QUICK_TICK_SECONDS"] = 0.05
    base = Path(directory)
    config = SupervisorConfig(
        state_dir=base / "state",
        run_dir=base / "run",
        token_file=Path(token_file) if token_file else None,
    )
    if disk:
        _mount(config.state_dir, disk)
    if uid:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    if clock is not None:
        defaults = supervisor.Supervisor.__init__.__kwdefaults__
        assert defaults is not None
        defaults["wall_clock"] = lambda: clock
    if kill_at:
        steps = iter(range(1, kill_at))

        def watch(event: str, arguments: tuple[object, ...]) -> None:
            about = any(str(one).startswith(directory) for one in arguments)
            if event in _STEPS and about and next(steps, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
    return run(config, make_overlay=FakeOverlay().make)


def _mount(place: Path, disk: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    place.mkdir(exist_ok=True)
    if libc.unshare(_CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "a mount namespace needs root")
    commands = [["mount", "--make-rprivate", "/"]]
    if disk == "ro":
        commands += [["mount", "--bind", str(place), str(place)]]
        commands += [["mount", "-o", "remount,bind,ro", str(place)]]
    else:
        commands += [["mount", "-t", "tmpfs", "-o", disk, "tmpfs", str(place)]]
    for command in commands:
        subprocess.run(command, check=True)


def main() -> None:
    """Fork a supervisor for every line of JSON, and answer with its process id."""
    for module in ("appliance.launch", "appliance.overlay.service", "tests.fakes.overlay"):
        importlib.import_module(module)

    for line in sys.stdin:
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        options = json.loads(line)
        pid = os.fork()
        if pid:
            print(pid, flush=True)
            continue
        log = os.open(f"{options['directory']}/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(log, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        status = 1
        try:
            status = _child(**options)
        except SkerryError as error:
            print(f"skerry: {error}\n  {error.hint}", file=sys.stderr)
        except Exception:  # noqa: BLE001 - what a test looks for in the log
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)


if __name__ == "__main__":
    main()
