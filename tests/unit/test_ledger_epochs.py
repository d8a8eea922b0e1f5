"""A new epoch reaches every survivor, in any order, and no revoked node."""

from __future__ import annotations

import functools
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.ledger.entry import Entry
from appliance.ledger.epochs import (
    EXCLUDED_MAX,
    OVERLAP_MS,
    Announcement,
    Reading,
    Secrets,
    advance,
    box_key,
    commitment,
    new_epoch,
    reseal,
    seal,
    unseal,
)
from appliance.ledger.state import Replica, Verdict
from provisioning import codec
from provisioning.keys import verify
from provisioning.membership import Member
from tests.fakes.ledger import (
    NOW,
    Node,
    entry,
    network,
    node,
    replica,
    revocation,
    root_entry,
    seed,
)

NODES = [node(number) for number in (1, 2, 3, 4)]
NETWORK = network().network_id
BASE = Secrets({0: seed("epoch", 0)})


def member(of: Node) -> Member:
    found = replica([of]).directory.member(of.node_id)
    assert found is not None
    return found


def epoch_entries(number: int, out: Node, survivors: list[Node], *, start: int) -> list[Entry]:
    """What the operator publishes: the revocation, the boxes, the announcement."""
    key = f"node/{out.text}"
    secret = seed("epoch", number)
    made = new_epoch(NETWORK, number, secret, map(member, survivors), [key])
    entries = [revocation(out, sequence=start)]
    for at, (name, value) in enumerate(made.items()):
        entries.append(root_entry("epoch", name, value, sequence=start + 1 + at))
    return entries


def caught_up(of: Node, secrets: Secrets, into: Replica, handed: tuple[bytes, ...] = ()) -> Secrets:
    return advance(
        secrets,
        into,
        network_id=NETWORK,
        node_id=of.node_id,
        wg_private=seed("wg", of.number),
        now_ms=NOW,
        handed=handed,
    )


FIRST = epoch_entries(1, NODES[3], NODES[:3], start=1)
SECOND = epoch_entries(2, NODES[2], NODES[:2], start=10)


@pytest.fixture
def _checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each signature is really checked, but once only, however many orders it comes in."""
    once = functools.cache(verify)
    monkeypatch.setattr("appliance.ledger.entry.verify", once)
    monkeypatch.setattr("provisioning.membership.verify", once)


@pytest.mark.usefixtures("_checked_once")
def test_every_survivor_learns_every_secret_and_no_revoked_node_does_in_any_order() -> None:
    """Exhaustive: both epochs' entries in every order of their delivery, seen after each."""
    groups = [FIRST[0:1], FIRST[1:-1], FIRST[-1:], SECOND[0:1], SECOND[1:-1], SECOND[-1:]]
    for order in itertools.permutations(range(len(groups))):
        here = replica(NODES)
        first, last = BASE, BASE
        for group in order:
            for one in groups[group]:
                assert here.apply(one, NOW).verdict is Verdict.ACCEPTED
            first = caught_up(NODES[0], first, here)
            last = caught_up(NODES[3], last, here)
            assert last.current == 0
        assert first.known == {number: seed("epoch", number) for number in range(3)}
        assert caught_up(NODES[2], BASE, here).current == 1


def test_a_node_that_was_away_for_two_epochs_catches_up_at_once() -> None:
    here = replica(NODES)
    for one in FIRST + SECOND:
        here.apply(one, NOW)
    assert caught_up(NODES[1], BASE, here).known == {n: seed("epoch", n) for n in range(3)}


def test_what_the_operator_did_not_seal_a_member_hands_on_but_not_to_the_revoked() -> None:
    late = node(9)
    here = replica([*NODES, late])
    for one in FIRST:
        here.apply(one, NOW)
    mine = caught_up(NODES[0], BASE, here)
    box = reseal(mine, here, member(late), network_id=NETWORK, now_ms=NOW)
    assert box is not None
    assert caught_up(late, BASE, here).current == 0
    assert caught_up(late, BASE, here, (b"junk", box)).current == 1
    assert reseal(mine, here, member(NODES[3]), network_id=NETWORK, now_ms=NOW) is None
    assert caught_up(NODES[3], BASE, here, (box,)).current == 0


@pytest.mark.usefixtures("_checked_once")
def test_nobody_hands_a_secret_on_before_it_knows_who_is_out() -> None:
    """In every order in which a survivor may hear: the revoked node never gets a box."""
    for order in itertools.permutations(range(len(FIRST))):
        here = replica(NODES)
        for at in order:
            here.apply(FIRST[at], NOW)
            mine = caught_up(NODES[0], BASE, here)
            box = reseal(mine, here, member(NODES[3]), network_id=NETWORK, now_ms=NOW)
            assert box is None
            other = reseal(mine, here, member(NODES[1]), network_id=NETWORK, now_ms=NOW)
            knows = here.directory.member(NODES[3].node_id) is None and mine.current == 1
            assert (other is not None) == knows


def test_of_two_epochs_of_one_number_the_later_announcement_counts() -> None:
    here = replica(NODES)
    for one in FIRST:
        here.apply(one, NOW)
    mine = caught_up(NODES[0], BASE, here)
    other = new_epoch(NETWORK, 1, seed("other"), [member(NODES[0])], [f"node/{NODES[3].text}"])
    for at, (key, value) in enumerate(other.items()):
        here.apply(root_entry("epoch", key, value, sequence=50 + at), NOW)
    assert caught_up(NODES[0], mine, here).known[1] == seed("other")
    dropped = caught_up(NODES[1], caught_up(NODES[1], mine, here), here)
    assert dropped.current == 0


def test_an_older_epoch_carries_only_what_helps_to_catch_up() -> None:
    secrets = Secrets({0: b"0", 1: b"1", 2: b"2"}, since_ms=NOW)
    assert secrets.reading(2, NOW) is Reading.ALL
    assert secrets.reading(1, NOW + OVERLAP_MS - 1) is Reading.ALL
    assert secrets.reading(1, NOW + OVERLAP_MS) is Reading.CATCH_UP
    assert secrets.reading(0, NOW) is Reading.CATCH_UP
    assert secrets.reading(3, NOW) is Reading.NOTHING
    assert "0" not in repr(secrets).replace("since_ms=1795000000000", "")


def test_a_box_is_for_one_node_one_epoch_one_network() -> None:
    secret, of = seed("epoch", 1), NODES[0]
    said = Announcement(1, commitment(NETWORK, 1, secret), ())

    def opened(box: bytes, by: Node = of, announced: Announcement = said) -> bytes | None:
        return unseal(
            box,
            announced,
            network_id=NETWORK,
            node_id=by.node_id,
            wg_private=seed("wg", by.number),
        )

    box = seal(NETWORK, 1, secret, member(of))
    assert opened(box) == secret
    assert opened(box, NODES[1]) is None
    assert opened(seal(NETWORK, 2, secret, member(of))) is None
    assert opened(seal(network(1).network_id, 1, secret, member(of))) is None
    assert opened(seal(NETWORK, 1, seed("made up"), member(of))) is None
    assert opened(box, of, Announcement(1, bytes(32), ())) is None


def test_only_the_root_key_begins_an_epoch() -> None:
    here = replica(NODES)
    made = entry(NODES[0], "epoch", "epoch/1", b"x", sequence=2)
    assert here.apply(made, NOW).verdict is Verdict.REJECTED
    assert box_key(1, NODES[0].node_id) != box_key(2, NODES[0].node_id)


def test_too_many_at_once_take_several_epochs() -> None:
    many = [f"node/{number}" for number in range(EXCLUDED_MAX + 1)]
    with pytest.raises(ValueError, match="13"):
        new_epoch(NETWORK, 1, seed("x"), [], many)
    longest = [f"grant/{'a' * 26}{number}" for number in range(10, 10 + EXCLUDED_MAX)]
    made = new_epoch(NETWORK, 1, seed("x"), [member(NODES[0])], longest)
    assert all(
        replica().apply(root_entry("epoch", key, value), NOW).verdict is Verdict.ACCEPTED
        for key, value in made.items()
    )


@settings(max_examples=60)
@given(st.binary(max_size=300), st.binary(max_size=120))
def test_junk_in_the_bucket_changes_nothing(said: bytes, box: bytes) -> None:
    here = replica(NODES)
    here.apply(root_entry("epoch", "epoch/1", said), NOW)
    here.apply(root_entry("epoch", box_key(1, NODES[0].node_id), box, sequence=2), NOW)
    assert caught_up(NODES[0], BASE, here, (box, said)) == BASE
    right = codec.encode(Announcement(1, bytes(32), ()))
    here.apply(root_entry("epoch", "epoch/1", right, sequence=3), NOW)
    assert caught_up(NODES[0], BASE, here, (box,)) == BASE
