"""A node that is shouted at goes on; how well, `make bench-flood` tells."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from appliance.overlay.endpoint import Endpoint
from provisioning.identity import new_identity, read_identity, write_identity
from tests.netns.flooder import noise, write_pool
from tests.netns.hostile import hellos
from tests.netns.lab import PORT, ROOT, Lab, Network
from tests.netns.ledger import Watchers, peers_up, put, together

pytestmark = [pytest.mark.netns, pytest.mark.timeout(90)]
RATE, SECONDS = 20_000, 6.0


def test_floods_of_noise_and_of_good_beginnings_leave_a_node_responsive() -> None:
    with Lab() as lab:
        network = Network()
        nodes, stranger = lab.crowd(2), lab.node()
        for node in nodes:
            node.start(network.token())
        together(nodes)
        victim, friend = nodes
        identity = new_identity(network.token(), name="mallory", now=time.time())
        target = Endpoint(victim.address, PORT)
        beginnings = hellos(read_identity(write_identity(identity)), target, 300)
        pool = stranger.folder / "pool"
        write_pool(pool, [*noise(700), *beginnings])
        for disguise in ((), (friend.address,)):
            words = [sys.executable, "-m", "tests.netns.flooder", victim.address, str(PORT)]
            words += [str(RATE), str(SECONDS), str(pool), *disguise]
            with (
                subprocess.Popen(
                    stranger.command(*words), cwd=ROOT, stdout=subprocess.PIPE, text=True
                ) as flood,
                Watchers(nodes, "shared") as watchers,
            ):
                time.sleep(1.0)
                for turn in range(6):
                    word = f"through-{len(disguise)}-{turn}-end"
                    put(nodes[turn % 2], "shared", "flood", word.encode())
                    assert len(watchers.until(word, 10)) == len(nodes)
                    asked = time.monotonic()
                    assert victim.status()["state"] == "ready"
                    assert time.monotonic() - asked < 2
                assert flood.poll() is None, "the flood was over too early"
                said, _ = flood.communicate(timeout=30)
                assert '"sent"' in said
        assert peers_up(victim) == {friend.name}
        assert "mallory" not in {peer["name"] for peer in victim.peers()}
