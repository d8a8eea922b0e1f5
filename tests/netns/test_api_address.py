"""The API's address: on a LAN without a tunnel, where strangers find it again; one per cluster."""

from __future__ import annotations

import ipaddress
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from appliance.cluster.cluster_entries import VERSION, Vip, value_of
from appliance.kubernetes import lan_doors
from provisioning.settings import Settings
from tests.netns.lab import ROOT, Lab, Network, Node, feed, run, wait_until
from tests.netns.ledger import put, together
from tests.netns.services import token

pytestmark = [pytest.mark.netns, pytest.mark.timeout(120)]

ADDRESS = "192.168.77.200"
# What a keeper that is gone leaves behind for.
LIFETIME = 4
_UPLINKS = """
from appliance.overlay.links import uplink_addresses
print(*(one.host for one in uplink_addresses(("eth0",), own="skerry0") if ":" not in one.host))
"""


@dataclass
class Keeper:
    """A machine that has the address when it leads."""

    node: Node

    def start(self) -> None:
        words = (ADDRESS, self.node.address, str(LIFETIME), str(self.node.folder))
        self.node.start_module("tests.netns.address_keeper", *words)

    def lead(self, *, on: bool = True) -> None:
        flag = self.node.folder / "lead"
        flag.touch() if on else flag.unlink()

    @property
    def said(self) -> dict[str, Any]:
        path = self.node.folder / "said"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    @property
    def here(self) -> bool:
        return f" {ADDRESS}/32 " in self.node.ip("-4", "addr", "show", "dev", "eth0")

    def awaits(self, *, here: bool, problem: str = "", seconds: float = 10) -> None:
        """Wait until it says and the kernel shows so."""

        def look() -> bool:
            return self.said == {"here": here, "problem": problem} and self.here is here

        wait_until(look, seconds, f"{self.node.name}: {here} {problem}; it says {self.said}")


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


def keepers(lab: Lab, count: int) -> list[Keeper]:
    made = [Keeper(lab.node()) for _ in range(count)]
    for one in made:
        one.start()
        one.awaits(here=False)
    return made


def mac(node: Node) -> str:
    """Return the MAC of a machine's LAN."""
    (link,) = json.loads(node.ip("-json", "link", "show", "dev", "eth0"))
    return str(link["address"])


def believes(node: Node) -> str:
    """Return the MAC under which a machine thinks to reach the address."""
    found = json.loads(node.ip("-json", "neigh", "show", ADDRESS) or "[]")
    return str(found[0].get("lladdr", "")) if found else ""


def _believes(node: Node, there: str) -> bool:
    return believes(node) == there


def test_a_machine_that_is_no_member_finds_the_next_holder_though_it_knew_the_last(
    lab: Lab,
) -> None:
    first, second = keepers(lab, 2)
    stranger = lab.node()
    first.lead()
    first.awaits(here=True)
    assert stranger.reaches(ADDRESS)
    assert believes(stranger) == mac(first.node)
    # Without a word, as with the power: nobody takes the address away, nobody answers.
    lab.cut([first.node])
    first.node.power_off()
    second.lead()
    second.awaits(here=True)
    # What it knew was put right, not forgotten first: nobody has asked for it since.
    wait_until(partial(_believes, stranger, mac(second.node)), 10, "it is told")
    assert stranger.reaches(ADDRESS)
    # It never speaks from it, nor do members look for it under it.
    assert f"src {second.node.address}" in second.node.ip("route", "get", stranger.address)
    seen = run(*second.node.command(sys.executable, "-c", _UPLINKS))
    assert seen.split() == [second.node.address]


def test_a_keeper_that_ends_without_a_word_does_not_leave_it_behind(lab: Lab) -> None:
    first, second = keepers(lab, 2)
    first.lead()
    first.awaits(here=True)
    second.lead()
    second.awaits(here=False, problem="api-address-taken")
    # The machine lives on and answers for the address, as long as its kernel has it.
    first.node.kill()
    second.awaits(here=True, seconds=LIFETIME + 10)
    assert not first.here
    # What it finds at its next start that is not its any more it takes away, here nothing.
    first.lead(on=False)
    first.start()
    first.awaits(here=False)


def test_an_address_that_a_machine_has_is_not_taken_nor_one_of_another_lan(lab: Lab) -> None:
    (one,) = keepers(lab, 1)
    owner = lab.node()
    owner.ip("addr", "add", f"{ADDRESS}/24", "dev", "eth0")
    one.lead()
    one.awaits(here=False, problem="api-address-taken")
    owner.ip("addr", "del", f"{ADDRESS}/24", "dev", "eth0")
    one.awaits(here=True)
    # And one that comes later is seen.
    owner.ip("addr", "add", f"{ADDRESS}/24", "dev", "eth0")
    one.awaits(here=True, problem="api-address-shared")
    owner.ip("addr", "del", f"{ADDRESS}/24", "dev", "eth0")
    one.awaits(here=True)
    # The node moves to another LAN: nobody would look for the address there.
    one.node.ip("addr", "add", f"{one.node.address}/31", "dev", "eth0")
    one.node.ip("addr", "del", f"{one.node.address}/24", "dev", "eth0")
    one.awaits(here=False, problem="api-address-off-lan")


def test_after_a_partition_the_old_holder_gives_way_and_all_find_the_new_one(lab: Lab) -> None:
    old, new = keepers(lab, 2)
    stranger, beside = lab.node(), lab.node()
    old.lead()
    old.awaits(here=True)
    assert stranger.reaches(ADDRESS)
    lab.cut([old.node, beside])
    new.lead()
    new.awaits(here=True)
    assert beside.reaches(ADDRESS)
    assert stranger.reaches(ADDRESS)
    lab.heal()
    # Both hear of each other before the ledger has spoken.
    old.awaits(here=True, problem="api-address-shared")
    new.awaits(here=True, problem="api-address-shared")
    old.lead(on=False)
    old.awaits(here=False)
    new.awaits(here=True)
    for one in (stranger, beside):
        wait_until(partial(_believes, one, mac(new.node)), 10, "it is told")
        assert one.reaches(ADDRESS)


def test_two_clusters_on_one_overlay_have_an_address_each(lab: Lab) -> None:
    """Real supervisors; what their cluster agents would do is done by hand."""
    network = Network(settings=Settings(cluster_bits=4))
    clusters = ("", "blue", "blue", "green")
    nodes = lab.crowd(len(clusters))
    for name, node in zip(clusters, nodes, strict=True):
        node.start(token(network, cluster=name))
    together(nodes)
    noname, blue, second, green = nodes
    told = [node.api("GET", "/v1/cluster")["api"]["address"] for node in nodes]
    assert told == ["10.10.0.1", "10.10.0.13", "10.10.0.13", "10.10.0.16"]
    leaders = {noname: 3, blue: 3, green: 3}
    for node, term in leaders.items():
        _leads(node, told[nodes.index(node)], term)
    for node in nodes:
        for leader in leaders:
            wait_until(partial(_reaches, node, leader, told[nodes.index(leader)]), 20, "led there")
    # The other server of blue takes over; green claims for green only, whatever it says.
    _leads(second, told[2], 4)
    blue.ip("addr", "del", f"{told[1]}/32", "dev", "lo")
    _leads(green, told[3], 2**40)
    for node, leader in ((noname, second), (green, second), (blue, second), (second, green)):
        address = told[nodes.index(leader)]
        wait_until(partial(_reaches, node, leader, address), 20, "led to the next one")


def _leads(node: Node, address: str, term: int) -> None:
    if f" {address}/32 " not in node.ip("addr", "show", "lo"):
        node.ip("addr", "add", f"{address}/32", "dev", "lo")
    put(node, "cluster", "vip", value_of(Vip(VERSION, bytes(16), term, 0)))


def _reaches(node: Node, leader: Node, address: str) -> bool:
    """Say whether an address leads to a node; each has one for itself to be known by."""
    if node is leader:
        return True
    before = _answered(leader)
    return node.reaches(address) and _answered(leader) > before


def _answered(node: Node) -> int:
    """Return how many echo requests a node has answered."""
    text = run(*node.command("cat", "/proc/net/snmp"))
    names, values = (line.split() for line in text.splitlines() if line.startswith("Icmp:"))
    return int(values[names.index("OutEchoReps")])


_KNOCK = """
import socket, sys
from concurrent.futures import ThreadPoolExecutor
def knock(port):
    try:
        socket.create_connection((sys.argv[1], port), 0.5).close()
    except OSError:
        return ""
    return str(port)
def call(port):
    with socket.socket(type=socket.SOCK_DGRAM) as end:
        end.settimeout(0.5)
        try:
            end.sendto(b"?", (sys.argv[1], port))
            return end.recv(9).decode()
        except OSError:
            return ""
with ThreadPoolExecutor(4) as workers:
    udp = workers.submit(call, 8472)
    print(*workers.map(knock, (6443, 2379, 10250)), udp.result())
"""
_SERVE = """
import socket
ears = [socket.create_server(("0.0.0.0", port)) for port in (6443, 2379, 10250)]
vxlan = socket.socket(type=socket.SOCK_DGRAM)
vxlan.bind(("0.0.0.0", 8472))
while True:
    vxlan.sendto(b"8472", vxlan.recvfrom(9)[1])
"""


def test_the_packet_filter_lets_members_in_and_others_of_the_lan_to_the_api(lab: Lab) -> None:
    server, member, neighbour, far = lab.crowd(4)
    far.move_to("10.99.99.1")
    far.ip("route", "add", server.address, "dev", "eth0")
    server.ip("route", "add", far.address, "dev", "eth0")
    lab.program(server, "ports", sys.executable, "-c", _SERVE)

    def enters(node: Node) -> list[str]:
        return run(*node.command(sys.executable, "-c", _KNOCK, server.address)).split()

    wait_until(lambda: len(enters(far)) == 4, 10, "the ports are there")
    nft = server.command("nft", "-f")
    firewall = str(ROOT / "rootfs_overlay/usr/share/skerry/firewall.nft")
    run(*nft, firewall)
    assert enters(member) == []
    networks = [ipaddress.IPv4Network("192.168.77.0/24")]
    for _ in range(2):
        feed(lan_doors.text([member.address], networks), *nft, "-")
        assert enters(member) == ["6443", "2379", "10250", "8472"]
        assert enters(neighbour) == ["6443"]
        assert enters(far) == []
        # What is loaded anew is shut, and can be opened again.
        run(*nft, firewall)
    assert enters(member) == []
