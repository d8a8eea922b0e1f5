"""What one node writes, all have: over the tunnel, without one, and after any restart."""

from __future__ import annotations

import pytest

from provisioning.settings import Settings
from tests.netns.lab import Lab, Network, wait_until
from tests.netns.ledger import Watchers, alike, delete, get, put, together, values
from tests.netns.pinger import all_pairs

pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]


def test_what_one_writes_all_have_and_keep() -> None:
    with Lab() as lab:
        token = Network().token()
        nodes = lab.crowd(4)
        for node in nodes:
            node.start(token)
        together(nodes)
        first, *others = nodes
        with Watchers(nodes, "shared") as watchers:
            put(first, "shared", "greeting", b"hello-all")
            assert len(watchers.until("hello-all", 30)) == len(nodes)
            assert {get(node, "shared", "greeting") for node in nodes} == {"hello-all"}
            put(others[0], "shared", "greeting", b"hello-again")
            assert len(watchers.until("hello-again", 30)) == len(nodes)
        expected = {f"of-{node.name}": node.name for node in nodes}
        for node in nodes:
            put(node, "shared", f"of-{node.name}", node.name.encode())
        delete(others[1], "shared", "greeting")
        alike(nodes, "shared", expected, 15)
        # All at once, as after a power cut: nobody is left to ask.
        addresses = {node.namespace: node.overlay_addresses()[0] for node in nodes}
        for node in nodes:
            node.kill()
        for node in nodes:
            node.start()
        together(nodes)
        assert {node.namespace: node.overlay_addresses()[0] for node in nodes} == addresses
        alike(nodes, "shared", expected, 15)
        assert all_pairs(addresses, seconds=15) == []


def test_a_ledger_that_was_lost_is_filled_again_and_written_on() -> None:
    with Lab() as lab:
        token = Network().token()
        nodes = lab.crowd(2)
        for node in nodes:
            node.start(token)
        together(nodes)
        one, two = nodes
        put(one, "shared", "before", b"1")
        alike(nodes, "shared", {"before": "1"}, 15)
        one.kill()
        (one.state_dir / "ledger.db").write_bytes(b"what a dying disk leaves" * 500)
        for rest in one.state_dir.glob("ledger.db-*"):
            rest.unlink()
        put(two, "shared", "meanwhile", b"2")
        one.start()
        together(nodes)
        alike(nodes, "shared", {"before": "1", "meanwhile": "2"}, 45)
        # Its own earlier write must not stand above the next one.
        put(one, "shared", "before", b"3")
        alike(nodes, "shared", {"before": "3", "meanwhile": "2"}, 15)
        assert list(one.state_dir.glob("ledger.db.corrupt-*"))


def test_without_a_tunnel_the_ledger_works_all_the_same() -> None:
    with Lab() as lab:
        token = Network(settings=Settings(vpn=False)).token()
        nodes = lab.crowd(3)
        for node in nodes:
            node.start(token)
        together(nodes)
        for node in nodes:
            put(node, "shared", node.name, b"here")
        alike(nodes, "shared", {node.name: "here" for node in nodes}, 20)
        for node in nodes:
            assert node.overlay_addresses() == []
            assert node.interface not in node.ip("-brief", "link")
            assert node.wireguard_pids() == []
        nodes[0].stop()
        put(nodes[1], "shared", "later", b"on")
        nodes[0].start()
        wait_until(lambda: get(nodes[0], "shared", "later") == "on", 45, "it catches up")
        assert len(values(nodes[0], "shared")) == len(nodes) + 1
