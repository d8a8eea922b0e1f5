"""What programs of root on a node may do with the ledger: a real supervisor, a real socket.

The cluster agent lives by this (docs/api.md, "Programs on the node").
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import threading
from typing import Any

import pytest

from appliance.api.client import ApiError, StreamEvent, stream
from provisioning.settings import Settings
from tests.netns.lab import ROOT, Lab, Network, Node, wait_until

pytestmark = pytest.mark.timeout(60)


def typed(node: Node, *words: str, stdin: bytes = b"") -> bytes:
    socket = str(node.run_dir / "api.sock")
    command = [sys.executable, "-m", "skerry", *words, "--socket", socket]
    return subprocess.run(
        command, cwd=ROOT, input=stdin, capture_output=True, check=True, timeout=30
    ).stdout


def test_a_program_of_root_keeps_its_cluster_in_the_ledger_and_its_secrets_sealed() -> None:
    with Lab() as lab:
        node = lab.node()
        node.start(Network(settings=Settings(vpn=False)).token())
        wait_until(lambda: node.status().get("state") == "ready", 30, "the node is ready")
        own = node.node_id()
        seen: list[StreamEvent] = []
        watcher = threading.Thread(target=_watch, args=(node, seen), daemon=True)
        watcher.start()
        wait_until(lambda: any(one.kind == "ready" for one in seen), 10, "it watches")
        _own_entries(node, own)
        wait_until(
            lambda: _told(seen) == [("put", f"{own}/ballot", "AP9i"), ("delete",)], 10, "told"
        )
        _secrets(node)
        # A program that is new on an old supervisor, or the other way round, sees what there is.
        view = node.api("GET", "/v1/cluster")
        assert (view["node_id"], view["vpn"], view["interface"]) == (own, False, "eth0")
        assert view["addresses"] == [node.address]
        wait_until(lambda: node.api("GET", "/v1/cluster")["range"], 20, "alone, it has a range")


def _watch(node: Node, seen: list[StreamEvent]) -> None:
    path = "/v1/ledger/cluster?watch=1"
    for one in stream(path, socket_path=node.run_dir / "api.sock"):
        seen.append(one)
        if one.kind == "delete":
            return


def _told(seen: list[StreamEvent]) -> list[tuple[Any, ...]]:
    told: list[tuple[Any, ...]] = []
    for one in seen:
        if one.kind == "put":
            told.append(("put", one.data["key"], one.data["value"]))
        elif one.kind == "delete":
            told.append(("delete",))
    return told


def _own_entries(node: Node, own: str) -> None:
    value = b"\x00\xffb"
    written = node.api("PUT", "/v1/ledger/cluster/ballot", value)
    assert (written["key"], written["owner"]) == (f"{own}/ballot", own)
    for key in ("ballot", f"{own}/ballot"):
        found = node.api("GET", f"/v1/ledger/cluster/{key}")
        assert (found["encoding"], base64.b64decode(found["value"])) == ("base64", value)
    (listed,) = node.api("GET", f"/v1/ledger/cluster?prefix={own}/")["entries"]
    assert listed["key"] == f"{own}/ballot"
    other = "a" * 26
    with pytest.raises(ApiError) as refused:
        node.api("PUT", f"/v1/ledger/cluster/{other}/ballot", value)
    assert refused.value.status == 403
    assert json.loads(typed(node, "ledger", "get", "cluster", "ballot", "--json"))["owner"] == own
    node.api("DELETE", "/v1/ledger/cluster/ballot")
    with pytest.raises(ApiError) as gone:
        node.api("GET", "/v1/ledger/cluster/ballot")
    assert gone.value.status == 404


def _secrets(node: Node) -> None:
    value = b"K10" + b"a" * 64 + b"::server:s3cret"
    node.api("PUT", "/v1/secret/cluster-server-token?roles=server", value)
    found = node.api("GET", "/v1/secret/cluster-server-token")
    assert (found["value"].encode(), found["encoding"]) == (value, "utf-8")
    assert typed(node, "secret", "get", "cluster-server-token") == value
    words = ("secret", "put", "cluster-kubeconfig", "-", "--role", "server")
    typed(node, *words, stdin=b"apiVersion: v1\n")
    assert node.api("GET", "/v1/secret/cluster-kubeconfig")["value"] == "apiVersion: v1\n"
    names = {one["name"] for one in node.api("GET", "/v1/secret")["secrets"]}
    assert names == {"cluster-server-token", "cluster-kubeconfig"}
    assert "s3cret" not in node.log_text()
    with pytest.raises(ApiError) as large:
        node.api("PUT", "/v1/secret/large?roles=server", b"x" * 3073)
    assert large.value.status in {400, 413}
