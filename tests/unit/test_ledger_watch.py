"""What a watcher of the ledger is told: the state, the changes, and never more than it can keep."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.ledger import subscription as subscription_module
from appliance.ledger.rules import BUCKETS, Winner
from appliance.ledger.subscription import Event, Kind, Subscription
from tests.fakes.ledger import NOW, entry, revocation
from tests.fakes.ledger_access import OTHER, SERVER, world


def drain(watch: Subscription) -> list[Event]:
    return list(iter(watch.take, None))


def shown(events: list[Event]) -> list[tuple[str, str, bytes | None]]:
    return [(one.kind.value, one.key, one.entry.value if one.entry else None) for one in events]


def test_a_watcher_is_told_what_is_there_and_what_comes() -> None:
    here = world()
    here.access.put("shared", "b", b"1")
    here.access.put("shared", "a", b"1")
    woken: list[None] = []
    watch = here.access.watch("shared", wake=lambda: woken.append(None))
    assert shown(drain(watch)) == [("put", "a", b"1"), ("put", "b", b"1"), ("ready", "", None)]
    assert not woken
    here.access.put("shared", "a", b"2")
    assert woken
    here.access.put("lease", "elsewhere", b"", 60)
    assert shown(drain(watch)) == [("put", "a", b"2")]
    here.access.delete("shared", "a")
    events = drain(watch)
    assert shown(events) == [("delete", "a", b"")]
    assert events[0].entry is not None
    assert events[0].entry.owner == SERVER.node_id


def test_a_prefix_and_all_buckets() -> None:
    here = world()
    one = here.access.watch("shared", "app/", wake=lambda: None)
    every = here.access.watch(None, wake=lambda: None)
    assert shown(drain(one)) == [("ready", "", None)]
    assert [event.bucket for event in drain(every)] == ["member", "member", ""]
    here.access.put("shared", "app/x", b"1")
    here.access.put("shared", "apple", b"1")
    here.access.put("lease", "l", b"", 60)
    assert shown(drain(one)) == [("put", "app/x", b"1")]
    assert [event.key for event in drain(every)] == ["app/x", "apple", "l"]


def test_a_slow_watcher_gets_the_latest_value_only() -> None:
    here = world()
    watch = here.access.watch("shared", wake=lambda: None)
    drain(watch)
    for number in range(300):
        here.replica.apply(entry(OTHER, "shared", "k", b"%d" % number, sequence=number + 1), NOW)
        if number % 100 == 99:
            here.access.put("shared", "own", b"%d" % number)
    here.hear(entry(OTHER, "shared", "k", b"last", sequence=900))
    assert shown(drain(watch)) == [("put", "own", b"299"), ("put", "k", b"last")]


def test_a_watcher_that_is_too_slow_begins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscription_module, "QUEUE_MAX", 8)
    here = world()
    watch = here.access.watch("shared", wake=lambda: None)
    drain(watch)
    for number in range(20):
        here.access.put("shared", f"k{number:02}", b"")
    here.access.delete("shared", "k03")
    events = shown(drain(watch))
    assert events[0] == ("resync", "", None)
    assert events[-1] == ("ready", "", None)
    assert [key for kind, key, _ in events if kind == "put"] == [
        f"k{number:02}" for number in range(20) if number != 3
    ]


def test_an_ended_lease_is_a_deletion() -> None:
    here = world()
    here.access.put("lease", "l", b"x", 60)
    watch = here.access.watch("lease", wake=lambda: None)
    drain(watch)
    here.mono = 61.0
    here.perform(here.gossip.tick(here.mono))
    events = drain(watch)
    assert shown(events) == [("delete", "l", None)]


def test_what_changes_nothing_that_counts_is_not_told() -> None:
    here = world()
    here.access.put("shared", "k", b"mine")
    watch = here.access.watch("shared", wake=lambda: None)
    drain(watch)
    here.hear(entry(OTHER, "shared", "k", b"older", ms=NOW - 1000))
    assert drain(watch) == []
    here.hear(revocation(OTHER))
    assert drain(watch) == []


def test_a_revocation_uncovers_what_the_revoked_had_covered() -> None:
    here = world()
    here.access.put("shared", "k", b"mine")
    here.hear(entry(OTHER, "shared", "k", b"theirs", ms=NOW + 1000))
    watch = here.access.watch("shared", wake=lambda: None)
    assert shown(drain(watch))[0] == ("put", "k", b"theirs")
    here.hear(revocation(OTHER))
    assert shown(drain(watch)) == [("put", "k", b"mine")]


def test_a_closed_watch_says_nothing_more() -> None:
    here = world()
    woken: list[None] = []
    one, other = (here.access.watch("shared", wake=lambda: woken.append(None)) for _ in range(2))
    one.close()
    one.close()
    here.access.put("shared", "k", b"")
    assert drain(one) == []
    assert [event.kind for event in drain(other)][-1] is Kind.READY
    here.access.close()
    assert other.closed
    assert drain(other) == []
    assert len(woken) == 3


CHANGES = st.tuples(
    st.sampled_from(["put", "delete", "theirs", "gone", "time", "take", "take"]),
    st.sampled_from("abcdef"),
)


@settings(max_examples=60)
@given(st.lists(CHANGES, max_size=60), st.integers(1, 6))
def test_a_watcher_that_follows_ends_with_what_is_there(
    changes: list[tuple[str, str]], limit: int
) -> None:
    assert all(one.winner is Winner.LATEST for one in BUCKETS.values())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subscription_module, "QUEUE_MAX", limit)
        here = world()
        watch = here.access.watch(None, wake=lambda: None)
        known: dict[tuple[str, str], bytes] = {}
        sequence = 1
        for what, key in changes:
            here.mono += 1.0
            sequence += 1
            ms = here.access.now_ms()
            match what:
                case "put":
                    here.access.put("shared", key, b"%d" % sequence)
                case "delete" if here.access.get("shared", key):
                    here.access.delete("shared", key)
                case "theirs":
                    value = b"t%d" % sequence
                    here.hear(
                        entry(
                            OTHER, "lease", key, value, sequence=sequence, ms=ms, expires=ms + 5000
                        )
                    )
                case "gone":
                    here.hear(entry(OTHER, "shared", key, sequence=sequence, ms=ms, deleted=True))
                case "time":
                    here.mono += 3.0
                    here.perform(here.gossip.tick(here.mono))
                case "take":
                    _follow(known, watch.take())
        here.perform(here.gossip.tick(here.mono))
        for event in drain(watch):
            _follow(known, event)
        present = {
            (one.bucket, one.key): one.value for name in BUCKETS for one in here.access.list(name)
        }
        assert known == present


def _follow(known: dict[tuple[str, str], bytes], event: Event | None) -> None:
    if event is None:
        return
    match event.kind:
        case Kind.PUT:
            assert event.entry is not None
            known[event.bucket, event.key] = event.entry.value
        case Kind.DELETE:
            known.pop((event.bucket, event.key), None)
        case Kind.RESYNC:
            known.clear()
