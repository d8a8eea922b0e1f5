"""Many keepers and a lossy, reordering ledger: readers converge, the revoked stay out, peace."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from random import Random
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.ledger import keeper
from appliance.ledger.hlc import MS_MAX
from appliance.ledger.keeper import Keeper, Write
from appliance.ledger.rules import BUCKETS
from appliance.ledger.secrets import (
    ADOPTED_MAX,
    GENERATION_MAX,
    SECRET,
    SecretError,
    Version,
    box_key,
    make,
    may_read,
    notice_value,
    read_shelves,
    seal,
)
from provisioning.keys import id_text
from tests.fakes.ledger import (
    NOW,
    member_entry,
    network,
    node,
    revocation,
    root_entry,
)
from tests.fakes.secret_world import AGENT, AUTO, LATE, SERVERS, START, World
from tests.unit.test_ledger_epochs import epoch_entries

NETWORK = network().network_id


def test_servers_read_it_and_the_agent_does_not() -> None:
    world = World(START)
    world.put(1, b"one")
    world.settle()
    assert world.values() == {1: b"one", 2: b"one", 3: b"one", 4: None}
    info = world.info(4)
    assert (info.generation, info.roles, info.readable) == (1, ("server",), False)
    assert info.writers == (SERVERS[0].node_id,)
    assert not info.exposed
    assert info.missing == 0


def test_the_next_value_replaces_it_and_leaves_nothing_of_the_former() -> None:
    world = World(START)
    world.put(1, b"one")
    world.settle()
    world.put(2, b"two")
    world.settle()
    assert world.values() == {1: b"two", 2: b"two", 3: b"two", 4: None}
    assert (world.info().generation, world.info().missing) == (2, 0)
    left = list(world.places[3].replica.versions(SECRET, NOW))
    assert {one.owner for one in left} == {SERVERS[1].node_id}
    assert len(left) == 4


def test_a_new_server_is_given_it_by_one_of_those_who_hold_it() -> None:
    world = World(START)
    world.put(1, b"one")
    world.settle()
    late = world.join(LATE)
    assert world.settle() == 1
    assert late.value() == b"one"


def test_if_who_is_first_is_away_another_does_it_a_little_later() -> None:
    for away in ([1], [2], [3], [1, 2], [2, 3]):
        world = World(START)
        world.put(1, b"one")
        world.settle()
        for number in away:
            world.places[number].up = False
        late = world.join(LATE)
        assert world.settle() == 1
        assert late.value() == b"one"
        assert world.mono < 10


def test_a_role_that_is_gained_brings_the_secret_and_one_that_is_lost_exposes_it() -> None:
    world = World(START)
    world.put(1, b"one")
    world.settle()
    promoted = node(4, roles=("server",), by=1)
    assert promoted.node_id == AGENT.node_id
    again = world.places[4].writer.put("member", AGENT.text, promoted.certificate, NOW).entry
    world.publish(again)
    world.settle()
    assert world.values()[4] == b"one"
    world.publish(world.places[4].writer.put("member", AGENT.text, AGENT.certificate, NOW).entry)
    world.settle()
    assert world.info().exposed
    assert world.boxes() == {1, 2, 3}
    assert world.values()[4] is None


def test_a_revoked_reader_has_seen_it_but_does_not_see_the_next() -> None:
    world = World(START)
    world.put(1, b"one")
    world.settle()
    world.publish(revocation(SERVERS[2]))
    world.settle()
    assert world.info().exposed
    assert world.places[1].keeper.exposed(NOW) == {"k3s"}
    assert world.values()[2] == b"one"
    assert world.boxes() == {1, 2}
    world.put(2, b"two")
    world.settle()
    assert not world.info().exposed
    assert world.places[2].keeper.exposed(NOW) == frozenset()
    # The revoked node gets all there is, by whatever way, and opens nothing of it.
    out = World([SERVERS[2]])
    for survivor in START[:2]:
        out.places[3].replica.apply(member_entry(survivor), NOW)
    for one in world.places[1].replica:
        out.places[3].replica.apply(one, NOW)
    out.settle()
    assert out.places[3].value() is None


def test_what_a_revoked_writer_left_is_taken_over_by_one_of_those_who_hold_it() -> None:
    world = World(START)
    world.put(3, b"one", "agent")
    world.settle()
    world.publish(revocation(SERVERS[2]))
    writes = world.settle()
    assert world.values() == {1: b"one", 2: b"one", 3: b"one", 4: b"one"}
    info = world.info()
    assert info.exposed
    assert info.copied
    assert info.writers[0] in {SERVERS[0].node_id, SERVERS[1].node_id}
    assert world.boxes() == {1, 2, 4}
    # The notice and three boxes: nobody does another's work.
    assert writes == 4


def test_a_revoked_grant_exposes_as_a_revoked_node_does() -> None:
    world = World([*START, AUTO])
    world.put(1, b"one")
    world.settle()
    assert world.values()[5] == b"one"
    world.publish(root_entry("revoked", f"grant/{id_text(AUTO.grant_id)}"))
    world.settle()
    assert world.info().exposed


def test_nobody_seals_before_it_knows_whom_an_epoch_leaves_behind() -> None:
    world = World(START)
    entries = epoch_entries(1, SERVERS[2], SERVERS[:2], start=1)
    place = world.places[1]
    for one in entries[1:]:
        place.replica.apply(one, NOW)
    with pytest.raises(SecretError, match="has heard of a revocation, but not yet of whom"):
        world.put(1, b"one")
    place.replica.apply(entries[0], NOW)
    world.put(1, b"one")
    world.look(place)
    assert place.value() == b"one"
    shelf = read_shelves(place.replica, NOW)["k3s"]
    assert shelf.version is not None
    assert SERVERS[2].node_id not in shelf.boxed(shelf.version)


def test_removed_is_removed_also_for_one_that_was_away() -> None:
    world = World(START)
    world.put(3, b"one", "agent")
    world.settle()
    world.places[3].up = False
    world.perform(world.places[1], world.places[1].keeper.remove("k3s", NOW))
    world.settle()
    assert world.values() == {1: None, 2: None, 4: None}
    with pytest.raises(SecretError, match="there is no secret k3s"):
        world.places[2].keeper.remove("k3s", NOW)
    world.places[3].up = True
    world.settle()
    assert set(world.values().values()) == {None}
    left = list(world.places[1].replica.versions(SECRET, NOW))
    assert [one.key for one in left] == ["k3s"]
    # The next one goes on counting.
    world.put(2, b"new")
    world.settle()
    assert world.info().generation == 3


def test_an_agent_cannot_put_and_is_told_so() -> None:
    world = World(START)
    with pytest.raises(SecretError, match="this node's roles: agent"):
        world.put(4, b"one")
    with pytest.raises(SecretError, match="does not hold the secret nix"):
        world.places[4].keeper.get("nix")


def test_a_secret_for_more_than_the_quota_is_refused_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    few = replace(BUCKETS[SECRET], entries=6)
    monkeypatch.setattr(keeper, "_RULE", few)
    world = World(START)
    world.put(1, b"one")
    with pytest.raises(SecretError, match="would have 8 entries of 6"):
        world.put(1, b"one", name="other")
    # What is there already can be replaced.
    world.put(1, b"two")
    world.settle()
    assert world.values()[3] == b"two"


def test_a_writer_without_room_leaves_the_work_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(START)
    world.put(1, b"one")
    world.settle()
    late = world.join(LATE)
    full = world.places[1].node.node_id
    monkeypatch.setattr(
        Keeper, "_has_room", lambda self, write: self._own != full and write is not None
    )
    world.settle()
    assert late.value() == b"one"
    assert world.boxes() == {1, 2, 3, 6}


# A writer that turned bad


def bad_notice(world: World, number: int, version: Version) -> None:
    value = notice_value(version, exposed=False, copied=False)
    world.perform(world.places[number], [Write("k3s", value)])


def test_a_version_that_nobody_can_open_takes_nothing_away() -> None:
    world = World(START)
    world.put(1, b"one")
    world.settle()
    bad_notice(world, 3, Version(7, NOW, bytes(32), ("server",)))
    junk = Write(box_key("k3s", SERVERS[1].node_id), b"\x93\x01\xc4\x20" + bytes(32) + b"\xc4\x01x")
    world.perform(world.places[3], [junk])
    world.settle()
    assert {world.values()[number] for number in (1, 2)} == {b"one"}
    info = world.info(2)
    assert (info.generation, info.readable, info.held_generation) == (7, False, 1)
    assert info.writers == info.unreadable_from == (SERVERS[2].node_id,)
    world.publish(revocation(SERVERS[2]))
    world.settle()
    assert (world.info().generation, world.values()[1]) == (1, b"one")


def test_a_number_that_nobody_reaches_ends_with_the_one_who_left_it() -> None:
    world = World(START)
    world.put(1, b"one")
    world.settle()
    place = world.places[3]
    huge = make(NETWORK, "k3s", b"mine", (), GENERATION_MAX, NOW)
    writes = [
        Write(box_key("k3s", one.node_id), seal(NETWORK, huge, one))
        for one in place.replica.directory
    ]
    bad_notice(world, 3, huge.version)
    world.perform(place, writes)
    world.settle()
    assert world.values()[2] == b"mine"
    with pytest.raises(SecretError, match="there is none after it"):
        world.put(1, b"two")
    world.publish(revocation(SERVERS[2]))
    world.settle()
    assert set(world.values().values()) == {None}
    world.put(1, b"two")
    world.settle()
    assert world.values()[2] == b"two"
    assert world.info().generation == 1


def test_others_make_a_node_write_at_a_bounded_rate_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "WRITES_BURST", 2.0)
    monkeypatch.setattr(keeper, "WRITES_PER_SECOND", 1.0)
    world = World(SERVERS[:1])
    for number in range(8):
        world.put(1, b"one", name=f"s{number}")
    world.join(LATE)
    begun = world.mono
    assert world.settle() == 8
    assert world.mono - begun >= 6
    assert world.places[6].value("s7") == b"one"


def test_nobody_passes_a_secret_on_before_it_knows_whom_an_epoch_leaves_behind() -> None:
    world = World(START)
    world.put(1, b"one")
    world.settle()
    entries = epoch_entries(1, LATE, SERVERS, start=1)
    for place in world.places.values():
        for one in entries[1:]:
            place.replica.apply(one, NOW)
    late = world.join(LATE)
    # Its certificate is known, its revocation is not: but that there is one is.
    assert world.settle() == 0
    assert late.value() is None
    world.publish(entries[0])
    world.join(node(7, roles=("server",), by=1))
    world.settle()
    assert world.values()[7] == b"one"
    assert not world.info().exposed


LIES = st.tuples(
    st.sampled_from([1, 2, 7, ADOPTED_MAX, ADOPTED_MAX + 1, GENERATION_MAX]),
    st.sampled_from([0, NOW, MS_MAX]),
    st.sampled_from(["removed", "nothing", "true", "box of another", "junk"]),
    st.sets(st.integers(1, 4), max_size=4),
    st.booleans(),
    st.booleans(),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(LIES, min_size=1, max_size=4), st.booleans())
def test_whatever_a_bad_server_leaves_the_name_is_good_again_once_it_is_out(
    lies: list[tuple[int, int, str, set[int], bool, bool]], begun: bool
) -> None:
    world = World(START)
    if begun:
        world.put(1, b"one")
        world.settle()
    bad = world.places[3]
    bad.up = False  # its own keeper does nothing: all that it writes stands here
    for generation, put_ms, kind, boxes, exposed, copied in lies:
        lie = make(NETWORK, "k3s", b"lie", ["agent"], generation, put_ms)
        version = replace(lie.version, commitment=b"") if kind == "removed" else lie.version
        writes = [Write("k3s", notice_value(version, exposed=exposed, copied=copied))]
        for number in boxes if kind not in {"removed", "nothing"} else ():
            to = world.places[number].node
            other = world.places[number % 4 + 1].node if kind == "box of another" else to
            member = bad.replica.directory.member(other.node_id)
            assert member is not None
            value = seal(NETWORK, lie, member)
            value = value[:-1] + bytes([value[-1] ^ 1]) if kind == "junk" else value
            writes.append(Write(box_key("k3s", to.node_id), value))
        world.perform(bad, writes)
        world.settle(world.mono + 400)
    world.publish(revocation(SERVERS[2]))
    world.settle(world.mono + 400)
    world.put(2, b"new", "agent")
    world.settle(world.mono + 400)
    assert {number: world.values()[number] for number in (1, 2, 4)} == dict.fromkeys(
        (1, 2, 4), b"new"
    )
    assert not world.info().exposed
    assert not world.info().unreadable_from


# Anything, in any order

NAMES = ["a", "b"]
STEPS = st.one_of(
    st.tuples(st.just("put"), st.integers(1, 3), st.sampled_from(["server", "agent"])),
    st.tuples(st.just("remove"), st.integers(1, 3), st.just("")),
    st.tuples(st.just("revoke"), st.integers(2, 4), st.just("")),
    st.tuples(st.just("join"), st.just(6), st.just("")),
    st.tuples(st.just("away"), st.integers(1, 4), st.just("")),
    st.tuples(st.just("back"), st.integers(1, 4), st.just("")),
    st.tuples(st.just("partition"), st.integers(0, 3), st.just("")),
    st.tuples(st.just("settle"), st.just(0), st.just("")),
    st.tuples(st.just("deliver"), st.integers(1, 30), st.just("")),
)


class Story:
    """Performs steps; whoever is revoked keeps what it had, and goes on."""

    def __init__(self, choice: int) -> None:
        self.world = World(START, choice)
        self.out: set[int] = set()
        self.values = 0
        self.seen: dict[bytes, set[int]] = {}

    def step(self, what: str, number: int, role: str) -> None:
        world, place = self.world, self.world.places.get(number)
        usable = place is not None and place.up and number not in self.out
        match what:
            case "put" if usable:
                self.values += 1
                world.put(number, b"%d" % self.values, role, name=NAMES[self.values % 2])
            case "remove" if usable and place is not None:
                with suppress(SecretError):  # there is none
                    world.perform(place, place.keeper.remove(NAMES[number % 2], NOW))
            case "revoke" if number not in self.out and len(self.out) < 2:
                self.out.add(number)
                world.publish(revocation(world.places[number].node, sequence=number))
            case "join" if number not in world.places:
                world.join(LATE)
            case "away" | "back" if place is not None:
                place.up = what == "back"
            case "partition":
                world.cut = lambda one, other: (
                    (one.node.number <= number) != (other.node.number <= number)
                )
            case "heal":
                world.cut = lambda _one, _other: False
            case "settle":
                self.rest()
            case "deliver":
                world.deliver(number)

    def rest(self) -> None:
        self.world.settle(self.world.mono + 400)


@settings(max_examples=20, deadline=None)
@given(st.lists(STEPS, max_size=14), st.integers(0, 2**16))
def test_readers_agree_and_the_work_comes_to_an_end(
    steps: list[tuple[str, int, str]], choice: int
) -> None:
    with patch("appliance.ledger.secrets.random_bytes", Random(choice).randbytes):  # noqa: S311
        check_story(steps, Story(choice))


def check_story(steps: list[tuple[str, int, str]], story: Story) -> None:
    world = story.world
    for what, number, role in steps:
        story.step(what, number, role)
    world.cut = lambda _one, _other: False
    for place in world.places.values():
        place.up = True
    story.rest()
    inside = {number: place for number, place in world.places.items() if number not in story.out}
    for place in inside.values():
        assert place.replica.ids.digest() == inside[1].replica.ids.digest()
    shelves = read_shelves(inside[1].replica, NOW)
    for name in NAMES:
        version = shelves[name].version if name in shelves else None
        for number, place in inside.items():
            member = place.replica.directory.member(place.node.node_id)
            assert member is not None
            wanted = version is not None and not version.removed
            if wanted and version is not None and may_read(member, version.roles):
                assert place.keeper.get(name).version == version, (name, number)
            else:
                assert place.value(name) is None, (name, number)
        if version is not None and not version.removed:
            # Boxes of the revoked are gone, and that they had one is known.
            nodes = shelves[name].boxed(version)
            assert nodes <= {place.node.node_id for place in inside.values()}
            for number in story.out:
                trail = world.places[number].keeper
                held = world.places[number].value(name)
                if held is not None and trail.get(name).version == version:
                    assert shelves[name].exposed(version), (name, number)
    # At rest: nobody has anything to write, however long one waits.
    world.mono += 1000
    assert world.settle(world.mono + 400) == 0
