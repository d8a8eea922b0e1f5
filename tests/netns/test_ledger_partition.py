"""A network that falls apart and comes together again: nothing lost, no double address."""

from __future__ import annotations

from functools import partial

import pytest

from provisioning.settings import Settings
from tests.netns.identities import clashing_identities
from tests.netns.lab import Lab, Network, Node, wait_until
from tests.netns.ledger import alike, peers_up, put, together
from tests.netns.pinger import all_pairs

pytestmark = [pytest.mark.netns, pytest.mark.timeout(240)]


def addresses(nodes: list[Node]) -> dict[str, str]:
    return {node.namespace: node.overlay_addresses()[0] for node in nodes}


def within(nodes: list[Node], names: set[str]) -> bool:
    return all(peers_up(node) <= names for node in nodes)


def test_two_halves_live_on_and_become_one_again() -> None:
    """Both halves write, take in new nodes, and on both sides one claims the same address."""
    with Lab() as lab:
        network = Network(settings=Settings(host_range="10.99.0.0/24"))
        token = network.token()
        old = lab.crowd(4)
        for node in old:
            node.start(token)
        together(old)
        put(old[0], "shared", "before", b"b")
        put(old[0], "shared", "contested", b"old")
        alike(old, "shared", {"before": "b", "contested": "old"}, 15)
        kept = addresses(old)
        left_new, right_new = lab.crowd(2)
        clashing_identities(network, left_new, right_new, avoid=kept.values())
        left, right = [*old[:2], left_new], [*old[2:], right_new]
        lab.cut(right)
        for node in (left_new, right_new):
            node.start()
        together(left, 60)
        together(right, 60)
        contested = left_new.overlay_addresses()[0]
        assert contested == right_new.overlay_addresses()[0]
        expected = {"before": "b", "contested": "right"}
        for side, name in ((left, "left"), (right, "right")):
            for node in side:
                put(node, "shared", f"{name}-{node.name}", node.name.encode())
                expected[f"{name}-{node.name}"] = node.name
            put(side[0], "shared", "contested", name.encode())
        for side in (left, right):
            names = {node.name for node in side}
            apart = partial(within, side, names)
            wait_until(apart, 60, "the others are seen down", every=0.5)
        lab.heal()
        everybody = left + right
        together(everybody, 90)
        alike(everybody, "shared", expected, 60)
        wait_until(
            lambda: len({*addresses(everybody).values()}) == len(everybody), 30, "all differ"
        )
        # Who had an address from before keeps it; of the two, one moved and one did not.
        assert addresses(old) == kept
        (loser,) = [
            node for node in (left_new, right_new) if node.overlay_addresses()[0] != contested
        ]
        assert loser.said("event=address-moved")
        assert all_pairs(addresses(everybody), seconds=30) == []


def test_half_of_the_nodes_die_and_come_back() -> None:
    with Lab() as lab:
        token = Network().token()
        nodes = lab.crowd(4)
        for node in nodes:
            node.start(token)
        together(nodes)
        kept = addresses(nodes)
        put(nodes[3], "shared", "last-words", b"of-the-dead")
        alike(nodes, "shared", {"last-words": "of-the-dead"}, 15)
        living, dead = nodes[:2], nodes[2:]
        for node in dead:
            # As a machine without power: the tunnel's process goes too.
            node.power_off()
        names = {node.name for node in dead}
        wait_until(
            lambda: all(not names & peers_up(node) for node in living), 60, "the dead are seen down"
        )
        assert peers_up(living[0]) == {living[1].name}
        assert all_pairs(addresses(living), seconds=5) == []
        put(living[0], "shared", "life", b"goes-on")
        alike(living, "shared", {"last-words": "of-the-dead", "life": "goes-on"}, 15)
        for node in dead:
            node.start()
        together(nodes, 60)
        assert addresses(nodes) == kept
        alike(nodes, "shared", {"last-words": "of-the-dead", "life": "goes-on"}, 45)
        assert all_pairs(kept, seconds=20) == []
