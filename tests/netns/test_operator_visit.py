"""The operator's machine comes over the network, by UDP alone, to real supervisors."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.netns.lab import ROOT, Lab, Node, wait_until
from tests.netns.ledger import peers_up, together
from tests.netns.operators import Operator

pytestmark = [pytest.mark.netns, pytest.mark.timeout(120)]


def visit(operator: Operator, place: Node, host: str, *words: str) -> dict[str, object]:
    """Run ``skerry WORDS`` on the machine ``place``, by a visit of the node at ``host``."""
    command = ["ip", "netns", "exec", place.namespace, sys.executable, "-m", "skerry", *words]
    command += ["--network", str(operator.directory), "--via", host, "--json"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    document: dict[str, object] = json.loads(done.stdout)
    return document


def test_a_visit_lists_renames_and_revokes() -> None:
    with Lab() as lab:
        operator = Operator(lab.folder / "operator")
        *nodes, outside = lab.crowd(4)
        for node in nodes:
            node.start(operator.token())
        together(nodes)
        one, two, bad = nodes
        host = one.address
        listed = visit(operator, outside, host, "node", "ls")["nodes"]
        assert isinstance(listed, list)
        assert {row["node_id"] for row in listed} == {node.node_id() for node in nodes}
        visit(operator, outside, host, "node", "rename", two.node_id(), "kitchen")
        assert visit(operator, outside, host, "revoke", "node", bad.node_id())["epoch"] == 1
        wait_until(lambda: peers_up(one) == {"kitchen"}, 20, "the revoked one is out")
        assert visit(operator, outside, host, "network", "sync")["waiting"] == 0
