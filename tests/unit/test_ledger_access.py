"""What programs and people may do with a ledger: over a real Gossip, without a socket."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.ledger import access as access_module
from appliance.ledger.access import (
    OPEN,
    LedgerAccess,
    MissingError,
    NoBucketError,
    NotOpenError,
)
from appliance.ledger.entry import read_entry
from appliance.ledger.errors import WriteError
from appliance.ledger.gossip import Action, Changed
from appliance.ledger.rules import BUCKETS
from appliance.ledger.state import Verdict
from tests.fakes.ledger import (
    NOW,
    entry,
    network,
    replica,
    revocation,
    root_entry,
)
from tests.fakes.ledger_access import NODES, OTHER, SERVER, world

# Writing


def test_what_is_written_counts_here_and_is_told_to_peers() -> None:
    here = world()
    put = here.access.put("shared", "colour", b"blue")
    assert here.access.get("shared", "colour") == put
    assert here.told() == [put]
    here.access.delete("shared", "colour")
    assert here.access.get("shared", "colour") is None
    assert [one.deleted for one in here.told()] == [True]


@pytest.mark.parametrize("bucket", sorted(set(BUCKETS) - OPEN))
def test_protocol_buckets_are_read_and_not_written(bucket: str) -> None:
    here = world()
    before = list(here.replica)
    key = f"{SERVER.text}/x"
    with pytest.raises(NotOpenError, match="not written by hand") as caught:
        here.access.put(bucket, key, b"x", 60)
    word = "skerry secret" if bucket == "secret" else "shared"
    assert word in (caught.value.hint or "")
    with pytest.raises(NotOpenError):
        here.access.delete(bucket, key)
    here.access.list(bucket)
    assert list(here.replica) == before
    assert not here.sent


def test_a_certificate_cannot_be_replaced_through_the_shorter_name() -> None:
    here = world()
    for key in (SERVER.text, OTHER.text, "x"):
        with pytest.raises(NotOpenError):
            here.access.put("member", key, b"x")
    certificate = here.access.get("member", OTHER.text)
    assert certificate is not None
    assert certificate.value == OTHER.certificate


def test_an_owner_bucket_takes_a_name_and_puts_the_own_id_before_it() -> None:
    here = world()
    made = here.access.put("service", "web", b"80", 60)
    assert made.key == f"{SERVER.text}/web"
    assert here.access.get("service", "web") == made
    assert here.access.get("service", made.key) == made
    assert here.access.put("service", made.key, b"81", 60).key == made.key
    with pytest.raises(NotOpenError, match="another member's place"):
        here.access.put("service", f"{OTHER.text}/web", b"x", 60)
    here.access.delete("service", "web")
    assert here.access.list("service") == []


@pytest.mark.parametrize(
    ("bucket", "key", "value", "lease", "words"),
    [
        ("shared", "a b", b"", None, "cannot be written"),
        ("shared", "", b"", None, "cannot be written"),
        ("shared", "k" * 129, b"", None, "cannot be written"),
        ("shared", "k", bytes(4097), None, "cannot be written"),
        ("shared", "k", b"", 60, "lease that its bucket does not allow"),
        ("lease", "k", b"", None, "lease that its bucket does not allow"),
        ("lease", "k", b"", 10**9, "lease that its bucket does not allow"),
        ("service", "k", bytes(1025), 60, "larger than its bucket allows"),
    ],
)
def test_the_rules_speak(
    bucket: str, key: str, value: bytes, lease: int | None, words: str
) -> None:
    here = world()
    with pytest.raises(WriteError, match=words) as caught:
        here.access.put(bucket, key, value, lease)
    assert caught.value.hint
    assert not here.sent


def test_roles_and_quotas_hold_for_people_too() -> None:
    agent = world(OTHER)
    with pytest.raises(WriteError, match="its owner may not write there"):
        agent.access.put("cluster", "x", b"")
    world(SERVER).access.put("cluster", "x", b"")
    for number in range(256):
        agent.access.put("shared", f"k{number}", b"")
    with pytest.raises(WriteError, match="entry 257 of 256"):
        agent.access.put("shared", "more", b"")


def test_deleting_nothing_writes_nothing() -> None:
    here = world()
    with pytest.raises(MissingError, match="shared/none has no value"):
        here.access.delete("shared", "none")
    assert len(here.replica) == len(NODES)


def test_anybody_s_value_is_deleted_by_a_later_word() -> None:
    here = world()
    here.hear(entry(OTHER, "shared", "theirs", b"x"))
    here.mono = 1.0
    here.access.delete("shared", "theirs")
    assert here.access.get("shared", "theirs") is None
    assert here.access.list("shared") == []


@pytest.mark.parametrize("bucket", ["", "nothing", "SHARED", "../shared", "x" * 10_000])
def test_unknown_buckets(bucket: str) -> None:
    here = world()
    for call in (
        lambda: here.access.get(bucket, "k"),
        lambda: here.access.list(bucket),
        lambda: here.access.put(bucket, "k", b""),
        lambda: here.access.delete(bucket, "k"),
        lambda: here.access.watch(bucket, wake=lambda: None),
    ):
        with pytest.raises(NoBucketError, match="there is no bucket") as caught:
            call()
        assert len(str(caught.value)) < 200


@given(st.sampled_from(sorted(OPEN)), st.text(max_size=200), st.binary(max_size=64))
def test_any_key_is_written_as_it_is_or_refused(bucket: str, key: str, value: bytes) -> None:
    here = world()
    lease = 60 if BUCKETS[bucket].lease_max_ms else None
    try:
        made = here.access.put(bucket, key, value, lease)
    except WriteError:
        assert len(here.replica) == len(NODES)
    else:
        assert made.key in (key, f"{SERVER.text}/{key}")
        assert here.access.get(bucket, key) == made


def test_a_write_is_stored_when_the_shell_has_told_of_it() -> None:
    here = world()
    late: list[Action] = []
    access = LedgerAccess(here.gossip, lambda: here.mono, late.extend)
    done: list[str] = []
    made = access.put("shared", "k", b"1")
    access.when_stored(made, lambda: done.append("first"))
    assert not done
    for action in late:
        if isinstance(action, Changed):
            access.changed(action.change)
    assert done == ["first"]
    access.when_stored(made, lambda: done.append("again"))
    assert done == ["first", "again"]


def test_a_shell_that_never_tells_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_module, "UNSTORED_MAX", 8)
    here = world()
    access = LedgerAccess(here.gossip, lambda: here.mono, lambda _: None)
    for number in range(20):
        access.put("lease", f"k{number}", b"", 60)
    assert len(access._unstored) == 8


# Reading


def test_buckets_are_counted_with_tombstones() -> None:
    here = world()
    here.access.put("shared", "a", b"1")
    here.access.put("shared", "b", b"2")
    here.access.delete("shared", "b")
    views = {one.rule.name: one for one in here.access.buckets()}
    assert list(views) == list(BUCKETS)
    assert (views["shared"].entries, views["member"].entries) == (2, 2)
    assert sum(one.bytes for one in views.values()) == here.replica.bytes
    assert {name for name, one in views.items() if one.open} == OPEN


def test_a_dump_makes_the_same_ledger_again() -> None:
    here = world()
    here.hear(root_entry("assigned", f"{OTHER.text}/name", b"kitchen"))
    here.access.put("shared", "a", b"1")
    here.access.put("shared", "b", b"1")
    here.access.delete("shared", "b")
    again = replica()
    assert again.restore(map(read_entry, here.access.dump()), NOW) == 0
    assert again.ids.digest() == here.replica.ids.digest()


def test_owners_have_names() -> None:
    here = world()
    assert here.access.owner_name(OTHER.node_id) == "n2"
    assert here.access.owner_name(network().network_id) == "net0"
    assert here.access.owner_name(bytes(16)) is None
    here.hear(root_entry("assigned", f"{OTHER.text}/name", b"kitchen"))
    assert here.access.owner_name(OTHER.node_id) == "kitchen"
    here.hear(root_entry("assigned", f"{OTHER.text}/name", b"\x1b[2J", sequence=2))
    assert here.access.owner_name(OTHER.node_id) == "n2"


# Publishing


def test_what_the_root_key_signed_is_taken_and_spread() -> None:
    here = world()
    fixed = root_entry("assigned", f"{OTHER.text}/address", bytes(4))
    out = revocation(OTHER, sequence=2)
    results = here.access.publish([fixed.record, out.record])
    assert [(one.entry_id, one.verdict) for one in results] == [
        (fixed.entry_id, Verdict.ACCEPTED),
        (out.entry_id, Verdict.ACCEPTED),
    ]
    assert here.replica.directory.member(OTHER.node_id) is None
    assert {one.entry_id for one in here.told()} == {fixed.entry_id, out.entry_id}
    assert [one.verdict for one in here.access.publish([out.record])] == [Verdict.KNOWN]


def test_what_is_published_reaches_the_others() -> None:
    from tests.fakes.ledger_net import net_of, stations

    net = net_of(8)
    first, *others = stations(net)
    out = revocation(others[3].node)

    def perform(actions: list[Action]) -> None:
        net.perform(first, actions)

    access = LedgerAccess(first.gossip, clock=lambda: net.now, perform=perform)
    assert access.publish([out.record])[0].verdict is Verdict.ACCEPTED
    heard = lambda: all(one.replica.by_id(out.entry_id) for one in stations(net))  # noqa: E731
    assert net.run(2.0, until=heard)


def test_only_right_records_of_the_root_key_are_published() -> None:
    here = world()
    good = root_entry("assigned", f"{OTHER.text}/name", b"a", sequence=5)
    older = root_entry("assigned", f"{OTHER.text}/name", b"b", sequence=4)
    theirs = entry(OTHER, "shared", "x", b"1")
    forged = read_entry(_tampered(root_entry("assigned", "x/y", b"z").record))
    misplaced = root_entry("shared", "x")
    records = [good.record, older.record, theirs.record, forged.record, misplaced.record, b"junk"]
    results = here.access.publish(records)
    assert [one.verdict for one in results] == [
        Verdict.ACCEPTED,
        Verdict.STALE,
        *[Verdict.REJECTED] * 4,
    ]
    assert all(one.reason for one in results[1:])
    assert results[3].reason == "not signed by its owner"
    assert results[5].entry_id is None
    assert here.told() == [good]
    # A wrong hand at this node blames no peer.
    assert here.gossip.datagram(OTHER.node_id, b"\x93\x01\x05\x93", 0.0)


@given(st.lists(st.binary(max_size=300), max_size=5))
def test_rubbish_is_published_nowhere(records: list[bytes]) -> None:
    here = world()
    results = here.access.publish(records)
    assert [one.verdict for one in results] == [Verdict.REJECTED] * len(records)
    assert not here.sent


def _tampered(record: bytes) -> bytes:
    return record[:-1] + bytes([record[-1] ^ 1])
