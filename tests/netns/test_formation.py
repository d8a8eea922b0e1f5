"""From token to all-pairs ping."""

from __future__ import annotations

import itertools

import pytest

from provisioning.settings import Settings
from tests.netns.lab import Lab, Network, Node, wait_until

pytestmark = pytest.mark.netns


def all_pairs_ping(nodes: list[Node]) -> bool:
    return all(
        one.reaches(address)
        for one, other in itertools.permutations(nodes, 2)
        for address in other.overlay_addresses()
    )


@pytest.mark.parametrize("count", [2, 5])
def test_nodes_with_one_token_find_each_other(count: int) -> None:
    with Lab() as lab:
        token = Network().token()
        nodes = [lab.node() for _ in range(count)]
        for node in nodes:
            node.start(token)
        for node in nodes:
            others = [other for other in nodes if other is not node]
            wait_until(lambda: node.sees(*others), 40, "every member is seen")  # noqa: B023
        # Who has which address is a matter of the ledger, which comes right after the handshake.
        wait_until(lambda: all_pairs_ping(nodes), 30, "all reach all")
        assert len({address for node in nodes for address in node.overlay_addresses()}) == 2 * count
        wait_until(
            lambda: all(node.status()["state"] == "ready" for node in nodes), 30, "all are ready"
        )


def test_without_a_tunnel_members_still_know_each_other() -> None:
    with Lab() as lab:
        token = Network(settings=Settings(vpn=False)).token()
        one, two = lab.node(), lab.node()
        one.start(token)
        two.start(token)
        wait_until(lambda: one.sees(two) and two.sees(one), 20, "they meet over LAN addresses")
        assert one.overlay_addresses() == []
        assert one.interface not in one.ip("-brief", "link")
