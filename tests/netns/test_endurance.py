"""What a running network survives: killed supervisors, moved nodes, clashing addresses."""

from __future__ import annotations

import os
import signal
import subprocess
from functools import partial

import pytest

from appliance.overlay.peers import PEER_PREFIX
from provisioning.settings import Settings
from tests.netns.identities import clashing_identities
from tests.netns.lab import Lab, Network, Node, wait_until

pytestmark = [pytest.mark.netns, pytest.mark.timeout(150)]


def pair(lab: Lab, network: Network) -> tuple[Node, Node]:
    token = network.token()
    one, two = lab.node(), lab.node()
    one.start(token)
    two.start(token)
    wait_until(lambda: one.sees(two) and two.sees(one), 30, "the two meet")
    # Members are up before the ledger has told who has which IPv4 address.
    wait_until(lambda: one.reaches(two.overlay_addresses()[0]), 30, "one reaches two")
    wait_until(lambda: two.reaches(one.overlay_addresses()[0]), 30, "two reaches one")
    return one, two


def remembers(node: Node, node_id: str) -> bool:
    """Say whether a node's store has a member."""
    key = f"{PEER_PREFIX}{node_id}".encode()
    return any(key in path.read_bytes() for path in node.state_dir.glob("state.db*"))


def test_killing_a_supervisor_loses_no_packet_and_the_next_one_adopts_the_tunnel() -> None:
    with Lab() as lab:
        one, two = pair(lab, Network())
        address = one.overlay_addresses()[0]
        before = one.wireguard_pids()
        with subprocess.Popen(
            two.command("ping", "-n", "-i", "0.02", "-c", "300", "-W", "10", address),
            stdout=subprocess.PIPE,
            text=True,
        ) as ping:
            assert ping.stdout is not None
            for _ in range(50):
                ping.stdout.readline()
            one.kill()
            for _ in range(50):
                ping.stdout.readline()
            one.start()
            wait_until(lambda: one.sees(two), 30, "the restarted one has its member back")
            rest = ping.stdout.read()
        assert "300 packets transmitted, 300 received, 0% packet loss" in rest
        assert one.said("adopted")
        assert one.wireguard_pids() == before
        assert one.overlay_addresses()[0] == address


def test_two_nodes_restarted_at_once_meet_again() -> None:
    with Lab() as lab:
        one, two = pair(lab, Network())
        addresses = one.overlay_addresses(), two.overlay_addresses()
        one.kill()
        two.kill()
        one.start()
        two.start()
        wait_until(lambda: one.sees(two) and two.sees(one), 20, "they meet again")
        assert (one.overlay_addresses(), two.overlay_addresses()) == addresses


def test_a_node_without_discovery_is_found_again_after_a_restart() -> None:
    with Lab() as lab:
        one, two = pair(lab, Network())
        # What is worth remembering is written a second later, since each write waits for the disk.
        for node, other in ((one, two), (two, one)):
            wait_until(partial(remembers, node, other.node_id()), 30, "it is written down")
        # Nobody hears mDNS any more; the tunnel itself is torn down as by a reboot.
        for node in (one, two):
            node.kill()
            for pid in node.wireguard_pids():
                subprocess.run(["kill", "-KILL", str(pid)], check=True)
            subprocess.run(
                node.command("nft", "-f", "-"),
                input="add table inet t\n"
                "add chain inet t c { type filter hook input priority 0; }\n"
                "add rule inet t c udp dport 5353 drop\n",
                text=True,
                check=True,
            )
            node.start()
        wait_until(lambda: one.sees(two) and two.sees(one), 90, "remembered peers meet again")


def test_a_node_that_moves_is_found_again() -> None:
    with Lab() as lab:
        one, two = pair(lab, Network())
        one.move_to("192.168.77.201")
        target = one.overlay_addresses()[0]
        wait_until(
            lambda: any("192.168.77.201" in peer["endpoint"] for peer in two.peers()),
            20,
            "the new endpoint is known",
        )
        wait_until(lambda: two.reaches(target), 30, "the moved node answers")
        wait_until(lambda: one.sees(two) and two.sees(one), 30, "both see each other")


def test_a_tunnel_that_goes_away_is_made_again() -> None:
    with Lab() as lab:
        one, two = pair(lab, Network())
        address = one.overlay_addresses()[0]
        (before,) = one.wireguard_pids()
        os.kill(before, signal.SIGKILL)
        wait_until(lambda: one.wireguard_pids() not in ([], [before]), 25, "it is made again")
        wait_until(lambda: two.reaches(address), 20, "the node answers again")


def test_two_nodes_with_one_address_part() -> None:
    """In a range of 253, nodes are made until two of them want the same address."""
    with Lab() as lab:
        network = Network(settings=Settings(host_range="10.99.0.0/24"))
        one, two = lab.node(), lab.node()
        ids = clashing_identities(network, one, two)
        one.start()
        two.start()
        wait_until(lambda: one.sees(two) and two.sees(one), 30, "the two meet")
        wait_until(
            lambda: one.overlay_addresses()[0] != two.overlay_addresses()[0], 30, "they part"
        )
        first, second = (one, two) if ids[0] < ids[1] else (two, one)
        assert second.said("event=address-moved")
        assert not first.said("event=address-moved")
        wait_until(lambda: first.reaches(second.overlay_addresses()[0]), 30, "the loser answers")
        wait_until(lambda: second.reaches(first.overlay_addresses()[0]), 30, "the winner answers")
