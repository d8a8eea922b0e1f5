"""Whole nodes: they found one cluster, grow to three servers, lose one, and replace it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import pytest

from provisioning.settings import Settings
from tests.faults.cluster_world import VIP, Clusters, Full
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


def servers(cluster: Clusters) -> list[Full]:
    """Return the nodes that are servers and run."""
    return [one for one in cluster.nodes if one.role == "server" and one.agent is not None]


def leader(nodes: Sequence[Full]) -> Full:
    """Return which of these has the API's address; of two, one just gives it up."""

    def found() -> list[Full]:
        return [one for one in nodes if f" {VIP}/" in one.node.ip("-4", "addr", "show", "lo")]

    wait_until(lambda: len(found()) == 1, 60, "one of them has the API's address", every=0.5)
    return found()[0]


def ready(by: Full) -> set[str]:
    """Return the names of the Nodes that are ready and have their pod ranges."""
    found = set()
    for name, one in by.nodes().items():
        states = {each["type"]: each["status"] for each in one["status"].get("conditions", ())}
        if states.get("Ready") == "True" and one["spec"].get("podCIDRs"):
            found.add(name)
    return found


def one_cluster(cluster: Clusters) -> None:
    """Check that nobody knows of more than one founding."""
    ids = set().union(*(one.cluster_ids() for one in cluster.nodes))
    assert len(ids) <= 1


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
    wait_until(lambda: ready(founder) == everyone, PATIENCE, "all are ready", every=2)
    cluster.say("three Nodes are ready with their pod ranges")
    one_cluster(cluster)


def test_it_grows_to_three_servers(cluster: Clusters) -> None:
    seen: list[int] = []

    def grown() -> bool:
        count = len(servers(cluster))
        if not seen or seen[-1] != count:
            seen.append(count)
            cluster.say(f"{count} servers")
        return count == 3

    wait_until(grown, PATIENCE, "three servers", every=1)

    def working() -> bool:
        return all(ready(one) == {each.name for each in cluster.nodes} for one in cluster.nodes)

    wait_until(working, PATIENCE, "each API tells of three ready Nodes", every=2)
    cluster.say("each of the three APIs answers")
    one_cluster(cluster)


def test_the_api_answers_under_its_address_from_each_node(cluster: Clusters) -> None:
    kubeconfig = servers(cluster)[0].places.kubeconfig
    for one in cluster.nodes:
        one.writes(VIP, 60, kubeconfig)


def test_the_leader_is_lost_and_the_address_answers_within_30_seconds(cluster: Clusters) -> None:
    lost = leader(cluster.nodes)
    left = [one for one in cluster.nodes if one is not lost]
    lost.power_off()
    cluster.say(f"{lost.name}, which leads, is gone")
    seconds = left[0].writes(VIP, 120, left[0].places.kubeconfig)
    cluster.say(f"a write through {VIP} was taken {seconds:.1f} s after the loss")
    assert seconds < 30
    left[1].writes(VIP, 10, left[1].places.kubeconfig)
    leader(left)
    one_cluster(cluster)


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
    wait_until(lambda: ready(fourth) == everyone, PATIENCE, "its API tells of three", every=2)
    cluster.say("three Nodes are ready again")
    fourth.writes(VIP, 60, fourth.places.kubeconfig)
    one_cluster(cluster)


def test_one_apart_leads_nothing_and_founds_nothing(cluster: Clusters) -> None:
    apart = leader(cluster.nodes)
    left = [one for one in cluster.nodes if one is not apart]
    cluster.lab.cut([apart.node])
    seconds = left[0].writes(VIP, 120, left[0].places.kubeconfig)
    cluster.say(f"a write through {VIP} was taken {seconds:.1f} s after the partition")
    assert seconds < 30
    leader(left)
    cluster.lab.heal()
    together([one.node for one in cluster.nodes], PATIENCE)
    apart.writes(VIP, 60, left[0].places.kubeconfig)
    one_cluster(cluster)
