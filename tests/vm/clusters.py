"""A cluster of machines, and what the tests of it ask and do."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from qemu import demo, kube, workload
from qemu.agent import Job
from qemu.machine import Machine
from qemu.watch import follow
from qemu.workload import Target

SECONDS = 600.0
"""Deadline of whatever Kubernetes does in emulated machines; minutes are usual."""

Documents = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Cluster:
    """Nodes in the order of their machines; ``names`` are their nodes' names."""

    machines: tuple[Machine, ...]
    names: tuple[str, ...]

    def wait(
        self, what: str, done: Callable[[Documents], bool], *, timeout: float = SECONDS
    ) -> Documents:
        """Wait until what is seen of Kubernetes on the nodes is as wanted; returns it."""
        begun = time.monotonic()
        watches = [kube.watch(machine) for machine in self.machines]

        def say(node: str, words: str) -> None:
            print(f"{time.monotonic() - begun:6.1f} s  {node}: {words}", file=sys.stderr)

        print(f"waiting: {what}", file=sys.stderr)
        follow(watches, done, timeout=timeout, say=say)
        return [watch.status for watch in watches]

    def wait_ready(self) -> Documents:
        """Wait until all nodes are Ready, each with a name server of its own."""

        def done(seen: Documents) -> bool:
            names = set(self.names)
            return any(
                kube.nodes_ready(seen[index]) >= names and name_servers(seen[index]) >= names
                for index in kube.servers(seen)
            )

        return self.wait("all nodes Ready, DNS serves on each", done)

    def wait_pods(self, *, other_than: frozenset[str] = frozenset()) -> Documents:
        """Wait until the pod of each node is Ready, in a container that is none of these."""
        names = [workload.pod_name(number) for number in range(1, len(self.machines) + 1)]

        def done(seen: Documents) -> bool:
            for index in kube.servers(seen):
                pods = kube.pods_ready(seen[index])
                if all(
                    name in pods and pods[name]["container"] not in other_than for name in names
                ):
                    return True
            return False

        return self.wait("a pod on each node", done)

    def index_of_server(self, documents: Documents) -> int:
        """Return which machine is the (first) server."""
        return kube.servers(documents)[0]

    def targets(self, documents: Documents) -> list[Target]:
        """Return the pods and where they are reached."""
        index = self.index_of_server(documents)
        return workload.targets(self.machines[index], documents[index], len(self.machines))

    def ask_each_other(self, targets: Sequence[Target], *, seconds: float | None = None) -> None:
        """Have each pod ask all others in every way; all have to answer."""
        checks: list[workload.Check] = []
        for machine, target in zip(self.machines, targets, strict=True):
            others = [one for one in targets if one is not target]
            checks += workload.check(machine, target, others, seconds=seconds)
        bad = [one for one in checks if not one.good]
        assert checks
        assert not bad, "\n".join(" | ".join(row) for row in workload.rows(bad))


def name_servers(document: dict[str, Any]) -> set[str]:
    """Return the names of the nodes on which the cluster's DNS serves."""
    ready = kube.pods_ready(document)
    return {str(one["node"]) for name, one in ready.items() if name.startswith("coredns")}


def look_up(machine: Machine, source: Target, name: str) -> str:
    """Return what a pod is told of a name: its IPv4 addresses are in the text."""
    argv = [workload.BUSYBOX, "nslookup", "-type=a", name]
    inside = workload.inside(workload.pid_of(machine, source), argv)
    return machine.run(inside, timeout=120).stdout


def unit_pid(machine: Machine, unit: str) -> int:
    """Return the process id of a unit's main process, 0 if there is none."""
    return int(machine.run(["systemctl", "show", "-P", "MainPID", unit], check=True).stdout)


def ipv4(pod: Target) -> str:
    """Return a pod's IPv4 address."""
    return next(address for address in pod.addresses if ":" not in address)


def begin_pod_ping(machine: Machine, source: Target, address: str, *, count: int) -> Job:
    """Start pinging an IPv4 address from a pod, five times a second."""
    pid = workload.pid_of(machine, source)
    command = ["/usr/bin/python3", "-ISc", demo.PING, address, str(count), "0.2"]
    return machine.begin(workload.inside(pid, command, files=False))


def datastore(server: Machine) -> dict[str, int]:
    """Return of a single server's database: bytes, bytes of its log, objects, leases and events."""
    done = server.run(["/usr/bin/python3", "-ISc", _DATASTORE], timeout=120, check=True)
    found: dict[str, int] = json.loads(done.stdout)
    return found


_DATASTORE = """
import json, os, sqlite3
file = "/data/kubernetes/server/db/state.db"
with sqlite3.connect("file:%s?mode=ro" % file, uri=True, timeout=30) as database:
    def count(where):
        return database.execute("SELECT count(*) FROM kine WHERE name " + where).fetchone()[0]
    print(json.dumps({
        "size": os.path.getsize(file), "log": os.path.getsize(file + "-wal"),
        "objects": count("LIKE '/registry/%'"),
        "short_lived": count("LIKE '/registry/leases/%' OR name LIKE '/registry/events/%'"),
    }))
"""


def supervisor_view(machine: Machine) -> dict[str, Any]:
    """Return what the supervisor tells the cluster agent (``GET /v1/cluster``)."""
    done = machine.run(["/usr/bin/python3", "-ISc", _CLUSTER], timeout=60, check=True)
    document = json.loads(done.stdout)
    assert isinstance(document, dict)
    return document


_CLUSTER = """
import socket
with socket.socket(socket.AF_UNIX) as s:
    s.settimeout(20)
    s.connect("/run/skerry/api.sock")
    s.sendall(b"GET /v1/cluster HTTP/1.0\\r\\nHost: localhost\\r\\n\\r\\n")
    data = b""
    while chunk := s.recv(65536):
        data += chunk
print(data.partition(b"\\r\\n\\r\\n")[2].decode())
"""
