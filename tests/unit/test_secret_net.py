"""Secrets over the real gossip, in virtual time: loss, a revocation, a partition, a newcomer."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from appliance.ledger.gossip import Action, Changed
from appliance.ledger.keeper import Keeper
from appliance.ledger.secrets import SECRET, SecretError
from appliance.ledger.vault import Vault
from tests.fakes.ledger import Node, node, replica, revocation, seed
from tests.fakes.ledger_net import QUIET, Link, Net, Station

SERVERS = [node(number, roles=("server",), by=1) for number in range(1, 6)]
AGENTS = [node(number, roles=("agent",), by=4) for number in range(6, 9)]
LATE = node(9, roles=("server",), by=1)
STEP = 0.05


@dataclass
class Place:
    station: Station
    vault: Vault

    def value(self, name: str = "k3s") -> bytes | None:
        try:
            return self.vault.get(name).value
        except SecretError:
            return None


class SecretNet(Net):
    """Every station has a vault that is worked as a shell would."""

    def __init__(self, nodes: list[Node], link: Link | None = None) -> None:
        super().__init__(7, link)
        self.vaults: dict[bytes, Place] = {}
        for one in nodes:
            self.enter(one, nodes)
        self.connect()

    def enter(self, one: Node, known: list[Node]) -> Place:
        into = replica(known)
        station = self.add(one, into, config=QUIET)

        def perform(actions: list[Action]) -> None:
            self.perform(station, actions)

        private = seed("wg", one.number)
        vault = Vault(
            Keeper(into, own=one.node_id, wg_private=private, mono=self.now),
            station.gossip,
            lambda: self.now,
            lambda: into.directory,
            perform,
        )
        vault.work()
        self.vaults[one.node_id] = Place(station, vault)
        return self.vaults[one.node_id]

    def perform(self, station: Station, actions: list[Action]) -> None:
        super().perform(station, actions)
        place = self.vaults.get(station.node.node_id)
        for one in actions:
            if isinstance(one, Changed) and place is not None:
                place.vault.changed(one.change)

    def live(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.run(STEP)
            for place in self.vaults.values():
                if place.station.up and self.now >= place.vault.next_timer():
                    place.vault.work()

    def place(self, number: int) -> Place:
        return next(one for one in self.vaults.values() if one.station.node.number == number)

    def values(self, name: str = "k3s") -> dict[int, bytes | None]:
        return {one.station.node.number: one.value(name) for one in self.vaults.values()}

    def written(self) -> int:
        """How many entries all nodes wrote; each began with its certificate, number 1."""
        return sum(one.station.gossip.writer.sequence - 1 for one in self.vaults.values())

    def revoke(self, of: Node, at: int) -> None:
        """The operator hands the revocation to one node."""
        gossip = self.place(at).station.gossip
        outcome, actions = gossip.inject(revocation(of), self.now)
        assert outcome.changes
        self.perform(self.place(at).station, actions)


@pytest.fixture
def net() -> SecretNet:
    return SecretNet([*SERVERS, *AGENTS], Link(loss=0.1, repeat=0.05))


def expected(value: bytes) -> dict[int, bytes | None]:
    return dict.fromkeys(range(1, 6), value) | dict.fromkeys(range(6, 9), None)


def test_it_spreads_in_seconds_and_then_there_is_peace(net: SecretNet) -> None:
    net.place(1).vault.put("k3s", b"one", ["server"])
    net.live(3)
    assert net.values() == expected(b"one")
    before = net.written()
    net.live(30)
    assert net.written() == before
    # Five boxes and a notice: nobody else wrote anything.
    assert before == 6


def test_after_a_revocation_one_takes_over_and_the_next_value_is_for_the_rest(
    net: SecretNet,
) -> None:
    net.place(1).vault.put("k3s", b"one", ["server"])
    net.live(3)
    before = net.written()
    net.revoke(SERVERS[0], at=3)
    net.live(8)
    others = [net.place(number) for number in range(2, 9)]
    assert all(one.vault.exposed() == {"k3s"} for one in others)
    assert [one.value() for one in others] == [b"one"] * 4 + [None] * 3
    # One notice and four boxes by the survivors, each written once.
    assert net.written() - before == 5
    net.place(4).vault.put("k3s", b"two", ["server"])
    net.live(5)
    assert [one.value() for one in others] == [b"two"] * 4 + [None] * 3
    assert all(not one.vault.exposed() for one in others)
    assert net.place(1).value() != b"two"


def test_values_put_on_both_sides_of_a_partition_end_as_one(net: SecretNet) -> None:
    net.place(1).vault.put("k3s", b"one", ["server"])
    net.live(3)
    sides = {one.node_id: one.number % 2 for one in [*SERVERS, *AGENTS]}
    net.cut = lambda one, other: sides[one] != sides[other]
    net.place(1).vault.put("k3s", b"odd", ["server"])
    net.place(2).vault.put("k3s", b"even", ["server"])
    net.live(3)
    assert net.values() == {
        number: None if number > 5 else (b"odd" if number % 2 else b"even")
        for number in range(1, 9)
    }
    net.cut = lambda _one, _other: False
    net.live(90)
    (value,) = {net.place(number).value() for number in range(1, 6)}
    assert value in {b"odd", b"even"}
    kept = list(net.place(1).station.replica.versions(SECRET, 0))
    assert len({one.owner for one in kept}) == 1


def test_a_newcomer_is_given_it_though_the_writer_is_away(net: SecretNet) -> None:
    net.place(1).vault.put("k3s", b"one", ["server"])
    net.live(3)
    net.place(1).station.up = False
    late = net.enter(LATE, [LATE])
    for one in net.vaults.values():
        gossip = one.station.gossip
        gossip.set_peers(net.stations, net.now)
    net.connect()
    net.live(12)
    assert late.value() == b"one"
