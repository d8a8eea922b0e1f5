"""Talks to the Kubernetes API from inside a guest, as its administrator.

No image contains it: the lab runs this very file in a guest (`python3 -I -c`), so it is one file
with nothing but the standard library. `kubectl` takes seconds per call under emulation.

``watch NAMESPACE``: prints a JSON line whenever what is seen has changed (:func:`seen`): what the
cluster agent reports, and on a server the nodes and the pods of the namespace.
``call``: performs the requests on standard input (a JSON list of ``[method, path, body]``), prints
``[[status, answer], ...]``.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import ssl
import sys
import tempfile
import time
from typing import Any
from urllib.parse import urlsplit

KUBECONFIG = "/etc/rancher/k3s/k3s.yaml"
STATUS = "/run/skerry-cluster/status.json"
EVERY_SECONDS = 2.0
_ANSWER_SECONDS = 30.0


def values(kubeconfig: str) -> dict[str, str]:
    """Return what a kubeconfig says, by key; of several entries of a key the first counts.

    The engine writes one cluster and one user, each value on the line of its key.
    """
    found: dict[str, str] = {}
    for key, value in re.findall(r"^[ -]*([a-z-]+): *(\S+)$", kubeconfig, re.MULTILINE):
        found.setdefault(key, value.strip("\"'"))
    return found


class Api:
    """One connection to the server that a kubeconfig names."""

    def __init__(self, kubeconfig: str) -> None:
        said = values(kubeconfig)
        server = urlsplit(said["server"])
        context = ssl.create_default_context(
            cadata=base64.b64decode(said["certificate-authority-data"]).decode()
        )
        with tempfile.NamedTemporaryFile(dir="/run") as pair:  # mode 0600, and gone at once
            for key in ("client-certificate-data", "client-key-data"):
                pair.write(base64.b64decode(said[key]) + b"\n")
            pair.flush()
            context.load_cert_chain(pair.name)
        self._http = http.client.HTTPSConnection(
            server.hostname or "127.0.0.1",
            server.port or 443,
            timeout=_ANSWER_SECONDS,
            context=context,
        )

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Return status and answer; raises OSError and HTTPException."""
        text = None if body is None else json.dumps(body)
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        self._http.request(method, path, text, {"Content-Type": kind})
        with self._http.getresponse() as answer:
            data = answer.read()
            try:
                return answer.status, json.loads(data)
            except ValueError:
                return answer.status, data.decode(errors="replace")


def node_of(item: dict[str, Any]) -> dict[str, Any]:
    """Return what counts of a Node object."""
    status = item.get("status", {})
    return {
        "name": item["metadata"]["name"],
        "ready": condition(status, "Ready"),
        "ranges": item.get("spec", {}).get("podCIDRs") or [],
        "addresses": [
            one["address"] for one in status.get("addresses", []) if one.get("type") == "InternalIP"
        ],
        "version": status.get("nodeInfo", {}).get("kubeletVersion", ""),
    }


def pod_of(item: dict[str, Any]) -> dict[str, Any]:
    """Return what counts of a Pod object; ``why``: what its containers wait for."""
    status = item.get("status", {})
    containers = status.get("containerStatuses") or []
    waiting = [(one.get("state") or {}).get("waiting") or {} for one in containers]
    return {
        "name": item["metadata"]["name"],
        "namespace": item["metadata"].get("namespace", ""),
        "node": item.get("spec", {}).get("nodeName", ""),
        "addresses": [one["ip"] for one in status.get("podIPs") or []],
        "phase": status.get("phase", ""),
        "ready": condition(status, "Ready"),
        "container": (containers[0].get("containerID", "") if containers else "").rpartition("/")[
            2
        ],
        "restarts": sum(one.get("restartCount", 0) for one in containers),
        "why": "; ".join(
            f"{one.get('reason', '')} {one.get('message', '')}".strip() for one in waiting if one
        )[:500],
    }


def condition(status: dict[str, Any], name: str) -> bool:
    """Say whether a condition is true."""
    return any(
        one.get("type") == name and one.get("status") == "True"
        for one in status.get("conditions") or []
    )


def seen(api: Api | None, namespace: str) -> dict[str, Any]:
    """Return ``{"agent", "nodes", "pods", "api"}``; ``api`` says why the lists are empty."""
    found: dict[str, Any] = {"agent": None, "nodes": [], "pods": [], "api": ""}
    try:
        with open(STATUS, "rb") as file:  # noqa: PTH123 - less to import
            found["agent"] = json.load(file)
    except (OSError, ValueError):
        pass
    if api is None:
        found["api"] = "no kubeconfig on this node"
        return found
    for kind, path, of in (
        ("nodes", "/api/v1/nodes", node_of),
        ("pods", "/api/v1/pods", pod_of),
    ):
        status, answer = api.ask("GET", path)
        if status != 200:
            found["api"] = f"GET {path}: {status} {str(answer)[:200]}"
            break
        found[kind] = [of(item) for item in answer["items"]]
    found["pods"] = [one for one in found["pods"] if one["namespace"] in (namespace, "kube-system")]
    return found


def watch(namespace: str) -> None:
    """Look again and again, and print what has changed."""
    api: Api | None = None
    last: object = None
    while True:
        try:
            if api is None and os.path.exists(KUBECONFIG):  # noqa: PTH110 - less to import
                with open(KUBECONFIG) as file:  # noqa: PTH123
                    api = Api(file.read())
            now = seen(api, namespace)
        except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
            now = seen(None, namespace) | {"api": f"{type(error).__name__}: {error}"}
            api = None
        if now != last:
            last = now
            print(json.dumps(now), flush=True)
        time.sleep(EVERY_SECONDS)


def call() -> None:
    """Perform the requests on standard input."""
    requests = json.load(sys.stdin)
    with open(KUBECONFIG) as file:  # noqa: PTH123
        api = Api(file.read())
    print(json.dumps([api.ask(method, path, body) for method, path, body in requests]))


if __name__ == "__main__":
    if sys.argv[1:2] == ["watch"]:
        watch(sys.argv[2])
    else:
        call()
