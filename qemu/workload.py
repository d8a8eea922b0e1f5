"""The pods that the lab shows: a web server on each node, and what they ask each other.

The objects and the reading of results are plain functions; what happens in the guests goes through
their lab agents. A pod's own programs are run in its namespaces from the node (`nsenter`), so that
nothing but the pod network is on the way.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qemu.errors import LabError
from qemu.kube import NAMESPACE, Request, ask, pods_ready
from qemu.machine import Machine

PORT = 8080
SERVICE_PORT = 80
IMAGE = "busybox"
# By its path: that of the node's programs does not lead there.
BUSYBOX = "/bin/busybox"
# Emulated guests are slow to start programs; what fails is asked again until the deadline.
_DEADLINE_SECONDS = 90

# Arguments: SECONDS. Standard input: [[key, argv], ...]. Runs each until it succeeds or the time is
# up; prints [[key, status, output, seconds of the last try, tries], ...].
_RUN = """
import json, subprocess, sys, time
rows = []
for key, argv in json.load(sys.stdin):
    end, tries = time.monotonic() + float(sys.argv[1]), 0
    while True:
        begun, tries = time.monotonic(), tries + 1
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        took = time.monotonic() - begun
        if done.returncode == 0 or time.monotonic() > end:
            break
        time.sleep(1)
    rows.append([key, done.returncode, done.stdout.decode(errors="replace"), took, tries])
print(json.dumps(rows))
"""


@dataclass(frozen=True, slots=True)
class Target:
    """A pod, and where it is reached."""

    name: str
    node: str
    addresses: tuple[str, ...]
    service: str
    container: str


@dataclass(frozen=True, slots=True)
class Check:
    """One question of a pod to another."""

    source: str
    target: str
    by: str
    address: str
    good: bool
    said: str
    seconds: float
    tries: int


def pod_name(index: int) -> str:
    """Return the name of the pod (and its Service) on the n-th node, from 1."""
    return f"web-{index}"


def objects(nodes: Sequence[str], image: str) -> list[Request]:
    """Return the requests that make a pod and a Service for each node."""
    made: list[Request] = []
    for index, node in enumerate(nodes, start=1):
        name = pod_name(index)
        labels = {"app": "web", "pod": name}
        made.append(("POST", f"/api/v1/namespaces/{NAMESPACE}/services", _service(name, labels)))
        pod = _pod(name, labels, node, image)
        made.append(("POST", f"/api/v1/namespaces/{NAMESPACE}/pods", pod))
    return made


def _service(name: str, labels: Mapping[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": dict(labels)},
        "spec": {
            "selector": {"pod": name},
            "ports": [{"port": SERVICE_PORT, "targetPort": PORT, "protocol": "TCP"}],
        },
    }


def _pod(name: str, labels: Mapping[str, str], node: str, image: str) -> dict[str, Any]:
    # As a container's first process httpd itself would not heed SIGTERM.
    script = (
        f"mkdir -p /tmp/www; echo {name} >/tmp/www/index.html; trap 'exit 0' TERM; "
        f"busybox httpd -f -p {PORT} -h /tmp/www & wait"
    )
    container = {
        "name": "web",
        "image": image,
        "imagePullPolicy": "Never",
        "command": ["busybox", "sh", "-c", script],
        "readinessProbe": {
            "httpGet": {"path": "/", "port": PORT},
            "timeoutSeconds": 10,
            "periodSeconds": 5,
        },
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": dict(labels)},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node},
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 1,
            "tolerations": [{"operator": "Exists"}],
            "containers": [container],
        },
    }


def image_name(node: Machine) -> str:
    """Return the full name of the image that the pods run, as the node has it."""
    listed = node.run("ctr -n k8s.io images ls -q", timeout=120, check=True).stdout.split()
    fitting = [one for one in listed if f"/{IMAGE}:" in one and "@" not in one]
    if not fitting:
        raise LabError(
            f"{node.spec.name} has no image {IMAGE}; it has {', '.join(listed) or 'none'}",
            hint="systemctl status skerry-container-images on the node",
        )
    return fitting[0]


def create(server: Machine, nodes: Sequence[str], image: str) -> None:
    """Make the pods and Services; those that are there already stay."""
    for answer in ask(server, objects(nodes, image)):
        if answer.status != 409:
            answer.check()


def targets(server: Machine, document: Mapping[str, Any], count: int) -> list[Target]:
    """Return the pods with their Services' addresses; raises :class:`LabError` if one is missing.

    ``document`` is what :mod:`qemu.guest_kube` saw on the server.
    """
    ready = pods_ready(dict(document))
    names = [pod_name(index) for index in range(1, count + 1)]
    if missing := [name for name in names if name not in ready]:
        raise LabError(f"not Ready: {', '.join(missing)}")
    path = f"/api/v1/namespaces/{NAMESPACE}/services"
    services = {
        item["metadata"]["name"]: item["spec"]["clusterIP"]
        for item in ask(server, [("GET", path, None)])[0].check()["items"]
    }
    return [
        Target(
            name,
            ready[name]["node"],
            tuple(ready[name]["addresses"]),
            services[name],
            ready[name]["container"],
        )
        for name in names
    ]


def questions(target: Target) -> list[tuple[str, str, list[str]]]:
    """Return ``(by, address, command)`` of all ways to ask a pod."""
    asked: list[tuple[str, str, list[str]]] = []
    for address in target.addresses:
        kind = "IPv6" if ":" in address else "IPv4"
        host = f"[{address}]" if ":" in address else address
        asked.append((f"ping, {kind}", address, [BUSYBOX, "ping", "-c", "3", "-W", "5", address]))
        asked.append((f"HTTP, pod {kind}", address, _wget(f"http://{host}:{PORT}/")))
    asked.append(("HTTP, Service", target.service, _wget(f"http://{target.service}/")))
    name = f"{target.name}.{NAMESPACE}.svc.cluster.local"
    asked.append(("HTTP, DNS name", name, _wget(f"http://{name}/")))
    short = f"{target.name}.{NAMESPACE}"
    asked.append(("HTTP, short name", short, _wget(f"http://{short}/")))
    return asked


def _wget(url: str) -> list[str]:
    return [BUSYBOX, "wget", "-q", "-T", "10", "-O", "-", url]


def pid_of(machine: Machine, target: Target) -> int:
    """Return the process id of a pod's container on its node."""
    listed = machine.run("ctr -n k8s.io tasks ls", timeout=120, check=True).stdout
    for line in listed.splitlines():
        match line.split():
            case [container, pid, *_] if container == target.container:
                return int(pid)
    raise LabError(f"{target.name} does not run on {machine.spec.name}:\n{listed}")


def inside(pid: int, argv: Sequence[str], *, files: bool = True) -> list[str]:
    """Return the command that runs ``argv`` in a container's network (and with its files)."""
    which = ["-n", "-m"] if files else ["-n"]
    return ["nsenter", "-t", str(pid), *which, "--", *argv]


def check(
    machine: Machine, source: Target, others: Sequence[Target], *, seconds: float | None = None
) -> list[Check]:
    """Have a pod ask the others in all ways; ``seconds``: how long each may be asked again."""
    pid = pid_of(machine, source)
    asked = [(other, *question) for other in others for question in questions(other)]
    rows = [[index, inside(pid, argv)] for index, (*_, argv) in enumerate(asked)]
    wait = _DEADLINE_SECONDS if seconds is None else seconds
    done = machine.run(
        ["/usr/bin/python3", "-ISc", _RUN, str(wait)],
        stdin=json.dumps(rows).encode(),
        timeout=60 + len(rows) * (wait + 60),
    ).check()
    checks = []
    for index, status, output, took, tries in json.loads(done.stdout):
        other, by, address, _ = asked[index]
        good, said, measured = judge(by, other, status, output, took)
        checks.append(Check(source.name, other.name, by, address, good, said, measured, tries))
    return checks


def judge(
    by: str, target: Target, status: int, output: str, took: float
) -> tuple[bool, str, float]:
    """Say whether an answer is the right one, in words, and in how many seconds it came."""
    last = output.strip().splitlines()[-1:] or ["no answer"]
    if status != 0:
        return False, last[0][:200], took
    if by.startswith("ping"):
        # "3 packets received", "round-trip min/avg/max = 1.2/3.4/5.6 ms"
        came = re.search(r"(\d+) packets received", output)
        trip = re.search(r"= [\d.]+/([\d.]+)/", output)
        if not came or not trip:
            return False, last[0][:200], took
        return int(came[1]) == 3, f"{came[1]} of 3", float(trip[1]) / 1000
    return last[0] == target.name, last[0][:200], took


HEADER = ("from", "to", "by", "address", "answer", "time")


def rows(checks: Sequence[Check]) -> list[list[str]]:
    """Return the table of what the pods asked each other."""
    return [
        [
            one.source,
            one.target,
            one.by,
            one.address,
            one.said if one.good else f"FAILED: {one.said}",
            f"{one.seconds * 1000:.{1 if one.seconds < 0.1 else 0}f} ms",
        ]
        for one in checks
    ]
