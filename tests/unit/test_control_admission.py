"""Who is let in: grants that are open, expired, closed, used up; by whose word."""

from __future__ import annotations

import itertools

import pytest

from appliance.control.admission import (
    CLOSED_CAUSE,
    EXPIRED_CAUSE,
    INFORMED_SECONDS,
    REVOKED_CAUSE,
    USED_UP_CAUSE,
    Newcomer,
    Standing,
    standing,
)
from appliance.ledger import assigned, claims
from appliance.ledger.directory import Directory
from appliance.ledger.hlc import Clock
from appliance.ledger.rules import ASSIGNED, MEMBER, WITNESS
from appliance.ledger.state import Replica, Verdict
from appliance.ledger.timekeeper import Quality
from appliance.ledger.writer import Writer
from provisioning.identity import Identity
from provisioning.keys import id_text
from tests.fakes.control_world import UNIX, Operator, join, make_grant_token, make_network

NETWORK = make_network()
NOW_MS = int(UNIX * 1000)
EXPIRES = int(UNIX) - 100
BEFORE = UNIX - 500
OLD = make_grant_token(NETWORK, expires=EXPIRES)
OPEN = make_grant_token(NETWORK)
PAIR = make_grant_token(NETWORK, count=2)


class Ledger:
    """One replica, and writers of any member for it."""

    def __init__(self) -> None:
        self.replica = Replica(Directory(NETWORK))
        self.operator = Operator(NETWORK)
        self.operator.replica = self.operator.writer.replica = self.replica
        self._writers: dict[bytes, Writer] = {}

    def enter(self, *identities: Identity) -> None:
        for one in identities:
            writer = self._writers[one.node_id] = Writer(
                self.replica, Clock(), owner=one.node_id, sign=one.sign
            )
            writer.put(MEMBER, id_text(one.node_id), one.certificate, NOW_MS)

    def witness(self, by: Identity, of: Identity, *, at_ms: int = NOW_MS) -> None:
        key = claims.witness_key(by.node_id, claims.GRANT_KIND, of.node_id)
        value = claims.witness_value(of.member().grant_id, Quality.SYNCED)
        written = self._writers[by.node_id].put(WITNESS, key, value, at_ms)
        assert written.outcome.verdict is Verdict.ACCEPTED

    def standing(
        self,
        own: Identity,
        *,
        known: tuple[Identity, ...] = (),
        candidates: tuple[Identity, ...] = (),
    ) -> Standing:
        return standing(
            self.replica,
            own=own.member(),
            known={one.node_id for one in known},
            candidates=[one.member() for one in candidates],
            now_ms=NOW_MS,
        )


def cause(found: Standing, node: Identity) -> str:
    denied = found.judge(node.member())
    return denied.cause if denied else ""


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


def old(name: str) -> Identity:
    return join(OLD, name, now=BEFORE)


def test_an_open_grant_lets_anybody_in(ledger: Ledger) -> None:
    own, new = join(OPEN, "own"), join(OPEN, "new")
    ledger.enter(own)
    assert cause(ledger.standing(own), new) == ""


def test_an_expired_grant_lets_nobody_new_in(ledger: Ledger) -> None:
    own, friend, late = old("own"), old("friend"), old("late")
    ledger.enter(own, friend)
    found = ledger.standing(own, known=(friend,))
    assert cause(found, late) == EXPIRED_CAUSE
    assert cause(found, friend) == "", "who is in stays in"


def test_whoever_a_member_saw_come_in_in_time_is_in(ledger: Ledger) -> None:
    own, friend, unmet = old("own"), old("friend"), old("unmet")
    ledger.enter(own, friend, unmet)
    assert cause(ledger.standing(own, known=(friend,)), unmet) == EXPIRED_CAUSE
    ledger.witness(friend, unmet)
    assert cause(ledger.standing(own, known=(friend,)), unmet) == ""


def test_word_of_mouth_reaches_as_far_as_it_goes(ledger: Ledger) -> None:
    chain = [old(f"n{number}") for number in range(5)]
    ledger.enter(*chain)
    for one, two in itertools.pairwise(chain):
        ledger.witness(one, two)
    assert cause(ledger.standing(chain[0], known=(chain[1],)), chain[4]) == ""


def test_two_late_users_of_a_leaked_token_do_not_vouch_for_each_other(ledger: Ledger) -> None:
    own, friend, late, later = old("own"), old("friend"), old("late"), old("later")
    ledger.enter(own, friend, late, later)
    ledger.witness(late, later)
    ledger.witness(later, late)
    found = ledger.standing(own, known=(friend,))
    assert cause(found, late) == cause(found, later) == EXPIRED_CAUSE


def test_the_operator_can_say_that_somebody_is_in(ledger: Ledger) -> None:
    own, friend, unmet = old("own"), old("friend"), old("unmet")
    ledger.enter(own, friend, unmet)
    key = assigned.node_key(unmet.node_id, assigned.ADMITTED)
    ledger.operator.write(ASSIGNED, key, assigned.MARK, NOW_MS)
    assert cause(ledger.standing(own, known=(friend,)), unmet) == ""


def test_a_newcomer_takes_its_first_member_on_trust(ledger: Ledger) -> None:
    """All old members came with a token that has expired since; the newcomer knows none."""
    newcomer, member = join(OPEN, "newcomer"), old("member")
    ledger.enter(newcomer)
    assert cause(ledger.standing(newcomer), member) == ""


def test_a_newcomer_that_knows_a_member_trusts_no_other_late_one(ledger: Ledger) -> None:
    newcomer, member, late = join(OPEN, "newcomer"), old("member"), old("late")
    ledger.enter(newcomer)
    found = ledger.standing(newcomer, known=(member,))
    assert cause(found, late) == EXPIRED_CAUSE
    ledger.enter(member, late)
    ledger.witness(member, late)
    assert cause(ledger.standing(newcomer, known=(member,)), late) == ""


def test_a_closed_grant_lets_nobody_new_in_and_throws_nobody_out(ledger: Ledger) -> None:
    own, friend, new = join(OPEN, "own"), join(OPEN, "friend"), join(OPEN, "new")
    ledger.enter(own, friend)
    key = assigned.closed_key(own.member().grant_id)
    ledger.operator.write(ASSIGNED, key, assigned.MARK, NOW_MS)
    found = ledger.standing(own, known=(friend,))
    assert cause(found, new) == CLOSED_CAUSE
    assert cause(found, friend) == ""


def test_a_revoked_node_is_out_whatever_else_is_so(ledger: Ledger) -> None:
    own, gone = join(OPEN, "own"), join(OPEN, "gone")
    ledger.enter(own, gone)
    ledger.operator.revoke(gone.node_id, NOW_MS)
    found = ledger.standing(own, known=(gone,))
    assert cause(found, gone) == REVOKED_CAUSE


def test_the_count_of_a_grant_holds_and_the_excess_is_told_who_has_the_places(
    ledger: Ledger,
) -> None:
    one, two, three = (join(PAIR, name) for name in ("one", "two", "three"))
    ledger.enter(one, two)
    ledger.witness(one, two)
    ledger.witness(two, one)
    found = ledger.standing(one, candidates=(three,))
    denied = found.judge(three.member())
    assert denied is not None
    assert denied.cause == USED_UP_CAUSE
    assert "2 nodes" in denied.detail
    assert "one, two" in denied.detail
    assert cause(found, two) == ""


def test_three_that_came_at_once_are_judged_alike_by_all(ledger: Ledger) -> None:
    nodes = [join(PAIR, name) for name in ("one", "two", "three")]
    ledger.enter(*nodes)
    ledger.witness(nodes[0], nodes[1], at_ms=NOW_MS + 1)
    ledger.witness(nodes[1], nodes[2], at_ms=NOW_MS + 2)
    ledger.witness(nodes[2], nodes[0], at_ms=NOW_MS + 3)
    for judge in nodes:
        excess = ledger.standing(judge).excess
        assert set(excess) == {nodes[0].node_id}, "the one that was seen last"


def test_a_place_of_a_revoked_node_is_free_again(ledger: Ledger) -> None:
    one, two, three = (join(PAIR, name) for name in ("one", "two", "three"))
    ledger.enter(one, two)
    ledger.operator.revoke(two.node_id, NOW_MS)
    assert cause(ledger.standing(one, candidates=(three,)), three) == ""


def test_a_late_user_cannot_vouch_by_a_place_it_does_not_have(ledger: Ledger) -> None:
    one, two, three = (join(PAIR, name) for name in ("one", "two", "three"))
    unmet = old("unmet")
    ledger.enter(one, two, three, unmet)
    ledger.witness(one, two)
    ledger.witness(two, one)
    ledger.witness(three, unmet)
    found = ledger.standing(one, known=(two,))
    assert cause(found, three) == USED_UP_CAUSE
    assert cause(found, unmet) == EXPIRED_CAUSE


# A node that comes new


def settle(ledger: Ledger, own: Identity, met: list[Identity]) -> set[str]:
    """Return the names of those who have to go once the newcomer has the ledger."""
    newcomer = Newcomer()
    for number, one in enumerate(met, 1):
        newcomer.meet([each.node_id for each in met[:number]], contact=True, mono=float(number))
        assert one.node_id not in newcomer.known([one.node_id]), "provisional"
    due = newcomer.due()
    assert due is not None
    assert due == 1 + INFORMED_SECONDS

    def reckon(known: set[bytes]) -> Standing:
        return ledger.standing(own, known=tuple(one for one in met if one.node_id in known))

    gone = newcomer.settle(reckon, {one.node_id: one.member() for one in met})
    assert newcomer.known([one.node_id for one in met]) == {one.node_id for one in met}
    names = {one.node_id: one.name for one in met}
    return {names[node_id] for node_id in gone}


def test_a_newcomer_judges_whom_it_met_once_it_has_the_ledger(ledger: Ledger) -> None:
    """A late user of a closed grant was there first; the root has said who came in time."""
    own = join(PAIR, "own")
    member, late = join(OPEN, "member"), join(OPEN, "late")
    ledger.enter(own, member, late)
    ledger.operator.write(ASSIGNED, assigned.closed_key(OPEN.grant.grant_id), b"\x01", NOW_MS)
    key = assigned.node_key(member.node_id, assigned.ADMITTED)
    ledger.operator.write(ASSIGNED, key, assigned.MARK, NOW_MS)
    assert settle(ledger, own, [late, member]) == {"late"}


def test_a_newcomer_prefers_a_first_member_that_others_have_seen(ledger: Ledger) -> None:
    own, one, two, late = join(OPEN, "own"), old("one"), old("two"), old("late")
    ledger.enter(own, one, two, late)
    ledger.witness(one, two)
    ledger.witness(two, one)
    assert settle(ledger, own, [late, one, two]) == {"late"}


def test_a_newcomer_that_met_one_member_only_keeps_it(ledger: Ledger) -> None:
    own, one = join(OPEN, "own"), old("one")
    ledger.enter(own, one)
    assert settle(ledger, own, [one]) == set()
