"""A cluster of two whole nodes made of namespaces, for Kubernetes' own tests.

The nodes are those of `tests.faults.cluster_world`: real supervisors with an overlay between them
(wireguard-go), real cluster agents, the real engine. Here they carry pods as well: with our CNI
plugin and server, over the overlay, IPv4 and IPv6, behind the gate, with the add-ons of an image.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from image import kubernetes, workloads
from image.artifacts import REPOSITORY
from image.board import Architecture
from image.golang import Program, build
from image.tools import ToolsRoot
from provisioning.settings import Settings
from tests.conformance import images
from tests.contract.engine_world import Machine
from tests.faults.cluster_world import Clusters, Full
from tests.netns.lab import wait_until

E2E = Program("engine", "k8s.io/kubernetes/test/e2e", "e2e.test", test=True)
# Kubernetes' tests ask for their images under this name.
_TEST_IMAGES = "skerry.local/e2e"
_READY_SECONDS = 180
_ADDONS = ("coredns", "local-path-provisioner", "busybox")
_IMAGES = ("ctr", "-n", "k8s.io", "images")


class Carrier(Full):
    """A node that carries pods."""

    agent_module: ClassVar[str] = "tests.conformance.node_process"

    def furnish(self, machine: Machine) -> None:
        """Give it the network plugin, the images and the add-ons."""
        self._plugins(machine)
        # A copy of an image for each container, in memory, would be too much of these.
        machine.containerd(networks=self.places.conflist.parent, snapshotter="overlayfs")
        self._images(machine)
        self.places.manifests.mkdir(exist_ok=True)
        for manifest in (kubernetes.OVERLAY / "usr/share/skerry/manifests").iterdir():
            shutil.copyfile(manifest, self.places.manifests / manifest.name)

    def _plugins(self, machine: Machine) -> None:
        programs = machine.shared / "plugins"
        programs.mkdir()
        for program in kubernetes.CNI:
            copy = shutil.copyfile(build(program, "amd64"), programs / program.name)
            copy.chmod(0o755)
        place = f"/{kubernetes.CNI_DIRECTORY}"
        machine.run("sh", "-c", f"mkdir -p {place} && ln -s /data/shared/plugins/* {place}/")
        # Where the plugin looks for the server, which has a place of its own for each node here.
        machine.run("ln", "-s", str(self.places.cni_dir), "/run/skerry-cni")

    def _images(self, machine: Machine) -> None:
        busybox = ToolsRoot.ensure().file("/usr/bin/busybox")
        sources = workloads.Sources(Architecture.AMD64, busybox, "1")
        archives = [*(workloads.archive(name, sources) for name in _ADDONS)]
        for archive in (*archives, images.archive(sources)):
            machine.bring(archive)


@dataclass(slots=True)
class Cluster:
    """The cluster; `made` brings it up."""

    nodes: Clusters
    server: Carrier

    @staticmethod
    @contextmanager
    def made() -> Iterator[Cluster]:
        """Bring up two nodes, wait until they are a cluster; take all away in the end."""
        with Clusters.made(Settings(expected_nodes=2)) as nodes:
            token = nodes.operator.token()
            for _ in range(2):
                node = nodes.lab.node()
                carrier = Carrier(node, nodes.world, nodes.folder / node.name)
                nodes.nodes.append(carrier)
                carrier.start(token)
            cluster = Cluster(nodes, _server(nodes))
            nodes.say("the cluster is founded")
            cluster.wait()
            yield cluster

    def wait(self) -> None:
        """Wait until both nodes are ready, have their ranges, and the cluster's DNS answers."""
        names = {one.name for one in self.nodes.nodes}
        wait_until(lambda: self._ready() == names, _READY_SECONDS, "nodes are ready", every=0.5)
        self.nodes.say("both nodes are ready")
        wait_until(self._resolves, _READY_SECONDS, "the cluster's DNS is there", every=0.5)
        self.nodes.say("the cluster's DNS is there")

    def _ready(self) -> set[str]:
        found = set()
        for name, node in self.server.nodes().items():
            states = {each["type"]: each["status"] for each in node["status"].get("conditions", ())}
            if states.get("Ready") == "True" and node["spec"].get("podCIDRs"):
                found.add(name)
        return found

    def _resolves(self) -> bool:
        words = ("-n", "kube-system", "get", "daemonset", "coredns", "-o")
        said = self.server.kubectl(*words, "jsonpath={.status.numberReady}", check=False)
        return said.strip() == "2"

    # Kubernetes' own tests

    @property
    def shared(self) -> Path:
        """A folder that the server sees as /data/shared."""
        assert self.server.machine is not None
        return self.server.machine.shared

    def prepare_tests(self) -> None:
        """Put the tests and their images where they are asked for."""
        shutil.copyfile(build(E2E, "amd64"), self.shared / "e2e.test").chmod(0o755)
        (self.shared / "repos.yaml").write_text(
            "".join(f"{name}: {_TEST_IMAGES}\n" for name in ("promoterE2eRegistry", "gcRegistry"))
        )
        machines = [one.machine for one in self.nodes.nodes if one.machine is not None]
        listed = machines[0].run(*self._test_program(), "--list-images")
        for machine in machines:
            for wanted in re.findall(rf"^{_TEST_IMAGES}/\S+:\S+$", listed, re.M):
                name = wanted.rpartition("/")[2].partition(":")[0]
                ours = images.AGNHOST if name in images.ALSO else name
                if ours in (images.AGNHOST, "pause", "busybox"):
                    machine.run(*_IMAGES, "tag", f"skerry.local/{ours}:1", wanted)

    def _test_program(self) -> tuple[str, ...]:
        return ("env", "KUBE_TEST_REPO_LIST=/data/shared/repos.yaml", "/data/shared/e2e.test")

    def run_tests(self, focus: str, skip: str, seconds: float, *, dry: bool = False) -> Path:
        """Run those of the tests that match; return JUnit's file of them.

        What is not done in time is interrupted. With ``dry``, they are only listed as passed.
        """
        assert self.server.machine is not None
        report = self.shared / ("report-dry" if dry else "report")
        words = [*self._test_program(), f"--kubeconfig={self.server.places.kubeconfig}"]
        words += ["--kubectl-path=/usr/local/bin/kubectl", "--provider=skeleton"]
        words += [f"--ginkgo.focus={focus}", f"--ginkgo.skip={skip}", "--ginkgo.no-color"]
        words += [f"--ginkgo.timeout={seconds:.0f}s", "--ginkgo.v"]
        words += [f"--report-dir=/data/shared/{report.name}", "--system-pods-startup-timeout=5m"]
        words += ["--ginkgo.dry-run"] if dry else []
        folder = REPOSITORY / "build" / "conformance"
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / ("list.log" if dry else "e2e.log")
        log.unlink(missing_ok=True)
        process = self.server.machine.spawn(words, log)
        deadline = time.monotonic() + seconds + 120
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.5)
        if process.poll() is None:
            self.server.machine.stop(process)
        found = sorted(report.glob("junit*.xml"))
        assert found, f"the tests left no report; what they said is in {log}"
        return found[0]


def _server(nodes: Clusters) -> Carrier:
    """Return the node that founded the cluster, when it can be asked."""

    def found() -> list[Full]:
        return [one for one in nodes.nodes if one.role == "server" and one.nodes()]

    wait_until(found, _READY_SECONDS, "one of them has founded and answers", every=0.5)
    server = found()[0]
    assert isinstance(server, Carrier)
    return server
