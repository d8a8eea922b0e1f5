"""Whole nodes without a tunnel: the API's address is on their LAN, and survives its holder."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from provisioning.settings import Settings
from tests.faults.cluster_world import Clusters, writes
from tests.netns.lab import wait_until

pytestmark = [
    pytest.mark.ha,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and containers need root"),
    pytest.mark.timeout(3600),
]
PATIENCE = 600.0
ADDRESS = "192.168.77.250"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Clusters]:
    settings = Settings(servers=3, expected_nodes=3, vpn=False, api_address=ADDRESS)
    with Clusters.made(settings) as made:
        yield made


def test_three_nodes_without_a_tunnel_become_three_servers(cluster: Clusters) -> None:
    token = cluster.operator.token()
    for _ in range(3):
        one = cluster.node()
        one.shut()
        one.start(token)
    wait_until(cluster.servers, PATIENCE, "one founds", every=1)
    cluster.grows(PATIENCE)
    # Nobody speaks from it, nobody is looked for under it.
    for one in cluster.nodes:
        assert one.status["api_address"]["address"] == ADDRESS
        document = one.node.api("GET", "/v1/cluster")
        assert not [each for each in document["members"] if ADDRESS in each["addresses"]]


def test_the_leader_is_lost_and_a_stranger_on_the_lan_writes_within_30_seconds(
    cluster: Clusters,
) -> None:
    stranger = cluster.lab.node()
    lost = cluster.leader(cluster.nodes)
    left = [one for one in cluster.nodes if one is not lost]
    for machine in (*(one.node for one in cluster.nodes), stranger):
        writes(machine, ADDRESS, 60, lost.places.kubeconfig)
    lost.power_off()
    cluster.say(f"{lost.name}, which leads, is gone")
    seconds = writes(stranger, ADDRESS, 120, left[0].places.kubeconfig)
    cluster.say(f"a write through {ADDRESS} was taken {seconds:.1f} s after the loss")
    assert seconds < 30
    for one in left:
        one.writes(ADDRESS, 10, left[0].places.kubeconfig)
    cluster.one_cluster()


def test_one_cut_off_alive_gives_the_address_up_when_it_is_back(cluster: Clusters) -> None:
    """The lost one comes back first: two of three servers are a majority."""
    left = [one for one in cluster.nodes if one.agent is not None and one.agent.poll() is None]
    holder = cluster.leader(left)
    other = next(one for one in left if one is not holder)
    lost = next(one for one in cluster.nodes if one not in left)
    cluster.lab.heal()
    lost.shut()
    lost.start()
    wait_until(
        lambda: other.ready() == {one.name for one in cluster.nodes}, PATIENCE, "three", every=2
    )
    cluster.say(f"{lost.name} is back, three Nodes are ready")
    cluster.lab.cut([holder.node])
    seconds = other.writes(ADDRESS, 120, other.places.kubeconfig)
    cluster.say(f"a write through {ADDRESS} was taken {seconds:.1f} s after the partition")
    assert seconds < 30
    cluster.lab.heal()
    rest = [one for one in cluster.nodes if one is not holder]
    wait_until(lambda: not holder.has(ADDRESS), 60, "the old one gives it up", every=0.5)
    cluster.say("the old holder has given it up")
    cluster.leader(rest)
    stranger = cluster.lab.nodes[-1]
    for machine in (*(one.node for one in cluster.nodes), stranger):
        writes(machine, ADDRESS, 30, other.places.kubeconfig)
    cluster.one_cluster()
