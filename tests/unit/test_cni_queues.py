"""One call at a time for a container; a GC alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.cni.errors import CniError, Code
from appliance.cni.queues import PER_CONTAINER_MAX, WAITING_MAX, Queues


def test_containers_side_by_side_and_one_after_the_other() -> None:
    queues = Queues()
    assert queues.submit(1, "a") == (1,)
    assert queues.submit(2, "b") == (2,)
    assert queues.submit(3, "a") == ()
    assert queues.submit(4, "a") == ()
    assert queues.finish(2) == ()
    assert queues.finish(1) == (3,)
    assert queues.finish(3) == (4,)


def test_a_gc_waits_and_holds_back() -> None:
    queues = Queues()
    queues.submit(1, "a")
    assert queues.submit(2, None) == ()
    assert queues.submit(3, "b") == ()
    assert queues.finish(1) == (2,)
    assert queues.submit(4, "c") == ()
    assert queues.finish(2) == (3, 4)


def test_who_goes_while_waiting_is_forgotten() -> None:
    queues = Queues()
    queues.submit(1, "a")
    queues.submit(2, None)
    queues.submit(3, "b")
    assert queues.finish(2) == (3,)
    assert queues.running == {1, 3}


def test_full_means_later_and_keeps_nothing() -> None:
    queues = Queues()
    queues.submit(0, "a")
    for ticket in range(1, PER_CONTAINER_MAX + 1):
        queues.submit(ticket, "a")
    with pytest.raises(CniError) as caught:
        queues.submit(99, "a")
    assert caught.value.code is Code.TRY_AGAIN
    assert queues.submit(100, "b") == (100,)
    many = Queues()
    many.submit(-1, None)
    for ticket in range(WAITING_MAX):
        many.submit(ticket, f"c{ticket}")
    with pytest.raises(CniError):
        many.submit(WAITING_MAX, "new")


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c", None]), st.integers(0, 3)), max_size=30))
def test_any_order(calls: list[tuple[str | None, int]]) -> None:
    queues = Queues()
    whose = {ticket: container for ticket, (container, _) in enumerate(calls)}
    started: list[int] = []
    taken = set()

    def note(new: tuple[int, ...]) -> None:
        started.extend(new)
        running = [whose[one] for one in queues.running]
        assert len(set(running)) == len(running)
        assert None not in running or len(running) == 1

    for ticket, (container, finish) in enumerate(calls):
        try:
            note(queues.submit(ticket, container))
            taken.add(ticket)
        except CniError:
            pass
        for one in sorted(queues.running)[:finish]:
            note(queues.finish(one))
    while queues.running:
        note(queues.finish(min(queues.running)))
    assert set(started) == taken
    for container in "abc":
        mine = [one for one in started if whose[one] == container]
        assert mine == sorted(mine)
    for ticket in taken:
        if whose[ticket] is None:
            place = started.index(ticket)
            assert all(one < ticket for one in started[:place])
