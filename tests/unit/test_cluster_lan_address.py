"""An address of the LAN that moves: who takes it when, what is said, and who gives way."""

from __future__ import annotations

import ipaddress
import random
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.cluster import vip
from appliance.cluster.cluster_entries import VERSION, Vip
from appliance.kubernetes import arp
from appliance.kubernetes.lan_address import (
    ANNOUNCE_SECONDS,
    LIFETIME_SECONDS,
    RIVAL_SECONDS,
    LanAddress,
    Port,
)
from tests.fakes.lan import Machine, Switch

ADDRESS = ipaddress.IPv4Address("192.168.1.250")
MAC = bytes.fromhex("020000000001")


def keep(here: LanAddress, machine: Machine) -> str:
    """Let it be kept; return the problem's code."""
    problem = here.keep(ADDRESS, str(machine.address.ip), machine.switch.now)
    return "" if problem is None else problem.code


def test_it_is_told_at_once_and_again_and_again() -> None:
    switch = Switch()
    machine = Machine(switch, 1)
    here = LanAddress(machine)
    for step in range(9):
        switch.now = step * 2.0
        assert keep(here, machine) == ""
        # Nobody has to take it away: it ends by itself.
        assert machine.until == switch.now + LIFETIME_SECONDS
    assert machine.announced == [0.0, 4.0, 8.0, 12.0, 16.0]
    assert machine.announced[1] - machine.announced[0] == ANNOUNCE_SECONDS
    here.leave(ADDRESS)
    assert not machine.holds
    assert not here.here


def test_what_an_earlier_run_left_is_taken_away_or_kept() -> None:
    switch = Switch()
    machine = Machine(switch, 1)
    machine.put(machine.port, ADDRESS, LIFETIME_SECONDS)
    LanAddress(machine).leave(ADDRESS)
    assert not machine.holds
    machine.put(machine.port, ADDRESS, LIFETIME_SECONDS)
    assert keep(LanAddress(machine), machine) == ""
    assert machine.holds


def test_nobody_takes_what_another_machine_answers_for() -> None:
    switch = Switch()
    first, second = Machine(switch, 1), Machine(switch, 2)
    first.put(first.port, ADDRESS, LIFETIME_SECONDS)
    here = LanAddress(second)
    assert keep(here, second) == "api-address-taken"
    assert not second.holds
    # Nobody keeps it there: it goes, and then it is free.
    switch.now = LIFETIME_SECONDS + 0.1
    assert keep(here, second) == ""
    assert second.holds


def test_who_kept_it_too_late_asks_again_before_it_takes_it() -> None:
    switch = Switch()
    first, second = Machine(switch, 1), Machine(switch, 2)
    here = LanAddress(first)
    keep(here, first)
    switch.now = LIFETIME_SECONDS + 1.0
    assert switch.holders() == []
    second.put(second.port, ADDRESS, LIFETIME_SECONDS)
    assert keep(here, first) == "api-address-taken"
    assert switch.holders() == [second]
    second.remove(ADDRESS)
    assert keep(here, first) == ""
    assert first.announced == [0.0, LIFETIME_SECONDS + 1.0]


def test_another_one_that_says_so_too_is_named_for_a_while() -> None:
    switch = Switch()
    first, second = Machine(switch, 1), Machine(switch, 2)
    here = LanAddress(first)
    keep(here, first)
    second.put(second.port, ADDRESS, 1)
    second.announce(second.port, ADDRESS)
    switch.now = 1.0
    assert keep(here, first) == "api-address-shared"
    # It is answered at once, not at the next time.
    assert first.announced[-1] == 1.0
    switch.now = 1.0 + RIVAL_SECONDS
    assert keep(here, first) == "api-address-shared"
    switch.now += 0.1
    assert keep(here, first) == ""


def test_a_trouble_leaves_it_to_be_tried_again() -> None:
    switch = Switch()
    machine = Machine(switch, 1)
    here = LanAddress(machine)
    machine.broken = True
    with pytest.raises(OSError, match="no"):
        keep(here, machine)
    machine.broken = False
    assert keep(here, machine) == ""
    machine.broken = True
    with pytest.raises(OSError, match="no"):
        here.leave(ADDRESS)
    assert here.here
    machine.broken = False
    here.leave(ADDRESS)
    assert not machine.holds


@pytest.mark.parametrize(
    ("port", "code"),
    [
        (None, "api-address-no-lan"),
        (Port(2, "tun0", b"", (ipaddress.IPv4Interface("192.168.1.1/24"),)), "api-address-no-lan"),
        (Port(2, "eth0", MAC, (ipaddress.IPv4Interface("192.168.2.1/24"),)), "api-address-off-lan"),
        (Port(2, "eth0", MAC, (ipaddress.IPv4Interface(f"{ADDRESS}/24"),)), "api-address-taken"),
    ],
)
def test_where_it_can_not_be_it_is_not(port: Port | None, code: str) -> None:
    switch = Switch()
    machine = Machine(switch, 1)
    here = LanAddress(machine)
    keep(here, machine)
    assert switch.holders() == [machine]
    machine.found = port
    assert keep(here, machine) == code
    assert switch.holders() == []
    machine.found = machine.port
    assert keep(here, machine) == ""


def test_another_interface_is_another_lan_and_asked_anew() -> None:
    switch = Switch()
    machine, other = Machine(switch, 1), Machine(switch, 2)
    here = LanAddress(machine)
    keep(here, machine)
    machine.found = replace(machine.port, index=3)
    assert keep(here, machine) == ""
    assert len(machine.announced) == 2
    other.put(other.port, ADDRESS, LIFETIME_SECONDS)
    machine.found = machine.port
    assert keep(here, machine) == "api-address-taken"
    assert not machine.holds


# Whole lives: servers of one cluster, a lease that a majority gives, a ledger that travels late


@dataclass
class Server:
    machine: Machine
    here: LanAddress
    claims: dict[bytes, Vip] = field(default_factory=dict)
    agent: bool = True

    @property
    def node(self) -> bytes:
        return bytes([self.machine.number]) * 16


class Life:
    """Five servers and a stranger on one LAN; chance is repeatable."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)  # noqa: S311 - no secret
        self.switch = Switch()
        machines = [Machine(self.switch, number) for number in range(1, 6)]
        self.servers = [Server(one, LanAddress(one)) for one in machines]
        self.stranger = Machine(self.switch, 9)
        self.term, self.leader = 0, self.servers[0]
        self.said: dict[int, bytes] = {}

    def elect(self) -> None:
        """Give the lease to one whom a majority sees, if its holder is not such a one."""
        if self._able(self.leader):
            return
        able = [one for one in self.servers if self._able(one)]
        if able:
            self.term, self.leader = self.term + 1, self.chance.choice(able)

    def _able(self, one: Server) -> bool:
        near = [two for two in self.servers if two.machine.up and self._near(one, two)]
        return one.machine.up and len(near) >= 3

    def _near(self, one: Server, two: Server) -> bool:
        return one.machine.side == two.machine.side

    def trouble(self) -> None:
        one = self.chance.choice(self.servers)
        match self.chance.randrange(6):
            case 0:
                one.machine.up = False
            case 1:
                self._start(one)
            case 2:
                one.machine.side ^= 1
            case 3:
                one.agent = False
            case 4:
                one.agent = True
                one.here = LanAddress(one.machine)
            case _:
                self.stranger.side ^= 1

    def _start(self, one: Server) -> None:
        """Start a machine anew: what the kernel knew is gone, the ledger's file is there."""
        if not one.machine.up:
            one.machine.until = float("-inf")
            one.machine.up = one.agent = True
            one.here = LanAddress(one.machine)

    def heal(self) -> None:
        self.stranger.side = 0
        for one in self.servers:
            one.machine.side = 0
            self._start(one)
            if not one.agent:
                one.agent = True
                one.here = LanAddress(one.machine)

    def gossip(self, *, all_of_it: bool = False) -> None:
        for one in self.servers:
            for two in self.servers:
                near = one.machine.up and two.machine.up and self._near(one, two)
                if near and (all_of_it or self.chance.random() < 0.3):
                    for node, claim in two.claims.items():
                        mine = one.claims.get(node)
                        if mine is None or mine.term < claim.term:
                            one.claims[node] = claim

    def turn(self, one: Server) -> None:
        """Do what a cluster agent does in a turn."""
        if not (one.machine.up and one.agent):
            return
        leads = self.leader is one and self._able(one)
        if leads:
            said = vip.claim(one.node, bytes(16), self.term, one.claims, 0)
            if said is not None:
                assert self.said.setdefault(self.term, one.node) == one.node
                one.claims[one.node] = Vip(VERSION, bytes(16), said.term, 0)
        if not (leads and vip.holder(one.claims) == one.node):
            one.here.leave(ADDRESS)
            assert not one.machine.holds
            return
        before = one.machine.holds
        near = [
            two
            for two in self.switch.machines
            if two.holds and two is not one.machine and two.side == one.machine.side
        ]
        keep(one.here, one.machine)
        # Taken only where nobody else has it; who has it already meets another after a partition.
        assert before or not (one.machine.holds and near)

    def step(self) -> None:
        self.switch.now += 1.0
        self.elect()
        self.gossip()
        for one in self.chance.sample(self.servers, len(self.servers)):
            self.turn(one)


@pytest.mark.parametrize("seed", range(40))
def test_whatever_happens_in_the_end_the_leader_has_it_and_all_know(seed: int) -> None:
    life = Life(seed)
    for _ in range(60):
        if life.chance.random() < 0.4:
            life.trouble()
        life.step()
    life.heal()
    life.gossip(all_of_it=True)
    for _ in range(LIFETIME_SECONDS + 10):
        life.step()
        life.gossip(all_of_it=True)
    assert life.switch.holders() == [life.leader.machine]
    assert life.stranger.believes == life.leader.machine.port.mac
    for one in life.servers:
        assert vip.holder(one.claims) == life.leader.node


# What is on the wire


def test_the_frames_are_as_the_rfcs_have_them() -> None:
    """RFC 826 and RFC 5227, 1.1 and 3, by hand."""
    start = "ffffffffffff 020000000001 0806 0001 0800 06 04"
    question, answer = arp.announcements(MAC, ADDRESS)
    whole = bytes.fromhex
    assert arp.probe(MAC, ADDRESS) == whole(
        f"{start} 0001 020000000001 00000000 000000000000 c0a801fa"
    )
    assert question == whole(f"{start} 0001 020000000001 c0a801fa 000000000000 c0a801fa")
    assert answer == whole(f"{start} 0002 020000000001 c0a801fa ffffffffffff c0a801fa")


def test_who_says_to_have_it_is_another_machine_not_one_that_asks() -> None:
    other = bytes.fromhex("020000000002")
    padded = arp.announcements(other, ADDRESS)[1] + bytes(18)
    assert arp.claims(padded, ADDRESS, own=MAC) == other
    assert arp.claims(padded, ADDRESS + 1, own=MAC) is None
    assert arp.claims(padded, ADDRESS, own=other) is None
    assert arp.claims(arp.probe(other, ADDRESS), ADDRESS, own=MAC) is None
    assert arp.mac_text(other) == "02:00:00:00:00:02"


@given(st.binary(max_size=80))
def test_anything_else_on_the_wire_is_none_of_it(frame: bytes) -> None:
    said = arp.read(frame)
    assert said is None or len(frame) >= 42
    right = bytearray(arp.probe(MAC, ADDRESS))
    for place in (12, 14, 16, 18, 19, 21):
        wrong = bytes(right[:place]) + bytes([right[place] ^ 0x44]) + bytes(right[place + 1 :])
        assert arp.read(wrong) is None
