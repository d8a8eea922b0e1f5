"""What ``make run`` ends with: a cluster on the nodes of the lab, whose pods talk to each other.

Every stage says what it waits for as it changes, has a deadline, and ends with what is missing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from qemu import kube, workload
from qemu.errors import LabError
from qemu.machine import Machine
from qemu.watch import follow
from skerry import console

NODES = ("node", "name", "runs as", "Ready", "pod range", "overlay address", "version")
PODS = ("pod", "node", "addresses", "Service")
Documents = list[dict[str, Any]]


def show(machines: list[Machine], names: list[str], timeout: float) -> dict[str, Any]:
    """Wait for the cluster, make its pods talk, print it all; returns it for ``--json``.

    ``names`` are the machines' node names. Raises :class:`LabError` when a stage takes longer
    than ``timeout``, or a pod does not hear another one.
    """
    begun = time.monotonic()
    documents = _wait(
        machines,
        f"waiting for Kubernetes with {len(machines)} Ready nodes",
        lambda seen: ready(seen, len(machines)),
        timeout,
    )
    cluster_seconds = time.monotonic() - begun
    (index, *_) = kube.servers(documents)
    server = machines[index]
    workload.create(server, names, workload.image_name(server))
    wanted = {workload.pod_name(number) for number in range(1, len(machines) + 1)}
    documents = _wait(
        machines,
        "waiting for a pod on each node",
        lambda seen: any(wanted <= set(kube.pods_ready(document)) for document in seen),
        timeout,
    )
    targets = workload.targets(server, documents[index], len(machines))
    checks: list[workload.Check] = []
    with console.step("the pods ask each other"):
        for machine, target in zip(machines, targets, strict=True):
            others = [one for one in targets if one is not target] or targets
            checks += workload.check(machine, target, others)
    seconds = time.monotonic() - begun
    console.note("")
    console.note(console.table(NODES, _node_rows(machines, names, documents, server)))
    console.note("")
    pods = [[one.name, one.node, ", ".join(one.addresses), one.service] for one in targets]
    console.note(console.table(PODS, pods))
    console.note("")
    console.note(console.table(workload.HEADER, workload.rows(checks)))
    console.note(
        f"\nKubernetes was up after {console.format_elapsed(cluster_seconds)}, the pods had talked "
        f"after {console.format_elapsed(seconds)} (times of answers include the start of a program)"
    )
    for machine, document in zip(machines, documents, strict=True):
        if writes := (document.get("agent") or {}).get("writes"):
            console.note(f"{machine.spec.name} wrote {writes['since_boot'] / 1e6:.0f} MB so far")
    if bad := [one for one in checks if not one.good]:
        raise LabError(
            f"{len(bad)} of {len(checks)} questions between pods went unanswered: "
            + "; ".join(f"{one.source} -> {one.target} by {one.by}: {one.said}" for one in bad),
            hint="make logs NODE=1, and on the node: skerry cluster status",
        )
    return {
        "server": server.spec.name,
        "cluster": documents[index],
        "checks": [
            {
                "from": one.source,
                "to": one.target,
                "by": one.by,
                "address": one.address,
                "ms": round(one.seconds * 1000, 2),
            }
            for one in checks
        ],
        "seconds": {"ready": round(cluster_seconds, 1), "talked": round(seconds, 1)},
    }


def ready(documents: Documents, count: int) -> bool:
    """Say whether some server sees so many Ready nodes, and its DNS serves."""
    return any(
        len(kube.nodes_ready(document)) >= count
        and any(name.startswith("coredns") for name in kube.pods_ready(document))
        for document in documents
    )


def _wait(
    machines: list[Machine], what: str, done: Callable[[Documents], bool], timeout: float
) -> Documents:
    begun = time.monotonic()
    watches = [kube.watch(machine) for machine in machines]

    def say(node: str, words: str) -> None:
        elapsed = console.format_elapsed(time.monotonic() - begun)
        console.note(f"    {elapsed:>6}  {node}: {words}")

    with console.step(what):
        follow(watches, done, timeout=timeout, say=say)
    return [watch.status for watch in watches]


def _node_rows(
    machines: list[Machine], names: list[str], documents: Documents, server: Machine
) -> list[list[str]]:
    known = {one["name"]: one for one in documents[machines.index(server)]["nodes"]}
    if missing := [name for name in names if name not in known]:
        raise LabError(f"no node of the cluster: {', '.join(missing)}")
    return [
        [
            machine.spec.name,
            name,
            str((document.get("agent") or {}).get("role")),
            "yes" if known[name]["ready"] else "NO",
            ", ".join(known[name]["ranges"]) or "-",
            ", ".join(known[name]["addresses"]) or "-",
            known[name]["version"],
        ]
        for machine, name, document in zip(machines, names, documents, strict=True)
    ]
