"""The API's one address follows the leader, in everybody's AllowedIPs."""

from __future__ import annotations

from appliance.cluster import vip
from appliance.cluster.cluster_entries import BUCKET, VERSION, Vip, key_of, value_of
from appliance.cluster.model import Kind, Wanted
from tests.fakes.control_world import Node, join, make_grant_token
from tests.fakes.control_world import World as ControlWorld
from tests.fakes.founding_world import World, member, node_id

A, B = node_id(1), node_id(2)
CLUSTER = bytes(16)
API = "10.10.0.1/32"


def claim(term: int, cluster: bytes = CLUSTER) -> Vip:
    return Vip(VERSION, cluster, term, 0)


def test_the_highest_term_has_it_and_of_two_the_lower_id() -> None:
    assert vip.holder({}) is None
    assert vip.holder({A: claim(3), B: claim(4)}) == B
    assert vip.holder({B: claim(4), A: claim(4)}) == A


def test_a_leader_claims_once_a_term() -> None:
    said = vip.claim(A, CLUSTER, 3, {}, 7)
    assert said == Vip(VERSION, CLUSTER, 3, 7)
    assert vip.claim(A, CLUSTER, 3, {A: claim(3)}, 8) is None
    assert vip.claim(A, CLUSTER, 4, {A: claim(3)}, 8) == Vip(VERSION, CLUSTER, 4, 8)


def test_only_a_leader_that_serves_claims() -> None:
    world = World([member(1, founder=True), member(2)], wanted=Wanted(servers=3))
    world.run(20)
    assert world.node(1).kind is Kind.FOUND
    assert not any(key.endswith("/vip") for key in world.node(1).ledger)
    world.serve(world.node(1), leader=True, members=(world.node(1),))
    world.run(2)
    assert key_of(A, "vip") in world.node(2).ledger
    assert key_of(B, "vip") not in world.node(2).ledger


def allowed(of: Node, to: Node) -> tuple[str, ...]:
    return of.wireguard[to.key].allowed


def test_members_lead_the_address_to_the_leader_and_to_nobody_else() -> None:
    auto, agent = make_grant_token(), make_grant_token(roles=frozenset({"agent"}))
    world = ControlWorld(3)
    one, two, three = world.form(join(auto, "one"), join(auto, "two"), join(agent, "three"))
    nodes = [one, two, three]
    assert world.run(20, until=lambda: world.connected(nodes))

    def say(node: Node, term: int) -> None:
        world.put(node, key_of(node.node_id, "vip"), value_of(claim(term)), BUCKET)
        world.run(5)

    say(one, 1)
    assert API in allowed(two, one)
    assert API in allowed(three, one)
    assert API not in allowed(one, two)
    # The next leader; and the old one, of whatever it believes, has lost it.
    say(two, 2)
    assert API in allowed(three, two)
    assert API in allowed(one, two)
    assert API not in allowed(three, one)
    # What cannot be a claim counts for nothing.
    world.put(one, key_of(one.node_id, "vip"), b"\xff" * 9, BUCKET)
    world.run(5)
    assert API in allowed(three, two)
