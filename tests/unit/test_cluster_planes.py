"""The founding over real control planes: signed entries, gossip, a partition, a lost ledger."""

from __future__ import annotations

from appliance.cluster import roles
from appliance.cluster.cluster_entries import BUCKET, Promises, read, read_promises
from appliance.cluster.model import Decision, Kind, Member, Memory, View, Wanted
from appliance.control.views import nodes_view
from appliance.ledger.assigned import read_id
from appliance.ledger.entry import Entry
from provisioning import codec
from tests.fakes.control_world import Node, World, join, make_grant_token, make_network

WANTED = Wanted(expected_nodes=3)


class Deciding:
    """Nodes of a world that ask for their roles, as the cluster agent does."""

    def __init__(self, world: World, nodes: list[Node]) -> None:
        self.world, self.nodes = world, nodes
        self.memory = {one.node_id: Memory() for one in nodes}
        self.files = dict.fromkeys(self.memory, b"")
        self.decided: dict[bytes, Decision] = {}
        self.founders: set[bytes] = set()

    def run(self, seconds: int) -> None:
        for _ in range(seconds):
            self.world.run(1.0)
            for one in self.nodes:
                if one.alive:
                    self.decide(one)

    def decide(self, one: Node) -> None:
        found = {}
        for seen in nodes_view(one.plane, self.world.now):
            node_id = read_id(seen.node_id)
            assert node_id is not None
            up = seen.state in {"self", "up", "alive"}
            found[node_id] = Member(
                node_id, seen.name, frozenset(seen.roles), seen.founder, up, seen.addresses
            )
        view = View(
            one.node_id,
            one.identity.network.network_id,
            found,
            WANTED,
            read(one.plane.gossip.replica.entries(BUCKET, self.world.ms)),
            self.world.now,
            kept=read_promises(self.files[one.node_id]) or Promises(),
            memory=self.memory[one.node_id],
        )
        decision = roles.decide(view)
        self.memory[one.node_id] = decision.memory
        self.decided[one.node_id] = decision
        if decision.keep is not None:
            self.files[one.node_id] = codec.encode(decision.keep)
        for key, value in decision.writes:
            self.world.put(one, key, value, BUCKET)
        if decision.kind is Kind.FOUND:
            self.founders.add(one.node_id)


def test_a_majority_founds_and_the_third_learns_of_it_even_without_its_ledger() -> None:
    token = make_grant_token(make_network())
    world = World(7, loss=0.1)
    nodes = world.form(*(join(token, f"n{number}") for number in range(3)))
    world.run(5)
    *majority, lonely = nodes
    world.split(majority, [lonely])
    one = Deciding(world, nodes)
    one.run(60)
    assert len(one.founders) == 1
    assert one.decided[lonely.node_id].kind is Kind.WAIT
    # Its vote and the news of the founding are lost with its ledger, in the middle of it all.
    world.kill(lonely)
    lonely.disk.clear()
    lonely.sequence = 0
    world.boot(lonely)
    one.memory[lonely.node_id] = Memory()
    world.heal()
    one.run(60)
    assert len(one.founders) == 1
    ids = {decision.cluster_id for decision in one.decided.values()}
    assert len(ids) == 1
    assert None not in ids
    said = {entry.key.partition("/")[2] for entry in _cluster(lonely, world)}
    assert {"founded", "ballot", "role"} <= said


def _cluster(node: Node, world: World) -> list[Entry]:
    return node.plane.gossip.replica.entries(BUCKET, world.ms)
