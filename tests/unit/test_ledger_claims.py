"""Who has which address: one holder, the same on every node, whatever clocks and orders do."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.ledger import claims
from appliance.ledger.claims import (
    ADDRESS_KIND,
    GRANT_KIND,
    WITNESSES,
    Addresses,
    Claim,
    Sighting,
    View,
    WitnessValue,
    address_view,
    admitted,
    bears_witness,
    claim_value,
    decide,
    grant_view,
    is_derived,
    is_witness,
    witness_key,
    witness_value,
)
from appliance.ledger.gossip import GossipConfig
from appliance.ledger.state import Reason
from appliance.ledger.timekeeper import Quality
from appliance.overlay.addresses import AddressesExhaustedError, claimed_address, usable
from provisioning import codec
from tests.fakes.ledger import NOW, Node, entry, node, replica, root_entry, writer
from tests.fakes.ledger_net import Net, Station

RANGE = ipaddress.IPv4Network("10.10.0.0/29")
QUIET = GossipConfig(swim=None)
WIDE = ipaddress.IPv4Network("10.10.0.0/16")
LOW, MIDDLE, HIGH = sorted(bytes([one]) * 16 for one in (1, 2, 3))


def view(*items: Claim, seen: dict[bytes, tuple[bool, int]] | None = None, **fixed: bytes) -> View:
    by_node = {one.node: one for one in items}
    told = {(node, by_node[node].what): Sighting(*one) for node, one in (seen or {}).items()}
    return View(by_node, told, {bytes.fromhex(node[1:]): one for node, one in fixed.items()})


def derived(owner: bytes, attempt: int = 0, within: ipaddress.IPv4Network = RANGE) -> Claim:
    return Claim(owner, claimed_address(owner, attempt, within).packed, attempt)


def clash(owner: bytes, what: bytes) -> Claim:
    """The first attempt of ``owner`` that leads to ``what``."""
    tries = (derived(owner, attempt) for attempt in range(usable(RANGE)))
    return next(one for one in tries if one.what == what)


def test_a_free_address_is_claimed_and_kept() -> None:
    first = decide(LOW, view(), RANGE).claim
    assert first == derived(LOW)
    assert decide(LOW, view(first), RANGE).claim is None


def test_of_two_that_nobody_saw_the_lower_id_holds_and_the_other_moves() -> None:
    one = derived(LOW)
    other = clash(HIGH, one.what)
    both = view(one, other)
    assert both.holders() == {one.what: LOW}
    assert both.contested() == {one.what: (LOW, HIGH)}
    assert decide(LOW, both, RANGE).claim is None
    moved = decide(HIGH, both, RANGE)
    assert moved.lost_to == LOW
    assert moved.claim is not None
    assert moved.claim.what != one.what


def test_who_was_seen_first_holds_whatever_the_ids() -> None:
    one = derived(LOW)
    other = clash(HIGH, one.what)
    assert view(one, other, seen={HIGH: (False, 9)}).holders() == {one.what: HIGH}
    assert view(one, other, seen={HIGH: (False, 9), LOW: (False, 10)}).holders()[one.what] == HIGH
    assert view(one, other, seen={HIGH: (False, 9), LOW: (False, 8)}).holders()[one.what] == LOW


def test_a_witness_without_a_clock_counts_after_those_with_one() -> None:
    one = derived(LOW)
    other = clash(HIGH, one.what)
    seen = {LOW: (True, 1), HIGH: (False, 999)}
    assert view(one, other, seen=seen).holders() == {one.what: HIGH}
    assert view(one, other, seen={LOW: (True, 1)}).holders() == {one.what: LOW}


def test_a_fixed_address_stands_above_everything() -> None:
    one = derived(LOW)
    fixed = {f"n{HIGH.hex()}": one.what}
    before = view(one, seen={LOW: (False, 1)}, **fixed)
    assert decide(HIGH, before, RANGE).claim == Claim(HIGH, one.what)
    moved = decide(LOW, before, RANGE)
    assert moved.claim is not None
    assert moved.claim.what != one.what
    assert moved.lost_to == HIGH
    after = view(one, Claim(HIGH, one.what), seen={LOW: (False, 1)}, **fixed)
    assert after.holders() == {one.what: HIGH}
    assert decide(HIGH, after, RANGE).claim is None


def test_a_node_whose_address_is_no_longer_fixed_takes_a_derived_one() -> None:
    left_over = view(Claim(LOW, derived(MIDDLE).what))
    found = decide(LOW, left_over, RANGE).claim
    assert found is not None
    assert found.attempt == 0


def test_exhaustion_is_said_in_words() -> None:
    places = usable(RANGE)
    others: list[Claim] = []
    taken: set[bytes] = set()
    for number in range(places):
        owner = bytes([100 + number]) * 16
        free = next(
            one for one in (derived(owner, at) for at in range(places)) if one.what not in taken
        )
        taken.add(free.what)
        others.append(free)
    with pytest.raises(AddressesExhaustedError, match="all 5 addresses") as caught:
        decide(LOW, view(*others), RANGE)
    assert caught.value.hint is not None
    last = decide(LOW, view(*others[1:]), RANGE).claim
    assert last is not None
    assert last.what == others[0].what


def test_addresses_that_are_kept_for_apis_are_claimed_by_nobody_who_has_none() -> None:
    kept = 4
    low = {(RANGE.network_address + place).packed for place in range(1, kept + 1)}
    seen = set()
    for number in range(200):
        found = decide(bytes([number]) * 16, View({}), RANGE, kept=kept).claim
        assert found is not None
        seen.add(found.what)
        # It is a claim like any other: nodes that know of nothing kept believe it.
        assert is_derived(found, Addresses(RANGE))
        before = decide(found.node, View({}), RANGE).claim
        assert before is not None
        assert before.what in low or found == before
    assert not seen & low
    assert seen == {(RANGE.network_address + place).packed for place in (5, 6)}
    first, second = sorted(seen)
    taken = view(clash(MIDDLE, first), clash(HIGH, second))
    with pytest.raises(AddressesExhaustedError, match="all 2 addresses"):
        decide(LOW, taken, RANGE, kept=kept)


def test_who_has_one_of_them_keeps_it_until_another_takes_it_by_rank() -> None:
    low = (RANGE.network_address + 2).packed
    mine, other = clash(MIDDLE, low), clash(HIGH, low)
    assert decide(mine.node, view(mine), RANGE, kept=4).claim is None
    rivals = view(mine, other, seen={mine.node: (False, 2), other.node: (False, 1)})
    moved = decide(mine.node, rivals, RANGE, kept=4)
    assert moved.lost_to == other.node
    assert moved.claim is not None
    assert not Addresses(RANGE, 4).withheld(moved.claim.what)


def test_few_members_are_witnesses_and_all_agree_who() -> None:
    crowd = [bytes([one]) * 16 for one in range(1, 60)]
    chosen = [one for one in crowd if is_witness(one, LOW, crowd)]
    assert len(chosen) == WITNESSES
    assert LOW not in chosen
    rest = [one for one in crowd if one not in chosen]
    assert not set(chosen) & {one for one in rest if is_witness(one, LOW, rest)}
    assert len([one for one in rest if is_witness(one, LOW, rest)]) == WITNESSES


def test_a_witness_speaks_once_and_not_about_what_is_contested() -> None:
    one = derived(LOW)
    assert bears_witness(one, view(one), None)
    assert not bears_witness(one, view(one), one.what)
    assert bears_witness(one, view(one), b"what it claimed before")
    assert not bears_witness(one, view(one, clash(HIGH, one.what)), None)


# In the ledger


A, B, C, D = (node(number) for number in (1, 2, 3, 4))


def claim_of(of: Node, attempt: int = 0) -> Claim:
    return derived(of.node_id, attempt, WIDE)


def test_claims_witnesses_and_fixed_addresses_are_read_from_the_ledger() -> None:
    here = replica([A, B, C])
    writer(A, here).put("address", A.text, claim_value(claim_of(A)), NOW)
    mine = writer(B, here)
    key = witness_key(B.node_id, ADDRESS_KIND, A.node_id)
    mine.put("witness", key, witness_value(b"something else", Quality.KEPT), NOW)
    value = witness_value(claim_of(A).what, Quality.KEPT)
    seen = mine.put("witness", key, value, NOW).entry
    here.apply(root_entry("assigned", f"{C.text}/address", bytes([10, 10, 0, 9])), NOW)
    found = address_view(here, WIDE, NOW)
    assert found.claims == {A.node_id: claim_of(A)}
    assert found.sightings == {
        (A.node_id, claim_of(A).what): Sighting(guessed=False, stamp=seen.stamp)
    }
    assert found.fixed == {C.node_id: bytes([10, 10, 0, 9])}


def test_one_cannot_be_ones_own_witness_nor_go_for_a_certain_address() -> None:
    here = replica([A, B])
    mine = writer(A, here)
    key = witness_key(A.node_id, ADDRESS_KIND, A.node_id)
    mine.put("witness", key, witness_value(claim_of(A).what, Quality.SYNCED), NOW)
    stolen = Claim(A.node_id, claim_of(B).what, 0)
    mine.put("address", A.text, claim_value(stolen), NOW)
    found = address_view(here, WIDE, NOW)
    assert found.claims == {}
    assert found.sightings == {}
    forged = entry(A, "witness", witness_key(B.node_id, ADDRESS_KIND, A.node_id), sequence=9)
    assert here.apply(forged, NOW).reason is Reason.WRONG_WRITER


@settings(max_examples=60)
@given(st.binary(max_size=40), st.sampled_from(["address", "witness", "assigned"]))
def test_junk_in_the_buckets_counts_for_nothing(data: bytes, bucket: str) -> None:
    here = replica([A])
    match bucket:
        case "address":
            here.apply(entry(A, "address", A.text, data, sequence=2), NOW)
        case "witness":
            for number, rest in enumerate(("", "/x/y", "/address/zzzz", f"/address/{B.text}")):
                made = entry(A, "witness", A.text + rest, data, sequence=2 + number)
                here.apply(made, NOW)
        case _:
            here.apply(root_entry("assigned", f"{A.text}/address", data), NOW)
    found = address_view(here, WIDE, NOW)
    assert found.claims == {}
    assert found.holders() == {}
    if len(data) != 4:
        assert found.fixed == {}


def test_the_excess_of_a_grant_is_out_by_the_witnesses_word() -> None:
    here = replica([A, B, C, D])
    clocks = {A: NOW + 300, B: NOW + 100, C: NOW + 200}
    for of, when in clocks.items():
        key = witness_key(D.node_id, GRANT_KIND, of.node_id)
        value = witness_value(of.grant_id, Quality.SYNCED)
        here.apply(entry(D, "witness", key, value, sequence=when - NOW, ms=when), NOW)
    found = grant_view(here, here.directory)
    assert admitted(found, A.grant_id, 2) == {B.node_id, C.node_id}
    assert admitted(found, A.grant_id, None) == {one.node_id for one in (A, B, C, D)}
    assert admitted(found, b"another grant...", 2) == frozenset()


# Every interleaving of three nodes


Words = tuple[tuple[int, bytes, int], ...]


@dataclass(frozen=True)
class World:
    """What each of three nodes knows: its version of every claim and every witness's word.

    ``known[i][j]`` is how much of j's history node i has; ``history[j]`` all that j ever wrote, as
    (claim, words) with words = ((claimant, what, stamp), ...).
    """

    history: tuple[tuple[tuple[Claim | None, Words], ...], ...]
    known: tuple[tuple[int, ...], ...]


IDS = (LOW, MIDDLE, HIGH)
SMALL = ipaddress.IPv4Network("10.10.0.0/29")
START = World((((None, ()),),) * 3, ((0, 0, 0),) * 3)
# Stamps that witnesses may give, in any order: no clock is trusted.
STAMPS = (1, 2)


def seen_by(world: World, who: int) -> View:
    found: dict[bytes, Claim] = {}
    told: dict[tuple[bytes, bytes], Sighting] = {}
    for of in range(3):
        claim, words = world.history[of][world.known[who][of]]
        if claim is not None:
            found[IDS[of]] = claim
        for about, what, stamp in words:
            word = Sighting(guessed=False, stamp=stamp)
            key = IDS[about], what
            told[key] = min(word, told.get(key, word))
    return View(found, told)


def colliding(owner: bytes, attempt: int, _within: ipaddress.IPv4Network) -> ipaddress.IPv4Address:
    """All nodes try the same addresses in the same order: the worst case."""
    del owner
    return ipaddress.IPv4Address("10.10.0.2") + attempt % usable(SMALL)


def wrote(
    world: World, who: int, claim: Claim | None, words: tuple[tuple[int, bytes, int], ...]
) -> World:
    history = list(world.history)
    history[who] = (*history[who], (claim, words))
    known = [list(one) for one in world.known]
    known[who][who] = len(history[who]) - 1
    return World(tuple(history), tuple(tuple(one) for one in known))


def acts(world: World, who: int) -> list[World]:
    """What a node may do next: claim or move; else bear witness, with any stamp."""
    found = seen_by(world, who)
    claim, words = world.history[who][-1]
    decision = decide(IDS[who], found, SMALL)
    if decision.claim is not None:
        return [wrote(world, who, decision.claim, words)]
    made = []
    for about in range(3):
        theirs = found.claims.get(IDS[about])
        said = next((what for one, what, _ in words if one == about), None)
        if about == who or theirs is None or not bears_witness(theirs, found, said):
            continue
        rest = tuple(one for one in words if one[0] != about)
        made += [wrote(world, who, claim, (*rest, (about, theirs.what, at))) for at in STAMPS]
    return made


def deliveries(world: World) -> list[World]:
    """One node's entries, as another knows them, reach a third; in any order, any part."""
    made = []
    for source in range(3):
        for to in range(3):
            for of in range(3):
                if world.known[to][of] < world.known[source][of]:
                    known = [list(one) for one in world.known]
                    known[to][of] = world.known[source][of]
                    made.append(replace(world, known=tuple(tuple(one) for one in known)))
    return made


def check_settled(world: World, nodes: int = 3) -> None:
    views = [seen_by(world, who) for who in range(3)]
    assert views[0] == views[1] == views[2]
    assert len(views[0].claims) == nodes
    assert views[0].contested() == {}


def trimmed(world: World) -> World:
    """Forget what everybody has newer: states that differ only in the past are one."""
    oldest = [min(world.known[who][of] for who in range(3)) for of in range(3)]
    history = tuple(one[oldest[of] :] for of, one in enumerate(world.history))
    known = tuple(tuple(one - oldest[of] for of, one in enumerate(row)) for row in world.known)
    return World(history, known)


def explored(start: World, step: Callable[[World, int], list[World]]) -> tuple[int, list[World]]:
    """Go through every order of steps and deliveries; return the states and where they end."""
    seen, ends, stack = {start}, [], [start]
    while stack:
        world = stack.pop()
        options = deliveries(world) + [one for who in range(3) for one in step(world, who)]
        if not options:
            ends.append(world)
        for one in map(trimmed, options):
            if one not in seen:
                seen.add(one)
                stack.append(one)
    return len(seen), ends


def only_claims(world: World, who: int) -> list[World]:
    decision = decide(IDS[who], seen_by(world, who), SMALL)
    if decision.claim is None:
        return []
    return [wrote(world, who, decision.claim, ())]


def fairly_settled(world: World) -> World:
    """Let everything through and everybody act, in turn: what happens once the network is whole."""
    for _ in range(30):
        while found := deliveries(world):
            world = trimmed(found[0])
        made = [one[0] for who in range(3) if (one := acts(world, who))]
        if not made:
            return world
        world = trimmed(made[0])
    raise AssertionError("no end")


@pytest.fixture
def worst(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "claimed_address", colliding)


@pytest.mark.usefixtures("worst")
def test_every_interleaving_of_three_nodes_that_want_the_same() -> None:
    """Exhaustive, without witnesses: each claim, move and partial delivery in every order."""
    states, ends = explored(START, only_claims)
    assert states > 500
    assert ends
    for world in ends:
        check_settled(world)


@pytest.mark.usefixtures("worst")
@settings(max_examples=40)
@given(st.randoms(use_true_random=False))
def test_three_nodes_that_want_the_same_and_bear_witness_with_any_clock(random: Random) -> None:
    """Random orders; wherever they lead, a network that is whole again settles."""
    world = START
    for _ in range(60):
        options = deliveries(world) + [one for who in range(3) for one in acts(world, who)]
        if not options:
            check_settled(world)
            break
        world = trimmed(random.choice(options))
        if random.random() < 0.1:
            check_settled(fairly_settled(world))


def test_in_a_real_network_of_the_same_core_nobody_shares_an_address() -> None:
    """Claims and witnesses through gossip; a partition makes clashes, the heal resolves them."""
    nodes = [node(number) for number in range(30, 36)]
    net = Net(5)
    for one in nodes:
        net.add(one, replica(nodes), config=QUIET)
    net.connect()
    half = set(list(net.stations)[:3])
    net.cut = lambda one, other: (one in half) != (other in half)
    tight = ipaddress.IPv4Network("10.10.0.0/28")
    held: list[dict[bytes, bytes]] = []
    for round_ in range(60):
        if round_ == 20:
            wanted = [own_claim(one, tight) for one in net.stations.values()]
            assert len(set(wanted)) < len(wanted), "no clash: choose other nodes"
            net.cut = lambda _one, _other: False
        for station in net.stations.values():
            own = station.node.node_id
            found = address_view(station.replica, tight, NOW)
            decision = decide(own, found, tight)
            if decision.claim is not None:
                net.write(station, "address", station.node.text, claim_value(decision.claim))
            for claim in list(found.claims.values()):
                key = witness_key(own, ADDRESS_KIND, claim.node)
                said = station.replica.slot("witness", key, own)
                before = None if said is None else said_what(said.value)
                if claim.node != own and bears_witness(claim, found, before):
                    net.write(station, "witness", key, witness_value(claim.what, Quality.SYNCED))
            net.run(0.5)
        held.append({one.node: what for what, one in holders_of(net, tight).items()})
    assert net.run(60.0, net.alike)
    last = address_view(next(iter(net.stations.values())).replica, tight, NOW)
    assert len(last.claims) == 6
    assert last.contested() == {}
    assert held[-1] == held[-20]


def own_claim(station: Station, within: ipaddress.IPv4Network) -> bytes:
    return address_view(station.replica, within, NOW).claims[station.node.node_id].what


def said_what(value: bytes) -> bytes:
    return codec.decode(value, WitnessValue, limit=64).what


def holders_of(net: Net, within: ipaddress.IPv4Network) -> dict[bytes, Claim]:
    found = address_view(next(iter(net.stations.values())).replica, within, NOW)
    return {what: found.claims[who] for what, who in found.holders().items()}
