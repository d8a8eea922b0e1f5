"""A node that is shouted at goes on; how well, `make bench-flood` tells."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from functools import partial

import pytest

from appliance.overlay.endpoint import Endpoint
from provisioning.identity import new_identity, read_identity, write_identity
from tests.netns.flooder import noise, write_pool
from tests.netns.hostile import hellos
from tests.netns.lab import PORT, ROOT, Lab, Network, Node, wait_until
from tests.netns.ledger import Watchers, peers_up, put, together

pytestmark = [pytest.mark.netns, pytest.mark.timeout(150)]
# It goes on for as long as is looked at the victim; it would end by itself much later.
RATE, SECONDS = 20_000, 120.0
BEGUN, ENOUGH, TURNS = 5000, 80_000, 6


def received(node: Node) -> int:
    """Return how many packets have reached a node."""
    (link,) = json.loads(node.ip("-json", "-stats", "link", "show", "dev", "eth0"))
    return int(link["stats64"]["rx"]["packets"])


def begun(node: Node, before: int) -> bool:
    return received(node) > before + BEGUN


def meanwhile(nodes: list[Node], watchers: Watchers, word: str) -> None:
    """Use the network while its first node is flooded, until enough has come upon that."""
    victim = nodes[0]
    before, turn = received(victim), 0
    wait_until(partial(begun, victim, before), 30, "the flood has begun")
    while turn < TURNS or received(victim) < before + ENOUGH:
        turn += 1
        put(nodes[turn % 2], "shared", "flood", f"{word}-{turn}-end".encode())
        assert len(watchers.until(f"{word}-{turn}-end", 20)) == len(nodes)
        assert victim.api("GET", "/v1/status", timeout=10)["state"] == "ready"


def test_floods_of_noise_and_of_good_beginnings_leave_a_node_responsive() -> None:
    with Lab() as lab:
        network = Network()
        nodes, stranger = lab.crowd(2), lab.node()
        for node in nodes:
            node.start(network.token())
        together(nodes)
        victim, friend = nodes
        # Members see each other a moment before a node calls itself ready.
        wait_until(lambda: victim.status().get("state") == "ready", 30, "it is ready")
        identity = new_identity(network.token(), name="mallory", now=time.time())
        target = Endpoint(victim.address, PORT)
        beginnings = hellos(read_identity(write_identity(identity)), target, 300)
        pool = stranger.folder / "pool"
        write_pool(pool, [*noise(700), *beginnings])
        for disguise in ((), (friend.address,)):
            words = [sys.executable, "-m", "tests.netns.flooder", victim.address, str(PORT)]
            words += [str(RATE), str(SECONDS), str(pool), *disguise]
            with (
                subprocess.Popen(stranger.command(*words), cwd=ROOT) as flood,
                Watchers(nodes, "shared") as watchers,
            ):
                try:
                    meanwhile(nodes, watchers, f"through-{len(disguise)}")
                    assert flood.poll() is None, "it went on all the time"
                finally:
                    flood.kill()
        assert peers_up(victim) == {friend.name}
        assert "mallory" not in {peer["name"] for peer in victim.peers()}
