"""Clocks that are wrong lock nobody out and drag nobody along."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.ledger.hlc import MAX_SKEW_MS, STAMP_MAX, Clock, is_future, ms_of, stamp
from appliance.ledger.timekeeper import REPORT_SECONDS, REPORTS_MAX, Quality, Reading, Timekeeper
from tests.fakes.ledger import NOW

DAY = 86_400_000
PEERS = [bytes([number]) for number in range(200)]


def test_stamps_only_grow_even_if_time_goes_back() -> None:
    clock = Clock()
    given_ = [clock.tick(ms) for ms in (NOW, NOW, NOW - DAY, NOW + 1, 0)]
    assert given_ == sorted(set(given_))
    assert ms_of(given_[-1]) == NOW + 1


def test_the_counter_carries_over_into_the_next_millisecond() -> None:
    clock = Clock(stamp(NOW, 0xFFFF))
    assert clock.tick(NOW) == stamp(NOW + 1, 0)


def test_what_was_seen_is_older_than_what_is_written() -> None:
    clock = Clock()
    seen = stamp(NOW + MAX_SKEW_MS)
    assert clock.observe(seen, NOW)
    assert clock.tick(NOW) > seen


def test_the_future_leaves_the_clock_alone() -> None:
    clock = Clock()
    before = clock.tick(NOW)
    assert not clock.observe(stamp(NOW + MAX_SKEW_MS + 1), NOW)
    assert not clock.observe(STAMP_MAX, NOW)
    assert clock.tick(NOW) == before + 1


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_no_stamp_is_given_twice_across_restarts(steps: list[int], random: Random) -> None:
    clock, given_, kept = Clock(), [], 0
    for step in steps:
        now = NOW + random.choice((-DAY, 0, 1, 70_000))
        if step == 0:
            clock = Clock(kept)
        given_.append(clock.tick(now))
        kept = clock.reserved
        assert kept > given_[-1]
    assert given_ == sorted(set(given_))


def test_back_from_a_wrong_future() -> None:
    clock = Clock(stamp(NOW + 365 * DAY))
    assert clock.rebase(NOW)
    assert not clock.rebase(NOW)
    assert not is_future(clock.tick(NOW), NOW)
    assert not is_future(clock.reserved, NOW)


# What time it is


def keeper(wall: int | None, *, synced: bool = False, floor: int = NOW - 400 * DAY) -> Timekeeper:
    made = Timekeeper(floor, 0, mono=0.0)
    if wall is not None:
        made.wall(wall, synced=synced, mono=0.0)
    return made


def heard(into: Timekeeper, *readings: tuple[int, Quality]) -> int:
    for peer, (ms, quality) in zip(PEERS, readings, strict=False):
        into.report(peer, Reading(ms, quality), mono=1.0)
    return into.now_ms(1.0)


def test_a_node_of_1970_takes_the_time_of_its_neighbours() -> None:
    node = keeper(5_000)
    assert node.quality is Quality.GUESSED
    assert node.now_ms(0.0) == NOW - 400 * DAY
    assert heard(node, (NOW, Quality.SYNCED), (NOW + 50, Quality.SYNCED)) in {NOW, NOW + 50}
    assert node.own_reading(1.0).quality is Quality.GUESSED


def test_a_disciplined_clock_counts_twice_and_a_guess_not_at_all_beside_a_clock() -> None:
    ahead = (NOW + 9 * DAY, Quality.KEPT)
    assert heard(keeper(None), (NOW, Quality.SYNCED), ahead) == NOW
    assert heard(keeper(None), *[(NOW, Quality.SYNCED)] * 2, *[ahead] * 3) == NOW
    guesses = [(NOW + 9 * DAY, Quality.GUESSED)] * 9
    assert heard(keeper(None), (NOW, Quality.KEPT), *guesses) == NOW


def test_one_that_claims_to_be_disciplined_drags_no_group_along() -> None:
    lie = (NOW + 9 * DAY, Quality.SYNCED)
    assert heard(keeper(NOW), lie, *[(NOW + 1000, Quality.KEPT)] * 2) == NOW + 1000


@pytest.mark.parametrize("lie", [0, 1, NOW - DAY, NOW + DAY, 2**47 - 1, 2**60, -5])
def test_a_minority_of_liars_moves_nobody(lie: int) -> None:
    right = [(NOW, Quality.SYNCED)] * 4
    assert heard(keeper(None), *[(lie, Quality.SYNCED)] * 3, *right) == NOW


def test_a_synchronised_node_listens_to_nobody() -> None:
    node = keeper(NOW, synced=True)
    assert heard(node, *[(NOW + DAY, Quality.SYNCED)] * 9) == NOW + 1000
    assert node.own_reading(1.0) == Reading(NOW + 1000, Quality.SYNCED)


def test_one_clock_a_day_ahead_among_three() -> None:
    """Each tells its own clock, so that the two right ones outvote the wrong one."""
    walls = {0: NOW + DAY, 1: NOW, 2: NOW + 300}
    nodes = {number: keeper(wall) for number, wall in walls.items()}
    for one, node in nodes.items():
        for other, speaker in nodes.items():
            if one != other:
                node.report(PEERS[other], speaker.own_reading(0.5), mono=0.5)
    times = [node.now_ms(1.0) for node in nodes.values()]
    assert max(times) - min(times) < MAX_SKEW_MS
    assert abs(times[0] - NOW) < 3000


def test_two_nodes_without_a_better_clock_agree_on_one() -> None:
    one, other = keeper(NOW), keeper(NOW - DAY)
    other.report(b"1", one.own_reading(0.0), 0.0)
    one.report(b"2", other.own_reading(0.0), 0.0)
    assert one.now_ms(0.0) == other.now_ms(0.0) == NOW


@pytest.mark.parametrize("number", range(4))
def test_nodes_that_all_lack_a_clock_come_to_one_time(number: int) -> None:
    """Each hears a random other one a second, as by `swim`'s probes (the "median rule")."""
    random = Random(number)  # noqa: S311 - a test
    nodes = [Timekeeper(NOW, NOW + random.randrange(30) * DAY, 0.0) for _ in range(24)]
    for second in range(1, 100):
        for node in nodes:
            other = random.randrange(len(nodes))
            reading = nodes[other].own_reading(float(second))
            node.report(PEERS[other], reading, float(second))
    times = [node.now_ms(40.0) for node in nodes]
    assert max(times) - min(times) < MAX_SKEW_MS


def test_old_reports_count_no_more_and_their_number_is_bounded() -> None:
    node = keeper(NOW)
    for peer in PEERS:
        node.report(peer, Reading(NOW + DAY, Quality.SYNCED), 1.0)
    assert len(node._reports) == REPORTS_MAX
    assert node.now_ms(1.0) == NOW + DAY
    later = 2.0 + REPORT_SECONDS
    node.wall(NOW + int(later * 1000), synced=False, mono=later)
    assert node.now_ms(later) == NOW + int(later * 1000)


def test_a_member_that_left_has_no_say() -> None:
    node = keeper(NOW)
    node.report(b"1", Reading(NOW + DAY, Quality.SYNCED), 0.0)
    node.forget(b"1")
    node.wall(NOW, synced=False, mono=0.0)
    assert node.now_ms(0.0) == NOW


@given(st.lists(st.tuples(st.integers(-(2**64), 2**64), st.sampled_from(Quality)), max_size=8))
def test_no_report_makes_an_impossible_time(readings: list[tuple[int, Quality]]) -> None:
    node = keeper(None)
    for number, (ms, quality) in enumerate(readings):
        node.report(bytes([number]), Reading(ms, quality), 1.0)
    assert NOW - 400 * DAY <= node.now_ms(1.0) <= 2**47 - 1
