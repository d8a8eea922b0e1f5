"""A cluster of two nodes that share no network: one is behind a NAT (`make test-long`).

Both sit behind QEMU's NAT, in a network namespace that leads nowhere. The first is reached at a
public address, which is the network's bootstrap peer; to the second only what it asked for comes
back.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from image.artifacts import Artifacts
from qemu import demo, lab, workload
from qemu.spec import UserNic
from qemu.watch import peers_up
from tests.vm.clusters import Cluster
from tests.vm.conftest import MachineFactory, cluster_spec, wait_ready

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

PUBLIC, PORT = "192.0.2.1", 51820
"""TEST-NET-1 (RFC 5737): an address of the namespace's loopback."""


@pytest.fixture(scope="module")
def namespace() -> Iterator[Path]:
    name = f"skerry-nat-{os.getpid()}"

    def run(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    run("netns", "add", name)
    try:
        run("-n", name, "link", "set", "lo", "up")
        run("-n", name, "address", "add", f"{PUBLIC}/32", "dev", "lo")
        yield Path("/run/netns") / name
    finally:
        run("netns", "delete", name)


@pytest.fixture(scope="module")
def cluster(
    namespace: Path,
    start_machine: MachineFactory,
    x86_image: Artifacts,
    lan: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Cluster:
    settings = ["--no-mdns", "--no-dht", "--peer", f"{PUBLIC}:{PORT}"]
    token, _ = lab.make_tokens(
        2, tmp_path_factory.mktemp("operator"), cluster=True, settings=settings
    )
    nics = {
        "public": UserNic(restrict=False, udp_forwards=((PUBLIC, PORT, PORT),)),
        "hidden": UserNic(restrict=False, network="10.0.3.0/24"),
    }
    machines = tuple(
        start_machine(
            replace(cluster_spec(name, x86_image, lan, token), nics=(nic,), namespace=namespace)
        )
        for name, nic in nics.items()
    )
    wait_ready(list(machines), peers=1)
    names = tuple(str(demo.node_status(machine)["name"]) for machine in machines)
    return Cluster(machines, names)


def test_the_hidden_one_found_the_public_one_by_its_address(cluster: Cluster) -> None:
    (peer,) = peers_up(demo.node_status(cluster.machines[1]))
    assert peer["endpoint"] == f"{PUBLIC}:{PORT}"
    (peer,) = peers_up(demo.node_status(cluster.machines[0]))
    assert peer["endpoint"].partition(":")[0] == PUBLIC  # of the NAT, with a port that it chose
    assert peer["endpoint"] != f"{PUBLIC}:{PORT}"


def test_pods_reach_each_other_through_the_nat(cluster: Cluster) -> None:
    founded = cluster.wait_ready()
    server = cluster.machines[cluster.index_of_server(founded)]
    workload.create(server, cluster.names, workload.image_name(server))
    cluster.ask_each_other(cluster.targets(cluster.wait_pods()))
