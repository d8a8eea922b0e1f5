"""The CNI operations as a runtime asks for them: cnitool and our shim, real namespaces."""

from __future__ import annotations

import ipaddress
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from appliance.cluster.conflist import PodNetwork, conflist_text
from tests.netns.cni import RANGES, CniNode, Pod, ask, mirror
from tests.netns.lab import run, wait_until

pytestmark = pytest.mark.netns

OUTSIDE = {4: ("192.168.70.1", "192.168.70.2"), 6: ("fd99::1", "fd99::2")}


@contextmanager
def outside(node: CniNode) -> Iterator[list[str]]:
    """Yield the prefix of commands on a machine that the node has an uplink to."""
    away = node.lab.pod()
    run(
        *("ip", "-n", node.namespace, "link", "add", "up0", "type", "veth"),
        *("peer", "name", "up0", "netns", away.namespace),
    )
    try:
        for number, namespace in enumerate((node.namespace, away.namespace)):
            for version, addresses in OUTSIDE.items():
                words = ("dev", "up0", *(("nodad",) if version == 6 else ()))
                prefix = 24 if version == 4 else 64
                address = f"{addresses[number]}/{prefix}"
                run("ip", "-n", namespace, "addr", "add", address, *words)
            run("ip", "-n", namespace, "link", "set", "up0", "up")
        yield away.command()
    finally:
        node.ip("link", "del", "up0")


def attached(node: CniNode, count: int) -> list[Pod]:
    pods = [node.lab.pod() for _ in range(count)]
    for pod in pods:
        assert node.call("ADD", pod).status == 0
    return pods


def ports(node: CniNode) -> list[str]:
    links = json.loads(node.ip("-j", "link", "show", "master", "skerry-pods"))
    return [one["ifname"] for one in links]


def detached(node: CniNode, *pods: Pod) -> None:
    for pod in pods:
        assert node.call("DEL", pod).status == 0


def test_cnitool_adds_checks_and_deletes_with_the_whole_chain(node: CniNode) -> None:
    one, two = node.lab.pod(), node.lab.pod()
    assert node.tool("status", one).status == 0
    first, second = node.tool("add", one), node.tool("add", two)
    assert [len(said.addresses) for said in (first, second)] == [2, 2]
    for pod in (one, two):
        assert node.tool("check", pod).status == 0
    # Both families, past the node and to each other.
    for address in ("10.244.7.1", "fd42::af4:700:0:0:1", *second.addresses):
        assert one.reaches(address), address
    # An IPv4 header, 20; ICMP, 8; and the MTU of the overlay.
    assert " 0% packet loss" in one.ping(second.addresses[0], "-s", "1352", "-M", "do")
    assert " 0% packet loss" not in one.ping(second.addresses[0], "-s", "1353", "-M", "do")
    run("ip", "-n", one.namespace, "route", "del", "default")
    said = node.tool("check", one)
    assert said.status != 0
    for pod in (one, two, two):
        assert node.tool("del", pod).status == 0


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_every_version_through_the_library_of_the_runtimes(node: CniNode, version: str) -> None:
    pod = node.lab.pod()
    node.configure(version)
    assert node.tool("add", pod).answer["cniVersion"] == version
    if version > "0.3.1":
        assert node.tool("check", pod).status == 0
    assert node.tool("del", pod).status == 0
    node.configure()


def test_the_configuration_that_we_write_is_taken_in_the_newest_version(node: CniNode) -> None:
    network = PodNetwork(ranges=tuple(map(ipaddress.ip_network, RANGES)), mtu=1380)
    written = json.loads(conflist_text(network))
    written["name"] = node.network
    written["plugins"][0] |= node.plugin
    (node.config_dir / "10-skerry.conflist").write_text(json.dumps(written))
    pod = node.lab.pod()
    added = node.tool("add", pod)
    assert added.answer["cniVersion"] == "1.1.0"
    assert [one["dst"] for one in added.answer["routes"]][-2:] == ["0.0.0.0/0", "::/0"]
    for verb in ("check", "status", "del"):
        assert node.tool(verb, pod).status == 0
    node.configure()


def test_a_port_of_the_node_leads_into_a_container(node: CniNode) -> None:
    pod = node.lab.pod()
    ports = [
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 8081, "containerPort": 80, "protocol": "tcp", "hostIP": OUTSIDE[4][0]},
    ]
    with outside(node) as away, pod.mirror(80):
        assert node.tool("add", pod, capabilities={"portMappings": ports}).status == 0
        for node_address, caller in OUTSIDE.values():
            assert ask(away, node_address, 8080) == caller
        assert ask(away, OUTSIDE[4][0], 8081) == OUTSIDE[4][1]
        # By way of the node's port to itself, too.
        assert pod.ask(OUTSIDE[4][0], 8080) == "10.244.7.1"
        assert node.tool("del", pod, capabilities={"portMappings": ports}).status == 0
        assert not ask(away, OUTSIDE[4][0], 8080)
    # Its tables stay, empty.
    for family in ("ip", "ip6"):
        assert "dport" not in node.nft("list", "table", family, "cni_hostport")
        node.nft("delete", "table", family, "cni_hostport")


def test_out_of_the_cluster_a_pod_has_the_nodes_address_and_within_its_own(node: CniNode) -> None:
    (pod,) = attached(node, 1)
    with outside(node) as away, mirror(away, 81):
        for node_address, other in OUTSIDE.values():
            assert pod.ask(other, 81) == node_address
        # One of those that count as the cluster's.
        run(*away, "ip", "addr", "add", "10.244.9.9/32", "dev", "up0")
        node.ip("route", "add", "10.244.9.9", "dev", "up0")
        run(*away, "ip", "route", "add", "10.244.7.0/24", "via", OUTSIDE[4][0])
        assert pod.ask("10.244.9.9", 81).startswith("10.244.7.")
    detached(node, pod)


def test_a_limit_on_bandwidth_is_kept(node: CniNode) -> None:
    pod = node.lab.pod()
    limits = {"ingressRate": 8_000_000, "ingressBurst": 400_000}
    limits |= {"egressRate": 8_000_000, "egressBurst": 400_000}
    assert node.tool("add", pod, capabilities={"bandwidth": limits}).status == 0
    begun = time.monotonic()
    # 750 kB there and 750 kB back, at 1 MB/s each way and 50 kB at once.
    said = pod.ping("10.244.7.1", "-c", "500", "-s", "1352", "-f", "-q", "-w", "5")
    took = time.monotonic() - begun
    received = int(said.split(" received")[0].rsplit(" ", 1)[1])
    assert received * 1380 <= 1_000_000 * took + 60_000
    assert received > 50
    assert node.tool("del", pod, capabilities={"bandwidth": limits}).status == 0


def test_a_del_needs_no_namespace_and_may_come_again(node: CniNode) -> None:
    pods = attached(node, 2)
    for pod in pods:
        pod.remove()
    for _ in range(2):
        assert node.call("DEL", pods[0], CNI_NETNS="").status == 0
        # A path that leads nowhere any more.
        assert node.call("DEL", pods[1]).status == 0


def test_an_add_may_come_again_and_over_a_new_namespace(node: CniNode) -> None:
    (pod,) = attached(node, 1)
    again = node.call("ADD", pod)
    assert again == node.call("ADD", pod)
    pod.remove()
    run("ip", "netns", "add", pod.namespace)
    assert node.call("ADD", pod).addresses == again.addresses
    assert pod.reaches("10.244.7.1")
    detached(node, pod)


def test_what_is_no_namespace_of_a_container_is_refused(node: CniNode) -> None:
    pod = node.lab.pod()
    file = node.folder / "file"
    file.touch()
    for path, code in (
        (str(file), 4),
        ("/dev/null", 4),
        (f"/run/netns/{node.namespace}", 4),
        ("/proc/self/ns/uts", 4),
        ("/run/netns/nowhere", 3),
        ("relative", 4),
        ("", 4),
    ):
        said = node.call("ADD", pod, CNI_NETNS=path)
        assert (said.status, said.code) == (1, code), path


def test_a_failed_add_leaves_nothing(node: CniNode) -> None:
    pod = node.lab.pod()
    run("ip", "-n", pod.namespace, "link", "add", "eth0", "type", "bridge")
    said = node.call("ADD", pod)
    assert (said.status, said.code) == (1, 102)
    assert "File exists" in said.answer["msg"]


def test_a_gc_removes_what_is_not_valid(node: CniNode) -> None:
    kept, lost = attached(node, 2)
    valid = [{"containerID": kept.id, "ifname": "eth0"}]
    said = node.call("GC", config={"cni.dev/valid-attachments": valid})
    assert said.status == 0
    assert kept.reaches("10.244.7.1")
    assert lost.is_cut_off("10.244.7.1")
    assert node.call("CHECK", lost, {"prevResult": {}}).code == 3
    # One that does not say what is valid removes what has lost its namespace, and no more.
    again = node.lab.pod()
    assert node.call("ADD", again).status == 0
    again.remove()
    # The kernel takes its time to end one.
    wait_until(lambda: len(ports(node)) == 1, 10, "its link is gone")
    assert node.call("GC").status == 0
    assert kept.reaches("10.244.7.1")
    assert node.call("CHECK", again, {"prevResult": {}}).code == 3
    detached(node, kept)


def test_cnitool_collects_what_it_made(node: CniNode) -> None:
    pods = [node.lab.pod() for _ in range(2)]
    for pod in pods:
        assert node.tool("add", pod).status == 0
    assert node.tool("gc", pods[0]).status == 0
    assert all(pod.is_cut_off("10.244.7.1") for pod in pods)


def test_status_says_what_the_node_lacks(node: CniNode) -> None:
    pods = json.loads((node.run_dir / "pods.json").read_text())
    assert node.call("STATUS").status == 0
    node.offer(**pods | {"interface": "nowhere0"})
    assert node.call("STATUS").code == 51
    (node.run_dir / "pods.json").unlink()
    said = node.call("STATUS")
    assert (said.code, said.answer["msg"]) == (50, "this node has no pod range yet")
    assert node.call("ADD", node.lab.pod()).code == 11
    node.offer(**pods)
