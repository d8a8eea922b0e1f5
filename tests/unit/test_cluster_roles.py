"""What a node is in the cluster: who founds, who works, who becomes a server, and for how long."""

from __future__ import annotations

import pytest

from appliance.cluster import growth
from appliance.cluster.cluster_entries import (
    VERSION,
    Founded,
    Plan,
    Role,
    Server,
    cluster_id,
    read,
    read_promises,
    value_of,
)
from appliance.cluster.errors import ClusterError
from appliance.cluster.growth import Engine, Leader, Waiting, grow
from appliance.cluster.model import Decision, Kind, Orders, Wanted
from appliance.cluster.orders import FOUNDER, SERVERS, founder_value, read_orders, servers_value
from tests.fakes.founding_world import NETWORK_ID, Entry, Node, World, member, node_id

FOUR = Wanted(expected_nodes=4)
A, B, C, D, E = (node_id(number) for number in (1, 2, 3, 4, 5))


def kinds(world: World) -> list[Kind | None]:
    return [one.kind for one in world.nodes]


def said(world: World, number: int) -> Decision:
    decision = world.node(number).decision
    assert decision is not None
    return decision


def formed(*members: int, wanted: Wanted | None = None) -> World:
    """Return a cluster whose founder is node 1 and serves, with agents."""
    world = World(
        [member(number, founder=number == 1) for number in members], wanted=wanted or Wanted()
    )
    world.run(20)
    world.serve(world.node(1))
    world.run(5)
    return world


def test_a_founders_grant_founds_and_the_others_work() -> None:
    world = World([member(1), member(2, founder=True), member(3, "agent"), member(4, "none")])
    world.run(12)
    assert not world.founders
    world.run(8)
    assert kinds(world) == [Kind.WAIT, Kind.FOUND, Kind.WAIT, Kind.NONE]
    world.serve(world.node(2))
    world.run(5)
    assert kinds(world) == [Kind.AGENT, Kind.FOUND, Kind.AGENT, Kind.NONE]
    assert said(world, 3).join == ("10.10.0.2",)
    assert not said(world, 2).cluster_init


def test_a_majority_of_the_expected_founds_without_the_rest() -> None:
    world = World([member(1), member(2), member(3)], wanted=FOUR)
    world.node(3).up = False
    world.run(30)
    assert not world.founders
    why = said(world, 1)
    assert "waiting for 1 more of the 4 nodes" in why.why
    assert "skerry cluster found" in why.hint
    world.node(3).up = True
    world.run(15)
    assert len(world.founders) == 1


@pytest.mark.parametrize("wanted", [Wanted(), Wanted(expected_nodes=1)])
def test_without_a_founder_or_a_majority_a_node_says_what_to_do(wanted: Wanted) -> None:
    world = World([member(1), member(2)], wanted=wanted)
    world.run(120)
    assert kinds(world) == [Kind.WAIT, Kind.WAIT]
    decision = said(world, 1)
    for word in ("skerry cluster found NODE", "token new --founder", "--expected-nodes"):
        assert word in decision.hint


def test_more_machines_than_declared_found_nothing_until_the_operator_says_so() -> None:
    world = World([member(number) for number in (1, 2, 3, 4, 5)], wanted=FOUR)
    world.run(30)
    assert not world.founders
    decision = said(world, 1)
    assert [one.code for one in decision.problems] == ["cluster-too-many-nodes"]
    world.orders = Orders(founder=C)
    world.run(10)
    assert world.founders == {C}


def test_an_order_names_the_founder_over_grants_and_waits_until_it_has_looked_around() -> None:
    world = World([member(1, founder=True), member(2)], orders=Orders(founder=B))
    world.run(3)
    assert kinds(world) == [Kind.WAIT, Kind.WAIT]
    world.run(30)
    assert kinds(world) == [Kind.WAIT, Kind.FOUND]


def test_an_order_comes_too_late_for_a_cluster_that_is_there() -> None:
    world = formed(1, 2)
    world.orders = Orders(founder=B)
    world.run(30)
    assert kinds(world) == [Kind.FOUND, Kind.AGENT]


@pytest.mark.parametrize("order", [node_id(9), node_id(3)])
def test_an_order_that_cannot_be_carried_out_is_named(order: bytes) -> None:
    world = World([member(1, founder=True), member(3, "agent")], orders=Orders(founder=order))
    world.run(30)
    assert not world.founders
    decision = said(world, 1)
    assert "the operator named" in decision.why


def test_two_founders_grants_have_to_agree() -> None:
    world = World([member(1, founder=True), member(2, founder=True), member(3)])
    world.run(30)
    assert len(world.founders) == 1
    lonely = World([member(1, founder=True), member(2, founder=True)])
    lonely.run(3)
    lonely.node(2).up = False
    lonely.run(60)
    assert not lonely.founders
    assert "have to agree" in said(lonely, 1).why


def test_a_node_keeps_its_role_without_the_ledger_and_without_anybody() -> None:
    world = formed(1, 2, 3)
    one = world.node(2)
    one.side = 1
    world.restart(one, ledger_lost=True)
    one.knows = {B}
    world.run(5)
    # It knows nobody to join, but it is in the cluster, and founds none.
    assert said(world, 2).kind is Kind.WAIT
    one.side = 0
    world.run(5)
    assert said(world, 2).kind is Kind.AGENT
    assert len(set().union(*world.clusters.values())) == 1


def test_a_founder_that_restarts_goes_on_and_one_that_lost_its_state_does_not_found_again() -> None:
    world = formed(1, 2)
    world.restart(world.node(1))
    world.run(3)
    assert world.node(1).kind is Kind.FOUND
    world.node(1).engine = Engine()
    world.run(5)
    decision = said(world, 1)
    assert decision.kind is Kind.WAIT
    assert [one.code for one in decision.problems] == ["cluster-state-lost"]


def test_a_founder_that_lost_its_state_joins_the_other_servers() -> None:
    world = formed(1, 2)
    theirs = Server(VERSION, cluster_id(NETWORK_ID, "", A), ("10.10.0.2",), 0)
    world.say(world.node(2), "server", value_of(theirs))
    world.node(1).engine = Engine()
    world.run(5)
    decision = said(world, 1)
    assert (decision.kind, decision.join) == (Kind.SERVER, ("10.10.0.2",))


def test_a_removed_founder_takes_the_cluster_along_and_only_the_operator_makes_another() -> None:
    world = World([member(1, founder=True), member(2), member(3)])
    world.run(20)
    assert world.founders == {A}
    world.nodes.pop(0)
    for one in world.nodes:
        one.knows.discard(A)
    world.run(120)
    assert world.founders == {A}
    decision = said(world, 2)
    assert [one.code for one in decision.problems] == ["cluster-founder-gone"]
    world.orders = Orders(founder=C)
    world.run(20)
    assert world.founders == {A, C}
    assert world.node(3).kind is Kind.FOUND


def test_members_that_contradict_each_other_are_named_and_nobody_joins() -> None:
    world = World([member(1, founder=True), member(2), member(3)])
    liar = Founded(VERSION, cluster_id(NETWORK_ID, "", B), B)
    world.run(20)
    assert world.founders == {A}
    world.say(world.node(2), "founded", value_of(liar))
    world.node(3).file = b""
    world.serve(world.node(1))
    world.run(10)
    decision = said(world, 3)
    assert decision.kind is Kind.WAIT
    assert decision.problems[0].code == "cluster-two-foundings"
    # The founder stays what it is, and says what it sees.
    assert world.node(1).kind is Kind.FOUND
    assert said(world, 1).problems[0].code == "cluster-two-foundings"


def test_clusters_of_one_network_do_not_mix() -> None:
    members = [member(1, founder=True), member(2), member(3, founder=True, cluster="lab")]
    world = World([*members, member(4, cluster="lab")])
    world.run(20)
    for number in (1, 3):
        world.serve(world.node(number))
    world.run(5)
    assert kinds(world) == [Kind.FOUND, Kind.AGENT, Kind.FOUND, Kind.AGENT]
    assert world.clusters[A] == world.clusters[B] != world.clusters[C] == world.clusters[D]
    assert said(world, 4).join == ("10.10.0.3",)


# Growth


def test_one_server_becomes_three_one_after_the_other() -> None:
    world = formed(1, 2, 3, 4, wanted=Wanted(servers=3))
    assert said(world, 1).cluster_init
    first = world.node(1)
    servers = [first]
    for count in (2, 3):
        world.serve(first, leader=True, members=tuple(servers))
        world.run(10)
        new = [one for one in world.nodes if one.kind is Kind.SERVER and one not in servers]
        assert len(new) == 1, "one at a time"
        servers.append(new[0])
        assert len(servers) == count
        world.serve(new[0])
    world.serve(first, leader=True, members=tuple(servers))
    world.run(30)
    assert sorted(str(one) for one in kinds(world)) == sorted(
        map(str, (Kind.FOUND, Kind.SERVER, Kind.SERVER, Kind.AGENT))
    )
    assert len(set().union(*world.clusters.values())) == 1


def test_two_nodes_do_not_grow_since_two_servers_stand_less_than_one() -> None:
    world = formed(1, 2, wanted=Wanted(servers=3))
    world.serve(world.node(1), leader=True, members=(world.node(1),))
    world.run(60)
    assert kinds(world) == [Kind.FOUND, Kind.AGENT]


def test_the_operator_changes_how_many_servers_there_are_to_be() -> None:
    world = formed(1, 2, 3)
    world.serve(world.node(1), leader=True, members=(world.node(1),))
    world.run(20)
    assert Kind.SERVER not in kinds(world)
    world.orders = Orders(servers=3)
    world.run(20)
    assert kinds(world).count(Kind.SERVER) == 1


def test_a_server_that_was_replaced_becomes_an_agent() -> None:
    world = formed(1, 2, 3)
    world.node(2).engine = Engine(has_data=True, removed=True)
    world.run(3)
    decision = said(world, 2)
    assert (decision.kind, decision.reset) == (Kind.AGENT, True)


def test_an_agent_with_a_servers_state_sets_that_aside_before_it_is_a_server_anew() -> None:
    world = formed(1, 2, 3, wanted=Wanted(servers=3))
    first, second = world.node(1), world.node(2)
    world.run(5)
    second.engine = Engine(has_data=True)
    world.run(3)
    # Nobody has said yet who the servers are: it may be one of them.
    assert (said(world, 2).kind, said(world, 2).reset) == (Kind.AGENT, False)
    world.serve(first, leader=True, members=(first,))
    world.run(10)
    assert [one.kind for one in world.nodes].count(Kind.SERVER) <= 1
    assert (said(world, 2).kind, said(world, 2).reset) == (Kind.AGENT, True)
    second.engine = Engine()
    world.node(3).up = False
    world.run(2)
    assert not said(world, 2).reset


def test_who_is_taken_in_does_not_ask_the_one_whose_place_it_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(growth, "REPLACE_SECONDS", 20.0)
    world = formed(1, 2, 3, 4, wanted=Wanted(servers=3))
    servers = [world.node(1)]
    for _ in range(2):
        world.serve(world.node(1), leader=True, members=tuple(servers))
        world.run(10)
        new = next(one for one in world.nodes if one.kind is Kind.SERVER and one not in servers)
        servers.append(new)
        world.serve(new)
    world.serve(world.node(1), leader=True, members=tuple(servers))
    world.run(10)
    worker = next(one for one in world.nodes if one not in servers)
    lost, left = servers[1], (servers[0], servers[2])
    asked = [f"10.10.0.{world.nodes.index(one) + 1}" for one in left]
    assert len(joins(worker)) == 3
    lost.up = False
    world.run(25)
    world.serve(world.node(1), leader=True, members=left)
    world.run(10)
    assert worker.kind is Kind.SERVER
    assert sorted(joins(worker)) == sorted(asked)


def joins(node: Node) -> tuple[str, ...]:
    return () if node.decision is None else node.decision.join


MINUTES = 60.0
THREE = Leader(A, bytes(16), Engine(leader=True, term=7, members=frozenset({A, B, C})), 3)


def look(
    leader: Leader, dead: set[bytes], gone: set[bytes], waiting: Waiting, now: float
) -> growth.Growth:
    members = {A, B, C, D, E} - gone
    order = [one for one in (A, B, C, D, E) if one in members]
    return grow(leader, order, lambda one: one in members - dead, members, None, waiting, now)


def test_a_revoked_server_goes_at_once_and_one_that_is_away_after_half_an_hour() -> None:
    assert look(THREE, set(), {B}, Waiting(), 0.0).remove == B
    seen = look(THREE, {C}, set(), Waiting(), 0.0)
    assert seen.remove is None
    assert look(THREE, {C}, set(), seen.waiting, 29 * MINUTES).remove is None
    assert look(THREE, {C}, set(), seen.waiting, 31 * MINUTES).remove == C
    # Nobody is there in its place; or it came back in between.
    assert look(THREE, {C}, {D, E}, seen.waiting, 31 * MINUTES).remove is None
    back = look(THREE, set(), set(), seen.waiting, 20 * MINUTES)
    again = look(THREE, {C}, set(), back.waiting, 25 * MINUTES)
    assert look(THREE, {C}, set(), again.waiting, 31 * MINUTES).remove is None


def test_no_removal_leaves_less_than_a_quorum() -> None:
    seen = look(THREE, {B, C}, set(), Waiting(), 0.0)
    assert look(THREE, {B, C}, set(), seen.waiting, 60 * MINUTES).remove is None
    assert look(THREE, {C}, {B}, Waiting(), 0.0).remove is None


def test_whoever_was_let_in_and_does_not_come_makes_way() -> None:
    engine = Engine(leader=True, term=7, members=frozenset({A, B}))
    # The second one has not finished its own join: nobody else begins one.
    early = Leader(A, bytes(16), engine, 3)
    assert look(early, set(), set(), Waiting(), 0.0).plan.joining is None
    two = Leader(A, bytes(16), engine, 3, frozenset({B}))
    grown = look(two, set(), set(), Waiting(), 0.0)
    assert grown.plan.joining == C
    members = {A, B, C, D, E}
    later = grow(
        two, [A, B, C, D, E], members.__contains__, members, grown.plan, grown.waiting, 16 * MINUTES
    )
    assert later.plan.joining == D


def test_the_plan_of_the_highest_term_counts_and_an_outranked_leader_says_so() -> None:
    mine = cluster_id(NETWORK_ID, "", A)
    low, high = (Plan(VERSION, mine, term, (A,), None) for term in (3, 4))
    assert growth.latest([high, low], mine) == high
    assert growth.latest([high], bytes(16)) is None
    world = formed(1, 2, wanted=Wanted(servers=3))
    world.say(world.node(2), "plan", value_of(Plan(VERSION, mine, 9, (B,), None)))
    world.serve(world.node(1), leader=True, members=(world.node(1),))
    world.run(5)
    problems = said(world, 1).problems
    assert [one.code for one in problems] == ["cluster-plan-outranked"]
    assert "n2" in problems[0].message


# What comes out of the ledger


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("founded", b""),
        ("founded", b"\xff" * 40),
        ("founded", value_of(Founded(2, bytes(16), B))),
        ("founded", value_of(Founded(VERSION, bytes(15), B))),
        ("founded", value_of(Founded(VERSION, bytes(16), B))),  # an id that is not B's cluster
        ("server", value_of(Server(VERSION, bytes(16), ("127.0.0.1",), 0))),
        ("server", value_of(Server(VERSION, bytes(16), ("10.0.0.1; rm -rf /",), 0))),
        ("server", value_of(Server(VERSION, bytes(16), (), 0))),
        ("role", value_of(Role(VERSION, bytes(16), "king", False))),  # noqa: FBT003
        ("plan", value_of(Plan(VERSION, bytes(16), -1, (A,), None))),
        ("plan", value_of(Plan(VERSION, bytes(16), 1, (B, A), None))),
        ("vip", b"\x00" * 2000),
        ("ballot", b"\x96\x01\x92\x00\xc4\x00\xc0\xc0\xc0\xc0"),
        ("", b"x"),
        ("unheard-of", b"x"),
    ],
)
def test_malformed_entries_count_for_nothing(key: str, value: bytes) -> None:
    world = World([member(1, founder=True), member(2)])
    world.say(world.node(2), key, value)
    world.run(20)
    assert world.founders == {A}


def test_nobody_speaks_for_another_nor_an_agent_of_founding() -> None:
    false = value_of(Founded(VERSION, cluster_id(NETWORK_ID, "", B), B))
    world = World([member(1, founder=True), member(2), member(3, "agent")])
    stolen = Entry(B, f"{world.node(1).node_id.hex()}/founded", false, 1)
    assert not read([stolen]).founded
    world.say(world.node(3), "founded", false)
    world.run(20)
    assert world.founders == {A}


def test_a_damaged_file_is_none() -> None:
    assert read_promises(b"") is None
    assert read_promises(b"\x94\x01") is None
    assert read_promises(bytes(5000)) is None


def test_orders_are_the_root_keys() -> None:
    told = [
        Entry(NETWORK_ID, FOUNDER, founder_value(B), 1),
        Entry(NETWORK_ID, SERVERS, servers_value(3), 1),
    ]
    assert read_orders(told, NETWORK_ID) == Orders(B, 3)
    assert read_orders(told, A) == Orders()
    wrong = [Entry(NETWORK_ID, FOUNDER, B[1:], 1), Entry(NETWORK_ID, SERVERS, b"\x02", 1)]
    assert read_orders(wrong, NETWORK_ID) == Orders()
    with pytest.raises(ClusterError):
        servers_value(2)
