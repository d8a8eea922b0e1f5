"""arm64: the same image recipe boots on QEMU's virt machine and takes its token.

By name only (`make test-long`): with Kubernetes, compiled for arm64, it founds a cluster.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from image.artifacts import Artifacts
from qemu import demo, images, kube, lab, workload
from qemu.machine import Machine
from qemu.spec import Arch, Firmware, LanNic, MachineSpec
from tests.vm.clusters import Cluster, Documents
from tests.vm.conftest import BOOT_SECONDS, MachineFactory, wait_ready

CLUSTER_SECONDS = 2400.0
"""Deadline for Kubernetes on an emulated ARM machine; docs/engine.md says what it took."""


@pytest.fixture(scope="module")
def node(start_machine: MachineFactory, arm_image: Artifacts, lan: Path, token: bytes) -> Machine:
    spec = MachineSpec(
        "arm",
        arch=Arch.AARCH64,
        firmware=Firmware.AAVMF,
        disk=arm_image.disk,
        disk_size=arm_image.disk.stat().st_size + (1 << 30),
        nics=(LanNic(lan),),
        credentials={"skerry.token": token},
    )
    machine = start_machine(spec)
    wait_ready([machine], peers=0, timeout=2 * BOOT_SECONDS)
    return machine


def test_it_is_an_arm_machine_and_ready(node: Machine) -> None:
    assert node.run(["uname", "-m"]).stdout.strip() == "aarch64"
    status = demo.node_status(node)
    assert status["state"] == "ready"
    assert status["release"]["board"] == "qemu-arm64"
    assert status["release"]["slot"] == "A"


def test_no_unit_failed(node: Machine) -> None:
    running = node.run(["systemctl", "is-system-running", "--wait"], timeout=BOOT_SECONDS)
    failed = node.run(["systemctl", "--failed", "--plain", "--no-legend"]).stdout
    assert (running.stdout.strip(), failed.strip()) == ("running", "")


def test_its_root_is_verified(node: Machine) -> None:
    assert " verity 1 " in node.run(["dmsetup", "table", "skerry-root"], check=True).stdout
    assert node.run(["findmnt", "-no", "FSTYPE", "/"], check=True).stdout.strip() == "erofs"


# With Kubernetes: a cluster of one.


@pytest.fixture(scope="module")
def cluster(
    start_machine: MachineFactory, lan: Path, tmp_path_factory: pytest.TempPathFactory
) -> Cluster:
    image = images.ensure("qemu-arm64")
    (founder,) = lab.make_tokens(1, tmp_path_factory.mktemp("operator"), cluster=True)
    spec = MachineSpec(
        "arm-server",
        arch=Arch.AARCH64,
        firmware=Firmware.AAVMF,
        memory_mib=lab.CLUSTER_MEMORY_MIB,
        disk=image.disk,
        disk_size=image.disk.stat().st_size + lab.CLUSTER_DATA,
        nics=(LanNic(lan),),
        credentials={"skerry.token": founder},
    )
    machine = start_machine(spec)
    wait_ready([machine], peers=0, timeout=2 * BOOT_SECONDS)
    return Cluster((machine,), (str(demo.node_status(machine)["name"]),))


@pytest.fixture(scope="module")
def served(cluster: Cluster) -> Documents:
    """What is seen of the cluster once it is Ready and its DNS serves."""

    def done(seen: Documents) -> bool:
        dns = any(name.startswith("coredns") for name in kube.pods_ready(seen[0]))
        return dns and kube.nodes_ready(seen[0]) == set(cluster.names)

    return cluster.wait("the node is Ready, DNS serves", done, timeout=CLUSTER_SECONDS)


@pytest.mark.long
@pytest.mark.timeout(5400)
def test_the_engine_for_arm_founds_a_cluster(cluster: Cluster, served: Documents) -> None:
    (machine,) = cluster.machines
    print(f"{machine.elapsed():.0f} s after power-on: Ready, DNS serves", file=sys.stderr)
    (agent,) = (one["agent"] for one in served)
    assert (agent["role"], agent["state"], agent["problems"]) == ("server", "ready", [])
    path = f"/api/v1/nodes/{cluster.names[0]}"
    node = kube.ask(machine, [("GET", path, None)], timeout=300)[0].check()
    assert node["status"]["nodeInfo"]["architecture"] == "arm64"
    assert len(node["spec"]["podCIDRs"]) == 2


@pytest.mark.long
@pytest.mark.timeout(5400)
def test_a_pod_on_arm_answers_by_address_service_and_name(
    cluster: Cluster, served: Documents
) -> None:
    assert served
    (machine,) = cluster.machines
    workload.create(machine, cluster.names, workload.image_name(machine))
    name = workload.pod_name(1)
    seen = cluster.wait(
        "a pod", lambda seen: name in kube.pods_ready(seen[0]), timeout=CLUSTER_SECONDS
    )
    print(f"{machine.elapsed():.0f} s after power-on: a pod is Ready", file=sys.stderr)
    (target,) = workload.targets(machine, seen[0], 1)
    checks = workload.check(machine, target, [target], seconds=300)
    assert {one.by for one in checks} >= {"HTTP, pod IPv4", "HTTP, Service", "HTTP, DNS name"}
    bad = [one for one in checks if not one.good]
    assert not bad, "\n".join(" | ".join(row) for row in workload.rows(bad))


@pytest.mark.long
@pytest.mark.timeout(5400)
def test_no_unit_failed_with_kubernetes(cluster: Cluster, served: Documents) -> None:
    assert served
    (machine,) = cluster.machines
    failed = machine.run(["systemctl", "--failed", "--plain", "--no-legend"], timeout=120).stdout
    assert failed.strip() == ""
    memory = machine.run(["cat", "/proc/meminfo"], timeout=120, check=True).stdout
    print(*memory.splitlines()[:3], sep="\n", file=sys.stderr)
