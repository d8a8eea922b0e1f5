"""Two nodes of one network as real processes, each in a network namespace of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from appliance.client import call
from qemu.lab import make_tokens
from skerry.errors import SkerryError
from tests.bench.harness import ROOT


class Pair:
    """Starts on entry, ends on exit; needs root."""

    def __init__(self) -> None:
        self._spaces = [f"skb{os.getpid()}-{number}" for number in (1, 2)]
        self._scratch = tempfile.TemporaryDirectory(prefix="skerry-pair-")
        self._supervisors: list[subprocess.Popen[bytes]] = []
        self.path = Path(self._scratch.name)

    @property
    def pids(self) -> list[int]:
        """The supervisors' process ids."""
        return [child.pid for child in self._supervisors]

    def __enter__(self) -> Self:
        try:
            self._make_wire()
            (token,) = make_tokens(1, self.path / "operator")
            (self.path / "token").write_bytes(token)
            for number in (1, 2):
                self._start(number)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._end()

    def status(self, number: int) -> dict[str, Any]:
        """Return the status document of node 1 or 2."""
        document = call("GET", "/v1/status", socket_path=self.path / f"run-{number}" / "api.sock")
        return dict(document)

    def wait_until_joined(self, *, timeout: float) -> None:
        """Wait until both are ready and see each other up."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                seen = [self.status(number) for number in (1, 2)]
                if all(_joined(status) for status in seen):
                    return
                told = json.dumps([(status["state"], status["reasons"]) for status in seen])
            except SkerryError as error:
                told = str(error)
            if time.monotonic() > deadline:
                logs = "\n".join(
                    (self.path / f"log-{number}").read_text()[-2000:] for number in (1, 2)
                )
                raise SkerryError(f"the two nodes did not meet in {timeout:.0f} s: {told}\n{logs}")
            time.sleep(0.5)

    def _make_wire(self) -> None:
        for space in self._spaces:
            _ip("netns", "add", space)
        first, second = self._spaces
        ends = ("up0", "netns", first), ("up0", "netns", second)
        _ip("link", "add", *ends[0], "type", "veth", "peer", "name", *ends[1])
        for number, space in enumerate(self._spaces, start=1):
            _ip("-n", space, "link", "set", "lo", "up")
            _ip("-n", space, "address", "add", f"192.168.77.{number}/24", "dev", "up0")
            _ip("-n", space, "link", "set", "up0", "up")

    def _start(self, number: int) -> None:
        command = ["ip", "netns", "exec", self._spaces[number - 1], sys.executable, "-m", "skerry"]
        command += ["supervisor", "run", "--interface", f"skb{number}"]
        command += ["--state-dir", str(self.path / f"state-{number}")]
        command += ["--run-dir", str(self.path / f"run-{number}")]
        command += ["--token-file", str(self.path / "token"), "--name", f"node-{number}"]
        command += wireguard_arguments()
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "MALLOC_ARENA_MAX": "1"}
        environment["PYTHONNODEBUGRANGES"] = "1"
        with (self.path / f"log-{number}").open("wb") as log:
            self._supervisors.append(
                subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
                )
            )

    def _end(self) -> None:
        for child in self._supervisors:
            child.terminate()
        for child in self._supervisors:
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        for space in self._spaces:
            # A userspace WireGuard outlives its supervisor on purpose; here nobody needs it.
            found = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True)
            for pid in found.stdout.split():
                os.kill(int(pid), 15)
            subprocess.run(["ip", "netns", "delete", space], capture_output=True)
        self._scratch.cleanup()


def wireguard_arguments() -> list[str]:
    """Return how the supervisors get their WireGuard on this host."""
    return []


def _joined(status: dict[str, Any]) -> bool:
    peers = (status.get("overlay") or {}).get("peers") or []
    return status["state"] == "ready" and any(peer["up"] for peer in peers)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise SkerryError(
            f"`ip {' '.join(words)}` failed: {done.stderr.strip()}",
            hint="this benchmark makes network namespaces: run it as root",
        )
