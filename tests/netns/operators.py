"""The operator of a lab's network: a directory with the root key, and the real operator's code."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from appliance.ledger.assigned import read_id
from appliance.operator.publisher import LocalPublisher
from appliance.operator.rootkey import RootKey
from appliance.operator.statements import Desk
from appliance.operator.work import Report, Work
from provisioning.operator_files import create_network, open_network
from provisioning.settings import Settings
from provisioning.token import Token
from tests.netns.lab import ROOT, LabError, Network, Node

T = TypeVar("T")


class Operator(Network):
    """A network whose root key is in a directory, as `skerry network new` leaves it."""

    def __init__(
        self, directory: Path, name: str = "lagoon", *, settings: Settings | None = None
    ) -> None:
        create_network(directory, name, settings or Settings())
        self.directory = directory
        self._load()

    def _load(self) -> None:
        opened = open_network(self.directory, lambda: "")
        self.info, self.root_seed = opened.network, opened.root_seed

    def say(self, via: Node, intent: Callable[[Desk], T]) -> T:
        """Make statements and publish them through a node, in this process."""
        publisher = LocalPublisher(via.run_dir / "api.sock")
        root = RootKey(self.info, self.root_seed)
        work = Work(self.directory, root, publisher, int(time.time() * 1000), lambda _: None)
        done, report = work.do(lambda desk, _: intent(desk))
        _check(report)
        self._load()
        return done

    def revoke(self, via: Node, *nodes: Node) -> None:
        """Put nodes out, and begin a new epoch."""
        ids = [found for node in nodes if (found := read_id(node.node_id()))]
        assert len(ids) == len(nodes)
        self.say(via, lambda desk: desk.revoke(nodes=ids, reason="a test"))

    def command(self, via: Node, *words: str) -> str:
        """Run ``skerry WORDS`` for this network through a node; return what it printed."""
        command = [sys.executable, "-m", "skerry", *words]
        command += ["--network", str(self.directory)]
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "SKERRY_SOCKET": str(via.run_dir / "api.sock"),
        }
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, env=environment, check=False
        )
        if done.returncode != 0:
            raise LabError(f"skerry {' '.join(words)}: {done.stderr.strip()}")
        self._load()
        return done.stdout

    def rotated(self, via: Node) -> Token:
        """Return the token of ``skerry token rotate``."""
        return Token.parse(self.command(via, "token", "rotate").strip())


def _check(report: Report) -> None:
    if report.waiting or report.trouble:
        raise LabError(f"not published: {report.trouble} {report.reasons}")
