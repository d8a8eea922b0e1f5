"""Whole nodes: a lab's supervisors, each with the real cluster agent and the real engine.

Recipe::

    with Clusters.made(Settings(servers=3, expected_nodes=3)) as cluster:
        one = cluster.node()
        one.start(cluster.operator.token())

A node is a network namespace of the lab. Supervisor and cluster agent run in it as processes of
this machine; containerd and the engine in a machine of `tests.contract.engine_world` around it.
A node's disk is a folder in /dev/shm: all of these see it under one path, and it outlives a
power cut. No pods with a network of their own: the CNI server does not see into the machine.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from image import engine, workloads
from image.board import Architecture
from image.tools import ToolsRoot
from provisioning.clusters import api_address_of
from provisioning.settings import Settings
from provisioning.token import Token
from tests.contract.engine_world import Machine, World
from tests.faults.cluster_process import places_of
from tests.netns.lab import ROOT, Lab, Node, run, wait_until
from tests.netns.ledger import values
from tests.netns.operators import Operator

SHARED = Path("/dev/shm")
_ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
_TAIL = 4000


def writes(node: Node, address: str, seconds: float, kubeconfig: Path) -> float:
    """Return after how many seconds a write through an address was taken from a machine."""
    clock = (sys.executable, "-m", "tests.faults.api_clock", str(kubeconfig), address)
    done = subprocess.run(
        node.command(*clock, str(seconds)),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds + 60,
    )
    said = f"{node.name} through {address}: {done.stderr.strip()}"
    print(said, done.stdout.strip(), flush=True)
    assert done.returncode == 0, said
    return float(done.stdout)


@dataclass
class Full:
    """A node with everything on it."""

    # What runs as its cluster agent.
    agent_module: ClassVar[str] = "tests.faults.cluster_process"

    node: Node
    world: World
    folder: Path
    boots: int = 0
    machine: Machine | None = None
    agent: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        """Make its disk."""
        self.folder.mkdir(mode=0o700)
        self.places = places_of(self.folder, self.node.run_dir / "api.sock")

    @property
    def name(self) -> str:
        """What it is called, also as a Kubernetes Node."""
        return self.node.name

    def nft(self, *words: str) -> None:
        """Run the nft of the engine's machine: an older one dies of what that one laid."""
        run(*self.node.command(str(self._nft()), *words))

    def shut(self) -> None:
        """Lay the image's packet filter, with the name that the tunnel has here."""
        text = (ROOT / "rootfs_overlay/usr/share/skerry/firewall.nft").read_text()
        text = text.replace('"skerry0"', f'"{self.node.interface}"')
        # As a word: the program has another root.
        self.nft("\n".join(line for line in text.splitlines() if not line.strip().startswith("#")))

    def _nft(self) -> Path:
        path = self.folder / "bin/nft"
        if not path.exists():
            path.parent.mkdir()
            path.write_text(f'#!/bin/sh\nexec chroot {ToolsRoot.ensure().path} nft "$@"\n')
            path.chmod(0o755)
        return path

    def start(self, token: Token | None = None) -> None:
        """Start all of it, as a boot does."""
        self.boots += 1
        scratch = f"{self.name}-{self.boots}"
        machine = self.world.enclose(scratch, self.node.namespace, self.node.address)
        self.machine = machine
        machine.run("hostname", self.name)
        self.furnish(machine)
        self.node.start(token)
        words = [sys.executable, "-m", self.agent_module, str(self.folder)]
        words += [str(self.places.socket), str(machine.first_process()), self.node.namespace]
        with (self.folder / "agent.log").open("ab") as log:
            self.agent = subprocess.Popen(
                self.node.command(*words),
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | {"PATH": f"{self._nft().parent}:{os.environ['PATH']}"},
            )

    def furnish(self, machine: Machine) -> None:
        """Give it what an image brings, before anything of the node runs."""
        machine.containerd(networks=self.places.conflist.parent)

    def power_off(self) -> None:
        """End everything on it at once and without a word: nothing of it leaves the machine."""
        self.node.lab.cut([self.node])
        self.node.power_off()
        if self.agent is not None:
            self.agent.wait(20)
        if self.machine is not None:
            self.machine.close()
        # What only the kernel knew is lost with the power.
        self.node.ip("addr", "flush", "dev", "lo")
        self.node.ip("addr", "add", "127.0.0.1/8", "dev", "lo")
        self.node.ip("addr", "flush", "dev", "eth0", "scope", "host")
        self.nft("flush", "ruleset")

    # What is seen

    @property
    def status(self) -> dict[str, Any]:
        """Return what its cluster agent reports."""
        with suppress(OSError, ValueError):
            return dict(json.loads(self.places.status.read_text()))
        return {}

    @property
    def role(self) -> str:
        """Return what it is in the cluster."""
        return str(self.status.get("role", ""))

    def kubectl(self, *words: str, check: bool = True) -> str:
        """Run kubectl as the administrator of this server."""
        assert self.machine is not None
        options = ("--kubeconfig", str(self.places.kubeconfig), "--request-timeout=10s")
        return self.machine.run("/engine", "kubectl", *options, *words, check=check)

    def nodes(self) -> dict[str, dict[str, Any]]:
        """Return the Nodes by name, as this server sees them."""
        with suppress(AssertionError, ValueError):
            found = json.loads(self.kubectl("get", "nodes", "-o", "json"))
            return {one["metadata"]["name"]: one for one in found["items"]}
        return {}

    def ready(self) -> set[str]:
        """Return the names of the Nodes that are ready and have their pod ranges."""
        found = set()
        for name, one in self.nodes().items():
            states = {each["type"]: each["status"] for each in one["status"].get("conditions", ())}
            if states.get("Ready") == "True" and one["spec"].get("podCIDRs"):
                found.add(name)
        return found

    def has(self, address: str) -> bool:
        """Say whether an address is on one of its interfaces."""
        return f" {address}/32 " in self.node.ip("-4", "addr", "show")

    def cluster_ids(self) -> set[str]:
        """Return the ids of all foundings that its ledger has."""
        said = values(self.node, "cluster")
        return {value for key, value in said.items() if key.endswith("/founded")}

    def writes(self, address: str, seconds: float, kubeconfig: Path) -> float:
        """Return after how many seconds a write through an address was taken from here."""
        return writes(self.node, address, seconds, kubeconfig)

    def told(self) -> str:
        """Return the ends of its logs."""
        found = [f"--- {self.name}: {json.dumps(self.status)}"]
        for name in ("agent.log", "engine.log"):
            path = self.folder / name
            text = path.read_text(errors="replace")[-_TAIL:] if path.exists() else ""
            found.append(f"--- {self.name} {name}\n{text}")
        return "\n".join(found)


@dataclass
class Clusters:
    """Nodes of one network."""

    lab: Lab
    world: World
    folder: Path
    operator: Operator
    # The address that follows the leader.
    api: str
    nodes: list[Full] = field(default_factory=list)
    begun: float = field(default_factory=time.monotonic)

    @staticmethod
    @contextmanager
    def made(settings: Settings) -> Iterator[Clusters]:
        """Make a network without nodes; take all away in the end."""
        program = engine.ensure(_ARCHITECTURE)
        sources = workloads.Sources(Architecture(_ARCHITECTURE), Path("/nowhere"), "")
        pause = workloads.archive("pause", sources)
        folder = Path(tempfile.mkdtemp(prefix="skerry-ha-", dir=SHARED))
        try:
            with World(program, pause) as world, Lab() as lab:
                operator = Operator(lab.folder / "operator", settings=settings)
                address = str(api_address_of(settings, "") or "")
                made = Clusters(lab, world, folder, operator, address)
                try:
                    yield made
                except BaseException:
                    for one in made.nodes:
                        print(one.told(), file=sys.stderr)
                    raise
                finally:
                    made.close()
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def node(self) -> Full:
        """Add a node; it does not run yet."""
        node = self.lab.node()
        self.nodes.append(Full(node, self.world, self.folder / node.name))
        return self.nodes[-1]

    def servers(self) -> list[Full]:
        """Return the nodes that are servers and run."""
        return [one for one in self.nodes if one.role == "server" and one.agent is not None]

    def leader(self, nodes: Sequence[Full]) -> Full:
        """Return which of these has the API's address; of two, one just gives it up."""

        def found() -> list[Full]:
            return [one for one in nodes if one.has(self.api)]

        wait_until(lambda: len(found()) == 1, 60, "one of them has the API's address", every=0.5)
        return found()[0]

    def grows(self, patience: float) -> None:
        """Wait until there are three servers, and the API of each tells of all Nodes."""
        seen: list[int] = []

        def grown() -> bool:
            count = len(self.servers())
            if not seen or seen[-1] != count:
                seen.append(count)
                self.say(f"{count} servers")
            return count == 3

        wait_until(grown, patience, "three servers", every=1)
        names = {one.name for one in self.nodes}

        def working() -> bool:
            return all(one.ready() == names for one in self.nodes)

        wait_until(working, patience, "each API tells of three ready Nodes", every=2)
        self.say("each of the three APIs answers")
        self.one_cluster()

    def one_cluster(self) -> None:
        """Check that nobody knows of more than one founding."""
        assert len(set().union(*(one.cluster_ids() for one in self.nodes))) <= 1

    def say(self, what: str) -> None:
        """Print what came about, and when."""
        print(f"{time.monotonic() - self.begun:6.1f} s  {what}", flush=True)

    def close(self) -> None:
        """End all agents and engines; the lab and the world do the rest."""
        for one in self.nodes:
            if one.agent is not None:
                one.agent.kill()
                one.agent.wait(10)
            if one.machine is not None:
                one.machine.close()
