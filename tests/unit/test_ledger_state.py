"""A replica takes in what is right, in any order, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.ledger.entry import ENTRY_MAX, Entry, EntryRecord, make_entry, read_entry
from appliance.ledger.errors import EntryError, WriteError
from appliance.ledger.hlc import MAX_SKEW_MS, Clock, stamp
from appliance.ledger.rules import BUCKETS, DAY_MS, FLOOR, MEMBER
from appliance.ledger.state import Reason, Replica, Verdict
from appliance.ledger.writer import TOMBSTONES_MIN, Writer
from provisioning import codec
from provisioning.keys import Context, id_text, sign
from tests.fakes.ledger import (
    NOW,
    Node,
    entry,
    member_entry,
    network,
    node,
    replica,
    revocation,
    root_entry,
    root_sign,
    seed,
    writer,
)

A, B, C = node(1), node(2), node(3)
SERVER = node(4, roles=("server",), by=4)


def reason(into: Replica, one: Entry, now: int = NOW) -> Reason | None:
    outcome = into.apply(one, now)
    assert (outcome.verdict is Verdict.REJECTED) == (outcome.reason is not None)
    return outcome.reason


def contents(of: Replica) -> set[bytes]:
    assert len(of) == len(of.ids) == len({one.slot for one in of})
    assert of.bytes == sum(one.size for one in of)
    return {one.entry_id for one in of}


def test_what_a_member_writes_is_read() -> None:
    here = replica([A])
    outcome = here.apply(entry(A, "shared", "greeting", b"hello"), NOW)
    assert outcome.verdict is Verdict.ACCEPTED
    assert [(one.old, one.new and one.new.value) for one in outcome.changes] == [(None, b"hello")]
    found = here.get("shared", "greeting", NOW)
    assert found is not None
    assert found.value == b"hello"
    assert here.apply(entry(A, "shared", "greeting", b"hello"), NOW).verdict is Verdict.KNOWN
    assert here.get("shared", "other", NOW) is None
    assert here.get("nowhere", "other", NOW) is None


def test_two_owners_of_one_key_the_later_counts_and_a_tombstone_hides_both() -> None:
    here = replica([A, B])
    here.apply(entry(A, "shared", "k", b"a", sequence=2, ms=NOW + 5), NOW)
    here.apply(entry(B, "shared", "k", b"b", sequence=2, ms=NOW + 9), NOW)
    assert here.get("shared", "k", NOW) == here.slot("shared", "k", B.node_id)
    here.apply(entry(A, "shared", "k", sequence=3, ms=NOW + 10, deleted=True), NOW)
    assert here.get("shared", "k", NOW) is None
    assert here.entries("shared", NOW) == []


def test_within_a_slot_the_owners_count_decides_not_its_clock() -> None:
    here = replica([A])
    ahead = entry(A, "shared", "k", b"written with a clock ahead", sequence=2, ms=NOW + 60_000)
    right = entry(A, "shared", "k", b"later, clock put right", sequence=3)
    here.apply(ahead, NOW)
    here.apply(right, NOW)
    assert here.get("shared", "k", NOW) == right
    old = here.apply(ahead, NOW)
    assert old.verdict is Verdict.STALE
    assert old.newer == right


def forged(one: Entry) -> Entry:
    record = codec.decode(one.record, EntryRecord, limit=ENTRY_MAX)
    signature = bytes([record.signature[0] ^ 1]) + record.signature[1:]
    return read_entry(codec.encode(EntryRecord(record.version, record.body, signature)))


@pytest.mark.parametrize(
    ("one", "why"),
    [
        (forged(entry(A, "shared", "k", b"v")), Reason.FORGED),
        (forged(root_entry("assigned", "x")), Reason.FORGED),
        (forged(revocation(A)), Reason.FORGED),
        (entry(A, "shared", "k", net=1), Reason.FORGED),
        (entry(C, "shared", "k"), Reason.UNKNOWN_OWNER),
        (entry(A, "address", B.text), Reason.WRONG_WRITER),
        (entry(A, "address", A.text + "/more"), Reason.WRONG_WRITER),
        (entry(A, "witness", A.text + "x/y"), Reason.WRONG_WRITER),
        (entry(A, "assigned", A.text), Reason.WRONG_WRITER),
        (entry(A, "revoked", f"node/{B.text}"), Reason.WRONG_WRITER),
        (entry(A, "cluster", A.text + "/role"), Reason.WRONG_WRITER),
        (entry(SERVER, "cluster", A.text + "/role"), Reason.WRONG_WRITER),
        (entry(A, FLOOR, B.text, bytes(8)), Reason.WRONG_WRITER),
        (entry(A, FLOOR, A.text, bytes(7)), Reason.WRONG_WRITER),
        (root_entry("shared", "k"), Reason.WRONG_WRITER),
        (entry(A, "shared", "k", ms=NOW + MAX_SKEW_MS + 1), Reason.FUTURE),
        (entry(A, "shared", "k", expires=NOW + 1), Reason.WRONG_LEASE),
        (entry(A, "lease", "k"), Reason.WRONG_LEASE),
        (entry(A, "lease", "k", expires=NOW + DAY_MS + 1), Reason.WRONG_LEASE),
        (entry(A, "lease", "k", ms=NOW - 10, expires=NOW), Reason.EXPIRED),
        (entry(A, "address", A.text, bytes(65)), Reason.TOO_LARGE),
        (entry(A, MEMBER, A.text, sequence=2, deleted=True), Reason.FORBIDDEN_DELETE),
        (entry(A, MEMBER, A.text, B.certificate, sequence=2), Reason.UNKNOWN_OWNER),
        (entry(A, MEMBER, A.text, b"junk", sequence=2), Reason.UNKNOWN_OWNER),
        (entry(A, "from-a-later-release", "k"), Reason.UNKNOWN_BUCKET),
    ],
)
def test_what_is_wrong_is_refused_for_what_is_wrong_with_it(one: Entry, why: Reason) -> None:
    here = replica([A, B])
    before = contents(here)
    assert reason(here, one) is why
    assert contents(here) == before


def test_a_signature_of_another_kind_is_none() -> None:
    """What the node's key signed as a certificate, or as a message, is no entry."""
    for context in (Context.NODE_PROOF, Context.CERTIFICATE, Context.LEDGER_ROOT):
        one = make_entry(
            partial(sign, context, A.seed),
            network().network_id,
            owner=A.node_id,
            sequence=1,
            stamp=stamp(NOW),
            bucket="shared",
            key="k",
        )
        assert reason(replica([A]), one) is Reason.FORGED
    record = codec.decode(entry(A, "shared", "k").record, EntryRecord, limit=ENTRY_MAX)
    bare = codec.encode(EntryRecord(1, record.body, A.sign(record.body)))
    assert reason(replica([A]), read_entry(bare)) is Reason.FORGED


def test_a_role_opens_its_bucket() -> None:
    here = replica([A, SERVER])
    one, other = (
        entry(who, "cluster", f"{who.text}/role", b"x", sequence=2) for who in (SERVER, A)
    )
    assert reason(here, one) is None
    assert reason(here, other) is Reason.WRONG_WRITER


def test_a_revoked_node_is_gone_with_all_it_wrote_and_stays_out() -> None:
    here = replica([A, B])
    here.apply(entry(A, "shared", "k", b"v", sequence=2), NOW)
    outcome = here.apply(revocation(A), NOW)
    assert {one.old.owner for one in outcome.changes if one.old} == {A.node_id}
    assert here.directory.member(A.node_id) is None
    assert reason(here, member_entry(A)) is Reason.UNKNOWN_OWNER
    assert reason(here, entry(A, "shared", "k", b"v", sequence=9)) is Reason.UNKNOWN_OWNER
    assert here.directory.member(B.node_id) is not None


def test_a_revoked_grant_takes_all_its_nodes() -> None:
    here = replica([A, B, SERVER])
    here.apply(root_entry("revoked", f"grant/{id_text(A.grant_id)}"), NOW)
    assert [one.node_id for one in here.directory] == [SERVER.node_id]


def test_a_quota_costs_the_owner_its_oldest_and_nobody_else() -> None:
    here = replica([A, B])
    limit = BUCKETS["shared"].entries
    here.apply(entry(B, "shared", "b", b"v", sequence=2), NOW)
    for number in range(2, limit + 5):
        here.apply(entry(A, "shared", f"k{number}", b"v", sequence=number), NOW)
    assert here.usage(A.node_id, "shared")[0] == limit
    assert here.get("shared", "k2", NOW) is None
    assert here.get("shared", f"k{limit + 4}", NOW) is not None
    assert here.get("shared", "b", NOW) is not None
    assert reason(here, entry(A, "shared", "k2", b"v", sequence=2)) is Reason.OVER_QUOTA


def test_a_quota_of_bytes() -> None:
    here = replica([A])
    for number in range(2, 80):
        here.apply(entry(A, "shared", f"k{number}", bytes(4096), sequence=number), NOW)
    assert here.usage(A.node_id, "shared")[1] <= BUCKETS["shared"].bytes
    assert here.get("shared", "k79", NOW) is not None


def test_a_replacement_too_large_says_what_went(monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(BUCKETS["shared"], bytes=1200)
    monkeypatch.setattr("appliance.ledger.state.BUCKETS", {**BUCKETS, "shared": small})
    here = replica([A])
    here.apply(entry(A, "shared", "k", b"v", sequence=2), NOW)
    outcome = here.apply(entry(A, "shared", "k", bytes(2000), sequence=3), NOW)
    assert outcome.reason is Reason.OVER_QUOTA
    assert [(one.old and one.old.sequence, one.new) for one in outcome.changes] == [(2, None)]
    assert contents(here) == {member_entry(A).entry_id}


def test_a_full_ledger_takes_nothing_new_but_what_makes_room() -> None:
    first = entry(A, "shared", "k", b"value", sequence=2)
    here = Replica(replica().directory, total_bytes_max=member_entry(A).size + first.size)
    assert reason(here, member_entry(A)) is None
    assert reason(here, first) is None
    assert reason(here, member_entry(B)) is Reason.FULL
    assert reason(here, entry(A, "shared", "l", b"v", sequence=3)) is Reason.FULL
    assert reason(here, entry(A, "shared", "k", b"longer", sequence=4)) is Reason.FULL
    assert reason(here, entry(A, "shared", "k", b"equal", sequence=70_000)) is None
    assert reason(here, entry(A, "shared", "k", sequence=70_001, deleted=True)) is None
    floor = entry(A, "floor", A.text, (70_002).to_bytes(8), sequence=70_002)
    assert reason(here, floor) is None
    gone = root_entry("revoked", f"node/{A.text}", b"")
    assert reason(here, gone) is None
    assert contents(here) == {gone.entry_id}


def test_a_lease_runs_out_and_does_not_come_back() -> None:
    here = replica([A])
    first = entry(A, "lease", "k", b"1", sequence=2, expires=NOW + 1000)
    here.apply(first, NOW)
    assert here.get("lease", "k", NOW + 999) is not None
    assert here.get("lease", "k", NOW + 1000) is None
    assert here.sweep(NOW + 999) == ()
    assert [one.old for one in here.sweep(NOW + 1000)] == [first]
    assert reason(here, first, NOW + 1000) is Reason.EXPIRED


def test_the_queue_of_leases_stays_as_small_as_the_ledger() -> None:
    here = replica([A])
    for number in range(2, 300):
        here.apply(entry(A, "lease", "k", sequence=number, expires=NOW + 1000), NOW)
    assert len(here._leases) <= 2 * len(here) + 65
    assert len(here.sweep(NOW + 1000)) == 1


def test_an_entry_that_left_and_came_again_runs_out_once() -> None:
    """As after a clock that was put back and forth: what was expelled comes again from peers."""
    here = replica([A])
    first = entry(A, "lease", "k", b"1", sequence=2, ms=NOW, expires=NOW + 1000)
    here.apply(first, NOW)
    here.expel_future(NOW - MAX_SKEW_MS - 1)
    assert here.by_id(first.entry_id) is None
    here.apply(first, NOW)
    assert [one.old for one in here.sweep(NOW + 1000)] == [first]


def test_future_entries_leave_once_the_clock_is_right() -> None:
    here = replica([A])
    ahead = entry(A, "shared", "k", b"v", sequence=2, ms=NOW + DAY_MS)
    assert reason(here, ahead, NOW + DAY_MS) is None
    assert [one.old for one in here.expel_future(NOW)] == [ahead]
    assert reason(here, ahead) is Reason.FUTURE


def test_a_floor_voids_what_is_older_for_good() -> None:
    here = replica([A])
    old = entry(A, "shared", "k", b"old", sequence=2)
    here.apply(old, NOW)
    here.apply(entry(A, "shared", "kept", b"new", sequence=3), NOW)
    here.apply(entry(A, FLOOR, A.text, (3).to_bytes(8), sequence=4), NOW)
    assert here.get("shared", "k", NOW) is None
    assert here.get("shared", "kept", NOW) is not None
    assert reason(here, old) is Reason.VOIDED
    assert here.directory.member(A.node_id) is not None


# Local writes


def test_local_writes_go_by_the_rules() -> None:
    here = replica([A])
    mine = writer(A, here)
    assert mine.sequence == 1
    assert mine.put("shared", "k", b"v", NOW).entry.sequence == 2
    mine.delete("shared", "k", NOW)
    assert here.get("shared", "k", NOW) is None
    with pytest.raises(WriteError, match="no bucket"):
        mine.put("nowhere", "k", b"v", NOW)
    with pytest.raises(WriteError, match="may not write"):
        mine.put("address", B.text, b"v", NOW)
    with pytest.raises(WriteError, match="lease"):
        mine.put("lease", "k", b"v", NOW)
    with pytest.raises(WriteError, match="cannot be written"):
        mine.put("shared", "k k", b"v", NOW)
    with pytest.raises(WriteError, match="larger"):
        mine.put("address", A.text, bytes(100), NOW)
    assert mine.sequence == 3


def test_a_local_write_over_quota_is_refused_and_costs_nothing() -> None:
    here = replica([A])
    mine = writer(A, here)
    for number in range(BUCKETS["shared"].entries):
        mine.put("shared", f"k{number}", b"v", NOW)
    with pytest.raises(WriteError, match="257 of 256"):
        mine.put("shared", "one-more", b"v", NOW)
    assert here.get("shared", "k0", NOW) is not None
    mine.put("shared", "k0", b"replaced", NOW)


def test_a_lease_is_never_shortened_so_that_none_is_uncovered() -> None:
    here = replica([A])
    mine = writer(A, here)
    long = mine.put("lease", "k", b"1", NOW, lease_ms=10_000).entry
    short = mine.put("lease", "k", b"2", NOW, lease_ms=10).entry
    assert short.expires == long.expires
    gone = mine.delete("lease", "k", NOW).entry
    assert gone.expires is not None
    assert long.expires is not None
    assert gone.expires >= long.expires


def test_the_operator_writes_with_the_root_key() -> None:
    here = replica([A, B])
    root = Writer(here, Clock(), owner=network().network_id, sign=root_sign)
    root.put("assigned", f"{B.text}/name", b"kitchen", NOW)
    root.put("revoked", f"node/{A.text}", b"", NOW)
    assert here.directory.member(A.node_id) is None
    with pytest.raises(WriteError, match="cannot be deleted"):
        root.delete("revoked", f"node/{A.text}", NOW)
    with pytest.raises(WriteError, match="may not write"):
        root.put("shared", "k", b"v", NOW)
    for number in range(TOMBSTONES_MIN):
        root.put("assigned", f"x{number}", b"v", NOW)
        root.delete("assigned", f"x{number}", NOW)
    root.compact(NOW + 2 * DAY_MS)
    root.compact(NOW + 2 * DAY_MS)
    assert not [one for one in here if one.deleted]
    assert here.apply(member_entry(A), NOW).reason is Reason.UNKNOWN_OWNER
    assert here.get("assigned", f"{B.text}/name", NOW) is not None


def test_compaction_leaves_no_tombstone_and_no_way_back() -> None:
    here, there = replica([A, B]), replica([A, B])
    mine = writer(A, here)
    live = mine.put("shared", "mine", b"stays", NOW).entry
    deleted = [mine.put("shared", f"k{one}", b"v", NOW).entry for one in range(TOMBSTONES_MIN)]
    for one in range(TOMBSTONES_MIN):
        mine.delete("shared", f"k{one}", NOW)
    there.apply(entry(B, "shared", "mine", b"B's, later", sequence=2, ms=NOW + 50_000), NOW)
    assert mine.compact(NOW) == []
    later = NOW + DAY_MS + 1000
    again = mine.compact(later)
    assert [(one.entry.key, one.entry.stamp) for one in again] == [("mine", live.stamp)]
    floor = mine.compact(later)
    assert [one.entry.bucket for one in floor] == [FLOOR]
    assert mine.compact(later) == []
    assert not [one for one in here if one.deleted]
    for written in [*deleted, *[two.entry for two in again + floor]]:
        there.apply(written, later)
    assert {one.key for one in there.owned(A.node_id)} == {A.text, "mine"}
    found = there.get("shared", "mine", later)
    assert found is not None
    assert found.value == b"B's, later"


def test_a_forgotten_sequence_is_learnt_back_from_peers() -> None:
    here = replica([A])
    mine = writer(A, here)
    assert not mine.recover(entry(B, "shared", "k", sequence=70))
    assert mine.recover(entry(A, "shared", "k", sequence=70))
    assert not mine.recover(entry(A, "shared", "k", sequence=70))
    assert mine.put("shared", "k", b"v", NOW).entry.sequence == 71


def test_writes_from_a_wrong_future_are_written_again() -> None:
    here = replica([A])
    mine = writer(A, here)
    mine.put("shared", "k", b"v", NOW + DAY_MS)
    again = mine.rewrite_future(NOW)
    assert [(one.entry.key, one.entry.stamp >> 16) for one in again] == [("k", NOW)]
    assert reason(replica([A]), again[0].entry) is None
    assert mine.rewrite_future(NOW) == []


# Any order


NODES = (A, B, C)


@st.composite
def statements(draw: st.DrawFn) -> list[Entry]:
    """What three members and the root may sign, duplicates of sequence numbers included."""
    made: list[Entry] = [member_entry(one) for one in NODES]
    for _ in range(draw(st.integers(0, 14))):
        of: Node = draw(st.sampled_from(NODES))
        sequence = draw(st.integers(2, 8))
        match draw(st.sampled_from(("shared", "lease", "address", "floor", "delete"))):
            case "shared":
                key, value = draw(st.sampled_from("xyz")), draw(st.binary(max_size=2))
                made.append(entry(of, "shared", key, value, sequence=sequence))
            case "delete":
                key = draw(st.sampled_from("xyz"))
                made.append(entry(of, "shared", key, sequence=sequence, deleted=True))
            case "lease":
                until = NOW + draw(st.sampled_from((500, 1500)))
                made.append(entry(of, "lease", "x", sequence=sequence, expires=until))
            case "address":
                made.append(entry(of, "address", of.text, b"a", sequence=sequence))
            case _:
                value = draw(st.integers(0, 9)).to_bytes(8)
                made.append(entry(of, FLOOR, of.text, value, sequence=sequence))
    if draw(st.booleans()):
        made.append(revocation(draw(st.sampled_from(NODES))))
    return made


def exchanged(here: Replica, there: Replica, now: int) -> None:
    """Hand over what the other lacks until nothing changes, as reconciliation does."""
    for _ in range(20):
        before = contents(here), contents(there)
        for one in list(here):
            there.apply(one, now)
        for one in list(there):
            here.apply(one, now)
        if before == (contents(here), contents(there)):
            return
    raise AssertionError("no end")


@settings(max_examples=60)
@given(statements(), st.randoms(use_true_random=False), st.integers(0, 2))
def test_replicas_agree_whatever_the_order_loss_and_repetition(
    made: list[Entry], random: Random, late: int
) -> None:
    shuffle = random.sample
    here, there = replica(), replica()
    for one in shuffle(made, len(made)):
        here.apply(one, NOW)
    for one in shuffle(made + made, len(made)):
        there.apply(one, NOW)
    now = NOW + late * 700
    here.sweep(now)
    exchanged(here, there, now)
    there.sweep(now)
    exchanged(here, there, now)
    assert contents(here) == contents(there)
    assert here.ids.digest() == there.ids.digest()
    for bucket in BUCKETS:
        assert here.entries(bucket, now) == there.entries(bucket, now)


@settings(max_examples=150)
@given(st.binary(max_size=200))
def test_bytes_that_are_no_entry(data: bytes) -> None:
    with pytest.raises(EntryError):
        read_entry(data)


GOOD = entry(A, "lease", "key", b"value", expires=NOW + 1000).record


@settings(max_examples=300)
@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255), st.integers(0, 3))
def test_a_damaged_entry_is_refused_one_way_or_the_other(at: int, flip: int, cut: int) -> None:
    data = GOOD[:at] + bytes([GOOD[at] ^ flip]) + GOOD[at + 1 : len(GOOD) - cut]
    try:
        one = read_entry(data)
    except EntryError:
        return
    assert reason(replica([A]), one) is not None


def test_an_entry_of_a_later_release_is_told_from_junk() -> None:
    with pytest.raises(EntryError) as caught:
        read_entry(b"\x93\x02\xc4\x00\xc4\x00")
    assert caught.value.newer
    with pytest.raises(EntryError, match="bytes"):
        read_entry(bytes(ENTRY_MAX + 1))
    with pytest.raises(EntryError, match="version 0"):
        read_entry(codec.encode(EntryRecord(0, b"", bytes(64))))


def test_two_signatures_of_one_body_are_one_entry() -> None:
    one = entry(A, "shared", "k", b"v")
    assert forged(one).entry_id == one.entry_id
    assert replica([A]).restore([one, member_entry(B)], NOW) == 0
    assert root_sign(b"x") != sign(Context.MESSAGE, seed("root", 0), b"x")


def test_the_largest_entry_fits_its_limit() -> None:
    key = "k" * 128
    one = entry(A, "shared", key, bytes(4096), sequence=2**48, ms=2**47 - 1)
    assert one.size <= ENTRY_MAX
