"""Nodes of a lab with the services' daemon, and what runs on them.

Recipe::

    with machines(one, two) as (first, second):
        first.serve("first")
        first.do("expose", "who", "--port", "7070")
        second.do("connect", "who")
        second.until(address, "tcp", {"first"}, 30)
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from provisioning.clusters import CLUSTER_LABEL
from provisioning.token import Token, make_token
from tests.netns.lab import ROOT, Network, Node, wait_until

PORT = 7070


def token(network: Network, *roles: str, cluster: str = "", founder: bool = False) -> Token:
    """Return a token of these roles (`auto`), for nodes of a cluster."""
    labels = {CLUSTER_LABEL: cluster} if cluster else {}
    return make_token(
        network.info,
        network.root_seed,
        now=time.time(),
        roles=frozenset(roles or ("auto",)),
        labels=labels,
        founder=founder,
    )


class Machine:
    """A node of the lab with the services' daemon, and what runs on it."""

    def __init__(
        self, node: Node, *options: str, data: Path | None = None, tools: Path | None = None
    ) -> None:
        """Start the daemon; ``options`` are its, ``tools`` a folder of programs that go first."""
        self.node = node
        self.children: list[subprocess.Popen[bytes]] = []
        self.environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "SKERRY_SOCKET": str(node.run_dir / "api.sock"),
            "SKERRY_SERVICES_DATA": str(data or node.folder / "services"),
            # Beside the supervisor's, where that one looks for names.
            "SKERRY_SERVICES_RUN": str(node.run_dir.with_name(f"{node.run_dir.name}-services")),
        }
        if tools is not None:
            self.environment["PATH"] = f"{tools}:{os.environ['PATH']}"
        self.options = options
        self.daemon = self.run_daemon()

    def run_daemon(self) -> subprocess.Popen[bytes]:
        """Start the daemon (again)."""
        return self.start("-m", "skerry", "service", "run", *self.options)

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        with (self.node.folder / "services.log").open("ab") as log:
            child = subprocess.Popen(
                self.node.command(sys.executable, *words),
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.children.append(child)
        return child

    def do(self, *words: str) -> str:
        done = subprocess.run(
            self.node.command(sys.executable, "-m", "skerry", "service", *words),
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def serve(self, word: str, port: int = PORT) -> subprocess.Popen[bytes]:
        return self.start("-m", "tests.netns.answering", str(port), word)

    def ask(self, address: str, protocol: str = "tcp", port: int = PORT) -> str:
        done = subprocess.run(
            self.node.command(
                sys.executable, "-m", "tests.netns.asking", protocol, address, str(port)
            ),
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.stdout.strip()

    def until(self, address: str, protocol: str, expected: set[str], seconds: float) -> None:
        """Wait until a dozen questions are answered by exactly these."""
        wanted = ",".join(sorted(expected))
        said = [""]

        def look() -> bool:
            said[0] = self.ask(address, protocol)
            return said[0] == wanted

        try:
            wait_until(look, seconds, f"{protocol} is answered by {wanted}", every=0.2)
        except AssertionError as error:
            raise AssertionError(f"{error}; but by {said[0]}: {self.listed()}") from error

    def listed(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.do("ls", "--json"))
        return found

    def close(self) -> None:
        """End what was started."""
        for child in self.children:
            end(child)

    def log(self) -> str:
        return (self.node.folder / "services.log").read_text()


@contextmanager
def machines(*nodes: Node) -> Iterator[list[Machine]]:
    """Give services' daemons to nodes, and end what they started."""
    made: list[Machine] = []
    try:
        made.extend(map(Machine, nodes))
        yield made
    except BaseException:
        for machine in made:
            print(f"--- services of {machine.node.name}\n{machine.log()}")
        raise
    finally:
        for machine in made:
            machine.close()


def end(child: subprocess.Popen[bytes]) -> None:
    child.send_signal(signal.SIGKILL)
    child.wait(10)
