"""Two real cluster agents beside two real supervisors: from tokens to a founder and its agent.

systemd, the engine and Kubernetes' API are pretended (`tests.fakes`); ledger, elections, sealed
secrets, the CNI server, files and TLS are real.
"""

from __future__ import annotations

import json
import signal
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from provisioning.settings import Settings
from tests.fakes.cluster_process import places_in
from tests.netns.lab import ROOT, Lab, Node, wait_until
from tests.netns.ledger import together
from tests.netns.operators import Operator

pytestmark = pytest.mark.timeout(240)
SERVER, AGENT = "skerry-engine-server.service", "skerry-engine-agent.service"


class Machine:
    """A lab's node with a cluster agent."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.folder = node.folder / "cluster"
        self.folder.mkdir()
        self.places = places_in(self.folder, node.run_dir / "api.sock")
        self.places.manifests.mkdir()
        (self.places.manifests / "coredns.yaml").write_text("# @CLUSTER_DNS@\n")
        self.agent: subprocess.Popen[bytes] | None = None
        self.processes: list[subprocess.Popen[bytes]] = []
        self.log = self.folder / "log"

    def start(self) -> None:
        words = ("-m", "tests.fakes.cluster_process", str(self.folder), str(self.places.socket))
        self.agent = self.spawn(*words)

    def kill(self) -> None:
        assert self.agent is not None
        self.agent.send_signal(signal.SIGKILL)
        self.agent.wait(10)

    def spawn(self, *words: str) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                self.node.command(sys.executable, *words),
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def end(self) -> None:
        """End what was started here."""
        for process in self.processes:
            process.kill()
            process.wait(10)

    @property
    def status(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self.places.status.read_text()))
        except (OSError, ValueError):
            return {}

    @property
    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def nodes(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "nodes.json").read_text()))

    def register(self, *others: Machine) -> None:
        """Do what kubelets do: make Node objects."""
        made = {}
        for one in others:
            status = one.node.status()
            made[status["name"]] = {
                "metadata": {"name": status["name"], "uid": status["node_id"]},
                "spec": {"providerID": f"skerry://{status['node_id']}"},
                "status": {"conditions": [{"type": "Ready", "status": "True"}]},
            }
        (self.folder / "nodes.json").write_text(json.dumps(made))


def founder_of(one: Machine, two: Machine) -> tuple[Machine, Machine]:
    wait_until(lambda: one.calls or two.calls, 60, "one founds", every=0.2)
    return (one, two) if one.calls else (two, one)


def test_from_tokens_to_a_founder_and_its_agent_through_kills_and_a_revocation() -> None:
    with Lab() as lab:
        operator = Operator(lab.folder / "operator", settings=Settings(expected_nodes=2))
        token = operator.token()
        nodes = lab.crowd(2)
        for node in nodes:
            node.start(token)
        together(nodes)
        machines = [Machine(node) for node in nodes]
        try:
            for machine in machines:
                machine.start()
            first, second = founder_of(*machines)
            _founded(first, second)
            _joined(first, second)
            _killed(first, second)
            _supervisor_away(first, second)
            _fetched(operator, first)
            _drained(operator, first, second)
            _revoked(operator, first, second)
        except BaseException:
            for machine in machines:
                sys.stderr.write(f"--- agent {machine.node.name}\n{machine.log.read_text()}\n")
            raise
        finally:
            for machine in machines:
                machine.end()


def _founded(first: Machine, second: Machine) -> None:
    assert first.calls == [f"start {SERVER}"]
    assert stat.S_IMODE(first.places.config.stat().st_mode) == 0o600
    assert stat.S_IMODE(first.places.status.stat().st_mode) == 0o644
    wait_until(first.places.conflist.exists, 30, "the CNI configuration is there")
    wait_until((first.places.cni_dir / "cni.sock").is_socket, 30, "CNI calls are taken")
    first.spawn("-m", "tests.fakes.kube_api", str(first.folder))
    wait_until(first.places.kubeconfig.exists, 30, "the API serves")
    first.register(first)

    def recorded() -> object:
        name = first.node.status()["name"]
        return first.nodes()[name]["spec"].get("podCIDRs")

    wait_until(recorded, 30, "the range is recorded")
    own = first.node.api("GET", "/v1/cluster")["range"]
    assert recorded() == [own["ipv4"], own["ipv6"]]
    wait_until(lambda: first.status.get("state") == "ready", 30, "the founder is ready")
    wait_until(
        lambda: (first.node.status().get("cluster") or {}).get("state") == "ready", 20, "as told"
    )
    assert second.calls == [] or second.calls == [f"start {AGENT}"]


def _joined(first: Machine, second: Machine) -> None:
    wait_until(lambda: second.calls, 30, "the second joins")
    assert second.calls == [f"start {AGENT}"]
    config = second.places.config.read_text()
    address = first.node.overlay_addresses()[0]
    assert f'server: "https://{address}:6443"' in config
    token = (first.places.data_dir / "server/node-token").read_text().strip()
    secret = token.rpartition(":")[2]
    assert secret not in config
    assert f'token: "{token.partition("::")[0]}::node:' in config
    for machine in (first, second):
        said = machine.log.read_text() + machine.places.status.read_text()
        assert secret not in said
        assert config.partition('token: "')[2].partition('"')[0].rpartition(":")[2] not in said
    first.register(first, second)
    name = second.node.status()["name"]
    wait_until(lambda: first.nodes()[name]["spec"].get("podCIDRs"), 30, "its range is recorded")


def _killed(first: Machine, second: Machine) -> None:
    """A kill costs nothing: the next agent finds all as it should be."""
    calls = first.calls, second.calls
    written = first.places.config.read_text(), first.places.conflist.read_bytes()
    for machine in (first, second):
        machine.kill()
        machine.places.status.unlink()
        machine.start()
    wait_until(lambda: first.status.get("state") == "ready", 30, "it is ready again")
    wait_until(lambda: second.status.get("role") == "agent", 30, "and so is the other")
    assert (first.calls, second.calls) == calls
    assert (first.places.config.read_text(), first.places.conflist.read_bytes()) == written


def _supervisor_away(first: Machine, second: Machine) -> None:
    calls = first.calls
    first.node.kill()

    wait_until(lambda: "what runs goes on" in first.log.read_text(), 30, "it is told")
    assert first.status["state"] == "ready"
    first.node.start()
    wait_until(lambda: "answers again" in first.log.read_text(), 60, "and over")
    wait_until(lambda: first.node.sees(second.node), 60, "the members have met again")
    wait_until(lambda: first.status.get("state") == "ready", 30, "it is ready again")
    assert first.calls == calls
    assert second.calls == [f"start {AGENT}"]


def _fetched(operator: Operator, first: Machine) -> None:
    """The operator gets his access by a look at the ledger, sealed to the root key."""
    path = operator.directory / "kubeconfig"
    operator.command(first.node, "kubeconfig", "--output", str(path), "--server", "10.9.9.9")
    text = path.read_text()
    assert "server: https://10.9.9.9:6443" in text
    own = first.places.kubeconfig.read_text()
    for name in ("certificate-authority-data", "client-key-data"):
        value = own.partition(f"{name}: ")[2].partition("\n")[0]
        assert f"{name}: {value}" in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def _drained(operator: Operator, first: Machine, second: Machine) -> None:
    """Who is to go is closed first, and the operator hears when its pods are gone."""
    name = second.node.status()["name"]
    operator.command(first.node, "node", "drain", name)
    wait_until(lambda: first.nodes()[name]["spec"].get("unschedulable"), 30, "it is closed")

    def left() -> object:
        words = ("node", "drain", name, "--json")
        return json.loads(operator.command(first.node, *words))["pods"]

    wait_until(lambda: left() == 0, 30, "it is empty", every=1)


def _revoked(operator: Operator, first: Machine, second: Machine) -> None:
    """Who is out loses its Node, and what it knows opens nothing more."""
    before = first.places.config.read_text()
    name = second.node.status()["name"]
    operator.revoke(first.node, second.node)
    wait_until(lambda: name not in first.nodes(), 30, "its Node is gone")
    wait_until(lambda: f"restart {SERVER}" in first.calls, 60, "the engine takes another token")
    assert first.places.config.read_text() != before
    for kind in ("agent", "server"):
        token = first.node.api("GET", f"/v1/secret/cluster-{kind}-token")["value"]
        secret = token.rpartition(":")[2]
        assert secret not in before
        wait_until(partial(_runs_with, first, secret), 20, f"the engine has the {kind}s' token")


def _runs_with(machine: Machine, secret: str) -> bool:
    return secret in machine.places.config.read_text()


def test_by_hand_and_without_anything_it_says_what_is_wrong(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "skerry", "cluster", "status", "--run-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 1
    assert "does not run here" in done.stderr
    assert "Traceback" not in done.stderr
