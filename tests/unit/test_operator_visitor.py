"""A visit over the nodes' own protocol, against real control planes in a simulated network."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.ledger.epochs import announcements
from appliance.operator.rootkey import RootKey
from appliance.operator.statements import Desk
from appliance.operator.visitor import AGAIN_SECONDS, Visitor, parse_target
from appliance.overlay import events
from appliance.overlay.clock import Now
from appliance.overlay.endpoint import Endpoint
from appliance.overlay.visitors import OPERATOR_LABEL, SILENT_SECONDS
from provisioning import codec
from provisioning.keys import id_text
from provisioning.network import NetworkInfo
from tests.fakes.control_world import (
    PORT,
    ROOT_SEED,
    UNIX,
    Node,
    World,
    join,
    make_grant_token,
    make_network,
)

PLACE = Endpoint("192.168.1.200", 40_000)


class Visited(World):
    """A world that an operator looks into."""

    visitor: Visitor | None = None
    gone = False

    def visit(self, node: Node, *, network: NetworkInfo | None = None) -> Visitor:
        root = RootKey(network or make_network(), ROOT_SEED)
        target = Endpoint(node.address, PORT)
        self.visitor = visitor = Visitor(
            root, target, PLACE.port, self.here(), random=self.random.randbytes
        )
        self._out(visitor.begin(self.here()))
        self._wake()
        return visitor

    def here(self) -> Now:
        return Now(self.now, UNIX + self.now)

    def say(self, visitor: Visitor, desk: Desk) -> None:
        self._out(visitor.publish(desk.made, self.here()))

    def _wake(self) -> None:
        if self.visitor is not None and not self.gone:
            self._out(self.visitor.tick(self.here()))
            wait = max(self.visitor.next_timer() - self.now, 0.001)
            self.at(min(wait, AGAIN_SECONDS), self._wake)

    def _out(self, sends: Iterable[events.Send]) -> None:
        for one in sends:
            for node in self.nodes:
                lost = self.random.random() < self.loss
                if node.address == one.destination.host and not lost:
                    event = events.DatagramReceived(one.data, PLACE)
                    self.at(self.delay, partial(self.feed, node, event))

    def _send(self, node: Node, data: bytes, destination: Endpoint) -> None:
        if destination != PLACE:
            super()._send(node, data, destination)
        elif self.random.random() >= self.loss:
            self.at(self.delay, partial(self._hear, data, Endpoint(node.address, PORT)))

    def _hear(self, data: bytes, source: Endpoint) -> None:
        if self.visitor is not None and not self.gone:
            self._out(self.visitor.datagram(data, source, self.here()))


def formed(count: int, *, loss: float = 0.0, entries: int = 0) -> tuple[Visited, list[Node]]:
    world = Visited(loss=0.0)
    token = make_grant_token()
    nodes = world.form(*(join(token, f"n{number}") for number in range(count)))
    assert world.run(30, until=lambda: world.all_up(nodes) and world.same_ledger(nodes))
    for number in range(entries):
        world.put(nodes[number % count], f"k{number}", bytes(200))
    world.run(3)
    world.loss = loss
    return world, nodes


def contents(node: Node) -> set[bytes]:
    return {one.entry_id for one in node.plane.gossip.replica}


def known(visitor: Visitor) -> set[bytes]:
    return {one.entry_id for one in visitor.replica}


@pytest.mark.parametrize(("entries", "loss"), [(0, 0.0), (150, 0.0), (40, 0.2)])
def test_a_visitor_learns_all_that_the_node_holds(entries: int, loss: float) -> None:
    world, nodes = formed(2, loss=loss, entries=entries)
    visitor = world.visit(nodes[0])
    assert world.run(30, until=lambda: visitor.calm)
    assert known(visitor) == contents(nodes[0])
    assert visitor.host is not None
    assert visitor.host.node_id == nodes[0].node_id
    assert visitor.host_ms is not None
    assert abs(visitor.host_ms - world.ms) < 30_000


def test_what_a_visitor_publishes_is_in_the_network_before_it_leaves() -> None:
    world, nodes = formed(3)
    visitor = world.visit(nodes[0])
    assert world.run(10, until=lambda: visitor.calm)
    desk = Desk(visitor.root, visitor.replica, world.ms)
    desk.revoke(nodes=[nodes[2].node_id], reason="a test")
    world.say(visitor, desk)
    assert not visitor.calm
    assert world.run(10, until=lambda: visitor.calm)
    assert not visitor.unsettled
    assert {one.entry_id for one in desk.made} <= contents(nodes[0])
    assert world.run(10, until=lambda: world.same_ledger(nodes[:2]))
    assert world.run(30, until=lambda: nodes[2].node_id not in nodes[1].up())
    assert 1 in announcements(nodes[1].plane.gossip.replica, world.ms)
    # It goes on in the same visit: the epoch before is read for a while.
    more = Desk(visitor.root, visitor.replica, world.ms)
    member = visitor.replica.directory.member(nodes[1].node_id)
    assert member is not None
    more.rename(member, "kitchen")
    world.say(visitor, more)
    assert world.run(10, until=lambda: visitor.calm)
    assert more.made[0].entry_id in contents(nodes[0])


def test_what_the_node_does_not_take_is_known_as_such() -> None:
    world, nodes = formed(2)
    visitor = world.visit(nodes[0])
    assert world.run(10, until=lambda: visitor.calm)
    ahead = Desk(visitor.root, visitor.replica, world.ms + 3_600_000)
    member = visitor.replica.directory.member(nodes[1].node_id)
    assert member is not None
    ahead.rename(member, "kitchen")
    world.say(visitor, ahead)
    assert world.run(60, until=lambda: visitor.calm)
    assert visitor.unsettled == {ahead.made[0].entry_id}


def test_a_visitor_is_no_member_and_leaves_nothing_in_the_ledger() -> None:
    world, nodes = formed(2)
    before = contents(nodes[0])
    visitor = world.visit(nodes[0])
    assert world.run(10, until=lambda: visitor.calm)
    own = visitor._identity.member()
    assert own.node_id in nodes[0].plane.core.contacts()
    assert own.wg_key not in nodes[0].wireguard
    assert not any(id_text(own.node_id) in key for key in nodes[0].store)
    # A tunnel that is made again does not hear of it either.
    again = nodes[0].plane.tunnel(world.moment(nodes[0]))
    assert own.wg_key not in {one.key for one in again if isinstance(one, events.SetPeer)}
    world.gone = True
    world.run(SILENT_SECONDS + 5)
    assert own.node_id not in nodes[0].plane.peers
    assert nodes[1].node_id in nodes[0].up()
    members = {one.node_id for one in nodes[0].plane.gossip.replica.directory}
    assert members == {one.node_id for one in nodes}
    assert contents(nodes[0]) == contents(nodes[1])
    assert own.labels == {OPERATOR_LABEL: "1"}
    assert not any(one.owner == own.node_id for one in nodes[0].plane.gossip.replica)
    assert len(contents(nodes[0]) ^ before) < 10


def test_without_the_secret_nobody_answers() -> None:
    world, nodes = formed(2)
    visitor = world.visit(nodes[0], network=replace(make_network(), otp_seed=bytes(32)))
    assert world.run(60, until=lambda: visitor.trouble is not None)
    assert visitor.trouble == "nobody answers there"
    assert not visitor.calm


def test_noise_from_the_nodes_place_changes_nothing() -> None:
    world, nodes = formed(2)
    visitor = world.visit(nodes[0])
    for size in (0, 1, 32, 200, 1400):
        noise = world.random.randbytes(size)
        assert visitor.datagram(noise, visitor.target, world.here()) == []
        assert visitor.datagram(noise, Endpoint("192.168.1.66", PORT), world.here()) == []
    assert world.run(10, until=lambda: visitor.calm)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("node", ("node", 51820)),
        ("node:1", ("node", 1)),
        ("10.0.0.1:51821", ("10.0.0.1", 51821)),
        ("fd00::1", ("fd00::1", 51820)),
        ("[fd00::1]", ("fd00::1", 51820)),
        ("[fd00::1]:7", ("fd00::1", 7)),
    ],
)
def test_where_to_is_read(text: str, found: tuple[str, int]) -> None:
    assert parse_target(text) == found


@pytest.mark.parametrize("text", ["", ":1", "node:0", "node:65536", "node:x", "-o:1"])
def test_where_to_cannot_be_anything(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        parse_target(text)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.integers(1, 7), st.booleans())
def test_what_a_bad_node_says_in_its_session_changes_nothing(
    data: bytes, kind: int, well_formed: bool
) -> None:
    world, nodes, visitor = met()
    before = known(visitor)
    said = codec.encode((1, kind, data)) if well_formed else data
    own = visitor._identity.member()
    for one in nodes[0].plane.core.carry(own.node_id, said, world.moment(nodes[0])):
        assert isinstance(one, events.Send)
        visitor.datagram(one.data, visitor.target, world.here())
    assert known(visitor) == before
    assert visitor.trouble is None


@functools.cache
def met() -> tuple[Visited, list[Node], Visitor]:
    world, nodes = formed(2)
    visitor = world.visit(nodes[0])
    assert world.run(10, until=lambda: visitor.calm)
    return world, nodes, visitor
