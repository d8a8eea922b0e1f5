"""The DaemonSet of `skerry image oci` in a Kubernetes without Skerry: a story, in order."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator

import pytest

from image import foreign
from tests.contract.engine_world import DATA, Machine, wait_until
from tests.faults.foreign_world import NAMESPACE, SERVER, Foreign
from tests.netns.pinger import Pinger, Stream

pytestmark = [
    pytest.mark.ha,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and containers need root"),
    # The engine may have to be compiled first.
    pytest.mark.timeout(1800),
]
PATIENCE = 300.0
_OURS = "app=skerry"
_WEB = """
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web, namespace: default}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
        - name: web
          image: skerry.local/busybox:1
          imagePullPolicy: Never
          env: [{name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
          command: [/bin/busybox, sh, -c]
          args: ["mkdir /www; echo $NODE >/www/index.html; exec busybox httpd -f -p 8080 -h /www"]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Foreign]:
    with Foreign.started() as made:
        # Nobody gives pods a network yet.
        assert made.ready() == set()
        begun = time.monotonic()
        made.install()
        wait_until(lambda: made.ready() == {"one", "two"}, PATIENCE, "both nodes are ready")
        print(f"ready {time.monotonic() - begun:.0f} s after the manifest was applied")
        yield made


@pytest.fixture(scope="module")
def web(cluster: Foreign) -> dict[str, dict[str, str]]:
    """A web server on each node: node -> pod's name and addresses."""
    (cluster.one.shared / "web.yaml").write_text(_WEB)
    cluster.one.kubectl("apply", "-f", "/data/shared/web.yaml")

    def running() -> bool:
        pods = cluster.pods("default", "app=web")
        states = {node: one["status"]["phase"] for node, one in pods.items()}
        return states == {"one": "Running", "two": "Running"}

    wait_until(running, PATIENCE, "a pod with a network on each node")
    found = {}
    for node, pod in cluster.pods("default", "app=web").items():
        addresses = [one["ip"] for one in pod["status"]["podIPs"]]
        found[node] = {"name": pod["metadata"]["name"], "ip": addresses[0]}
    return found


def ask(cluster: Foreign, pod: str, address: str) -> str:
    """Return what a pod gets from a web server, or why it does not."""
    words = ("busybox", "wget", "-q", "-T", "5", "-O", "-", f"http://{address}/")
    return cluster.one.kubectl("exec", pod, "--", *words, check=False).strip()


def process(machine: Machine, words: str) -> str:
    """Return the id, in the machine, of the process that runs ``skerry WORDS``."""
    every = "for one in /proc/[0-9]*; do echo ${one#/proc/} $(tr '\\0' ' ' <$one/cmdline); done"
    listed = machine.run("sh", "-c", f"{every} 2>/dev/null", check=False)
    (found,) = re.findall(rf"^(\d+) \S*python3 .*skerry {words}", listed, re.MULTILINE)
    return str(found)


def inside_of_pod(machine: Machine) -> str:
    """Return the network namespace of the only pod with one on a machine, as seen from here."""
    (name,) = machine.run("ls", "/run/netns").split()
    return f"/proc/{machine.first_process()}/root/run/netns/{name}"


def test_ranges_are_claimed_recorded_and_written(cluster: Foreign) -> None:
    ranges = set()
    for machine in cluster.machines:
        status = cluster.status(machine)
        assert (status["state"], status["role"], status["problems"]) == ("ready", "pods", [])
        recorded = cluster.nodes()[machine.name]["spec"]["podCIDRs"]
        text = machine.run("cat", "/etc/cni/net.d/10-skerry.conflist")
        assert recorded[0] == status["cni"]
        assert all(one in text for one in recorded)
        assert machine.run("ls", "/opt/cni/bin").split() == [
            "bandwidth",
            "loopback",
            "portmap",
            "skerry-cni",
        ]
        ranges |= set(recorded)
    assert len(ranges) == 4


def test_the_supervisors_form_the_overlay(cluster: Foreign) -> None:
    for pod in cluster.pods(NAMESPACE, _OURS).values():
        name = pod["metadata"]["name"]
        words = ("exec", name, "-c", "supervisor", "--", "skerry", "status", "--json")
        status = json.loads(cluster.one.kubectl("-n", NAMESPACE, *words))
        assert status["state"] == "ready"
        assert [one["up"] for one in status["overlay"]["peers"]] == [True]


def test_pods_reach_each_other_across_the_overlay(
    cluster: Foreign, web: dict[str, dict[str, str]]
) -> None:
    service = cluster.one.get("svc", "web")["spec"]["clusterIP"]
    for node, other in (("one", "two"), ("two", "one")):
        pod = web[node]["name"]
        assert ask(cluster, pod, f"{web[other]['ip']}:8080") == other
        assert ask(cluster, pod, service) in {"one", "two"}
    # There is no other way from node to node for pods than the overlay.
    route = ("ip", "-n", cluster.one.namespace, "route", "get", web["two"]["ip"])
    assert "dev skerry0" in subprocess.run(route, capture_output=True, text=True, check=True).stdout


def test_the_account_can_record_its_own_nodes_range_and_no_more(cluster: Foreign) -> None:
    pod = cluster.pods(NAMESPACE, _OURS)["one"]["metadata"]["name"]
    bound = ("--bound-object-kind=Pod", f"--bound-object-name={pod}")
    token = cluster.one.kubectl("-n", NAMESPACE, "create", "token", "skerry", *bound).strip()
    ca = f"--certificate-authority={DATA}/server/tls/server-ca.crt"

    def say(*words: str) -> str:
        access = ("--kubeconfig=/dev/null", f"--server={SERVER}", ca, f"--token={token}")
        return cluster.one.kubectl(*access, *words, check=False)

    tainted = '{"spec":{"taints":[{"key":"a","effect":"NoExecute"}]}}'
    other = '{"metadata":{"labels":{"a":"b"}}}'
    own = cluster.nodes()["one"]["spec"]["podCIDRs"]
    same = json.dumps({"spec": {"podCIDR": own[0], "podCIDRs": own}})
    merge = ("--type=merge", "-p")
    assert "patched" in say("patch", "node", "one", *merge, same)
    assert "changes nothing else" in say("patch", "node", "one", *merge, tainted)
    assert "changes nothing else" in say("patch", "node", "one", *merge, other)
    assert "the Node that its pod runs on" in say("patch", "node", "two", *merge, other)
    assert "forbidden" in say("delete", "node", "two")
    assert "forbidden" in say("get", "secrets", "-A")
    assert "forbidden" in say("get", "nodes")


@pytest.mark.parametrize(
    ("name", "words"), [("pods", "cluster run"), ("supervisor", "supervisor run")]
)
def test_pods_go_on_while_a_container_is_killed(
    cluster: Foreign, web: dict[str, dict[str, str]], name: str, words: str
) -> None:
    there = inside_of_pod(cluster.one)
    with Pinger([there]) as pinger:
        across = pinger.add(there, web["two"]["ip"])
        assert not pinger.until_all(30)
        with Stream(pinger):
            cluster.one.run("sh", "-c", f"kill -9 {process(cluster.one, words)}")
            wait_until(lambda: restarts(cluster, name) == 1, PATIENCE, "it is started again")
        pinger.receive(1)
    print(f"{name} killed: {across.got} of {across.sent} pings across the overlay answered")
    assert across.got == across.sent


def test_when_the_pod_is_deleted_its_node_goes_on_and_the_overlay_comes_back(
    cluster: Foreign, web: dict[str, dict[str, str]]
) -> None:
    """Across nodes traffic rests meanwhile: this kernel's WireGuard is a process of the pod."""
    before = cluster.pods(NAMESPACE, _OURS)["one"]["metadata"]["name"]
    there = inside_of_pod(cluster.one)
    with Pinger([there]) as pinger:
        across = pinger.add(there, web["two"]["ip"])
        within = pinger.add(there, cluster.one.address)
        assert not pinger.until_all(30)
        with Stream(pinger):
            begun = time.monotonic()
            cluster.one.kubectl("-n", NAMESPACE, "delete", "pod", before)
            away = across.got
            wait_until(lambda: across.got > away + 50, PATIENCE, "another pod carries the overlay")
            took = time.monotonic() - begun
        pinger.receive(1)
    print(f"pod deleted: across the overlay after {took:.1f} s, {across.sent - across.got} lost")
    assert within.got == within.sent
    assert cluster.ready() == {"one", "two"}


def restarts(cluster: Foreign, name: str) -> int:
    """Return how often a container of the first node's pod was started again."""
    pod = cluster.pods(NAMESPACE, _OURS)["one"]
    states = pod["status"].get("containerStatuses", ())
    return sum(one["restartCount"] for one in states if one["name"] == name)


def test_it_goes_away_as_the_manifest_says(
    cluster: Foreign, web: dict[str, dict[str, str]]
) -> None:
    assert web
    cluster.one.kubectl("delete", "-f", "/data/shared/web.yaml")
    wait_until(lambda: not cluster.pods("default", "app=web"), PATIENCE, "no pods any more")
    cluster.one.kubectl("delete", "-f", "/data/shared/skerry.yaml", check=False)
    wait_until(lambda: not cluster.pods(NAMESPACE, _OURS), PATIENCE, "ours are gone")
    commands = re.findall(r"^#   (\S.*)$", foreign.MANIFEST.read_text(), re.MULTILINE)
    assert len(commands) == 8
    for machine in cluster.machines:
        for command in commands:
            # A machine of these has no program called ip.
            inside = ["nsenter", f"--net=/run/netns/{machine.namespace}", "sh", "-c", command]
            words = inside if command.startswith("ip ") else machine.enter(["sh", "-c", command])
            subprocess.run(words, capture_output=True, check=False, timeout=60)
        routes = ("route", "show", "table", "all")
        for what in (("-o", "addr"), routes, ("-6", *routes)):
            words = ["ip", "-n", machine.namespace, *what]
            said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
            assert not [
                line for line in said.splitlines() if "skerry" in line or "proto 83" in line
            ]
        assert "skerry" not in machine.run("nft", "list", "tables")
        for place in ("/etc/cni/net.d", "/opt/cni/bin", "/run", "/var/lib", "/run/wireguard"):
            # The engine that stands in for a foreign cluster has a folder of its own there.
            left = set(machine.run("ls", place).split()) - {"skerry-engine"}
            assert not [name for name in left if "skerry" in name], (place, left)
    wait_until(lambda: cluster.ready() == set(), PATIENCE, "the nodes say that they lack a network")
