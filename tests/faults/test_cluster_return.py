"""A server that was killed is replaced; its machine comes back later, with its disk; is revoked.

A story, in order.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from provisioning.settings import Settings
from tests.faults.cluster_process import REPLACE
from tests.faults.cluster_world import Clusters, Full
from tests.netns.lab import run, wait_until
from tests.netns.ledger import together

pytestmark = [
    pytest.mark.ha,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and containers need root"),
    # Three control planes on two cores; the engine may have to be compiled first.
    pytest.mark.timeout(3600),
]
PATIENCE = 600.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Clusters]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(REPLACE, "20")
        with Clusters.made(Settings(servers=3, expected_nodes=3)) as made:
            yield made


def test_a_replaced_server_comes_back_as_an_agent_and_sets_its_state_aside(
    cluster: Clusters,
) -> None:
    token = cluster.operator.token()
    for one in [cluster.node() for _ in range(3)]:
        one.start(token)
    together([one.node for one in cluster.nodes], PATIENCE)
    cluster.grows(PATIENCE)
    fourth = cluster.node()
    fourth.start(token)
    leader = cluster.leader(cluster.nodes)
    everyone = {one.name for one in cluster.nodes}
    wait_until(lambda: leader.ready() == everyone, PATIENCE, "the fourth is in", every=2)
    leader.kubectl("create", "secret", "generic", "kept", "--from-literal=a=1")

    lost = next(one for one in cluster.servers() if one is not leader)
    lost.power_off()
    cluster.say(f"{lost.name} is gone")
    wait_until(lambda: fourth.role == "server", PATIENCE, "it is replaced", every=1)
    wait_until(lambda: fourth.ready() == everyone - {lost.name}, PATIENCE, "three", every=2)
    cluster.say(f"{fourth.name} has its place")

    cluster.lab.heal()
    lost.start()
    try:
        wait_until(lambda: lost.role == "agent", PATIENCE, "it is back as an agent", every=1)
        cluster.say(f"{lost.name} is an agent")
        wait_until(lambda: fourth.ready() == everyone, PATIENCE, "its Node is ready", every=2)
    except BaseException:
        print(lost.told())
        raise
    cluster.say(f"{lost.name} is back")
    aside = [one.name for one in lost.places.data_dir.iterdir() if "replaced" in one.name]
    assert aside == ["server.replaced-1"]
    assert "control-plane" not in str(fourth.nodes()[lost.name]["metadata"]["labels"])
    assert len([one for one in cluster.nodes if one.role == "server"]) == 3
    # What it had is of no more use, what the cluster has is there.
    assert "kept" in fourth.kubectl("get", "secrets")
    cluster.one_cluster()


def ask(server: Full, config: Path, *words: str) -> str:
    """Return what a server's API answers somebody on that very machine who has credentials."""
    assert server.machine is not None
    access = ("--kubeconfig", str(config), "--server=https://127.0.0.1:6443")
    limits = ("--request-timeout=10s",)
    return server.machine.run("/engine", "kubectl", *access, *limits, *words, check=False)


def reached(one: Full, addresses: list[str]) -> list[str]:
    """Return under which of these a machine gets a connection to an API."""
    program = """
import socket, sys
for address in sys.argv[1:]:
    try:
        socket.create_connection((address, 6443), 3).close()
    except OSError:
        continue
    print(address)
"""
    return run(*one.node.command(sys.executable, "-c", program, *addresses)).split()


def test_revoked_it_reaches_no_api_and_what_it_knew_is_worth_nothing(cluster: Clusters) -> None:
    servers = cluster.servers()
    lost = next(one for one in cluster.nodes if one not in servers)
    server = cluster.nodes[-1]
    for one in servers:
        one.shut()
    # The API listens on IPv4.
    overlay = [cluster.api, *(one.node.overlay_addresses()[0] for one in servers)]
    assert set(reached(lost, overlay)) == set(overlay)
    assert not reached(lost, [one.node.address for one in servers])

    # As a server it had an administrator's certificate; as an agent it has a kubelet's.
    admin, kubelet = lost.folder / "stolen.yaml", lost.places.kubelet_kubeconfig
    admin.write_text(lost.places.kubeconfig.read_text())
    assert "kept" in ask(server, admin, "get", "secrets")
    assert "annotated" in ask(server, kubelet, "annotate", "node", lost.name, "a=b")
    anew = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": lost.name}}
    document = lost.folder / "node.json"
    document.write_text(json.dumps(anew))

    cluster.operator.revoke(server.node, lost.node)
    wait_until(lambda: not reached(lost, overlay), PATIENCE, "no API answers it", every=0.5)
    cluster.say(f"{lost.name} reaches no API")
    wait_until(lambda: lost.name not in server.nodes(), PATIENCE, "its Node is gone", every=0.5)
    # Whoever finds a way to an API with its certificate all the same.
    create = ("create", "--validate=false", "-f", str(document))
    refused = "this node was revoked"
    wait_until(lambda: refused in ask(server, kubelet, *create), PATIENCE, refused, every=1)
    assert "annotated" not in ask(server, kubelet, "annotate", "node", server.name, "a=b")
    cluster.say("its kubelet's certificate writes nothing")

    def forbidden() -> bool:
        return all("orbidden" in ask(one, admin, "get", "secrets") for one in servers)

    wait_until(forbidden, PATIENCE, "no server takes its administrator's certificate", every=1)
    cluster.say("its administrator's certificate has no rights")
    wait_until(
        lambda: all("kept" in one.kubectl("get", "secrets", check=False) for one in servers),
        PATIENCE,
        "the cluster's own administrators go on",
        every=1,
    )
    assert lost.name not in server.nodes()
