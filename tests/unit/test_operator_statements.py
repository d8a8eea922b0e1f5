"""What the root key says: every prefix of it is safe, and nobody is left behind by mistake."""

from __future__ import annotations

import ipaddress

import pytest

from appliance.cluster.ranges import plan_for, range_view
from appliance.ledger import assigned
from appliance.ledger.claims import Claim, address_view, claim_value
from appliance.ledger.entry import Entry
from appliance.ledger.epochs import EXCLUDED_MAX, Secrets, advance, announcements, reseal
from appliance.ledger.hlc import MAX_SKEW_MS
from appliance.ledger.state import Replica, Verdict
from appliance.operator.errors import OperatorError
from appliance.operator.resolve import UnknownError, find_grant, find_node, find_revocable
from appliance.operator.statements import Desk, read_reason, reason_value
from appliance.overlay.addresses import claimed_address
from provisioning.keys import id_text
from provisioning.membership import Member
from provisioning.network import NetworkInfo
from tests.fakes.ledger import NOW, Node, entry, grant, network, node, replica, root_entry, seed
from tests.fakes.operator import LATER, ROOT, witness_entry

NODES = [node(number) for number in (1, 2, 3, 4)]
A, B, C, D = NODES
RANGE = ipaddress.IPv4Network("10.10.0.0/16")
PODS = ipaddress.IPv4Network("10.244.7.0/24")
NO_PODS = node(7, by=7, roles=("none",))


def desk(of: Replica | None = None, *, now: int = LATER, sequence: int = 0) -> Desk:
    return Desk(ROOT, replica(NODES) if of is None else of, now, sequence=sequence)


def member(of: Node, at: Desk) -> Member:
    found = at.replica.directory.member(of.node_id)
    assert found is not None
    return found


def secrets_of(of: Node, into: Replica, held: Secrets | None = None) -> Secrets:
    return advance(
        held or Secrets({0: network().otp_seed}),
        into,
        network_id=network().network_id,
        node_id=of.node_id,
        wg_private=seed("wg", of.number),
        now_ms=LATER,
    )


def taken(entries: list[Entry], members: list[Node] = NODES) -> Replica:
    here = replica(members)
    for one in entries:
        assert here.apply(one, LATER).verdict is Verdict.ACCEPTED
    return here


def test_a_revoked_node_is_out_and_the_others_have_a_new_secret() -> None:
    at = desk()
    assert at.revoke(nodes=[D.node_id], reason="stolen") == (1,)
    here = taken(at.made)
    assert here.directory.member(D.node_id) is None
    for one in (A, B, C):
        assert secrets_of(one, here).known[1] == at.secrets[1]
    assert secrets_of(D, here).current == 0
    assert announcements(here, LATER)[1].excluded == (f"node/{D.text}",)
    revoked = here.get("revoked", f"node/{D.text}", LATER)
    assert revoked is not None
    assert read_reason(revoked.value) == "stolen"


def test_every_prefix_of_a_revocation_is_safe() -> None:
    at = desk()
    at.revoke(nodes=[D.node_id], grants=[], reason="")
    for length in range(1, len(at.made) + 1):
        here = taken(at.made[:length])
        # Out from the first entry on; no secret is told of before all survivors have it, and no
        # member that heard of the epoch hands it to the revoked one.
        assert here.directory.member(D.node_id) is None
        announced = 1 in announcements(here, LATER)
        for one in (A, B, C):
            held = secrets_of(one, here)
            assert held.current == int(announced)
            left = replica([D]).directory.member(D.node_id)
            assert left is not None
            given = reseal(held, here, left, network_id=network().network_id, now_ms=LATER)
            assert given is None
        assert secrets_of(D, here).current == 0


def test_every_copy_of_the_root_key_can_open_the_secret() -> None:
    at = desk()
    at.revoke(nodes=[D.node_id])
    other = desk(taken(at.made))
    assert other.known_epoch() == (1, at.secrets[1])
    assert other.epoch_trouble() is None
    up_to_date = NetworkInfo(network().name, network().root_key, at.secrets[1], 1)
    assert Desk(type(ROOT)(up_to_date, ROOT.seed), taken(at.made), LATER).known_epoch() is None


def test_many_revocations_take_several_epochs_each_of_them_whole() -> None:
    gone = [node(number) for number in range(100, 100 + EXCLUDED_MAX + 2)]
    at = desk(replica([A, *gone]))
    assert at.revoke(nodes=[one.node_id for one in gone]) == (1, 2)
    here = taken(at.made, [A, *gone])
    said = announcements(here, LATER)
    assert [len(said[number].excluded) for number in (1, 2)] == [EXCLUDED_MAX, 2]
    assert set(said[1].excluded) | set(said[2].excluded) == {f"node/{one.text}" for one in gone}
    assert secrets_of(A, here).current == 2


def test_removing_keeps_the_secret_and_the_next_epoch_names_it() -> None:
    at = desk()
    assert at.revoke(nodes=[C.node_id], epoch=False) == ()
    assert not at.secrets
    assert at.revoke(nodes=[D.node_id]) == (1,)
    excluded = announcements(at.replica, LATER)[1].excluded
    assert set(excluded) == {f"node/{C.text}", f"node/{D.text}"}


def test_revoking_again_says_nothing_new_and_a_removed_one_gets_its_epoch() -> None:
    at = desk()
    at.revoke(nodes=[D.node_id], epoch=False)
    assert at.revoke(nodes=[D.node_id]) == (1,)
    made = len(at.made)
    assert at.revoke(nodes=[D.node_id]) == ()
    assert len(at.made) == made


def test_an_epoch_can_begin_without_a_revocation() -> None:
    at = desk()
    assert at.revoke() == (1,)
    assert at.revoke(epoch=False) == ()
    here = taken(at.made)
    assert announcements(here, LATER)[1].excluded == ()
    assert {secrets_of(one, here).current for one in NODES} == {1}


def test_a_revoked_grant_takes_its_nodes_along_and_frees_what_was_fixed_for_them() -> None:
    other = node(9, by=9)
    at = desk(replica([*NODES, other]))
    at.rename(member(other, at), "kitchen")
    at.fix_address(member(other, at), RANGE[77])
    at.fix_range(member(other, at), PODS)
    at.revoke(grants=[other.grant_id])
    assert {one.node_id for one in at.replica.directory} == {one.node_id for one in NODES}
    assert assigned.names(at.replica, LATER) == {}
    assert assigned.addresses(at.replica, LATER, RANGE) == {}
    freed = [one.key for one in at.made[-3:]]
    assert freed == [f"{other.text}/{kind}" for kind in ("address", "range", "name")]
    assert at.fix_address(member(A, at), RANGE[77])
    assert at.fix_range(member(A, at), PODS)


def test_whoever_is_not_in_gets_no_box() -> None:
    limited = grant(5, frozenset({"agent"}), count=1)
    first, second = node(5, by=5), node(6, by=5)
    assert first.grant_id != limited.grant_id
    here = replica([*NODES, first, second])
    for one in (first, second):
        here.apply(witness_entry(A, one), LATER)
    at = desk(here)
    assert at.close_grant(first.grant_id)
    assert {one.node_id for one in at.survivors()} == {
        one.node_id for one in (*NODES, first, second)
    }
    late = node(7, by=5)
    at.replica.apply(entry(late, "member", late.text, late.certificate), LATER)
    assert at.replica.directory.member(late.node_id) is not None
    assert late.node_id not in {one.node_id for one in at.survivors()}


def test_a_closed_grant_keeps_its_nodes_whatever_part_arrives() -> None:
    at = desk()
    assert at.close_grant(A.grant_id)
    keys = [one.key for one in at.made]
    assert keys[-1] == assigned.closed_key(A.grant_id)
    assert set(keys[:-1]) == {f"{one.text}/admitted" for one in NODES}
    assert assigned.closed_grants(taken(at.made), LATER) == {A.grant_id}
    assert not at.close_grant(A.grant_id)


def test_sequence_and_stamp_are_above_all_that_was_ever_said() -> None:
    here = replica(NODES)
    here.apply(root_entry("assigned", f"{A.text}/name", b"a", sequence=70), NOW)
    at = desk(here, sequence=20)
    at.rename(member(B, at), "b")
    assert at.made[0].sequence == 71
    assert at.made[0].stamp > next(iter(here.owned(network().network_id))).stamp
    behind = desk(replica(NODES), sequence=90, now=NOW - 60_000)
    behind.rename(member(B, behind), "b")
    assert behind.made[0].sequence == 91


def test_a_name_is_given_once() -> None:
    at = desk()
    assert at.rename(member(A, at), "kitchen")
    assert not at.rename(member(A, at), "kitchen")
    with pytest.raises(OperatorError, match="another node"):
        at.rename(member(B, at), "kitchen")
    with pytest.raises(OperatorError, match="another node"):
        at.rename(member(B, at), "n1" if member(A, at).name != "n1" else "kitchen")


def test_labels_are_changed_one_by_one_and_go_back_to_the_grants() -> None:
    at = desk()
    one = member(A, at)
    assert at.label(one, {"site": "berlin", "rack": "3"})
    assert assigned.labels(at.replica, LATER)[A.node_id] == {"site": "berlin", "rack": "3"}
    assert not at.label(one, {"rack": "3"})
    assert at.label(one, {"rack": None})
    with pytest.raises(OperatorError, match="no label rack"):
        at.label(one, {"rack": None})
    assert at.label(one, {"site": None})
    assert assigned.labels(at.replica, LATER) == {}
    with pytest.raises(assigned.StatementError):
        at.label(one, {"skerry.internal/operator": "1"})
    assert len(at.made) == 3


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("10.11.0.1", "outside the network's host_range"),
        ("10.10.0.0", "reserved: the network's own"),
        ("10.10.0.1", "reserved: kept for the API of a cluster"),
        ("10.10.255.255", "reserved: for broadcasts"),
    ],
)
def test_an_address_that_cannot_be_fixed_is_refused(address: str, why: str) -> None:
    at = desk()
    with pytest.raises(OperatorError, match=why):
        at.fix_address(member(A, at), ipaddress.IPv4Address(address))
    assert not at.made


def test_an_address_in_use_is_refused_and_says_by_whom() -> None:
    here = replica(NODES)
    held = claimed_address(B.node_id, 0, RANGE)
    here.apply(entry(B, "address", B.text, claim_value(Claim(B.node_id, held.packed, 0))), NOW)
    at = desk(here)
    with pytest.raises(OperatorError, match=f"taken by n2 .{B.text}"):
        at.fix_address(member(A, at), held)
    assert at.fix_address(member(B, at), held)
    assert at.fix_address(member(A, at), RANGE[9])
    with pytest.raises(OperatorError, match="taken by n1"):
        at.fix_address(member(C, at), RANGE[9])
    assert address_view(at.replica, RANGE, LATER).fixed[A.node_id] == RANGE[9].packed
    assert at.fix_address(member(A, at), None)
    assert not at.fix_address(member(A, at), None)


def test_a_pod_range_is_fixed_if_it_is_one_and_free() -> None:
    here = replica([*NODES, NO_PODS])
    plan = plan_for(network().network_id, network().settings)
    held = plan.at(B.node_id, 0)
    here.apply(entry(B, "range", B.text, claim_value(Claim(B.node_id, held, 0))), NOW)
    at = desk(here)
    taken_range = plan.read(held)
    assert taken_range is not None
    with pytest.raises(OperatorError, match=f"taken by n2 .{B.text}"):
        at.fix_range(member(A, at), taken_range)
    for text in ("10.244.0.0/16", "10.244.7.0/25", "10.10.7.0/24"):
        with pytest.raises(OperatorError, match="no node's range of this network"):
            at.fix_range(member(A, at), ipaddress.IPv4Network(text))
    with pytest.raises(OperatorError, match="carries no pods"):
        at.fix_range(member(NO_PODS, at), PODS)
    assert not at.made
    assert at.fix_range(member(B, at), taken_range)
    assert range_view(at.replica, plan, LATER).fixed == {B.node_id: held}
    assert at.fix_range(member(B, at), None)
    assert not at.fix_range(member(B, at), None)


def test_what_was_left_over_is_sent_again_unless_it_arrived_or_was_outdone() -> None:
    first = desk()
    first.rename(member(A, first), "one")
    first.rename(member(B, first), "two")
    first.rename(member(C, first), "three")
    pending = list(first.made)
    here = replica(NODES)
    here.apply(pending[0], LATER)
    here.apply(root_entry("assigned", f"{B.text}/name", b"other", sequence=99), LATER)
    at = desk(here)
    settled = at.settle(pending, {})
    assert settled.landed == (pending[0],)
    assert settled.superseded == (pending[1],)
    assert settled.resend == (pending[2],)
    at.rename(member(D, at), "four")
    assert at.made[0].sequence == 100


def test_what_a_clock_ahead_has_stamped_is_made_again() -> None:
    ahead = desk(now=LATER + 10 * MAX_SKEW_MS)
    ahead.revoke(nodes=[D.node_id])
    assert taken([]).apply(ahead.made[0], LATER).verdict is Verdict.REJECTED
    at = desk()
    settled = at.settle(ahead.made, ahead.secrets)
    assert settled.resend == settled.landed == settled.superseded == ()
    here = taken(at.made)
    assert secrets_of(A, here).known[1] == ahead.secrets[1]
    assert at.made[0].sequence > ahead.made[-1].sequence
    assert at.epoch_trouble(settled.displaced) is None


def test_an_epoch_that_another_operator_began_first_gives_way_to_a_third() -> None:
    mine, theirs = desk(), desk()
    mine.revoke(nodes=[D.node_id])
    theirs.revoke(nodes=[C.node_id])
    here = taken(theirs.made)
    at = desk(here)
    settled = at.settle(mine.made, mine.secrets)
    assert settled.displaced == {1}
    trouble = at.epoch_trouble(settled.displaced)
    assert trouble is not None
    assert "another operator" in trouble
    assert at.new_epochs() == (2,)
    assert announcements(at.replica, LATER)[2].excluded == (f"node/{D.text}",)
    assert {one.bucket for one in settled.resend} == {"revoked"}
    assert secrets_of(A, at.replica).known[2] == at.secrets[2]
    assert 2 not in secrets_of(D, at.replica).known


def test_two_epochs_of_one_number_at_once_are_noticed_and_mended() -> None:
    mine, theirs = desk(), desk()
    mine.revoke(nodes=[D.node_id])
    theirs.revoke(nodes=[C.node_id], reason="another")
    both = replica(NODES)
    for said_by in (mine, theirs):
        for statement in said_by.made:
            both.apply(statement, LATER)
    said = announcements(both, LATER)[1]
    loser = mine if said.excluded == (f"node/{C.text}",) else theirs
    info = NetworkInfo(network().name, network().root_key, loser.secrets[1], 1)
    at = Desk(type(ROOT)(info, ROOT.seed), both, LATER)
    assert at.epoch_trouble() is not None
    assert at.new_epochs() == (2,)
    named = {key for one in announcements(both, LATER).values() for key in one.excluded}
    assert named == {f"node/{C.text}", f"node/{D.text}"}
    for one in (A, B):
        assert secrets_of(one, both).known[2] == at.secrets[2]


def test_a_reason_has_its_bounds_and_is_fit_for_a_terminal() -> None:
    assert read_reason(reason_value("lost on a train")) == "lost on a train"
    assert read_reason(reason_value("a\x1b[31mb")) == "a [31mb"
    assert read_reason(b"") == read_reason(b"\xc1") == ""
    for reason in ("x" * 201, "\u20ac" * 100):
        with pytest.raises(OperatorError, match="characters"):
            reason_value(reason)
    at = desk()
    with pytest.raises(OperatorError):
        at.revoke(nodes=[D.node_id], reason="x" * 201)
    assert not at.made


def test_a_node_is_found_by_name_id_or_beginning() -> None:
    at = desk()
    at.rename(member(A, at), "kitchen")
    for text in ("kitchen", A.text, A.text.upper(), A.text[:6]):
        assert find_node(text, at.replica, LATER).node_id == A.node_id
    with pytest.raises(UnknownError, match="no node is called 'n1'") as error:
        find_node("n1", at.replica, LATER)
    assert f"kitchen ({A.text})" in str(error.value.hint)
    for short in ("", A.text[:2]):
        with pytest.raises(UnknownError):
            find_node(short, at.replica, LATER)


def test_an_ambiguous_name_is_answered_with_the_candidates() -> None:
    at = desk()
    at.say(assigned.node_key(A.node_id, assigned.NAME), b"twin")
    at.say(assigned.node_key(B.node_id, assigned.NAME), b"twin")
    with pytest.raises(UnknownError, match="may be twin") as error:
        find_node("twin", at.replica, LATER)
    assert A.text in str(error.value)
    assert B.text in str(error.value)


def test_a_revoked_node_is_final_and_a_whole_id_can_be_revoked_unseen() -> None:
    at = desk()
    at.revoke(nodes=[D.node_id])
    with pytest.raises(UnknownError, match="final"):
        find_node(D.text, at.replica, LATER)
    stranger = node(50)
    assert find_revocable(stranger.text, at.replica, LATER) == stranger.node_id
    assert find_revocable(A.text[:8], at.replica, LATER) == A.node_id
    assert find_grant(id_text(A.grant_id)[:5], [A.grant_id]) == A.grant_id
    with pytest.raises(UnknownError, match="no grant"):
        find_grant("zzzz", [A.grant_id])
