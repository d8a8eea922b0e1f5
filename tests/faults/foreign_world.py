"""A Kubernetes that knows nothing of Skerry, and the DaemonSet of `skerry image oci` in it.

Recipe::

    with Foreign.made() as cluster:
        cluster.install()
        wait_until(lambda: cluster.ready() == {"one", "two"}, 300, "pods can have networks")

Two machines of `tests.contract.engine_world`: a kubelet, kube-proxy and Debian's containerd each,
which look for a network plugin in the usual places and find none. Our engine is only the stand-in
for that Kubernetes: it gives out no pod ranges and enforces no policies.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from image import engine, foreign, workloads
from image.artifacts import REPOSITORY
from image.board import Architecture
from image.tools import ToolsRoot
from tests.contract.engine_world import DATA, Machine, World, wait_until

SECRET = "0123456789abcdef0123456789abcdef"
IMAGE = "skerry.test/skerry:1"
SERVER = "https://10.99.0.1:6443"
NAMESPACE = "skerry-system"
_PODS, _SERVICES = "10.244.0.0/16", "10.96.0.0/16"
_PATIENCE = 120.0
_ARCHITECTURE = Architecture({"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()])


@dataclass
class Foreign:
    """The cluster; ``folder`` is the operator's."""

    world: World
    machines: tuple[Machine, Machine]
    made: foreign.Made
    folder: Path

    @staticmethod
    @contextmanager
    def started() -> Iterator[Foreign]:
        """Make two nodes that are not ready, since pods have no network; take all away after."""
        busybox = ToolsRoot.ensure().file("/usr/bin/busybox")
        sources = workloads.Sources(_ARCHITECTURE, busybox, "1")
        pause, program = workloads.archive("pause", sources), engine.ensure(_ARCHITECTURE.value)
        folder = Path(tempfile.mkdtemp(prefix="skerry-foreign-"))
        try:
            made = foreign.make(_ARCHITECTURE, IMAGE, folder / "oci")
            with World(program, pause) as world:
                one, two = world.machine("one"), world.machine("two")
                cluster = Foreign(world, (one, two), made, folder)
                try:
                    cluster._start(workloads.archive("busybox", sources))
                    yield cluster
                except BaseException:
                    cluster.complain()
                    raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @property
    def one(self) -> Machine:
        """The server."""
        return self.machines[0]

    def _start(self, busybox: Path) -> None:
        for machine in self.machines:
            # Debian's containerd looks elsewhere than kubeadm's and k3s's users are used to.
            machine.run("mkdir", "-p", "/opt/cni/bin", "/etc/cni/net.d")
            machine.run("sh", "-c", "[ -e /usr/lib/cni ] || ln -s /opt/cni/bin /usr/lib/cni")
            machine.containerd(networks=Path("/etc/cni/net.d"))
            for archive in (busybox, self.made.archive):
                machine.bring(archive)
        options = ["--token", SECRET, "--cluster-cidr", _PODS, "--service-cidr", _SERVICES]
        self.one.engine("server", *options, "--disable-network-policy")
        place = f"{DATA}/server/node-token"
        said = ("cat", place)
        wait_until(lambda: self.one.run(*said, check=False).startswith("K10"), _PATIENCE, "a token")
        token = self.one.run(*said).strip()
        # The server knows its own token, too, by the time that it has a Node.
        wait_until(lambda: "one" in self.nodes(), _PATIENCE, "the server's node")
        self.machines[1].engine("agent", "--server", SERVER, "--token", token)
        wait_until(lambda: self.nodes().keys() == {"one", "two"}, _PATIENCE, "both nodes")

    # The operator

    def skerry(self, *words: str) -> str:
        """Run ``skerry WORDS`` on the operator's machine."""
        done = subprocess.run(
            [sys.executable, "-m", "skerry", *words],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def install(self) -> None:
        """Make a network and its token, and do what the head of the manifest says."""
        network = str(self.folder / "network")
        self.skerry("network", "new", "foreign", "--dir", network)
        token = self.skerry("token", "new", "--network", network, "--role", "agent")
        (self.one.shared / "token.txt").write_text(token)
        (self.one.shared / "skerry.yaml").write_text(self.made.manifest.read_text())
        self.one.kubectl("create", "namespace", NAMESPACE)
        secret = ("create", "secret", "generic", "skerry-token")
        given = "--from-file=token.txt=/data/shared/token.txt"
        self.one.kubectl("-n", NAMESPACE, *secret, given)
        self.one.kubectl("apply", "-f", "/data/shared/skerry.yaml")

    # What is seen

    def nodes(self) -> dict[str, dict[str, Any]]:
        """Return the Nodes by name."""
        found = self.one.get("nodes").get("items", ())
        return {one["metadata"]["name"]: one for one in found}

    def ready(self) -> set[str]:
        """Return the names of the Nodes that are ready."""
        found = set()
        for name, node in self.nodes().items():
            states = {each["type"]: each["status"] for each in node["status"].get("conditions", ())}
            if states.get("Ready") == "True":
                found.add(name)
        return found

    def pods(self, namespace: str, label: str) -> dict[str, dict[str, Any]]:
        """Return the pods of a label by the name of their node."""
        found = self.one.get("-n", namespace, "pods", "-l", label).get("items", ())
        return {one["spec"].get("nodeName", ""): one for one in found}

    def status(self, machine: Machine) -> dict[str, Any]:
        """Return what a node's agent reports."""
        with suppress(AssertionError, ValueError):
            return dict(json.loads(machine.run("cat", "/run/skerry-cluster/status.json")))
        return {}

    def complain(self) -> None:
        """Tell all that may say why something did not come about."""
        say = ("get", "nodes,pods", "-A", "-o", "wide")
        print(self.one.kubectl(*say, check=False), file=sys.stderr)
        print(self.one.kubectl("-n", NAMESPACE, "describe", "pods", check=False), file=sys.stderr)
        for machine in self.machines:
            logs = "tail -n 40 /var/log/pods/skerry-system*/*/*.log"
            said = machine.run("sh", "-c", logs, check=False)
            print(f"--- {machine.name}\n{machine.tail()}\n{said[-6000:]}", file=sys.stderr)
