"""What people type, on a network of three real nodes: each command does what its words promise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from typing import Any

import pytest

from provisioning.token import Token
from tests.netns.lab import PORT, ROOT, Lab, Node, wait_until
from tests.netns.ledger import put, together
from tests.netns.operators import Operator

pytestmark = [pytest.mark.netns, pytest.mark.timeout(120)]

NAMES_PORT = 5335
# Asks the node's resolver, where that listens: in the node's namespace.
_ASK = """
import socket, sys
from tests.fakes.dns import query, read
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
    channel.settimeout(2)
    channel.connect(("127.0.0.153", int(sys.argv[1])))
    channel.send(query(sys.argv[2]))
    print(*(socket.inet_ntoa(one.data) for one in read(channel.recv(4096)).sections[0]))
"""


def typed(
    node: Node, *words: str, stdin: bytes = b"", status: int | None = 0, module: bool = True
) -> subprocess.CompletedProcess[bytes]:
    """Run ``skerry WORDS`` (or python's words) on a node's machine, as its user would."""
    words = ("-m", "skerry", *words) if module else words
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "SKERRY_SOCKET": str(node.run_dir / "api.sock"),
        # A node has no network's directory.
        "XDG_CONFIG_HOME": str(node.folder / "config"),
    }
    done = subprocess.run(
        node.command(sys.executable, *words),
        capture_output=True,
        timeout=60,
        env=environment,
        input=stdin,
        check=False,
    )
    said = done.stderr.decode()
    assert "Traceback" not in said, said
    assert status is None or done.returncode == status, said
    return done


def told(node: Node, *words: str, status: int | None = 0) -> dict[str, Any]:
    """Run a command with ``--json`` and return what it printed."""
    document: dict[str, Any] = json.loads(typed(node, *words, "--json", status=status).stdout)
    return document


def resolved(node: Node, name: str) -> str:
    """Return the addresses that a node's resolver has for a name."""
    words = ("-c", _ASK, str(NAMES_PORT), name)
    return typed(node, *words, status=None, module=False).stdout.decode().strip()


def start_with_names(node: Node, token: Token) -> None:
    """Start a supervisor that answers names, as one in an image does."""
    path = node.folder / "token"
    path.write_text(token.text())
    path.chmod(0o600)
    node.start_module(
        "skerry",
        *("supervisor", "run", "--state-dir", str(node.state_dir), "--run-dir", str(node.run_dir)),
        *("--interface", node.interface, "--wireguard", "userspace"),
        *("--wireguard-go", str(node.lab.wireguard_go), "--listen-port", str(PORT)),
        *("--name", node.name, "--names-port", str(NAMES_PORT), "--token-file", str(path)),
    )


def test_what_people_type() -> None:
    with Lab() as lab:
        operator = Operator(lab.folder / "operator")
        words = ("token", "new", "--label", "site=attic", "--count", "5")
        one, two, three = nodes = lab.crowd(3)
        token = Token.parse(operator.command(one, *words).strip())
        for node in (one, three):
            node.start(token)
        start_with_names(two, token)
        together(nodes)
        _names_and_labels(operator, one, two, three)
        _addresses(operator, one, two, three)
        _visits_leave_no_trace(operator, one, two)
        _entries(one, two)
        _secrets_and_revocation(operator, one, two, three)


def _names_and_labels(operator: Operator, one: Node, two: Node, three: Node) -> None:
    before = two.node_id()
    operator.command(one, "node", "rename", "node2", "kitchen")
    operator.command(one, "node", "label", "kitchen", "rack=7", "site-")
    wait_until(lambda: two.status()["name"] == "kitchen", 30, "it knows its new name")
    assert typed(two, "status").stdout.split()[:2] == [b"kitchen", b"ready"]
    assert two.node_id() == before
    hostname = two.run_dir / "hostname"
    wait_until(lambda: hostname.read_text().strip() == "kitchen", 30, "and tells the machine")
    names = {"node1", "kitchen", "node3"}
    wait_until(
        lambda: {str(peer["name"]) for peer in three.peers()} == names - {"node3"},
        30,
        "others know it too",
    )
    # On a node, without the root key.
    listed = {row["name"]: row for row in told(three, "node", "ls")["nodes"]}
    assert set(listed) == names
    assert (listed["kitchen"]["labels"], listed["node1"]["labels"]) == (
        {"rack": "7"},
        {"site": "attic"},
    )
    assert (listed["node3"]["state"], listed["kitchen"]["state"]) == ("self", "up")
    wait_until(
        lambda: resolved(two, "node3.skerry.internal") == three.overlay_addresses()[0],
        30,
        "names are answered",
    )
    assert resolved(two, "node2.skerry.internal") == ""
    grants = json.loads(operator.command(one, "token", "ls", "--json"))["grants"]
    assert [(row["used"], row["count"], row["state"]) for row in grants] == [(3, 5, "open")]


def _addresses(operator: Operator, one: Node, two: Node, three: Node) -> None:
    operator.command(one, "node", "address", "kitchen", "10.10.0.7")
    wait_until(lambda: "10.10.0.7" in two.overlay_addresses(), 30, "the fixed address is taken")
    wait_until(lambda: three.reaches("10.10.0.7"), 30, "and reached")
    wait_until(lambda: resolved(two, "kitchen.skerry.internal") == "10.10.0.7", 30, "and resolved")
    way = told(three, "route", "kitchen.skerry.internal")
    assert (way["address"], way["owner"]["name"]) == ("10.10.0.7", "kitchen")
    assert [item["kind"] for item in way["evidence"]] == ["fixed", "claimed"]
    assert way["evidence"][0]["owner"] == three.status()["network_id"]
    assert (way["path"]["kind"], way["path"]["endpoint"]) == ("direct", f"{two.address}:{PORT}")
    assert told(three, "route", "10.10.250.250", status=1)["owner"] is None
    rows = {row["name"]: row for row in told(three, "node", "ls")["nodes"]}
    fixed = {name: row["address_fixed"] for name, row in rows.items()}
    assert fixed == {"kitchen": True, "node1": False, "node3": False}


def _visits_leave_no_trace(operator: Operator, one: Node, two: Node) -> None:
    # From another machine of the LAN; whoever visits is no member, and not shown as one.
    directory = ("--network", str(operator.directory))
    seen = told(two, "node", "ls", *directory, "--via", one.address)["nodes"]
    assert {row["name"] for row in seen} == {"node1", "kitchen", "node3"}
    status = one.status()
    assert {peer["name"] for peer in status["overlay"]["peers"]} == {"kitchen", "node3"}
    assert (status["ledger"]["members"], status["ledger"]["contacts"]) == (3, 2)
    # An unreachable one: the list is the last seen, and the way out is said.
    lost = typed(two, "node", "ls", *directory, "--via", "http://node1/")
    assert b"no way to a node" in lost.stderr
    assert b"--via HOST" in lost.stderr
    assert b"kitchen" in lost.stdout


def _entries(one: Node, two: Node) -> None:
    typed(one, "ledger", "put", "lease", "turn", "mine", "--lease", "60")
    put(one, "shared", "app/colour", b"blue")
    wait_until(
        lambda: typed(two, "ledger", "get", "shared", "app/colour", status=None).stdout == b"blue",
        30,
        "an entry is elsewhere",
    )
    shown = typed(two, "ledger", "ls", "lease").stdout.decode().splitlines()
    assert shown[1].split()[:2] == ["turn", "mine"]
    typed(two, "ledger", "del", "shared", "app/colour")
    assert b"no value" in typed(two, "ledger", "get", "shared", "app/colour", status=1).stderr
    assert (
        b"not written by hand" in typed(two, "ledger", "put", "member", "x", "y", status=1).stderr
    )


def _secrets_and_revocation(operator: Operator, one: Node, two: Node, three: Node) -> None:
    typed(one, "secret", "put", "wifi", "-", stdin=b"hunter2")
    for node in (two, three):
        wait_until(partial(_reads, node, b"hunter2"), 30, "a secret is read elsewhere")
    assert typed(one, "secret", "put", "wifi", "-", status=2).returncode == 2
    operator.command(one, "revoke", "node", "node3", "--reason", "stolen")
    wait_until(lambda: told(two, "secret", "ls")["secrets"][0]["exposed"], 30, "it is exposed")
    assert b"exposed" in typed(two, "secret", "ls").stdout
    grants = json.loads(operator.command(one, "token", "ls", "--json"))["grants"]
    assert [row["used"] for row in grants] == [2]
    gone = operator.command(one, "node", "ls", "--all").splitlines()[-1].split()
    assert (gone[0], gone[-2:]) == ("node3", ["revoked:", "stolen"])
    wait_until(lambda: three.status()["told"], 20, "the revoked node is told")
    assert three.status()["told"][0]["cause"] == "revoked"
    assert b"was revoked by the operator" in typed(three, "status").stdout


def _reads(node: Node, value: bytes) -> bool:
    return typed(node, "secret", "get", "wifi", status=None).stdout == value
