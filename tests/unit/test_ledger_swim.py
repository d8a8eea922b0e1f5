"""Who is alive: found out soon, refuted in time, and not for a liar to say."""

from __future__ import annotations

from random import Random

import pytest

from appliance.ledger.messages import Ack, Ping, PingRequest
from appliance.ledger.swim import Detector, Probe, Status, StatusChanged, SwimConfig
from appliance.ledger.timekeeper import Quality, Reading
from tests.fakes.ledger import node, replica
from tests.fakes.ledger_net import Link, Net

NODES = [node(number) for number in range(10, 42)]
READING = Reading(1, Quality.KEPT)
CONFIG = SwimConfig()
ME, OTHER, LIAR, THIRD = (one.node_id for one in NODES[:4])


def net_of(count: int, *, loss: float = 0.0, seed: int = 3) -> Net:
    net = Net(seed, Link(loss=loss))
    for one in NODES[:count]:
        net.add(one, replica(NODES[:count]))
    net.connect()
    return net


def test_a_dead_node_is_found_by_all_and_found_again_when_it_is_back() -> None:
    net = net_of(8)
    net.run(30.0)
    assert not any(one.statuses for one in net.stations.values())
    gone, *rest = net.stations.values()
    gone.up = False
    told = lambda: all(one.statuses.get(gone.node.node_id) is Status.DEAD for one in rest)  # noqa: E731
    begun = net.now
    assert net.run(200.0, told)
    assert net.now - begun < 100
    net.restart(gone)
    back = lambda: all(one.statuses.get(gone.node.node_id) is Status.ALIVE for one in rest)  # noqa: E731
    assert net.run(300.0, back)


@pytest.mark.parametrize("seed", range(3))
def test_loss_of_a_fifth_kills_nobody(seed: int) -> None:
    net = net_of(12, loss=0.2, seed=seed)
    net.run(600.0)
    dead = [
        node_id
        for station in net.stations.values()
        for node_id, status in station.statuses.items()
        if status is Status.DEAD
    ]
    assert dead == []


def test_one_broken_link_is_helped_around() -> None:
    net = net_of(6)
    one, other = list(net.stations)[:2]
    net.cut = lambda left, right: {left, right} == {one, other}
    net.run(400.0)
    assert net.stations[one].statuses.get(other) in {None, Status.ALIVE}


def test_halves_take_each_other_for_dead_and_come_back() -> None:
    net = net_of(6)
    half = set(list(net.stations)[:3])
    net.cut = lambda one, other: (one in half) != (other in half)
    apart = lambda: all(  # noqa: E731
        station.statuses.get(other) is Status.DEAD
        for node_id, station in net.stations.items()
        for other in net.stations
        if (node_id in half) != (other in half)
    )
    assert net.run(400.0, apart)
    net.cut = lambda _one, _other: False
    whole = lambda: all(  # noqa: E731
        set(station.statuses.values()) == {Status.ALIVE} for station in net.stations.values()
    )
    assert net.run(400.0, whole)


def detector() -> Detector:
    made = Detector(ME, Random(1), CONFIG, 0.0)  # noqa: S311 - a test
    made.set_members([ME, OTHER, LIAR, THIRD])
    return made


def ping(*rumours: tuple[bytes, int, int]) -> Ping:
    return Ping(1, 0, 1, 0, rumours)


@pytest.mark.parametrize("incarnation", [0, 1, 64, 65, 2**32])
@pytest.mark.parametrize("status", [Status.SUSPECT, Status.DEAD])
def test_a_liar_alone_never_makes_anybody_dead(status: Status, incarnation: int) -> None:
    me = detector()
    out = me.receive(LIAR, ping((OTHER, status, incarnation)), 1.0, READING)
    changes = [one for one in out if isinstance(one, StatusChanged)]
    assert [one.status for one in changes] == ([Status.SUSPECT] if incarnation <= 64 else [])
    me.receive(OTHER, ping(), 2.0, READING)
    assert me.status(OTHER) is Status.ALIVE


def test_the_suspect_itself_is_told_and_refutes() -> None:
    me = detector()
    me.receive(LIAR, ping((OTHER, Status.SUSPECT, 5)), 1.0, READING)
    answer = me.receive(OTHER, ping(), 1.5, READING)
    me.receive(LIAR, ping((OTHER, Status.SUSPECT, 5)), 2.0, READING)
    probes = me.receive(OTHER, PingRequest(7, OTHER), 2.0, READING)
    assert answer
    told = [one.message for one in probes if isinstance(one, Probe)]
    assert any(isinstance(one, Ping) and (OTHER, 1, 5) in one.rumours for one in told)
    accused = detector()
    accused.receive(LIAR, ping((ME, Status.SUSPECT, 5)), 1.0, READING)
    assert accused.incarnation == 6
    assert accused.health == 1
    accused.receive(LIAR, ping((ME, Status.SUSPECT, 2**32)), 1.0, READING)
    assert accused.incarnation == 6


def test_strangers_are_nobodys_business() -> None:
    me = detector()
    out = me.receive(LIAR, ping((b"stranger........", Status.DEAD, 0)), 1.0, READING)
    assert not [one for one in out if isinstance(one, StatusChanged)]
    assert me.receive(LIAR, PingRequest(1, b"stranger........"), 1.0, READING) == []
    assert me.status(b"stranger........") is None
    me.set_members([ME])
    assert me.status(OTHER) is None


def test_an_answer_in_another_nodes_name_counts_only_as_help() -> None:
    me = detector()
    pings: dict[bytes, Ping] = {}
    now = 0.0
    while len(pings) < 3:
        now += CONFIG.period
        for one in me.tick(now, READING):
            if isinstance(one, Probe) and isinstance(one.message, Ping):
                pings[one.to] = one.message
    assert me.status(OTHER) is not Status.DEAD
    fake = Ack(pings[OTHER].token, 0, 1, 0, (), OTHER, alive=True)
    before = me.status(OTHER)
    me.receive(LIAR, fake, now, READING)
    assert me.status(OTHER) is before


def test_a_request_for_help_is_bounded() -> None:
    me = detector()
    sent = sum(len(me.receive(LIAR, PingRequest(one, OTHER), 1.0, READING)) for one in range(500))
    assert sent <= 16
    nacks = [one for one in me.tick(10.0, READING) if isinstance(one, Probe)]
    assert all(one.to == LIAR for one in nacks if isinstance(one.message, Ack))
    assert sum(isinstance(one.message, Ack) for one in nacks) == sent
