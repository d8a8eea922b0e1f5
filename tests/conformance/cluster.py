"""A cluster of two machines made of namespaces: our engine, our CNI server, real containers.

Pods of the two reach each other by routes of their nodes over a plain link: what carries them
between real nodes, the overlay, has tests of its own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from appliance.kubernetes import manifests
from image import engine, kubernetes, workloads
from image.artifacts import REPOSITORY
from image.board import Architecture
from image.golang import Program, build
from image.tools import ToolsRoot
from tests.conformance import images
from tests.conformance.cni_server import POD_CIDR
from tests.contract.engine_world import DATA, Machine, World, wait_until

SECRET = "0123456789abcdef0123456789abcdef"
E2E = Program("engine", "k8s.io/kubernetes/test/e2e", "e2e.test", test=True)
# Kubernetes' tests ask for their image by this name.
_TEST_IMAGES = "skerry.local/e2e"
_SERVICES, _DNS = "10.96.0.0/16", "10.96.0.10"
_READY_SECONDS = 120


class Cluster:
    """The cluster; all of it goes when the context ends."""

    def __init__(self) -> None:
        busybox = ToolsRoot.ensure().file("/usr/bin/busybox")
        self._sources = workloads.Sources(Architecture.AMD64, busybox, "1")
        pause = workloads.archive("pause", self._sources)
        self._world = World(engine.ensure("amd64"), pause)
        self.machines: list[Machine] = []
        self._servers: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        self._world.__enter__()
        try:
            self._build()
        except BaseException:
            self._complain()
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for server in self._servers:
            server.kill()
            server.wait(10)
        self._world.__exit__(kind, error, trace)

    @property
    def first(self) -> Machine:
        """The server."""
        return self.machines[0]

    def _build(self) -> None:
        self.machines = [self._world.machine(name) for name in ("one", "two")]
        for number, machine in enumerate(self.machines, 1):
            # A copy of an image for each container, in memory, would be too much of these.
            machine.containerd(snapshotter="overlayfs")
            self._network(machine, f"10.244.{number}.0/24")
            for name in ("coredns", "busybox"):
                self._image(machine, name, workloads.archive(name, self._sources))
            self._image(machine, images.AGNHOST, images.archive(self._sources))
            for other, there in enumerate(self.machines, 1):
                if there is not machine:
                    words = ("ip", "-n", machine.namespace, "route", "add")
                    _run(*words, f"10.244.{other}.0/24", "via", there.address)
        self._engines()
        text = (kubernetes.OVERLAY / "usr/share/skerry/manifests/coredns.yaml").read_text()
        known = {"CLUSTER_DNS": _DNS, "CLUSTER_DOMAIN": manifests.DOMAIN, "POD_CIDR": POD_CIDR}
        filled = manifests.fill("coredns.yaml", text, known | {"SERVICE_CIDR": _SERVICES})
        (self.first.shared / "coredns.yaml").write_text(filled)
        self.first.kubectl("apply", "-f", "/data/shared/coredns.yaml")
        wait_until(self._resolves, _READY_SECONDS, "the cluster's DNS is there")

    def _engines(self) -> None:
        options = ["--token", SECRET, "--cluster-cidr", POD_CIDR, "--service-cidr", _SERVICES]
        options += ["--cluster-dns", _DNS, "--write-kubeconfig", "/data/shared/kubeconfig"]
        self.first.engine("server", *options)
        place = f"{DATA}/server/node-token"
        wait_until(lambda: self._reads(place), _READY_SECONDS, "the server has its token")
        full = self.first.run("cat", place).strip()
        for machine in self.machines[1:]:
            server = f"https://{self.first.address}:6443"
            machine.engine("agent", "--server", server, "--token", full)
        self.first.run("mkdir", "-p", "/etc/rancher/k3s")
        self.first.run("ln", "-s", "/data/shared/kubeconfig", "/etc/rancher/k3s/k3s.yaml")
        names = {machine.name for machine in self.machines}
        wait_until(lambda: self._ready() == names, _READY_SECONDS, "both nodes are ready")

    def _reads(self, place: str) -> bool:
        return self.first.run("cat", place, check=False).startswith("K10")

    def _ready(self) -> set[str]:
        found = set()
        for node in self.first.get("nodes").get("items", ()):
            conditions = node["status"].get("conditions", ())
            if any(one["type"] == "Ready" and one["status"] == "True" for one in conditions):
                found.add(node["metadata"]["name"])
        return found

    def _resolves(self) -> bool:
        found = self.first.get("-n", "kube-system", "deployment", "coredns").get("status", {})
        return bool(found.get("readyReplicas"))

    def _complain(self) -> None:
        """Tell all that may say why the cluster does not come about."""
        for machine in self.machines:
            said = machine.run("sh", "-c", "tail -n 30 /var/log/pods/*/*/*.log", check=False)
            rules = machine.run("nft", "list", "table", "inet", "skerry-pods", check=False)
            parts = (machine.tail(), said[-3000:], rules)
            sys.stderr.write(f"--- {machine.name}\n" + "\n".join(parts) + "\n")

    def _network(self, machine: Machine, cidr: str) -> None:
        folder = machine.shared / "cni"
        folder.mkdir(mode=0o700)
        programs = machine.shared / "cni-programs"
        programs.mkdir()
        for program in kubernetes.CNI:
            shutil.copyfile(build(program, "amd64"), programs / program.name)
            (programs / program.name).chmod(0o755)
        for place in ("/opt/cni/bin", "/usr/lib/cni"):
            machine.run("sh", "-c", f"mkdir -p {place} && cp /data/shared/cni-programs/* {place}/")
        ours = {"type": "skerry-cni", "socket": "/data/shared/cni/cni.sock"}
        ports = {"type": "portmap", "backend": "nftables", "snat": True}
        plugins = [ours, ports | {"capabilities": {"portMappings": True}}]
        whole = {"cniVersion": "1.0.0", "name": "skerry", "plugins": plugins}
        (machine.shared / "05-skerry.conflist").write_text(json.dumps(whole))
        machine.run("cp", "/data/shared/05-skerry.conflist", "/etc/cni/net.d/")
        target = machine.first_process()
        tools = machine.scratch / "tools"
        tools.mkdir()
        # An older nft does not read what a newer one has written: the machine's own is used.
        enter = f'exec nsenter --target {target} --mount --root nft "$@"'
        (tools / "nft").write_text(f"#!/bin/sh\n{enter}\n")
        (tools / "nft").chmod(0o755)
        words = ["ip", "netns", "exec", machine.namespace, sys.executable, "-m"]
        words += ["tests.conformance.cni_server", str(folder), cidr, f"/proc/{target}/root"]
        variables = {"PYTHONPATH": str(REPOSITORY), "PATH": f"{tools}:{os.environ['PATH']}"}
        with (machine.scratch / "cni.log").open("wb") as log:
            self._servers.append(
                subprocess.Popen(
                    words, stdout=log, stderr=log, env=os.environ | variables, cwd=REPOSITORY
                )
            )
        wait_until((folder / "cni.sock").exists, 30, "the CNI server listens")

    def _image(self, machine: Machine, name: str, archive: Path) -> None:
        words = ("ctr", "-n", "k8s.io", "images", "import", "--local")
        copy = shutil.copyfile(archive, machine.shared / f"{name}.tar")
        machine.run(*words, "--snapshotter", "overlayfs", f"/data/shared/{name}.tar", seconds=120)
        copy.unlink()

    # Kubernetes' own tests

    def prepare_tests(self) -> None:
        """Put the tests and their images where they are asked for."""
        shutil.copyfile(build(E2E, "amd64"), self.first.shared / "e2e.test")
        (self.first.shared / "e2e.test").chmod(0o755)
        (self.first.shared / "repos.yaml").write_text(
            "".join(f"{name}: {_TEST_IMAGES}\n" for name in ("promoterE2eRegistry", "gcRegistry"))
        )
        listed = self.first.run(
            *("env", "KUBE_TEST_REPO_LIST=/data/shared/repos.yaml"),
            *("/data/shared/e2e.test", "--list-images"),
        )
        for machine in self.machines:
            for wanted in re.findall(rf"^{_TEST_IMAGES}/\S+:\S+$", listed, re.M):
                name = wanted.rpartition("/")[2].partition(":")[0]
                ours = images.AGNHOST if name in images.ALSO else name
                if ours in (images.AGNHOST, "pause", "busybox"):
                    words = ("ctr", "-n", "k8s.io", "images", "tag")
                    machine.run(*words, f"skerry.local/{ours}:1", wanted)

    def run_tests(self, focus: str, skip: str, seconds: float) -> tuple[int, str]:
        """Run them; return the status and where the report is."""
        words = ["/data/shared/e2e.test", "--kubeconfig=/data/shared/kubeconfig"]
        words += ["--kubectl-path=/usr/local/bin/kubectl", "--ginkgo.v"]
        words += ["--provider=skeleton", f"--ginkgo.focus={focus}", f"--ginkgo.skip={skip}"]
        words += ["--ginkgo.no-color", "--ginkgo.timeout=3h", "--report-dir=/data/shared/report"]
        words += ["--delete-namespace=true", "--system-pods-startup-timeout=5m"]
        log = REPOSITORY / "build" / "conformance" / "e2e.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        process = self.first.spawn(words, log, KUBE_TEST_REPO_LIST="/data/shared/repos.yaml")
        deadline = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(1)
        if process.poll() is None:
            self.first.stop(process)
        report = self.first.shared / "report"
        for path in report.glob("*.xml") if report.exists() else ():
            shutil.copyfile(path, log.parent / path.name)
        return process.returncode, str(log.parent)


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)
