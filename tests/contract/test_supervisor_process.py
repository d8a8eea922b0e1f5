"""The real process, with a fake overlay at the edge below: what only a process can show."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.api.client import ApiError, call
from provisioning.keys import public_key
from provisioning.network import NetworkInfo
from provisioning.token import make_token
from skerry.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
SEED = bytes(range(32))
RUN = """
import sys
from pathlib import Path
from appliance.config import SupervisorConfig
from appliance.launch import run
from tests.fakes.overlay import FakeOverlay

directory = Path(sys.argv[1])
config = SupervisorConfig(state_dir=directory / "state", run_dir=directory / "run")
sys.exit(run(config, make_overlay=FakeOverlay().make))
"""


@dataclass
class Started:
    process: subprocess.Popen[str]
    directory: Path

    @property
    def socket(self) -> Path:
        return self.directory / "run/api.sock"

    def state(self) -> str:
        try:
            return str(call("GET", "/v1/status", socket_path=self.socket)["state"])
        except ApiError:
            return "not running"


@contextmanager
def started(directory: Path, **environment: str) -> Iterator[Started]:
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(directory)],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield Started(process, directory)
    finally:
        process.kill()
        process.communicate(timeout=50)


def until(condition: Callable[[], bool], seconds: float = 50) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_from_no_token_to_ready_through_kill_and_a_clean_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = NetworkInfo("home", public_key(SEED), bytes(32))
    token = make_token(network, SEED, now=time.time()).text()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(50)
        with started(tmp_path, NOTIFY_SOCKET=str(tmp_path / "notify")) as first:
            assert manager.recv(4096).startswith(b"READY=1")
            assert first.state() == "unprovisioned"
            assert main(["health", f"--socket={first.socket}"]) == 0
            capsys.readouterr()
            assert main(["provision", token, f"--socket={first.socket}"]) == 0
            assert "of network home" in capsys.readouterr().err
            assert main(["health", "--wait=40", f"--socket={first.socket}"]) == 0
            assert main(["status", f"--socket={first.socket}"]) == 0
            assert "node-2" in capsys.readouterr().out
            name = call("GET", "/v1/status", socket_path=first.socket)["name"]
            first.process.send_signal(signal.SIGKILL)
            assert first.process.wait(50) == -signal.SIGKILL
        assert main(["health", f"--socket={first.socket}"]) == 1
    with started(tmp_path) as again:
        until(lambda: again.state() == "ready")
        assert call("GET", "/v1/status", socket_path=again.socket)["name"] == name
        again.process.send_signal(signal.SIGTERM)
        out, err = again.process.communicate(timeout=50)
        assert again.process.returncode == 0
        assert f"This is {name} of network home: ready" in out
        assert "state joining -> ready" in err
        assert "Traceback" not in err
        assert token not in out + err
        assert not again.socket.exists()


def test_a_second_process_ends_with_words(tmp_path: Path) -> None:
    with started(tmp_path) as first:
        until(lambda: first.state() == "unprovisioned")
        result = subprocess.run(
            [
                *(sys.executable, "-m", "skerry", "supervisor", "run"),
                *("--state-dir", tmp_path / "state", "--run-dir", tmp_path / "second"),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=50,
        )
        assert result.returncode == 1
        assert "in use by another process" in result.stderr
        assert "Traceback" not in result.stderr
        assert first.state() == "unprovisioned"


def test_a_run_directory_that_can_not_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for bad in (tmp_path / "file" / "run", tmp_path / ("long" * 40)):
        result = subprocess.run(
            [
                *(sys.executable, "-m", "skerry", "supervisor", "run"),
                *("--state-dir", tmp_path / "state", "--run-dir", bad),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=50,
        )
        assert result.returncode == 1
        assert "skerry: " in result.stderr
        assert "Traceback" not in result.stderr
