"""Whole nodes: they found one cluster, grow to three servers, lose one, and replace it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from provisioning.settings import Settings
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
    with Clusters.made(Settings(servers=3, expected_nodes=3)) as made:
        yield made


def test_one_of_three_apart_founds_nothing(cluster: Clusters) -> None:
    """Nor do two of three that do not see the third, twice."""
    token = cluster.operator.token()
    nodes = [cluster.node() for _ in range(3)]
    cluster.lab.cut([nodes[0].node])
    for one in nodes:
        one.start(token)
    together([nodes[1].node, nodes[2].node], PATIENCE)
    cluster.say("two of three see each other")
    wait_until(nodes[1].cluster_ids, PATIENCE, "the majority founds", every=1)
    cluster.say("the two have founded")
    assert nodes[0].cluster_ids() == set()
    assert nodes[0].role in {"", "wait"}


def test_healed_they_are_one_cluster_of_three_ready_nodes(cluster: Clusters) -> None:
    cluster.lab.heal()
    together([one.node for one in cluster.nodes], PATIENCE)
    founder = next(one for one in cluster.nodes if one.role == "server")
    everyone = {one.name for one in cluster.nodes}
    wait_until(lambda: founder.ready() == everyone, PATIENCE, "all are ready", every=2)
    cluster.say("three Nodes are ready with their pod ranges")
    cluster.one_cluster()


def test_it_grows_to_three_servers(cluster: Clusters) -> None:
    cluster.grows(PATIENCE)


def test_the_api_answers_under_its_address_from_each_node(cluster: Clusters) -> None:
    kubeconfig = cluster.servers()[0].places.kubeconfig
    for one in cluster.nodes:
        one.writes(cluster.api, 60, kubeconfig)


def test_the_leader_is_lost_and_the_address_answers_within_30_seconds(cluster: Clusters) -> None:
    lost = cluster.leader(cluster.nodes)
    left = [one for one in cluster.nodes if one is not lost]
    lost.power_off()
    cluster.say(f"{lost.name}, which leads, is gone")
    seconds = left[0].writes(cluster.api, 120, left[0].places.kubeconfig)
    cluster.say(f"a write through {cluster.api} was taken {seconds:.1f} s after the loss")
    assert seconds < 30
    left[1].writes(cluster.api, 10, left[1].places.kubeconfig)
    cluster.leader(left)
    cluster.one_cluster()


def test_the_lost_one_is_removed_and_a_fourth_takes_its_place(cluster: Clusters) -> None:
    lost = next(one for one in cluster.nodes if one.agent is None or one.agent.poll() is not None)
    left = [one for one in cluster.nodes if one is not lost]
    cluster.operator.command(left[0].node, "node", "remove", lost.name)
    cluster.say(f"{lost.name} is removed")
    cluster.nodes.remove(lost)
    fourth = cluster.node()
    fourth.start(cluster.operator.token())
    wait_until(lambda: fourth.role == "server", PATIENCE, "the fourth is a server", every=1)
    cluster.say("the fourth is a server")
    everyone = {one.name for one in cluster.nodes}
    wait_until(lambda: fourth.ready() == everyone, PATIENCE, "its API tells of three", every=2)
    cluster.say("three Nodes are ready again")
    fourth.writes(cluster.api, 60, fourth.places.kubeconfig)
    cluster.one_cluster()


def test_one_apart_leads_nothing_and_founds_nothing(cluster: Clusters) -> None:
    apart = cluster.leader(cluster.nodes)
    left = [one for one in cluster.nodes if one is not apart]
    cluster.lab.cut([apart.node])
    seconds = left[0].writes(cluster.api, 120, left[0].places.kubeconfig)
    cluster.say(f"a write through {cluster.api} was taken {seconds:.1f} s after the partition")
    assert seconds < 30
    cluster.leader(left)
    cluster.lab.heal()
    together([one.node for one in cluster.nodes], PATIENCE)
    apart.writes(cluster.api, 60, left[0].places.kubeconfig)
    cluster.one_cluster()
