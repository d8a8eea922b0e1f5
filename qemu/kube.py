"""Kubernetes in the lab's machines: following it as it comes up, and asking its API.

What runs in the guest for it is :mod:`qemu.guest_kube`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qemu import guest_kube
from qemu.errors import LabError
from qemu.machine import Machine
from qemu.watch import NodeWatch

NAMESPACE = "default"
_PYTHON = ("/usr/bin/python3", "-I", "-c")
Request = tuple[str, str, object]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the API said to one request."""

    request: str
    status: int
    body: Any

    def check(self) -> Any:  # noqa: ANN401 - whatever the API returns
        """Return the body; raises :class:`LabError` unless the request went well."""
        if not 200 <= self.status < 300:
            text = json.dumps(self.body)[:1000]
            raise LabError(f"the Kubernetes API refused {self.request}: {self.status} {text}")
        return self.body


def _source() -> str:
    return Path(guest_kube.__file__).read_text()


def ask(server: Machine, requests: Sequence[Request], *, timeout: float = 120) -> list[Answer]:
    """Perform requests as the administrator, from inside a server, one after the other."""
    given = json.dumps(requests).encode()
    done = server.run([*_PYTHON, _source(), "call"], stdin=given, timeout=timeout).check()
    return [
        Answer(f"{method} {path}", status, body)
        for (method, path, _), (status, body) in zip(requests, json.loads(done.stdout), strict=True)
    ]


def watch(machine: Machine, *, namespace: str = NAMESPACE) -> NodeWatch:
    """Return what follows Kubernetes on a node."""
    return NodeWatch(
        machine,
        command=(*_PYTHON, _source(), "watch", namespace),
        words=words,
        trouble=trouble,
        before="looking for the cluster agent",
    )


def words(document: dict[str, Any]) -> str:
    """Return in a few words how far Kubernetes is on a node."""
    agent = document.get("agent")
    if not agent:
        return "no word from the cluster agent (skerry-cluster.service) yet"
    said = f"{agent.get('role')}, {agent.get('state')}"
    if why := agent.get("why"):
        said += f": {why}"
    if nodes := document.get("nodes"):
        ready = sum(one["ready"] for one in nodes)
        said += f"; {ready} of {len(nodes)} nodes Ready"
    if pods := document.get("pods"):
        ready = sum(one["ready"] for one in pods)
        said += f"; {ready} of {len(pods)} pods Ready"
    return said


def trouble(document: dict[str, Any]) -> list[str]:
    """Return what is in the way, as far as the node knows."""
    agent = document.get("agent") or {}
    lines = [
        f"{one.get('code')}: {one.get('message')}. {one.get('hint')}"
        for one in agent.get("problems") or []
    ]
    if agent.get("role") == "server" and document.get("api"):
        lines.append(f"API: {document['api']}")
    lines += [f"node {one['name']} is not Ready" for one in document["nodes"] if not one["ready"]]
    for pod in document["pods"]:
        if not pod["ready"]:
            place = f" on {pod['node']}" if pod["node"] else ", not placed"
            lines.append(f"pod {pod['name']}: {pod['phase']}{place}. {pod['why']}".rstrip(". "))
    return lines


def servers(documents: Sequence[dict[str, Any]]) -> list[int]:
    """Return the indexes of the nodes that are servers."""
    return [
        index
        for index, document in enumerate(documents)
        if (document.get("agent") or {}).get("role") == "server"
    ]


def nodes_ready(document: dict[str, Any]) -> set[str]:
    """Return the names of the nodes that the API says are Ready."""
    return {one["name"] for one in document.get("nodes") or [] if one["ready"]}


def pods_ready(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the pods that are Ready, by name."""
    return {one["name"]: one for one in document.get("pods") or [] if one["ready"]}
