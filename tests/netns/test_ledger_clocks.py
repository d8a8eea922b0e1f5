"""Clocks that are wrong: a day ahead, a day behind, and none at all."""

from __future__ import annotations

import time

import pytest

from appliance.ledger.hlc import ms_of
from tests.netns.lab import Lab, Network, Node, wait_until
from tests.netns.ledger import alike, entries, get, put, together

pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]
DAY = 86_400.0
SKEW_SECONDS = 300.0


def stamps_are_sane(nodes: list[Node]) -> None:
    now = time.time()
    for node in nodes:
        for entry in entries(node):
            assert abs(ms_of(entry.stamp) / 1000 - now) < SKEW_SECONDS, (node.name, entry)


@pytest.mark.parametrize("step", [DAY, -DAY])
def test_a_clock_that_jumps_poisons_nothing(step: float) -> None:
    with Lab() as lab:
        token = Network().token()
        nodes = lab.crowd(3)
        for node in nodes:
            node.start(token, clock=0.0)
        together(nodes)
        jumper, *others = nodes
        put(jumper, "shared", "contested", b"1")
        alike(nodes, "shared", {"contested": "1"}, 15)
        jumper.set_clock(step)
        time.sleep(8)  # It looks at its clock every 5 s.
        put(jumper, "shared", "contested", b"2")
        alike(nodes, "shared", {"contested": "2"}, 30)
        # Others write after it and win; nothing of it stands in the way for a day.
        put(others[0], "shared", "contested", b"3")
        alike(nodes, "shared", {"contested": "3"}, 30)
        put(jumper, "shared", "contested", b"4")
        alike(nodes, "shared", {"contested": "4"}, 30)
        stamps_are_sane(nodes)
        # The same again for a node that starts with such a clock.
        jumper.kill()
        put(others[1], "shared", "meanwhile", b"5")
        jumper.start(clock=step)
        together(nodes, 60)
        alike(nodes, "shared", {"contested": "4", "meanwhile": "5"}, 45)
        put(others[0], "shared", "contested", b"6")
        alike(nodes, "shared", {"contested": "6", "meanwhile": "5"}, 30)
        put(jumper, "shared", "meanwhile", b"7")
        alike(nodes, "shared", {"contested": "6", "meanwhile": "7"}, 30)
        stamps_are_sane(nodes)


def test_a_node_in_1970_joins_through_its_neighbours() -> None:
    with Lab() as lab:
        network = Network()
        token = network.token()
        old, late = lab.crowd(2), lab.node()
        for node in old:
            node.start(token)
        together(old)
        put(old[0], "shared", "before", b"1")
        late.start(token, clock=-time.time() + 100)
        together([*old, late], 60)
        alike([*old, late], "shared", {"before": "1"}, 45)
        put(late, "shared", "from-1970", b"2")
        put(late, "shared", "before", b"3")
        alike([*old, late], "shared", {"before": "3", "from-1970": "2"}, 30)
        put(old[1], "shared", "from-1970", b"4")
        alike([*old, late], "shared", {"before": "3", "from-1970": "4"}, 30)
        stamps_are_sane([*old, late])
        # After a restart it is 1970 again for its clock, with its files from later.
        late.kill()
        late.start(clock=-time.time() + 100)
        together([*old, late], 60)
        wait_until(lambda: get(late, "shared", "before") == "3", 45, "it has what it had")
        put(late, "shared", "again", b"5")
        wait_until(lambda: get(old[0], "shared", "again") == "5", 30, "its next write counts")
        stamps_are_sane([*old, late])


def test_a_whole_network_in_1970_comes_up_and_moves_to_the_present() -> None:
    with Lab() as lab:
        token = Network().token()
        lost = lab.crowd(2)
        for node in lost:
            node.start(token, clock=-time.time() + 100)
        together(lost, 60)
        put(lost[0], "shared", "early", b"1")
        alike(lost, "shared", {"early": "1"}, 30)
        present = lab.crowd(1)
        for node in present:
            node.start(token)
        everybody = [*lost, *present]
        together(everybody, 60)
        put(present[0], "shared", "now", b"2")
        alike(everybody, "shared", {"early": "1", "now": "2"}, 60)
