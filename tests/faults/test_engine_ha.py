"""One server becomes three without a rebuild; one is lost without warning, and replaced."""

from __future__ import annotations

import base64
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from image import engine, workloads
from image.board import Architecture
from tests.contract.engine_world import DATA, Machine, World, WorldError, wait_until

pytestmark = [
    pytest.mark.ha,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and containers need root"),
    # The engine may have to be compiled first.
    pytest.mark.timeout(1800),
]
SECRET = "0123456789abcdef0123456789abcdef"
FIRST = "https://10.99.0.1:6443"
HIDDEN = "not-for-whoever-has-the-disk"
_ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]


@dataclass
class Servers:
    """The machines by name, and the engine's process on each."""

    world: World
    machines: dict[str, Machine] = field(default_factory=dict)
    engines: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, *options: str) -> Machine:
        """Start a server on a machine, made if need be, and wait until its API takes a write."""
        if name not in self.machines:
            self.machines[name] = self.world.machine(name)
            self.machines[name].containerd()
        machine = self.machines[name]
        common = ("--token", SECRET, "--disable-network-policy", "--secrets-encryption")
        words = (*common, *options)
        self.engines[name] = machine.engine("server", *words)
        wait_until(lambda: self.writes(name), 120, f"{name} takes a write: {machine.tail()}")
        return machine

    def writes(self, name: str) -> bool:
        """Tell whether a server's own API takes a write."""
        command = ("annotate", "--overwrite", "namespace", "default", f"seen-by={name}")
        words = ("/engine", "kubectl", "--request-timeout=5s", *command, f"at={time.monotonic()}")
        return "annotated" in self.machines[name].run(*words, check=False)

    def tells(self, name: str) -> bool:
        """Tell whether a server reads the Secret of the beginning, and keeps it where none can."""
        machine = self.machines[name]
        search = f"cat $(find {DATA}/server/db -type f) | grep -a -c -F {HIDDEN} || true"
        found = machine.get("secret", "before").get("data", {})
        assert machine.run("sh", "-c", search).strip() == "0"
        return bool(found == {"a": base64.b64encode(HIDDEN.encode()).decode()})

    def ready(self, by: str) -> set[str]:
        """Return the names of the Nodes that are ready, as one server sees it."""
        found = set()
        for node in self.machines[by].get("nodes").get("items", ()):
            states = {one["type"]: one["status"] for one in node["status"].get("conditions", ())}
            if states.get("Ready") == "True":
                found.add(node["metadata"]["name"])
        return found


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    program = engine.ensure(_ARCHITECTURE)
    sources = workloads.Sources(Architecture(_ARCHITECTURE), Path("/nowhere"), "")
    with World(program, workloads.archive("pause", sources)) as world:
        made = Servers(world)
        try:
            yield made
        finally:
            for machine in made.machines.values():
                print(machine.name, machine.tail(), sep=":\n")


def test_the_objects_of_one_server_move_to_etcd_though_it_is_killed_meanwhile(
    servers: Servers,
) -> None:
    one = servers.start("one")
    one.kubectl("create", "configmap", "before", "--from-literal=a=1")
    one.kubectl("create", "secret", "generic", "before", f"--from-literal=a={HIDDEN}")
    wait_until(lambda: servers.ready("one") == {"one"}, 60, "the node is ready")
    one.stop(servers.engines["one"])
    for seconds in (0.1, 0.3, 0.5, 0.8):
        process = one.engine(
            "server", "--token", SECRET, "--disable-network-policy", "--cluster-init"
        )
        time.sleep(seconds)
        one.stop(process, hard=True)
    servers.start("one", "--cluster-init")
    assert one.get("cm", "before")["data"] == {"a": "1"}
    assert one.run("ls", f"{DATA}/server/db/etcd/member").split()
    assert "state.db" not in one.run("ls", f"{DATA}/server/db").split()
    assert servers.tells("one")
    wait_until(lambda: servers.ready("one") == {"one"}, 60, "the node is ready again")


def test_two_more_servers_join(servers: Servers) -> None:
    for name in ("two", "three"):
        servers.start(name, "--server", FIRST)
        assert servers.machines[name].get("cm", "before")["data"] == {"a": "1"}
        assert servers.tells(name)
    wait_until(lambda: servers.ready("three") == {"one", "two", "three"}, 60, "three nodes")
    tokens = {
        servers.machines[name].run("cat", f"{DATA}/server/node-token") for name in servers.machines
    }
    assert len(tokens) == 1


def test_an_agent_joins_by_the_first(servers: Servers) -> None:
    agent = servers.world.machine("agent")
    agent.containerd()
    agent.engine("agent", "--server", FIRST, "--token", SECRET)
    everyone = {"one", "two", "three", "agent"}
    wait_until(lambda: servers.ready("two") == everyone, 90, f"the agent is ready: {agent.tail()}")
    known = f"{DATA}/agent/servers.json"
    wait_until(lambda: "10.99.0.3" in agent.run("cat", known, check=False), 60, "it knows all")


def test_a_server_with_other_ranges_is_refused(servers: Servers) -> None:
    """It would hand out addresses that the others do not know of."""
    stranger = servers.machines["three"]
    log = stranger.scratch / "stranger.log"
    words = ["/engine", "server", "--server", FIRST, "--token", SECRET, "--data-dir", "/tmp/other"]
    words += ["--node-name", "x", "--node-ip", stranger.address, "--disable-network-policy"]
    process = stranger.spawn([*words, "--service-cidr", "10.55.0.0/16"], log)
    assert process.wait(60) == 1
    assert 'option "service-cidr" has to be as on the cluster\'s other servers' in log.read_text()


def test_one_is_lost_and_the_others_go_on_within_30_seconds(servers: Servers) -> None:
    servers.machines["one"].close()
    begun = time.monotonic()
    for name in ("two", "three"):
        wait_until(partial(servers.writes, name), 30, f"{name} takes a write")
    print(f"both took a write {time.monotonic() - begun:.1f} s after the loss")
    assert time.monotonic() - begun < 30


def test_the_agent_goes_on_with_another_server(servers: Servers) -> None:
    two = servers.machines["two"]

    def renewed() -> str:
        found = two.get("lease", "agent", "-n", "kube-node-lease")
        return str(found.get("spec", {}).get("renewTime", ""))

    begun = time.monotonic()
    wait_until(renewed, 30, "the agent's lease is there")
    before = renewed()
    wait_until(lambda: renewed() > before, 90, "the agent's lease is renewed")
    print(f"the agent's lease was renewed {time.monotonic() - begun:.1f} s after that")
    assert "agent" in servers.ready("two")


def test_the_lost_one_is_replaced(servers: Servers) -> None:
    two = servers.machines["two"]
    two.kubectl("delete", "node", "one", "--wait=false")
    wait_until(lambda: "its datastore member one-" in _logs(servers), 60, "the member goes")
    servers.start("four", "--server", "https://10.99.0.2:6443")
    # Two of three carry it: the lost member no longer counts.
    servers.machines["three"].close()
    for name in ("two", "four"):
        wait_until(partial(servers.writes, name), 60, f"{name} takes a write")
    assert servers.machines["four"].get("cm", "before")["data"] == {"a": "1"}
    assert servers.tells("four")


def _logs(servers: Servers) -> str:
    return "".join(servers.machines[name].log.read_text() for name in ("two", "three"))


def test_a_server_that_restarts_is_a_member_as_before(servers: Servers) -> None:
    servers.machines["four"].stop(servers.engines["four"])
    with pytest.raises(WorldError):
        servers.machines["four"].kubectl("get", "nodes")
    servers.start("four", "--server", "https://10.99.0.2:6443")
    assert servers.machines["four"].get("cm", "before")["data"] == {"a": "1"}
