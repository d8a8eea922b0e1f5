"""Pod ranges in the control plane of whole networks, in virtual time."""

from __future__ import annotations

import ipaddress
import itertools

import msgspec
import pytest

from appliance.api.answers import ClusterFacts
from appliance.api.cluster import ClusterView, cluster_routes
from appliance.api.openapi import description
from appliance.cluster.ranges import NodeRange, RangePlan, pack, plan_for
from appliance.control.cluster_view import cluster_view
from appliance.control.holdings import ALONE_SECONDS, HEARD_SECONDS, STANDS_SECONDS
from appliance.kubernetes import facts
from appliance.kubernetes.errors import SupervisorError
from appliance.ledger import assigned
from appliance.ledger.claims import RANGE_KIND, WITNESSES, Claim, claim_value, said_of
from appliance.ledger.rules import ASSIGNED, RANGE
from appliance.overlay import events
from appliance.overlay.addresses import pods_prefix
from appliance.overlay.endpoint import Endpoint
from appliance.overlay.status import OverlayStatus
from provisioning.clusters import CLUSTER_LABEL
from provisioning.identity import Identity
from provisioning.network import NetworkInfo
from provisioning.token import Token, make_token
from tests.fakes.control_world import (
    ROOT_SEED,
    UNIX,
    Node,
    Operator,
    World,
    join,
    make_grant_token,
    make_network,
)

NETWORK = make_network()
TOKEN = make_grant_token(NETWORK)
NO_PODS = make_grant_token(NETWORK, roles=frozenset({"none"}))
# Four ranges.
SMALL = make_network(pod_cidr="10.244.0.0/24", node_bits=2)
OVERLAY = OverlayStatus("skerry0", "kernel", (), 51820, (), (), (), uplink="eth0", mtu=1400)


def plan(network: NetworkInfo) -> RangePlan:
    return plan_for(network.network_id, network.settings)


def formed(world: World, count: int, network: NetworkInfo = NETWORK) -> list[Node]:
    token = make_grant_token(network)
    nodes = world.form(*(join(token, f"n{number}") for number in range(count)))
    assert world.run(20, until=lambda: world.connected(nodes) and world.ranged(nodes))
    return nodes


def told(node: Node, world: World, overlay: OverlayStatus = OVERLAY) -> ClusterView:
    return cluster_view(node.plane, overlay, world.now)


def networks(node: Node) -> set[str]:
    assert node.range is not None
    return {str(node.range.ipv4), str(node.range.ipv6)}


def rivals(network: NetworkInfo, count: int = 2) -> list[Identity]:
    """Return nodes whose first range is the same."""
    token = make_grant_token(network)
    groups: dict[bytes, list[Identity]] = {}
    for number in itertools.count():
        one = join(token, f"rival{number}")
        group = groups.setdefault(plan(network).at(one.node_id, 0), [])
        group.append(one)
        if len(group) == count:
            return group
    raise AssertionError


def claims(node: Node, world: World) -> int:
    return len(node.plane.gossip.replica.entries(RANGE, world.ms))


def test_everybody_has_a_range_and_all_lead_it_to_its_node() -> None:
    world = World()
    nodes = formed(world, 4)
    for one in nodes:
        # Nothing for its own pods goes into the tunnel.
        assert one.own is not None
        assert set(one.own.networks) == networks(one)
    world.run(10)
    assert world.ranged(nodes)
    # And enough members have seen each of them, so that no later claim outranks it.
    said = said_of(nodes[0].plane.gossip.replica)
    for claim in said.claimed(RANGE_KIND).values():
        assert len(said.witnesses(RANGE_KIND, claim)) == WITNESSES


def test_a_revoked_node_s_range_is_led_nowhere_at_once_and_is_free() -> None:
    world = World()
    nodes = formed(world, 3)
    gone, rest = nodes[2], nodes[:2]
    operator = Operator(NETWORK)
    operator.learn(rest[0].plane.gossip.replica, world.ms)
    world.publish(rest[0], [operator.revoke(gone.node_id, world.ms)])
    assert world.run(1, until=lambda: all(gone.key not in one.wireguard for one in rest))
    for one in rest:
        assert any(networks(gone) <= set(flushed) for flushed in one.flushed)
        assert not networks(gone) & world.allowed(one).keys()
    assert world.run(5, until=lambda: all(claims(one, world) == 2 for one in rest))
    assert {one.node_id for one in told(rest[0], world).members} == {
        one.identity.id_text for one in rest
    }


def test_a_restart_takes_no_range_away_not_for_a_moment() -> None:
    world = World()
    nodes = formed(world, 3)
    world.run(10)
    before = [one.range for one in nodes]
    for one in nodes:
        kept = dict(one.wireguard)
        world.boot(one)
        assert one.wireguard == kept
        assert one.range == before[nodes.index(one)]
        assert told(one, world).range is not None
    world.run(30)
    assert [one.range for one in nodes] == before
    assert world.ranged(nodes)


def test_a_new_node_claims_nothing_before_it_could_hear_what_is_taken() -> None:
    world = World()
    first = world.add(join(TOKEN, "first"))
    world.run(ALONE_SECONDS - 0.1)
    assert claims(first, world) == 0
    assert first.range is None
    world.run(0.2)
    assert claims(first, world) == 1
    assert told(first, world).range is None, "it may still lose it"
    world.run(STANDS_SECONDS)
    assert told(first, world).range is not None
    second = world.add(join(TOKEN, "second"))
    assert world.run(5, until=lambda: world.connected([first, second]))
    assert second.range is None
    world.run(HEARD_SECONDS + 0.5)
    assert world.ranged([first, second])


def test_who_comes_later_never_takes_what_it_could_know_to_be_taken() -> None:
    early, late = rivals(NETWORK)
    world = World()
    first = world.add(early)
    world.run(30)
    held = first.range
    second = world.add(late)
    ever: set[NodeRange | None] = set()
    for _ in range(200):
        world.run(0.1)
        ever.add(second.range)
    assert world.ranged([first, second])
    assert first.range == held
    assert held not in ever


def test_of_two_that_took_one_range_apart_one_moves_and_says_so() -> None:
    pair = rivals(NETWORK)
    token = make_grant_token(NETWORK)
    world = World()
    left = [world.add(pair[0]), world.add(join(token, "l"))]
    right = [world.add(pair[1], side=1), world.add(join(token, "r"), side=1)]
    world.run(40)
    assert world.ranged(left)
    assert world.ranged(right)
    assert left[0].range == right[0].range
    before = left[0].range
    world.heal()
    assert world.run(120, until=lambda: world.ranged(left + right))
    moved = [one for one in (left[0], right[0]) if one.range != before]
    assert len(moved) == 1
    assert moved[0].said("this node's pods move to 10.244.")
    assert not any(one.plane.problems for one in left + right)


def test_a_lost_ledger_comes_back_with_the_range() -> None:
    world = World()
    early, late = rivals(NETWORK)
    nodes = world.form(early, join(TOKEN, "other"))
    assert world.run(30, until=lambda: world.ranged(nodes))
    nodes.append(world.add(late))
    assert world.run(30, until=lambda: world.ranged(nodes))
    world.run(5)
    # Its first attempt is another's: it must not even try that again.
    held = nodes[2].range
    assert held is not None
    nodes[2].disk.clear()
    nodes[2].sequence = nodes[2].high_water = 0
    world.boot(nodes[2])
    assert nodes[2].range is None
    ever: set[NodeRange | None] = set()
    for _ in range(100):
        world.run(0.1)
        ever.add(nodes[2].range)
    assert world.ranged(nodes)
    assert ever == {None, held}


def test_a_range_that_the_operator_fixes_is_taken_and_left_by_who_had_it() -> None:
    world = World()
    nodes = formed(world, 3)
    operator = Operator(NETWORK)
    operator.learn(nodes[0].plane.gossip.replica, world.ms)
    wanted = nodes[2].range
    assert wanted is not None
    key = assigned.node_key(nodes[1].node_id, assigned.RANGE)
    world.publish(nodes[0], [operator.write(ASSIGNED, key, pack(wanted.ipv4), world.ms)])
    assert world.run(10, until=lambda: nodes[1].range == wanted and world.ranged(nodes))
    assert nodes[2].range != wanted
    (row,) = [one for one in told(nodes[0], world).members if one.name == "n1"]
    assert row.fixed
    world.publish(nodes[0], [operator.writer.delete(ASSIGNED, key, world.ms).entry.record])
    world.run(10)
    assert world.ranged(nodes), "and it finds itself one again"


def test_a_node_that_may_only_be_of_the_overlay_has_no_range() -> None:
    world = World()
    nodes = world.form(join(TOKEN, "one"), join(NO_PODS, "two"), join(TOKEN, "three"))
    carriers = [nodes[0], nodes[2]]
    assert world.run(30, until=lambda: world.connected(nodes) and world.ranged(carriers))
    world.run(ALONE_SECONDS)
    assert claims(nodes[0], world) == 2
    view = told(nodes[1], world)
    assert (view.range, view.problems) == (None, ())
    # It reaches pods all the same.
    for one in carriers:
        assert networks(one) <= world.allowed(nodes[1]).keys()
    # And if it claimed one, that would count for nothing.
    rogue, ours = nodes[1], plan(NETWORK)
    held = {text for one in carriers for text in networks(one)}
    places = ((number, ours.at(rogue.node_id, number)) for number in range(9))
    attempt, what = next(one for one in places if str(ours.read(one[1])) not in held)
    claim = Claim(rogue.node_id, what, attempt)
    world.put(rogue, rogue.identity.id_text, claim_value(claim), bucket=RANGE)
    world.run(10)
    assert claims(nodes[0], world) == 3
    wanted = ours.read(what)
    for one in nodes:
        assert str(wanted) not in world.allowed(one)
        assert rogue.range is None
    assert not said_of(nodes[0].plane.gossip.replica).witnesses(RANGE_KIND, claim)


def test_one_node_too_many_is_told_so_and_is_a_member_all_the_same() -> None:
    world = World()
    token = make_grant_token(SMALL)
    nodes = world.form(*(join(token, f"n{number}") for number in range(5)))
    assert world.run(30, until=lambda: world.connected(nodes))

    def all_taken() -> bool:
        held = [one.range for one in nodes]
        return len(set(held)) == 5 and held.count(None) == 1

    assert world.run(60, until=all_taken)
    (late,) = [one for one in nodes if one.range is None]
    # It may have lost one to somebody this moment, and not have seen yet that there is no other.
    assert world.run(60, until=lambda: bool(told(late, world).problems))
    view = told(late, world)
    assert view.range is None
    assert [one.code for one in view.problems] == ["pod-ranges-exhausted"]
    assert not late.plane.problems, "nothing is wrong with the node"
    assert world.connected(nodes)
    # Somebody leaves.
    operator = Operator(SMALL)
    gone = next(one for one in nodes if one is not late)
    operator.learn(late.plane.gossip.replica, world.ms)
    world.publish(late, [operator.revoke(gone.node_id, world.ms)])
    rest = [one for one in nodes if one is not gone]
    assert world.run(30, until=lambda: world.ranged(rest))


def test_without_a_tunnel_the_claims_hold_and_the_uplinks_are_told() -> None:
    network = make_network(vpn=False)
    token = make_grant_token(network)
    world = World()
    nodes = world.form(*(join(token, f"n{number}") for number in range(3)))

    def settled() -> bool:
        held = {one.node_id: one.range for one in nodes}
        return len(set(held.values())) == 3 and all(
            {**one.plane.policies.holdings.ranges.others, one.node_id: one.range} == held
            for one in nodes
        )

    assert world.run(30, until=settled)
    world.run(STANDS_SECONDS + 1)
    assert not any(one.wireguard or one.own for one in nodes)
    view = told(nodes[0], world)
    assert (view.vpn, view.interface, view.mtu) == (False, "eth0", 1400)
    assert view.addresses == (nodes[0].address,)
    assert {one.addresses for one in view.members} == {(one.address,) for one in nodes}
    assert view.range is not None
    assert None not in {one.range for one in view.members}


def test_no_way_to_a_member_leads_through_pods() -> None:
    """A CNI's address on the machine is none that others could send to."""
    world = World()
    nodes = formed(world, 2)
    ipv6 = str(pods_prefix(NETWORK.network_id)[5])
    world.feed(nodes[0], events.LocalAddresses((nodes[0].address, "10.244.7.1", ipv6)))
    world.run(5)
    at = events.Discovered("mdns:x", (Endpoint("10.244.7.1", 51820),))
    before = world.datagrams
    world.feed(nodes[1], at)
    world.run(0.5)
    assert world.datagrams - before < 20
    peer = nodes[1].plane.peers[nodes[0].node_id]
    hosts = {one.host for one in (*peer.candidates, peer.endpoint) if one is not None}
    assert hosts == {nodes[0].address}
    hint = nodes[1].plane.gossip.replica.get(
        "node", f"{nodes[0].identity.id_text}/endpoints", world.ms
    )
    assert hint is not None
    assert bytes([10, 244, 7, 1]) not in hint.value


def test_the_document_is_what_its_description_says() -> None:
    world = World()
    nodes = formed(world, 2)
    world.run(STANDS_SECONDS)
    view = told(nodes[0], world)
    document = msgspec.json.decode(msgspec.json.encode(view))
    assert msgspec.convert(document, ClusterView, strict=True) == view
    routes = description(cluster_routes(lambda: view))
    schema = routes["paths"]["/v1/cluster"]["get"]["responses"]["200"]["content"]  # type: ignore[index]
    _fits(document, schema["application/json"]["schema"])
    assert [one["name"] for one in document["members"]] == ["n0", "n1"]
    assert document["range"] == document["members"][0]["range"]
    assert document["addresses"] == [nodes[0].ipv4, str(nodes[0].plane.ipv6)]
    assert document["settings"]["pod_cidr"] == "10.244.0.0/16"
    assert (document["vpn"], document["interface"]) == (True, "skerry0")


def _fits(value: object, schema: dict[str, object]) -> None:
    kinds = schema.get("type", [])
    kind = {dict: "object", list: "array", str: "string", bool: "boolean", int: "integer"}.get(
        type(value), "null"
    )
    if "enum" in schema:
        assert value in schema["enum"]  # type: ignore[operator]
    else:
        assert kind in ([kinds] if isinstance(kinds, str) else kinds)  # type: ignore[operator]
    if isinstance(value, dict) and "properties" in schema:
        properties: dict[str, dict[str, object]] = schema["properties"]  # type: ignore[assignment]
        assert list(value) == list(properties) == schema["required"]
        for name, one in value.items():
            _fits(one, properties[name])
    elif isinstance(value, list):
        for one in value:
            _fits(one, schema["items"])  # type: ignore[arg-type]


def understood(view: ClusterView) -> facts.Cluster:
    """Return what the cluster agent makes of it."""
    return facts.check(facts.read(msgspec.json.encode(view), ClusterFacts, "the cluster"))


def test_the_cluster_agent_understands_it() -> None:
    world = World()
    nodes = formed(world, 2)
    world.run(STANDS_SECONDS)
    found = understood(told(nodes[0], world))
    assert found.range == nodes[0].range
    assert found.range_of(nodes[1].identity.id_text) == nodes[1].range
    assert found.node_addresses == (nodes[0].ipv4, str(nodes[0].plane.ipv6))
    assert str(found.services) == "10.96.0.0/16"
    assert found.dns == "10.96.0.10"


# Several clusters on one overlay


def in_cluster(network: NetworkInfo, name: str) -> Token:
    labels = {CLUSTER_LABEL: name} if name else {}
    return make_token(network, ROOT_SEED, now=UNIX - 1000, roles=frozenset({"auto"}), labels=labels)


def test_clusters_share_pods_ranges_and_have_services_of_their_own() -> None:
    network = make_network(cluster_bits=4)
    world = World()
    names = ("", "blue", "green")
    nodes = world.form(
        *(join(in_cluster(network, name), f"n{number}") for number, name in enumerate(names * 2))
    )
    assert world.run(60, until=lambda: world.ranged(nodes))
    world.run(5)
    found: dict[str, set[str | None]] = {}
    for one in nodes:
        view = told(one, world)
        found.setdefault(view.cluster, set()).add(view.services)
        assert not view.problems
    assert {len(one) for one in found.values()} == {1}, "the same for all of a cluster"
    assert found[""] == {"10.96.0.0/20"}
    services = [ipaddress.IPv4Network(str(one)) for (one,) in found.values()]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(services, 2))


def test_of_two_clusters_with_one_range_of_services_the_first_has_it_for_everybody() -> None:
    network = make_network()  # room for one
    world = World()
    first = world.form(*(join(in_cluster(network, ""), f"f{number}") for number in range(2)))
    assert world.run(30, until=lambda: world.ranged(first))
    world.run(5)
    late = [world.add(join(in_cluster(network, "blue"), "late"))]
    assert world.run(60, until=lambda: world.ranged([*first, *late]))
    world.run(5)
    for one in first:
        assert told(one, world).services == "10.96.0.0/16"
    view = told(late[0], world)
    assert view.services is None
    (problem,) = view.problems
    assert problem.code == "cluster-services-taken"
    assert "that of the cluster without a name" in problem.message
    with pytest.raises(SupervisorError, match="that of the cluster without a name"):
        understood(view)
    assert str(understood(told(first[0], world)).services) == "10.96.0.0/16"


@pytest.mark.parametrize("network", [NETWORK, SMALL])
def test_before_anything_is_claimed_there_is_a_document(network: NetworkInfo) -> None:
    world = World()
    node = world.add(join(make_grant_token(network), "alone"))
    view = told(node, world)
    assert view.range is None
    assert [one.name for one in view.members] == ["alone"]
    assert view.members[0].state == "self"
