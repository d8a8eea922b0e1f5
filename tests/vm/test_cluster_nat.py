"""A cluster of two nodes that share no network: one is behind a NAT (`make test-long`).

Both sit behind QEMU's NAT, in a network namespace that leads nowhere. The first is reached at a
public address, which is the network's bootstrap peer; to the second only what it asked for comes
back.
"""

from __future__ import annotations

import ipaddress
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.kubernetes import wear
from image.artifacts import Artifacts
from qemu import demo, kube, lab, workload
from qemu.machine import Machine
from qemu.spec import UserNic
from qemu.watch import peers_up
from qemu.workload import Target
from tests.vm.clusters import SECONDS, Cluster, datastore, look_up, name_servers, supervisor_view
from tests.vm.conftest import MachineFactory, assembled, cluster_spec
from tests.vm.remote import OperatorMachine

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

PUBLIC, PORT = "192.0.2.1", 51820
"""TEST-NET-1 (RFC 5737): an address of the namespace's loopback."""
REST_PER_DAY = wear.CARD_BYTES_PER_DAY / 5
"""What a node without work may write: a card has to bear the work too."""


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
    folder: Path,
) -> Cluster:
    settings = ["--no-mdns", "--no-dht", "--peer", f"{PUBLIC}:{PORT}"]
    token, _ = lab.make_tokens(2, folder, cluster=True, settings=settings)
    nics = {
        "public": UserNic(restrict=False, udp_forwards=((PUBLIC, PORT, PORT),)),
        "hidden": UserNic(restrict=False, network="10.0.3.0/24"),
    }
    return assembled(
        [
            start_machine(
                replace(cluster_spec(name, x86_image, lan, token), nics=(nic,), namespace=namespace)
            )
            for name, nic in nics.items()
        ]
    )


def test_the_hidden_one_found_the_public_one_by_its_address(cluster: Cluster) -> None:
    (peer,) = peers_up(demo.node_status(cluster.machines[1]))
    assert peer["endpoint"] == f"{PUBLIC}:{PORT}"
    (peer,) = peers_up(demo.node_status(cluster.machines[0]))
    assert peer["endpoint"].partition(":")[0] == PUBLIC  # of the NAT, with a port that it chose
    assert peer["endpoint"] != f"{PUBLIC}:{PORT}"


def test_pods_reach_each_other_through_the_nat(cluster: Cluster, pods: list[Target]) -> None:
    cluster.ask_each_other(pods)


def test_a_policy_denies_and_allows_between_the_machines(
    cluster: Cluster, server: Machine, pods: list[Target]
) -> None:
    """The first pod is closed to all, opened to the second, closed to it again, and free."""
    closed, other = pods
    at = cluster.machines[1]
    policies = f"/apis/networking.k8s.io/v1/namespaces/{kube.NAMESPACE}/networkpolicies"

    def allow(method: str, path: str, *labels: dict[str, str]) -> None:
        peers = [{"podSelector": {"matchLabels": one}} for one in labels]
        spec = {
            "podSelector": {"matchLabels": {"pod": closed.name}},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": peers}] if peers else [],
        }
        policy = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy"}
        body = policy | {"metadata": {"name": "closed"}, "spec": spec}
        kube.ask(server, [(method, path, body)])[0].check()

    assert answers(at, other, closed) == {True}
    allow("POST", policies)
    wait_answers(at, other, closed, as_wanted=False)
    assert answers(at, other, closed, times=2) == {False}
    # The way back is none of this policy's, and the pod stays Ready: its node may always ask it.
    assert answers(cluster.machines[0], closed, other) == {True}
    allow("PATCH", f"{policies}/closed", {"pod": other.name})
    wait_answers(at, other, closed, as_wanted=True)
    allow("PATCH", f"{policies}/closed", {"pod": "nobody"})
    wait_answers(at, other, closed, as_wanted=False)
    kube.ask(server, [("DELETE", f"{policies}/closed", None)])[0].check()
    wait_answers(at, other, closed, as_wanted=True)
    cluster.wait_pods()


def answers(machine: Machine, source: Target, target: Target, *, times: int = 1) -> set[bool]:
    """Return whether a pod gets a page of another, by its address and by its Service."""
    pid = workload.pid_of(machine, source)
    asked = [workload.inside(pid, argv) for argv in pages(target)] * times
    return {machine.run(argv, timeout=120).exit_status == 0 for argv in asked}


def wait_answers(machine: Machine, source: Target, target: Target, *, as_wanted: bool) -> None:
    """Wait until a pod gets pages of another, in both ways, or in neither."""
    pid = workload.pid_of(machine, source)
    sign = "" if as_wanted else "! "
    for argv in pages(target):
        script = f"{sign}{shlex.join(workload.inside(pid, argv))}"
        machine.wait_for(["/bin/sh", "-c", script], timeout=SECONDS / 4)


def pages(target: Target) -> list[list[str]]:
    address = next(one for one in target.addresses if ":" not in one)
    places = (f"{address}:{workload.PORT}", target.service)
    return [
        [workload.BUSYBOX, "wget", "-q", "-T", "15", "-O", "-", f"http://{one}/"] for one in places
    ]


@pytest.mark.parametrize("kind", ["of-a-node", "of-kubernetes"])
def test_an_exposed_service_is_reached_from_the_other_node(
    cluster: Cluster, server: Machine, pods: list[Target], kind: str
) -> None:
    """By the other node and by its pod, by address and by name; by nobody when it is taken back."""
    index = cluster.machines.index(server)
    there, pod = cluster.machines[1 - index], pods[1 - index]
    if kind == "of-a-node":
        address = demo.overlay_address(demo.node_status(server))
        demo.serve_page(server, address)
        exposed, said = f"--port {demo.PORT}", f"Hello from {cluster.names[index]}"
    else:
        name = pods[index].name
        exposed, said = f"--port 8100 --to k8s:{kube.NAMESPACE}/{name}", name
    server.run(f"skerry service expose {kind} {exposed}", timeout=120, check=True)
    shown = there.run(f"skerry service connect {kind}", timeout=120, check=True)
    address, _, port = where(there, kind).partition(":")
    name = f"{kind}.svc.skerry.internal"
    pid = workload.pid_of(there, pod)
    for host in (address, name):
        url = f"http://{host}:{port}/"
        fetch = ["/usr/bin/python3", "-ISc", FETCH, url]
        page = there.wait_for(fetch, timeout=SECONDS / 4).stdout
        assert said in page, shown.stdout + shown.stderr
        inside = workload.inside(pid, [workload.BUSYBOX, "wget", "-q", "-T", "15", "-O", "-", url])
        assert said in there.wait_for(inside, timeout=SECONDS / 4).stdout
    # The node that offers it has not connected to it itself: its pods have no such name.
    assert address not in look_up(server, pods[index], name)
    server.run(f"skerry service rm {kind}", timeout=120, check=True)
    fetch = ["/usr/bin/python3", "-ISc", FETCH, f"http://{address}:{port}/"]
    there.wait_for(["/bin/sh", "-c", f"! {shlex.join(fetch)}"], timeout=SECONDS / 4)
    there.run(f"skerry service rm {kind}", timeout=120, check=True)


def where(machine: Machine, service: str) -> str:
    """Wait until a node knows where a service is; return address and port."""
    deadline = time.monotonic() + SECONDS / 4
    while True:
        listed = machine.run("skerry service ls --json", timeout=120, check=True).stdout
        found = [one for one in json.loads(listed)["services"] if one["name"] == service]
        if found and found[0]["port"]:
            return f"{found[0]['address']}:{found[0]['port']}"
        assert time.monotonic() < deadline, listed
        time.sleep(1)


FETCH = """
import sys, urllib.request
print(urllib.request.urlopen(sys.argv[1], timeout=15).read().decode())
"""


def test_pods_of_a_node_without_a_name_server_ask_another(
    cluster: Cluster, server: Machine, pods: list[Target]
) -> None:
    """As long as the agent's node is to have none; then it has one again."""
    index = 1 - cluster.machines.index(server)
    here, pod, node = cluster.machines[index], pods[index], cluster.names[index]
    elsewhere = {"key": "kubernetes.io/hostname", "operator": "NotIn", "values": [node]}
    required = {"nodeSelectorTerms": [{"matchExpressions": [elsewhere]}]}
    rule = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}

    def place(affinity: object) -> None:
        path = "/apis/apps/v1/namespaces/kube-system/daemonsets/coredns"
        patch = {"spec": {"template": {"spec": {"affinity": affinity}}}}
        kube.ask(server, [("PATCH", path, patch)])[0].check()

    place(rule)
    others = set(cluster.names) - {node}
    at = cluster.machines.index(server)
    cluster.wait("a name server elsewhere only", lambda seen: name_servers(seen[at]) == others)
    question = [
        workload.BUSYBOX,
        "nslookup",
        "-type=a",
        f"{pods[at].name}.default.svc.cluster.local",
    ]
    inside = workload.inside(workload.pid_of(here, pod), question)
    script = f"{shlex.join(inside)} | grep -F {pods[at].service}"
    here.wait_for(["/bin/sh", "-c", script], timeout=SECONDS / 4)
    place(None)
    cluster.wait_ready()


def test_the_apis_address_takes_a_write_from_the_agents_node(
    cluster: Cluster, server: Machine, operator: OperatorMachine, folder: Path
) -> None:
    view = supervisor_view(server)
    network = ipaddress.ip_network(view["settings"]["host_range"])
    address = str(network[1])
    agent = next(machine for machine in cluster.machines if machine is not server)
    file = folder / "kubeconfig"
    via = f"ssh://{server.spec.name}"
    operator.skerry_plain("kubeconfig", "--via", via, "--server", address, "--output", str(file))
    agent.put_file("/run/operator.yaml", file.read_bytes())
    command = "kubectl --kubeconfig /run/operator.yaml create configmap by-the-address"
    agent.run(f"{command} --from-literal=from={agent.spec.name}", timeout=300, check=True)
    path = f"/api/v1/namespaces/{kube.NAMESPACE}/configmaps/by-the-address"
    written = kube.ask(server, [("GET", path, None)])[0].check()
    assert written["data"] == {"from": agent.spec.name}


def test_a_node_at_rest_writes_little(cluster: Cluster, server: Machine) -> None:
    """By what it reports once a minute, over four of them."""
    first = {machine: next_report(machine) for machine in cluster.machines}
    for _ in range(3):
        next_report(server)
    for machine, (began, before) in first.items():
        ended, after = next_report(machine)
        part = "server" if machine is server else "agent"
        per_day = (after - before) / (ended - began) * wear.DAY
        words = f"{wear.size(per_day / 1440)} a minute, {wear.size(per_day)} a day"
        print(f"{part}, {ended - began:.0f} s at rest: {words}", file=sys.stderr)
        assert per_day < REST_PER_DAY, part
    found = datastore(server)
    print(f"the server's database: {found}", file=sys.stderr)
    assert found["short_lived"] == 0
    assert found["log"] < 8 * 1024 * 1024


def next_report(machine: Machine) -> tuple[float, int]:
    """Wait until a node has looked anew; return when, and how many bytes since its start."""

    def writes() -> dict[str, int]:
        shown = machine.run("cat /run/skerry-cluster/status.json", timeout=120, check=True)
        found: dict[str, int] = json.loads(shown.stdout)["writes"]
        return found

    last, deadline = writes(), time.monotonic() + SECONDS
    while (now := writes()) == last:
        assert time.monotonic() < deadline, last
        time.sleep(1)
    return time.monotonic(), now["since_boot"]
