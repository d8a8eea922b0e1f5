"""What the lab reads of Kubernetes and says about it, without a guest."""

from __future__ import annotations

import base64
import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from qemu import cluster, guest_kube, kube, workload
from qemu.agent import Result
from qemu.errors import LabError
from qemu.machine import Machine

KUBECONFIG = """\
apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: Q0E=
    server: https://127.0.0.1:6443
  name: default
contexts:
- context:
    cluster: default
    user: default
  name: default
users:
- name: default
  user:
    client-certificate-data: Q0VSVA==
    client-key-data: "S0VZ"
"""
TARGET = workload.Target("web-2", "attic", ("10.244.7.2", "fd00::2"), "10.96.0.9", "c2")


def pod(name: str, *, ready: bool = True, **more: Any) -> dict[str, Any]:  # noqa: ANN401
    return {
        "name": name,
        "namespace": "default",
        "node": "attic",
        "addresses": ["10.244.7.2"],
        "phase": "Running" if ready else "Pending",
        "ready": ready,
        "container": "c2",
        "restarts": 0,
        "why": "",
        **more,
    }


def document(**more: Any) -> dict[str, Any]:  # noqa: ANN401
    return {"agent": None, "nodes": [], "pods": [], "api": "", **more}


class Guest:
    """A machine whose commands are answered from a list."""

    def __init__(self, *answers: str) -> None:
        self.spec = SimpleNamespace(name="node1")
        self.answers = list(answers)
        self.given: list[bytes] = []

    def run(self, _argv: object, *, stdin: bytes = b"", **_: object) -> Result:
        self.given.append(stdin)
        return Result("", 0, self.answers.pop(0), "")


def machine(*answers: str) -> Machine:
    return cast("Machine", Guest(*answers))


def test_a_kubeconfig_is_read_by_its_keys() -> None:
    said = guest_kube.values(KUBECONFIG)
    assert said["server"] == "https://127.0.0.1:6443"
    assert base64.b64decode(said["client-key-data"]) == b"KEY"
    assert base64.b64decode(said["certificate-authority-data"]) == b"CA"


def test_what_counts_of_a_node_and_a_pod() -> None:
    status = {
        "conditions": [{"type": "Ready", "status": "True"}],
        "addresses": [
            {"type": "InternalIP", "address": "100.64.0.1"},
            {"type": "Hostname", "address": "attic"},
        ],
        "nodeInfo": {"kubeletVersion": "v1.36.3"},
    }
    node = guest_kube.node_of(
        {"metadata": {"name": "attic"}, "spec": {"podCIDRs": ["10.244.7.0/24"]}, "status": status}
    )
    assert node == {
        "name": "attic",
        "ready": True,
        "ranges": ["10.244.7.0/24"],
        "addresses": ["100.64.0.1"],
        "version": "v1.36.3",
    }
    waiting = {"waiting": {"reason": "ErrImageNeverPull", "message": "not here"}}
    seen = guest_kube.pod_of(
        {
            "metadata": {"name": "web-1", "namespace": "default"},
            "status": {
                "phase": "Pending",
                "containerStatuses": [
                    {"state": waiting, "containerID": "containerd://abc", "restartCount": 2}
                ],
            },
        }
    )
    assert (seen["why"], seen["container"], seen["restarts"], seen["ready"], seen["node"]) == (
        "ErrImageNeverPull not here",
        "abc",
        2,
        False,
        "",
    )
    bare = guest_kube.pod_of({"metadata": {"name": "web-1"}})
    assert (bare["addresses"], bare["phase"], bare["ready"]) == ([], "", False)


def test_how_far_a_node_is_in_words() -> None:
    assert "no word from the cluster agent" in kube.words(document())
    agent = {"role": "server", "state": "starting", "why": "it was elected"}
    nodes = [{"name": "attic", "ready": True}, {"name": "shed", "ready": False}]
    seen = document(agent=agent, nodes=nodes, pods=[pod("web-1", ready=False)])
    assert kube.words(seen) == (
        "server, starting: it was elected; 1 of 2 nodes Ready; 0 of 1 pods Ready"
    )
    assert kube.servers([document(), seen]) == [1]


def test_what_is_in_the_way() -> None:
    agent = {
        "role": "server",
        "state": "degraded",
        "problems": [{"code": "engine-failed", "message": "it ended", "hint": "look"}],
    }
    seen = document(
        agent=agent,
        api="ConnectionRefusedError: no",
        nodes=[{"name": "shed", "ready": False}],
        pods=[
            pod("web-1", ready=False, why="ErrImageNeverPull not here"),
            pod("web-2", ready=False, node=""),
            pod("web-3"),
        ],
    )
    assert kube.trouble(seen) == [
        "engine-failed: it ended. look",
        "API: ConnectionRefusedError: no",
        "node shed is not Ready",
        "pod web-1: Pending on attic. ErrImageNeverPull not here",
        "pod web-2: Pending, not placed",
    ]
    assert kube.trouble(document()) == []


def test_ready_is_all_nodes_and_dns() -> None:
    nodes = [{"name": "attic", "ready": True}, {"name": "shed", "ready": True}]
    assert not cluster.ready([document(), document(nodes=nodes)], 2)
    whole = document(nodes=nodes, pods=[pod("coredns-1")])
    assert cluster.ready([document(), whole], 2)
    assert not cluster.ready([whole], 3)


def test_a_refused_request_is_told() -> None:
    server = machine(json.dumps([[200, {"items": []}], [403, {"message": "no"}]]))
    good, bad = kube.ask(server, [("GET", "/a", None), ("POST", "/b", {})])
    assert good.check() == {"items": []}
    with pytest.raises(LabError, match="refused POST /b: 403"):
        bad.check()


def test_pods_that_are_there_already_stay() -> None:
    workload.create(machine(json.dumps([[201, {}], [409, {}]])), ["attic"], "busybox:1")
    with pytest.raises(LabError, match="422"):
        workload.create(machine(json.dumps([[201, {}], [422, {}]])), ["attic"], "busybox:1")


def test_a_pod_and_a_service_for_each_node() -> None:
    made = [body for _, _, body in workload.objects(["attic", "shed"], "busybox:1")]
    kinds = [(one["kind"], one["metadata"]["name"]) for one in cast("list[dict[str, Any]]", made)]
    assert kinds == [("Service", "web-1"), ("Pod", "web-1"), ("Service", "web-2"), ("Pod", "web-2")]


def test_a_missing_pod_and_a_missing_image_are_named() -> None:
    with pytest.raises(LabError, match="not Ready: web-2"):
        workload.targets(machine(), document(pods=[pod("web-1")]), 2)
    with pytest.raises(LabError, match="no image busybox; it has skerry"):
        workload.image_name(machine("skerry.local/pause:1\n"))
    listed = "skerry.local/busybox@sha256:00\nskerry.local/busybox:1.37\n"
    assert workload.image_name(machine(listed)) == "skerry.local/busybox:1.37"


def test_a_container_is_found_by_its_id() -> None:
    listed = "TASK    PID    STATUS\nc1      12     RUNNING\nc2      77     RUNNING\n"
    assert workload.pid_of(machine(listed), TARGET) == 77
    with pytest.raises(LabError, match="web-2 does not run on node1"):
        workload.pid_of(machine("TASK PID STATUS\n"), TARGET)


PINGED = """\
3 packets transmitted, {} packets received, 0% packet loss
round-trip min/avg/max = 1.000/2.500/4.000 ms
"""


@pytest.mark.parametrize(
    ("by", "status", "output", "expected"),
    [
        ("ping, IPv4", 0, PINGED.format(3), (True, "3 of 3", 0.0025)),
        ("ping, IPv4", 0, PINGED.format(2), (False, "2 of 3", 0.0025)),
        ("ping, IPv4", 1, "network is unreachable", (False, "network is unreachable", 9.0)),
        ("HTTP, Service", 0, "web-2\n", (True, "web-2", 9.0)),
        ("HTTP, Service", 0, "web-1\n", (False, "web-1", 9.0)),
        ("HTTP, Service", 0, "", (False, "no answer", 9.0)),
        ("HTTP, Service", 1, "web-2\n", (False, "web-2", 9.0)),
    ],
)
def test_only_the_right_answer_is_good(
    by: str, status: int, output: str, expected: tuple[bool, str, float]
) -> None:
    assert workload.judge(by, TARGET, status, output, 9.0) == expected


def test_every_way_is_asked_and_shown() -> None:
    ways = [by for by, _, _ in workload.questions(TARGET)]
    assert ways == [
        "ping, IPv4",
        "HTTP, pod IPv4",
        "ping, IPv6",
        "HTTP, pod IPv6",
        "HTTP, Service",
        "HTTP, DNS name",
        "HTTP, short name",
    ]
    rows = [[index, 0 if index else 1, "web-2", 0.5, 1] for index in range(len(ways))]
    guest = machine("c2 77 RUNNING\n", json.dumps(rows))
    checks = workload.check(guest, TARGET, [TARGET])
    asked = json.loads(cast("Guest", guest).given[1])
    assert asked[0][1][:5] == ["nsenter", "-t", "77", "-n", "-m"]
    assert [one.good for one in checks] == [False, True, False, True, True, True, True]
    table = workload.rows(checks)
    assert table[0][4] == "FAILED: web-2"
    assert table[1][4:] == ["web-2", "500 ms"]
