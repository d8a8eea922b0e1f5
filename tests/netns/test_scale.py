"""32 nodes on one LAN: what the smaller tests show, where everything is contended."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial

import pytest

from tests.netns.lab import Lab, Network, Node, wait_until
from tests.netns.ledger import alike, peers_up, put, together
from tests.netns.pinger import all_pairs

pytestmark = [pytest.mark.netns, pytest.mark.scale, pytest.mark.timeout(1200)]
SIZE = int(os.environ.get("SKERRY_TEST_SIZE", "32"))


def within(nodes: Sequence[Node], names: set[str]) -> bool:
    return all(peers_up(node) <= names for node in nodes)


def test_a_crowd_forms_parts_heals_dies_and_comes_back() -> None:
    with Lab() as lab:
        token, nodes = Network().token(), lab.crowd(SIZE)
        for node in nodes:
            node.start(token)
        together(nodes, 180)
        kept = {node.namespace: node.overlay_addresses()[0] for node in nodes}
        assert len({*kept.values()}) == SIZE
        assert all_pairs(kept, seconds=60) == []
        expected = {f"of-{node.name}": node.name for node in nodes}
        for node in nodes:
            put(node, "shared", f"of-{node.name}", node.name.encode())
        alike(nodes, "shared", expected, 60)

        left, right = nodes[: SIZE // 2], nodes[SIZE // 2 :]
        lab.cut(right)
        for side, name in ((left, "left"), (right, "right")):
            there = {node.name for node in side}
            apart = partial(within, side, there)
            wait_until(apart, 120, "the others are seen down", every=1.0)
            for node in side:
                put(node, "shared", f"{name}-{node.name}", name.encode())
                expected[f"{name}-{node.name}"] = name
        lab.heal()
        together(nodes, 180)
        alike(nodes, "shared", expected, 120)
        assert all_pairs(kept, seconds=60) == []

        dead, living = left, right
        for node in dead:
            node.power_off()
        apart = partial(within, living, {node.name for node in living})
        wait_until(apart, 120, "the dead are seen down", every=1.0)
        put(living[0], "shared", "life", b"goes-on")
        expected["life"] = "goes-on"
        alike(living, "shared", expected, 60)
        for node in dead:
            node.start()
        together(nodes, 180)
        alike(nodes, "shared", expected, 120)

        for node in nodes:
            node.kill()
        for node in nodes:
            node.start()
        together(nodes, 180)
        assert {node.namespace: node.overlay_addresses()[0] for node in nodes} == kept
        alike(nodes, "shared", expected, 120)
        assert all_pairs(kept, seconds=60) == []
