"""Flannel mode on two machines: their pods reach each other by VXLAN (`make test-long`)."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from appliance.kubernetes.flannel import OVERHEAD
from image.artifacts import Artifacts
from qemu import demo, lab, workload
from qemu.machine import Machine
from qemu.workload import Target
from tests.vm.clusters import SECONDS, Cluster, begin_pod_ping, ipv4, supervisor_view, unit_pid
from tests.vm.conftest import (
    BOOT_SECONDS,
    MachineFactory,
    assembled,
    cluster_spec,
    wait_ready,
)

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

UNIT = "skerry-flannel.service"
DEVICE = "flannel.1"


@pytest.fixture(scope="module")
def cluster(
    start_machine: MachineFactory, x86_image: Artifacts, lan: Path, folder: Path
) -> Cluster:
    tokens = lab.make_tokens(2, folder, cluster=True, settings=["--cni", "flannel"])
    return assembled(
        [
            start_machine(cluster_spec(f"node{number}", x86_image, lan, token))
            for number, token in enumerate(tokens, start=1)
        ]
    )


def test_pods_reach_each_other_by_address_service_and_name(
    cluster: Cluster, pods: list[Target]
) -> None:
    assert [len(pod.addresses) for pod in pods] == [1, 1]  # no IPv6
    cluster.ask_each_other(pods)


def test_it_is_flannel_that_carries_them(cluster: Cluster, pods: list[Target]) -> None:
    """Its device is on the way, and what it needs of each packet is left free by pods."""
    for machine, pod, other in zip(cluster.machines, pods, reversed(pods), strict=True):
        mtu = supervisor_view(machine)["mtu"] - OVERHEAD
        assert f" mtu {mtu} " in machine.run(["ip", "link", "show", DEVICE], check=True).stdout
        inside = workload.inside(
            workload.pid_of(machine, pod), ["ip", "link", "show", "eth0"], files=False
        )
        assert f" mtu {mtu} " in machine.run(inside, timeout=60, check=True).stdout
        route = machine.run(["ip", "route", "get", ipv4(other)], check=True).stdout
        assert f" dev {DEVICE} " in route
        before = sent(machine)
        ping = begin_pod_ping(machine, pod, ipv4(other), count=20)
        assert demo.end_ping(ping, timeout=120).lost == []
        assert sent(machine) - before >= 20


def sent(machine: Machine) -> int:
    """Return how many packets a node has sent by VXLAN."""
    file = f"/sys/class/net/{DEVICE}/statistics/tx_packets"
    return int(machine.run(["cat", file], check=True).stdout)


def test_killing_flannel_loses_no_packet(cluster: Cluster, pods: list[Target]) -> None:
    ping = begin_pod_ping(cluster.machines[0], pods[0], ipv4(pods[1]), count=150)
    time.sleep(2)
    before = [unit_pid(machine, UNIT) for machine in cluster.machines]
    assert all(before)
    for machine, pid in zip(cluster.machines, before, strict=True):
        machine.run(f"kill -KILL {pid}", check=True)
    result = demo.end_ping(ping, timeout=300)
    assert (result.sent, result.lost) == (150, [])
    for machine, pid in zip(cluster.machines, before, strict=True):
        machine.wait_for(["systemctl", "is-active", "--quiet", UNIT], timeout=300)
        assert unit_pid(machine, UNIT) not in (0, pid)


def test_a_rebooted_node_is_reached_again(
    cluster: Cluster, server: Machine, pods: list[Target]
) -> None:
    """With a device made anew, and by a daemon that finds no API at first."""
    index = 1 - cluster.machines.index(server)
    agent, before = cluster.machines[index], pods[index]
    agent.reboot(timeout=BOOT_SECONDS)
    wait_ready(list(cluster.machines), peers=1)
    after = cluster.targets(cluster.wait_pods(other_than=frozenset({before.container})))
    cluster.wait_ready()
    cluster.ask_each_other(after, seconds=SECONDS / 4)
