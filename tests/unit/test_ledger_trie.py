"""The hash tree depends on the set, not on its history, and tells every two sets apart."""

from __future__ import annotations

import hashlib

from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.ledger.trie import EMPTY, LEAF, Trie

IDS = [hashlib.sha256(bytes([one & 255, one >> 8])).digest()[:16] for one in range(1000)]
# Ids that share their first bytes, as an attacker would make them.
CLOSE = [bytes(15) + bytes([one]) for one in range(40)]


def trie(ids: list[bytes]) -> Trie:
    made = Trie()
    for one in ids:
        made.add(one)
    return made


def same(left: Trie, right: Trie, prefixes: list[tuple[int, ...]]) -> bool:
    return all(left.digest(one) == right.digest(one) for one in prefixes)


@settings(max_examples=60)
@given(st.lists(st.sampled_from(IDS[:80] + CLOSE), unique=True), st.data())
def test_history_leaves_no_trace(ids: list[bytes], data: st.DataObject) -> None:
    extra = data.draw(st.lists(st.sampled_from(IDS[80:160]), unique=True))
    churned = trie(extra + ids)
    for one in data.draw(st.permutations(extra)):
        churned.remove(one)
    fresh = trie(ids)
    prefixes = [(), (0,), (15,), (0, 0), (0,) * 31, (3, 4)]
    assert same(churned, fresh, prefixes)
    for prefix in prefixes:
        assert churned.ids(prefix) == fresh.ids(prefix)
        assert churned.count(prefix) == len(fresh.ids(prefix))
    assert fresh.ids() == sorted(ids)


def test_one_id_more_shows_on_its_path_and_nowhere_else() -> None:
    left, right = trie(IDS), trie(IDS[:-1])
    path = [IDS[-1][0] >> 4, IDS[-1][0] & 15]
    assert left.digest() != right.digest()
    assert left.digest((path[0],)) != right.digest((path[0],))
    assert left.digest(tuple(path)) != right.digest(tuple(path))
    assert same(left, right, [(one,) for one in range(16) if one != path[0]])


def test_a_range_is_the_same_inside_a_leaf_and_as_a_node() -> None:
    few = [one for one in IDS if one[0] >> 4 == 3][:LEAF]
    many = few + [one for one in IDS if one[0] >> 4 != 3]
    assert trie(few).digest((3,)) == trie(many).digest((3,))


def test_nothing_is_empty() -> None:
    assert trie([]).digest() == EMPTY == trie([]).digest((1, 2, 3))
    one = trie(IDS)
    for entry_id in IDS:
        one.remove(entry_id)
    assert (len(one), one.digest()) == (0, EMPTY)
