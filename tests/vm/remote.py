"""An ``ssh`` for the lab: the operator's commands reach a guest as they would reach a node by ssh.

The guests have no remote login. So a program of that name, first on the operator's PATH, hands
host, command and standard input to the test, which runs the command in the guest by the lab's agent
and hands back what it printed. The operator's side does not know the difference.
"""

from __future__ import annotations

import json
import os
import socketserver
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from image.artifacts import REPOSITORY
from qemu.machine import Machine

_SSH = """\
#!{python}
import json, socket, sys
words = sys.argv[1:]
host, command = words[words.index("--") + 1], words[words.index("--") + 2:]
given = b"" if command[-1] != "-" else sys.stdin.buffer.read()
with socket.socket(socket.AF_UNIX) as line:
    line.connect({address!r})
    with line.makefile("rwb") as file:
        file.write(json.dumps([host, command, given.decode()]).encode() + b"\\n")
        file.flush()
        status, out = json.loads(file.readline())
sys.stdout.write(out)
sys.exit(status)
"""


class OperatorMachine:
    """The operator's machine: a network's directory, and a shell that reaches guests."""

    def __init__(self, folder: Path) -> None:
        self.network = folder / "network"
        self._path = folder / "bin"

    def skerry(self, *words: str) -> dict[str, Any]:
        """Run a command as the operator does; return its JSON."""
        document: dict[str, Any] = json.loads(self.skerry_plain(*words, "--json"))
        return document

    def skerry_plain(self, *words: str) -> str:
        """Run a command as the operator does; return what it prints."""
        done = subprocess.run(
            [sys.executable, "-m", "skerry", *words, "--network", str(self.network)],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=300,
            check=False,
            env={
                **os.environ,
                "PYTHONPATH": str(REPOSITORY),
                "PATH": f"{self._path}:{os.environ['PATH']}",
            },
        )
        assert done.returncode == 0, f"skerry {' '.join(words)}: {done.stderr}"
        return done.stdout


@contextmanager
def operator_machine(folder: Path, guests: Mapping[str, Machine]) -> Iterator[OperatorMachine]:
    """Yield the operator's machine; ``guests`` may grow meanwhile."""
    address = folder / "ssh.sock"
    program = folder / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text(_SSH.format(python=sys.executable, address=str(address)))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            host, command, given = json.loads(self.rfile.readline())
            result = guests[host].run(command, stdin=given.encode(), timeout=240)
            self.wfile.write(json.dumps([result.exit_status, result.stdout]).encode() + b"\n")

    with socketserver.UnixStreamServer(str(address), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield OperatorMachine(folder)
        finally:
            server.shutdown()
            thread.join()
