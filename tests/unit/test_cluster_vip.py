"""The API's one address follows the leader, in everybody's AllowedIPs."""

from __future__ import annotations

import ipaddress

from appliance.api.cluster import ApiView
from appliance.cluster import vip
from appliance.cluster.cluster_entries import BUCKET, VERSION, Vip, key_of, value_of
from appliance.cluster.model import Kind, Wanted
from appliance.control.cluster_view import cluster_view
from appliance.ledger.claims import Claim, claim_value
from appliance.ledger.rules import ADDRESS
from appliance.overlay.addresses import claimed_address
from appliance.overlay.status import OverlayStatus
from provisioning.clusters import CLUSTER_LABEL, api_address_of, rivals
from provisioning.keys import id_text
from provisioning.network import NetworkInfo
from provisioning.token import Token, make_token
from tests.fakes.control_world import (
    ROOT_SEED,
    UNIX,
    Node,
    join,
    make_grant_token,
    make_network,
)
from tests.fakes.control_world import World as ControlWorld
from tests.fakes.founding_world import World, member, node_id

A, B = node_id(1), node_id(2)
CLUSTER = bytes(16)
API = "10.10.0.1/32"
OVERLAY = OverlayStatus("skerry0", "kernel", (), 51820, (), (), (), uplink="eth0", mtu=1400)


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


# Several clusters on one overlay

SIXTEEN = make_network(cluster_bits=4)
BLUE, GREEN, NONAME = "10.10.0.13/32", "10.10.0.16/32", API


def in_cluster(name: str, network: NetworkInfo = SIXTEEN) -> Token:
    labels = {CLUSTER_LABEL: name} if name else {}
    return make_token(network, ROOT_SEED, now=UNIX - 1000, roles=frozenset({"auto"}), labels=labels)


def say(world: ControlWorld, node: Node, term: int) -> None:
    world.put(node, key_of(node.node_id, "vip"), value_of(claim(term)), BUCKET)
    world.run(5)


def moves(world: ControlWorld, node: Node, to: Claim) -> None:
    world.put(node, id_text(node.node_id), claim_value(to), ADDRESS)
    world.run(5)


def led(of: Node, nodes: list[Node], address: str) -> list[Node]:
    """Return to whom a node leads an address."""
    return [one for one in nodes if one is not of and address in allowed(of, one)]


def api_of(node: Node, world: ControlWorld) -> ApiView:
    return cluster_view(node.plane, OVERLAY, world.now).api


def test_each_cluster_has_an_address_that_follows_its_own_leader() -> None:
    world = ControlWorld(11)
    names = ("", "blue", "blue", "green")
    nodes = world.form(
        *(join(in_cluster(name), f"{name}{number}") for number, name in enumerate(names))
    )
    noname, blue, second, green = nodes
    assert world.run(30, until=lambda: world.connected(nodes))
    for one, address in zip(nodes, (NONAME, BLUE, BLUE, GREEN), strict=True):
        assert api_of(one, world) == ApiView(address.removesuffix("/32"))
    say(world, noname, 1)
    say(world, blue, 7)
    say(world, green, 2)
    assert led(green, nodes, NONAME) == [noname]
    assert led(green, nodes, BLUE) == [blue]
    assert led(noname, nodes, GREEN) == [green]
    # Of its own cluster the later one; of another cluster nobody, whatever term it says.
    say(world, second, 8)
    say(world, green, 2**40)
    for address, leader in ((NONAME, noname), (BLUE, second), (GREEN, green)):
        for one in nodes:
            assert led(one, nodes, address) == ([] if one is leader else [leader])


def test_of_two_clusters_with_one_number_only_the_first_has_the_address() -> None:
    settings = SIXTEEN.settings
    rival = next(
        name for name in map(str, range(999)) if rivals(settings, name, ["blue"]) == ("blue",)
    )
    world = ControlWorld(12)
    first = world.form(*(join(in_cluster("blue"), f"b{number}") for number in range(2)))
    assert world.run(30, until=lambda: world.connected(first))
    say(world, first[0], 1)
    late = world.add(join(in_cluster(rival), "late"))
    nodes = [*first, late]
    assert world.run(60, until=lambda: world.connected(nodes))
    say(world, late, 99)
    assert led(first[1], nodes, BLUE) == [first[0]]
    assert led(late, nodes, BLUE) == [first[0]]


def test_a_node_that_had_the_address_keeps_it_and_the_api_has_none() -> None:
    """A network of before, with a node where a cluster's API would be now."""
    world = ControlWorld(13)
    nodes = world.form(join(in_cluster("blue"), "one"), join(in_cluster(""), "two"))
    one, two = nodes
    assert world.run(30, until=lambda: world.connected(nodes))
    range_ = ipaddress.IPv4Network(SIXTEEN.settings.host_range)
    wanted = ipaddress.IPv4Address("10.10.0.13")
    attempt = next(n for n in range(2**17) if claimed_address(two.node_id, n, range_) == wanted)
    moves(world, two, Claim(two.node_id, wanted.packed, attempt))
    say(world, one, 5)
    assert two.plane.policies.places.own == wanted
    assert BLUE in allowed(one, two)
    assert led(two, nodes, BLUE) == []
    said = api_of(one, world)
    assert said.address == str(wanted)
    assert said.why == "the node two had it before it was the API's"
    assert said.hint == "Give that node another: `skerry node address two ADDRESS`."
    # It moves, and the address is the API's.
    other = next(n for n in range(99) if claimed_address(two.node_id, n, range_) != wanted)
    what = claimed_address(two.node_id, other, range_).packed
    moves(world, two, Claim(two.node_id, what, other))
    assert led(two, nodes, BLUE) == [one]
    assert api_of(one, world) == ApiView(str(wanted))


def test_no_room_for_an_address_is_said_with_a_way_out() -> None:
    small = make_network("10.10.0.0/24", cluster_bits=8)
    name = next(one for one in map(str, range(99)) if api_address_of(small.settings, one) is None)
    world = ControlWorld(14)
    (node,) = world.form(join(in_cluster(name, small), "n"))
    world.run(5)
    said = api_of(node, world)
    assert said.address == ""
    assert "has no room" in said.why
    assert "larger host_range" in said.hint


def test_without_a_tunnel_it_is_what_the_operator_gave() -> None:
    for network, address in (
        (make_network(vpn=False), ""),
        (make_network(vpn=False, api_address="192.168.1.250"), "192.168.1.250"),
    ):
        world = ControlWorld(15)
        (node,) = world.form(join(make_grant_token(network), "n"))
        world.run(5)
        said = api_of(node, world)
        assert said.address == address
        assert bool(said.why) is (not address)
        assert address or "--api-address" in said.hint
