"""The real cluster agent as a process; its units are the real engine: ``FOLDER API_SOCKET PID``.

PID is the first process of the node's machine (`tests.contract.engine_world`), in which the engine
runs. It is systemd's part that is pretended: readiness by ``NOTIFY_SOCKET``, a restart after 2 s.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from appliance.cluster import growth
from appliance.kubernetes.keeper import Unit, UnitFacts
from appliance.kubernetes.launch import run
from appliance.kubernetes.places import AGENT_UNIT, SERVER_UNIT, Places
from tests.fakes.cluster_process import places_in

_ROLES = {SERVER_UNIT: "server", AGENT_UNIT: "agent"}
_RESTART_SECONDS = 2.0
# An environment variable: after how many seconds away a server is replaced.
REPLACE = "SKERRY_TEST_REPLACE_SECONDS"


class Engines:
    """The two units of the engine, each as a process in the machine, started anew when it ends."""

    def __init__(self, folder: Path, places: Places, machine: int, group: str) -> None:
        self._folder = folder
        self._places = places
        self._machine = machine
        self._group = group
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._ready: set[str] = set()
        self._ended: dict[str, float] = {}
        self._restarts = dict.fromkeys(_ROLES, 0)
        self._notify = folder / "notify"
        self._notify.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(self._notify))

    async def facts(self, *units: str) -> tuple[UnitFacts, ...]:
        """Look, and start anew what ended."""
        self._listen()
        return tuple(self._fact(unit) for unit in units)

    def _listen(self) -> None:
        while True:
            try:
                said = self._socket.recv(4096)
            except BlockingIOError:
                return
            if b"READY=1" in said:
                self._ready |= self._running.keys()

    def _fact(self, unit: str) -> UnitFacts:
        process = self._running.get(unit)
        if process is None:
            return UnitFacts(Unit.INACTIVE)
        if process.poll() is None:
            state = Unit.ACTIVE if unit in self._ready else Unit.ACTIVATING
            return UnitFacts(state, restarts=self._restarts[unit])
        self._ready.discard(unit)
        ended = self._ended.setdefault(unit, time.monotonic())
        if time.monotonic() - ended >= _RESTART_SECONDS:
            self._restarts[unit] += 1
            self._spawn(unit)
        return UnitFacts(Unit.RETRYING, "exit-code", self._restarts[unit])

    async def start(self, unit: str) -> None:
        """Start one; the images are there."""
        if unit in _ROLES:
            self._restarts[unit] = 0
            self._spawn(unit)

    async def restart(self, unit: str) -> None:
        """End one and start it anew."""
        await self.stop(unit)
        await self.start(unit)

    async def stop(self, unit: str) -> None:
        """End one; pods run on."""
        process = self._running.pop(unit, None)
        self._ready.discard(unit)
        if process is None or process.poll() is not None:
            return
        await asyncio.to_thread(_end, process)

    async def close(self) -> None:
        """What runs goes on."""

    def _spawn(self, unit: str) -> None:
        self._ended.pop(unit, None)
        words = ["/engine", _ROLES[unit], "--config", str(self._places.config)]
        words += ["--kubelet-arg", f"cgroup-root=/{self._group}"]
        variables = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "GOGC": "50",
            "NOTIFY_SOCKET": str(self._notify),
        }
        inside = ["nsenter", "--target", str(self._machine), "--mount", "--net", "--pid", "--ipc"]
        inside += ["--uts", "--root", "--wd", "env", "-i"]
        with (self._folder / "engine.log").open("ab") as log:
            self._running[unit] = subprocess.Popen(
                [*inside, *(f"{name}={value}" for name, value in variables.items()), *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )


def _end(process: subprocess.Popen[bytes]) -> None:
    """End what nsenter started; it ends with that."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in children:
        os.kill(int(child), signal.SIGTERM)
    process.wait(60)


def places_of(folder: Path, socket: Path) -> Places:
    """Return places that are all in one folder, which the machine sees too."""
    return replace(
        places_in(folder, socket), run_dir=folder / "run", services_dir=folder / "services"
    )


if __name__ == "__main__":
    where = Path(sys.argv[1])
    # Half an hour is too long for a test.
    growth.REPLACE_SECONDS = float(os.environ.get(REPLACE, growth.REPLACE_SECONDS))
    found = places_of(where, Path(sys.argv[2]))
    sys.exit(run(found, units=Engines(where, found, int(sys.argv[3]), sys.argv[4])))
