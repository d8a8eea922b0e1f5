"""A server that was killed is replaced; its machine comes back later, with its disk."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from provisioning.settings import Settings
from tests.faults.cluster_process import REPLACE
from tests.faults.cluster_world import Clusters
from tests.netns.lab import wait_until
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
