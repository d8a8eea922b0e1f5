"""Two nodes, from one token to a cluster whose pods talk; what is killed or rebooted heals.

One story on two machines; the tests stand in its order.
"""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import pytest

from appliance.kubernetes import wear
from image.artifacts import Artifacts
from qemu import demo, kube, lab, workload
from qemu.machine import Machine
from qemu.workload import Target
from tests.vm.clusters import (
    SECONDS,
    Cluster,
    Documents,
    begin_pod_ping,
    datastore,
    ipv4,
    look_up,
    supervisor_view,
    unit_pid,
)
from tests.vm.conftest import (
    BOOT_SECONDS,
    MachineFactory,
    assembled,
    cluster_spec,
    wait_ready,
)
from tests.vm.remote import OperatorMachine

pytestmark = pytest.mark.timeout(1500)


@pytest.fixture(scope="module")
def cluster(
    start_machine: MachineFactory, x86_image: Artifacts, lan: Path, folder: Path
) -> Cluster:
    tokens = lab.make_tokens(2, folder, cluster=True)
    return assembled(
        [
            start_machine(cluster_spec(f"node{number}", x86_image, lan, token))
            for number, token in enumerate(tokens, start=1)
        ]
    )


def test_one_is_the_server_and_the_other_its_agent(cluster: Cluster, founded: Documents) -> None:
    roles = sorted(str(one["agent"]["role"]) for one in founded)
    assert roles == ["agent", "server"]
    assert [one["agent"]["problems"] for one in founded] == [[], []]
    (server,) = kube.servers(founded)
    assert {one["name"] for one in founded[server]["nodes"]} == set(cluster.names)


def test_a_node_says_what_it_writes(cluster: Cluster, founded: Documents) -> None:
    for name, one in zip(cluster.names, founded, strict=True):
        writes = one["agent"]["writes"]
        assert writes["since_boot"] > 0
        assert re.fullmatch(r"vd[a-z]7", writes["device"])
        print(f"{name}, {one['agent']['role']}: {wear.read_words(writes)}", file=sys.stderr)


def test_the_card_is_spared(cluster: Cluster, founded: Documents) -> None:
    """What is renewed every 10 s is not in the database, whose log is taken into it."""
    found = datastore(cluster.machines[cluster.index_of_server(founded)])
    assert found["objects"] > 100
    assert found["short_lived"] == 0
    assert found["size"] > 256 * 1024
    assert found["log"] < 8 * 1024 * 1024


def test_kubernetes_records_the_ranges_that_the_nodes_claimed(
    cluster: Cluster, founded: Documents
) -> None:
    (server,) = kube.servers(founded)
    recorded = {one["name"]: one for one in founded[server]["nodes"]}
    ranges = []
    for machine, name in zip(cluster.machines, cluster.names, strict=True):
        view = supervisor_view(machine)
        claimed = [view["range"]["ipv4"], view["range"]["ipv6"]]
        assert recorded[name]["ranges"] == claimed[: len(recorded[name]["ranges"])]
        assert recorded[name]["ranges"]
        assert set(recorded[name]["addresses"]) <= {
            address.partition("/")[0] for address in view["addresses"]
        }
        ranges.append(claimed)
    assert ranges[0] != ranges[1]


def test_pods_reach_each_other_by_address_service_and_name(
    cluster: Cluster, pods: list[Target]
) -> None:
    assert [target.node for target in pods] == list(cluster.names)
    cluster.ask_each_other(pods)


def test_names_need_no_way_to_the_other_node(cluster: Cluster, pods: list[Target]) -> None:
    """A pod asks its own node's name server, for Services and for members."""
    addresses = [demo.overlay_address(demo.node_status(one)) for one in cluster.machines]
    for here, pod, other, node in zip(
        cluster.machines, pods, reversed(pods), reversed(cluster.names), strict=True
    ):
        here.run(CUT_OFF, check=True)
        try:
            away = [workload.BUSYBOX, "ping", "-c", "2", "-W", "2", ipv4(other)]
            inside = workload.inside(workload.pid_of(here, pod), away)
            assert here.run(inside, timeout=120).exit_status != 0
            assert other.service in look_up(here, pod, f"{other.name}.default.svc.cluster.local")
            address = addresses[cluster.names.index(node)]
            assert address in look_up(here, pod, f"{node}.skerry.internal")
        finally:
            here.run("nft delete table inet test-apart", check=True)


CUT_OFF = """nft -f - <<'END'
table inet test-apart {
    chain before { type filter hook prerouting priority -400; iifname "skerry0" drop; }
    chain after { type filter hook postrouting priority 400; oifname "skerry0" drop; }
}
END
"""


def test_there_is_one_encapsulation(cluster: Cluster, pods: list[Target]) -> None:
    assert pods
    for machine in cluster.machines:
        links = machine.run("ip -d -o link show", check=True).stdout
        assert "vxlan" not in links
        assert "wireguard" in links
        route = machine.run(["ip", "route", "get", other_address(pods, machine, cluster)])
        assert " dev skerry0 " in route.stdout


def other_address(pods: list[Target], machine: Machine, cluster: Cluster) -> str:
    """Return the IPv4 address of the pod on the other node."""
    return ipv4(pods[1 - cluster.machines.index(machine)])


@pytest.mark.parametrize("unit", ["skerry.service", "skerry-cluster.service"])
def test_killing_what_manages_a_node_loses_no_packet_of_its_pods(
    cluster: Cluster, pods: list[Target], unit: str
) -> None:
    here = cluster.machines[0]
    ping = begin_pod_ping(here, pods[0], other_address(pods, here, cluster), count=150)
    time.sleep(2)
    before = [unit_pid(machine, unit) for machine in cluster.machines]
    assert all(before)
    for machine, pid in zip(cluster.machines, before, strict=True):
        machine.run(f"kill -KILL {pid}", check=True)
    result = demo.end_ping(ping, timeout=300)
    assert (result.sent, result.lost) == (150, [])
    for machine, pid in zip(cluster.machines, before, strict=True):
        machine.wait_for(["systemctl", "is-active", "--quiet", unit], timeout=300)
        assert unit_pid(machine, unit) not in (0, pid)
    wait_ready(list(cluster.machines), peers=1)
    cluster.wait_ready()


def test_the_operator_gets_access(
    cluster: Cluster, operator: OperatorMachine, folder: Path
) -> None:
    file = folder / "kubeconfig"
    operator.skerry_plain("kubeconfig", "--via", "ssh://node1", "--output", str(file))
    assert file.stat().st_mode & 0o777 == 0o600
    for machine in cluster.machines:  # also on the node that is no server
        machine.put_file("/run/operator.yaml", file.read_bytes())
        command = "kubectl --kubeconfig /run/operator.yaml get nodes -o name"
        shown = machine.run(command, timeout=300, check=True).stdout
        assert set(shown.split()) == {f"node/{name}" for name in cluster.names}


@pytest.mark.parametrize("which", ["agent", "server"])
def test_a_rebooted_node_comes_back_with_its_pods(
    cluster: Cluster, founded: Documents, pods: list[Target], which: str
) -> None:
    server = cluster.index_of_server(founded)
    index = server if which == "server" else 1 - server
    now = cluster.targets(cluster.wait_pods())
    cluster.machines[index].reboot(timeout=BOOT_SECONDS)
    wait_ready(list(cluster.machines), peers=1)
    after = cluster.targets(
        cluster.wait_pods(other_than=frozenset({now[index].container})),
    )
    # The other node's pod went on all the time.
    assert after[1 - index].container == now[1 - index].container
    cluster.wait_ready()
    cluster.ask_each_other(after, seconds=SECONDS / 4)
    assert [one.service for one in after] == [one.service for one in pods]
