"""Which pod range a node has: no two the same, the same on every node, and Kubernetes agrees."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.cluster.errors import ClusterError, RangesExhaustedError
from appliance.cluster.ranges import (
    RangePlan,
    ipv6_range,
    pack,
    plan_for,
    range_view,
    ranges,
    unpack,
)
from appliance.cluster.recorded import Verdict, read_recorded, reconcile
from appliance.ledger import claims
from appliance.ledger.claims import (
    RANGE_KIND,
    Claim,
    Sighting,
    View,
    claim_value,
    settle,
    witness_key,
    witness_value,
)
from appliance.ledger.entry import Entry
from appliance.ledger.timekeeper import Quality
from appliance.overlay.addresses import pods_prefix, ula_prefix
from provisioning.settings import Settings
from tests.fakes.ledger import NOW, Node, entry, network, node, replica, revocation, root_entry

NETWORK_ID = network().network_id
PLAN = plan_for(NETWORK_ID, Settings())
# Two nodes' worth of trouble: everybody wants the same few.
SMALL = RangePlan(NETWORK_ID, ipaddress.IPv4Network("10.244.0.0/24"), 2)
EMPTY = View({})
A, B, C, D = (node(number) for number in (1, 2, 3, 4))


def node_id(number: int) -> bytes:
    return number.to_bytes(16)


def settled(nodes: list[bytes], plan: RangePlan, view: View = EMPTY) -> View:
    """Each node claims in turn, knowing of those before."""
    for one in nodes:
        claim = settle(one, view, plan).claim
        if claim is not None:
            view = View({**view.claims, one: claim}, view.sightings, view.fixed)
    return view


def net(text: str) -> ipaddress.IPv4Network:
    return ipaddress.IPv4Network(text)


# The plan


def test_the_usual_settings_are_256_nodes_of_253_pods() -> None:
    assert PLAN.places == 256
    assert PLAN.numbered(0) == net("10.244.0.0/24")
    assert PLAN.numbered(255) == net("10.244.255.0/24")
    pods = PLAN.pod_range(PLAN.numbered(7))
    assert pods.pods == 253
    ipv4, ipv6 = pods.gateways
    assert str(ipv4) == "10.244.7.1"
    assert ipv6 == pods.ipv6.network_address + 1


@pytest.mark.parametrize("bits", range(4, 13))
def test_a_node_s_attempts_lead_through_every_range_once(bits: int) -> None:
    plan = plan_for(NETWORK_ID, Settings(node_bits=bits))
    assert plan.prefix == 16 + bits
    tried = [plan.at(A.node_id, attempt) for attempt in range(plan.places)]
    assert len(set(tried)) == plan.places == 2**bits
    first, size = int(plan.pod_cidr.network_address), 2 ** (16 - bits)
    starts = sorted(int.from_bytes(one[:4]) for one in tried)
    assert starts == list(range(first, first + 2**16, size))
    assert plan.at(A.node_id, plan.places) == tried[0]
    found = plan.read(tried[0])
    assert found is not None
    assert plan.pod_range(found).pods == size - 3


def test_the_formula_is_as_documented() -> None:
    """docs/cluster.md has these three."""
    wanted = ["10.244.152.0/24", "10.244.103.0/24", "10.244.54.0/24"]
    assert [str(PLAN.read(PLAN.at(bytes(range(16)), one))) for one in range(3)] == wanted


@given(st.binary(min_size=16, max_size=16), st.integers(4, 12), st.data())
def test_every_range_is_some_attempt_of_every_node(
    owner: bytes, bits: int, data: st.DataObject
) -> None:
    plan = replace(PLAN, node_bits=bits)
    wanted = plan.numbered(data.draw(st.integers(0, plan.places - 1)))
    claim = plan.claim_for(owner, wanted)
    assert claim.attempt is not None
    assert 0 <= claim.attempt < plan.places
    assert claims.is_derived(claim, plan)
    assert plan.read(claim.what) == wanted


def test_what_is_no_range_of_the_plan_is_refused() -> None:
    for text in ("10.244.0.0/25", "10.244.0.0/16", "10.245.0.0/24"):
        assert not PLAN.has(net(text))
        assert not PLAN.fixable(pack(net(text)))
        with pytest.raises(ClusterError, match=r"they are /24 of 10\.244\.0\.0/16"):
            PLAN.number_of(net(text))
    with pytest.raises(ClusterError, match="can't be cut"):
        RangePlan(NETWORK_ID, net("10.244.0.0/24"), 7)


@given(st.binary(max_size=8))
def test_packed_ranges_are_read_strictly(data: bytes) -> None:
    found = unpack(data)
    assert found is None or pack(found) == data
    assert len(data) == 5 or found is None


@given(st.sets(st.integers(0, 4095), min_size=2, max_size=12), st.integers(4, 12))
def test_ipv6_ranges_are_disjoint_and_apart_from_the_nodes(numbers: set[int], bits: int) -> None:
    plan = replace(PLAN, node_bits=bits)
    found = [plan.pod_range(plan.numbered(one % plan.places)).ipv6 for one in numbers]
    for one in set(found):
        assert one.prefixlen == 80
        assert one.subnet_of(pods_prefix(NETWORK_ID))
        assert not one.overlaps(ula_prefix(NETWORK_ID))
        assert not any(one.overlaps(other) for other in set(found) - {one})
    assert len(set(found)) == len({one % plan.places for one in numbers})


def test_the_ipv6_range_shows_the_ipv4_one() -> None:
    found = ipv6_range(NETWORK_ID, net("10.244.7.0/24"))
    assert found.network_address.packed[6:10] == bytes([10, 244, 7, 0])


# Claims


def test_256_nodes_fill_the_range_and_the_257th_is_told() -> None:
    nodes = [node_id(one) for one in range(1, 257)]
    full = settled(nodes, PLAN)
    assert len(full.holders()) == 256
    assert full.contested() == {}
    everybody = [*nodes, node_id(257)]
    found = ranges(node_id(257), full, PLAN, everybody)
    assert found.own is None
    assert found.claim is None
    assert len(found.others) == 256
    assert found.problem is not None
    assert found.problem.code == "pod-ranges-exhausted"
    assert "all 256 pod ranges of 10.244.0.0/16" in found.problem.message
    assert "skerry node remove" in found.problem.hint
    with pytest.raises(RangesExhaustedError):
        settle(node_id(257), full, PLAN)
    # One goes: its range is what is left.
    freed = full.claims[nodes[9]].what
    after = ranges(node_id(257), full, PLAN, [one for one in everybody if one != nodes[9]])
    assert after.claim is not None
    assert after.claim.what == freed
    assert after.problem is None


@pytest.mark.parametrize("bits", range(4, 13))
def test_whatever_the_cut_one_node_too_many_is_told_and_gets_what_is_freed(bits: int) -> None:
    plan = replace(PLAN, node_bits=bits)
    late = node_id(2**bits)
    full = {
        node_id(number): plan.claim_for(node_id(number), plan.numbered(number))
        for number in range(plan.places)
    }
    with pytest.raises(RangesExhaustedError, match=f"all {2**bits} pod ranges"):
        settle(late, View(full), plan)
    freed = full.pop(node_id(5)).what
    claim = settle(late, View(full), plan).claim
    assert claim is not None
    assert claim.what == freed


def test_a_range_is_kept_whatever_comes_later() -> None:
    first = ranges(A.node_id, EMPTY, PLAN, [A.node_id])
    assert first.claim is not None
    view = settled([B.node_id, C.node_id], PLAN, View({A.node_id: first.claim}))
    later = ranges(A.node_id, view, PLAN, [A.node_id, B.node_id, C.node_id])
    assert later.claim is None
    assert later.own == first.own
    assert later.others.keys() == {B.node_id, C.node_id}


def test_who_was_seen_first_holds_and_the_other_moves() -> None:
    mine = Claim(A.node_id, SMALL.at(A.node_id, 0), 0)
    wanted = SMALL.read(mine.what)
    assert wanted is not None
    theirs = SMALL.claim_for(B.node_id, wanted)
    seen = {(B.node_id, theirs.what): Sighting(guessed=False, stamp=5)}
    view = View({A.node_id: mine, B.node_id: theirs}, seen)
    moved = ranges(A.node_id, view, SMALL, [A.node_id, B.node_id])
    assert moved.moved_for == B.node_id
    assert moved.claim is not None
    assert moved.claim.what != mine.what
    assert moved.own is not None
    assert not moved.own.ipv4.overlaps(moved.others[B.node_id].ipv4)
    assert ranges(B.node_id, view, SMALL, [A.node_id, B.node_id]).claim is None


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 40)), max_size=12),
    st.dictionaries(st.integers(1, 9), st.tuples(st.booleans(), st.integers(1, 3)), max_size=9),
    st.permutations(range(1, 10)),
)
def test_whatever_is_claimed_it_settles_without_overlap(
    wild: list[tuple[int, int]], seen: dict[int, tuple[bool, int]], order: list[int]
) -> None:
    """From any claims, with any witnesses: each holder has a range that no other has."""
    plan = replace(SMALL, pod_cidr=net("10.244.0.0/22"), node_bits=4)
    first = {node_id(one): Claim(node_id(one), plan.at(node_id(one), at), at) for one, at in wild}
    told = {
        (node_id(one), first[node_id(one)].what): Sighting(*word)
        for one, word in seen.items()
        if node_id(one) in first
    }
    view = View(first, told)
    for _ in range(20):
        before, view = view, settled([node_id(one) for one in order], plan, view)
        if view == before:
            break
    assert view.contested() == {}
    members = [node_id(one) for one in order]
    own = {who: ranges(who, view, plan, members).own for who in members}
    held = [its.ipv4 for its in own.values() if its is not None]
    assert len(held) == len(members)
    assert len(set(held)) == len(held)
    for who in members:
        rest = {other: its for other, its in own.items() if other != who}
        assert ranges(who, view, plan, members).others == rest


def test_a_range_that_the_operator_fixed_stands_above_all() -> None:
    mine = Claim(A.node_id, PLAN.at(A.node_id, 0), 0)
    fixed = {B.node_id: mine.what}
    view = View({A.node_id: mine}, fixed=fixed)
    both = [A.node_id, B.node_id]
    given = ranges(B.node_id, view, PLAN, both)
    assert given.claim == Claim(B.node_id, mine.what)
    # Who has to move has it no longer, as soon as that is known.
    assert given.others == {}
    moved = ranges(A.node_id, view, PLAN, both)
    assert moved.moved_for == B.node_id
    assert moved.own is not None
    assert pack(moved.own.ipv4) != mine.what
    # The word about a node that is gone binds nobody.
    assert ranges(A.node_id, view, PLAN, [A.node_id]).claim is None


def test_a_range_given_twice_is_said() -> None:
    what = PLAN.at(A.node_id, 3)
    view = View({A.node_id: Claim(A.node_id, what)}, fixed={A.node_id: what, B.node_id: what})
    found = ranges(B.node_id, view, PLAN, [A.node_id, B.node_id])
    assert found.problem is not None
    assert found.problem.code == "pod-range-given-twice"
    assert found.own is not None
    assert pack(found.own.ipv4) != what


# In the ledger


def claim_entry(of: Node, attempt: int = 0, *, sequence: int = 2) -> Entry:
    value = claim_value(Claim(of.node_id, PLAN.at(of.node_id, attempt), attempt))
    return entry(of, "range", of.text, value, sequence=sequence)


def witness_entry(by: Node, of: Node, ms: int) -> Entry:
    value = witness_value(PLAN.at(of.node_id, 0), Quality.SYNCED)
    key = witness_key(by.node_id, RANGE_KIND, of.node_id)
    return entry(by, "witness", key, value, sequence=3 + ms - NOW, ms=ms)


ENTRIES = (
    claim_entry(A),
    claim_entry(B),
    claim_entry(B, 1, sequence=3),
    claim_entry(C),
    witness_entry(D, A, NOW + 1),
    witness_entry(D, C, NOW + 2),
    witness_entry(B, C, NOW + 3),
    root_entry("assigned", f"{D.text}/range", PLAN.at(A.node_id, 0), sequence=2),
    revocation(C, sequence=3),
)
IN_ORDER = replica([A, B, C, D])
for each in ENTRIES:
    IN_ORDER.apply(each, NOW)


@settings(max_examples=30)
@given(st.permutations(ENTRIES))
def test_in_any_order_of_entries_the_ranges_are_the_same(order: list[Entry]) -> None:
    here = replica([A, B, C, D])
    for one in order:
        here.apply(one, NOW)
    members = [one.node_id for one in here.directory]
    assert set(members) == {A.node_id, B.node_id, D.node_id}
    for own in members:
        assert ranges(own, range_view(here, PLAN, NOW), PLAN, members) == ranges(
            own, range_view(IN_ORDER, PLAN, NOW), PLAN, members
        )
    view = range_view(here, PLAN, NOW)
    assert ranges(D.node_id, view, PLAN, members).claim == Claim(D.node_id, ENTRIES[7].value)
    assert ranges(A.node_id, view, PLAN, members).moved_for == D.node_id
    assert view.claims[B.node_id].attempt == 1


def test_claims_and_witnesses_are_read_and_end_with_a_revocation() -> None:
    here = replica([A, B])
    here.apply(claim_entry(A), NOW)
    seen = witness_entry(B, A, NOW + 1)
    here.apply(seen, NOW)
    view = range_view(here, PLAN, NOW)
    what = PLAN.at(A.node_id, 0)
    assert view.claims == {A.node_id: Claim(A.node_id, what, 0)}
    assert view.sightings == {(A.node_id, what): Sighting(guessed=False, stamp=seen.stamp)}
    assert claims.address_view(here, net("10.10.0.0/16"), NOW) == EMPTY
    here.apply(revocation(A), NOW)
    assert range_view(here, PLAN, NOW).claims == {}
    free = PLAN.read(what)
    assert free is not None
    # Free at once: whoever's id leads there may have it.
    newcomer = PLAN.claim_for(B.node_id, free)
    here.apply(entry(B, "range", B.text, claim_value(newcomer), sequence=9), NOW)
    assert range_view(here, PLAN, NOW).holders() == {what: B.node_id}


def test_nobody_goes_for_a_certain_range_nor_claims_two() -> None:
    here = replica([A])
    stolen = Claim(A.node_id, PLAN.at(A.node_id, 1), 0)
    here.apply(entry(A, "range", A.text, claim_value(stolen), sequence=2), NOW)
    assert range_view(here, PLAN, NOW).claims == {}
    for sequence in (3, 4):
        second = f"{A.text}/{sequence}"
        here.apply(entry(A, "range", second, claim_value(stolen), sequence=sequence), NOW)
    assert here.usage(A.node_id, "range")[0] == 1


def test_a_range_of_another_cut_counts_for_nothing() -> None:
    here = replica([A])
    other = replace(PLAN, node_bits=9)
    claim = Claim(A.node_id, other.at(A.node_id, 0), 0)
    here.apply(entry(A, "range", A.text, claim_value(claim), sequence=2), NOW)
    assert range_view(here, other, NOW).claims == {A.node_id: claim}
    assert range_view(here, PLAN, NOW).claims == {}


@settings(max_examples=60)
@given(st.binary(max_size=40), st.sampled_from(["range", "witness", "assigned"]))
def test_junk_in_the_buckets_counts_for_nothing(data: bytes, bucket: str) -> None:
    here = replica([A])
    match bucket:
        case "range":
            here.apply(entry(A, "range", A.text, data, sequence=2), NOW)
        case "witness":
            key = witness_key(A.node_id, RANGE_KIND, B.node_id)
            here.apply(entry(A, "witness", key, data, sequence=2), NOW)
        case _:
            here.apply(root_entry("assigned", f"{A.text}/range", data), NOW)
    assert range_view(here, PLAN, NOW) == EMPTY


def test_only_the_statement_about_the_range_fixes_it() -> None:
    here = replica([A])
    what = PLAN.at(A.node_id, 3)
    for number, key in enumerate((f"{A.text}/address", f"{A.text}/name", "x/range", A.text)):
        here.apply(root_entry("assigned", key, what, sequence=2 + number), NOW)
    assert range_view(here, PLAN, NOW).fixed == {}
    here.apply(root_entry("assigned", f"{A.text}/range", what, sequence=9), NOW)
    assert range_view(here, PLAN, NOW).fixed == {A.node_id: what}
    here.apply(root_entry("assigned", f"{A.text}/range", sequence=10, deleted=True), NOW)
    assert range_view(here, PLAN, NOW).fixed == {}


# What Kubernetes says


MINE = PLAN.pod_range(PLAN.numbered(7))
RECORD = (str(MINE.ipv4), str(MINE.ipv6))


def test_a_range_is_recorded_once_and_then_agreed() -> None:
    assert reconcile("n1", None, (), PLAN).verdict is Verdict.WAIT
    found = reconcile("n1", MINE, (), PLAN)
    assert found.verdict is Verdict.RECORD
    assert found.record == RECORD
    assert found.use == MINE
    again = reconcile("n1", MINE, found.record, PLAN)
    assert again.verdict is Verdict.AGREED
    assert (again.use, again.record) == (MINE, ())
    assert reconcile("n1", MINE, RECORD[:1], PLAN).verdict is Verdict.AGREED
    assert reconcile("n1", MINE, RECORD[::-1], PLAN).verdict is Verdict.AGREED


@pytest.mark.parametrize(
    ("recorded", "code"),
    [
        (("10.244.8.0/24",), "pod-range-conflict"),
        (("10.244.7.0/25",), "pod-range-conflict"),
        ((RECORD[0], "fd00::/80"), "pod-range-conflict"),
        (("",), "pod-range-unreadable"),
        ((RECORD[1],), "pod-range-unreadable"),
        (("10.244.7.1/24",), "pod-range-unreadable"),
        (("10.244.7.0/255.255.255.0",), "pod-range-unreadable"),
        ((RECORD[0], RECORD[0]), "pod-range-unreadable"),
        ((*RECORD, "x" * 99), "pod-range-unreadable"),
        ((RECORD[0], "fd00::%1/64"), "pod-range-unreadable"),
    ],
)
def test_a_conflict_is_refused_on_both_sides(recorded: tuple[str, ...], code: str) -> None:
    found = reconcile("n1", MINE, recorded, PLAN)
    assert found.verdict is Verdict.REFUSED
    # Nothing is written over there, and nothing is used here.
    assert (found.use, found.adopt, found.record) == (None, None, ())
    assert found.problem is not None
    assert found.problem.code == code
    assert "n1" in found.problem.message
    assert "kubectl delete node n1" in found.problem.hint
    assert len(found.problem.message) < 400


def test_a_range_that_kubernetes_has_for_another_node_is_refused() -> None:
    for others in ({"old": RECORD}, {"old": ("10.244.0.0/20",)}, {"a": ("?",), "old": RECORD[:1]}):
        for recorded in ((), RECORD):
            found = reconcile("n1", MINE, recorded, PLAN, others)
            assert found.verdict is Verdict.REFUSED
            assert found.use is None
            assert found.problem is not None
            assert found.problem.code == "pod-range-in-use"
            assert "kubectl delete node old" in found.problem.hint
    assert reconcile("n1", MINE, (), PLAN, {"n2": ("10.244.8.0/24",)}).use == MINE


def test_a_node_without_a_claim_takes_what_kubernetes_has_if_it_is_free() -> None:
    found = reconcile("n1", None, RECORD, PLAN)
    assert found.verdict is Verdict.ADOPT
    assert found.use is None
    assert found.adopt == MINE.ipv4
    taken = ranges(A.node_id, EMPTY, PLAN, [A.node_id], recorded=found.adopt)
    assert taken.own == MINE
    assert taken.claim is not None
    assert claims.is_derived(taken.claim, PLAN)
    # Another has it: the usual way, and then a conflict that is said.
    view = View({B.node_id: PLAN.claim_for(B.node_id, MINE.ipv4)})
    both = [A.node_id, B.node_id]
    other = ranges(A.node_id, view, PLAN, both, recorded=found.adopt)
    assert other.own is not None
    assert other.own != MINE
    assert reconcile("n1", other.own, RECORD, PLAN).verdict is Verdict.REFUSED
    # A claim that is there stays.
    kept = View({A.node_id: Claim(A.node_id, PLAN.at(A.node_id, 0), 0)})
    assert ranges(A.node_id, kept, PLAN, both, recorded=MINE.ipv4).claim is None
    # Nor does it change what the operator fixed, nor where a node goes that has to move.
    fixed = View({}, fixed={A.node_id: PLAN.at(A.node_id, 5)})
    given = ranges(A.node_id, fixed, PLAN, both, recorded=MINE.ipv4).claim
    assert given == Claim(A.node_id, PLAN.at(A.node_id, 5))
    first = kept.claims[A.node_id]
    outranked = View({A.node_id: first}, fixed={B.node_id: first.what})
    moved = ranges(A.node_id, outranked, PLAN, both, recorded=MINE.ipv4).claim
    assert moved == Claim(A.node_id, PLAN.at(A.node_id, 1), 1)
    # What is no range of this network is not adopted.
    for recorded in (("10.1.0.0/24",), (RECORD[0], "fd00::/80")):
        assert reconcile("n1", None, recorded, PLAN).verdict is Verdict.REFUSED
    usual = ranges(A.node_id, EMPTY, PLAN, both, recorded=net("10.1.0.0/24")).claim
    assert usual == Claim(A.node_id, PLAN.at(A.node_id, 0), 0)


@given(st.lists(st.text(max_size=70) | st.sampled_from([*RECORD, "::/0", "0.0.0.0/0"]), max_size=4))
def test_whatever_kubernetes_says_there_is_a_verdict(recorded: list[str]) -> None:
    for claimed in (MINE, None):
        found = reconcile("n1", claimed, recorded, PLAN, {"n2": recorded})
        assert (found.problem is not None) is (found.verdict is Verdict.REFUSED)
        assert (found.use is not None) is (found.verdict in {Verdict.AGREED, Verdict.RECORD})
    said = read_recorded(recorded)
    assert said is None or len(said) == len(recorded)
