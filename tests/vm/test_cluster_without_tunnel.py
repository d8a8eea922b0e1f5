"""A cluster on the machines' own LAN, without a tunnel: Flannel carries pods (`make test-long`)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from image.artifacts import Artifacts
from qemu import lab
from qemu.workload import Target
from tests.vm.clusters import Cluster, ipv4
from tests.vm.conftest import BOOT_SECONDS, MachineFactory, assembled, cluster_spec

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

ADDRESS = "192.168.77.{}"
# What a router's DHCP server would have done; the lab's LAN has none.
NETWORK_FILE = (
    "[Match]\\nType=ether\\nKind=!*\\n[Network]\\nLinkLocalAddressing=ipv6\\nAddress={}/24\\n"
)


@pytest.fixture(scope="module")
def cluster(
    start_machine: MachineFactory, x86_image: Artifacts, lan: Path, folder: Path
) -> Cluster:
    tokens = lab.make_tokens(2, folder, cluster=True, settings=["--no-vpn"])
    machines = [
        start_machine(cluster_spec(f"node{number}", x86_image, lan, token))
        for number, token in enumerate(tokens, start=1)
    ]
    for number, machine in enumerate(machines, start=1):
        machine.wait_agent(timeout=BOOT_SECONDS)
        text = NETWORK_FILE.format(ADDRESS.format(number))
        file = "/run/systemd/network/10-lan.network"
        machine.run(f"printf '{text}' >{file} && networkctl reload", timeout=60, check=True)
    return assembled(machines)


def test_pods_reach_each_other_by_address_service_and_name(
    cluster: Cluster, pods: list[Target]
) -> None:
    cluster.ask_each_other(pods)


def test_the_way_is_the_lan(cluster: Cluster, pods: list[Target]) -> None:
    """By VXLAN from member to member; there is no tunnel."""
    both = {ADDRESS.format(number) for number in (1, 2)}
    for machine, other in zip(cluster.machines, reversed(pods), strict=True):
        route = machine.run(["ip", "route", "get", ipv4(other)], check=True).stdout
        assert " dev flannel.1 " in route
        assert machine.run(["ip", "link", "show", "skerry0"]).exit_status != 0
        listed = machine.run(
            ["nft", "-j", "list", "set", "inet", "skerry", "lan_members"], check=True
        )
        (found,) = (one["set"] for one in json.loads(listed.stdout)["nftables"] if "set" in one)
        assert set(found["elem"]) == both
