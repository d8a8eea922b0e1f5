"""The root's statements: what is written is read, what is malformed counts for nothing."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.ledger import assigned
from appliance.ledger.assigned import StatementError
from appliance.ledger.claims import address_view
from appliance.ledger.state import Replica, Verdict
from appliance.overlay.visitors import OPERATOR_LABEL
from provisioning import codec
from provisioning.errors import ProvisioningError
from provisioning.keys import id_text
from tests.fakes.ledger import NOW, entry, node, replica, root_entry

A, B = node(1), node(2)
RANGE = ipaddress.IPv4Network("10.10.0.0/16")
ADDRESS = ipaddress.IPv4Address("10.10.0.7")
GRANT = bytes(range(16))


def said(*statements: tuple[str, bytes], deleted: bool = False) -> Replica:
    here = replica([A, B])
    for at, (key, value) in enumerate(statements):
        one = root_entry("assigned", key, value, sequence=10 + at, deleted=deleted)
        assert here.apply(one, NOW).verdict is Verdict.ACCEPTED
    return here


def test_what_is_said_of_a_node_is_read() -> None:
    here = said(
        (assigned.node_key(A.node_id, assigned.ADDRESS), assigned.address_value(ADDRESS)),
        (assigned.node_key(A.node_id, assigned.NAME), assigned.name_value("kitchen")),
        (
            assigned.node_key(A.node_id, assigned.LABELS),
            assigned.labels_value({"b": "2", "a": "1"}),
        ),
        (assigned.node_key(B.node_id, assigned.ADMITTED), assigned.MARK),
        (assigned.closed_key(GRANT), assigned.MARK),
    )
    assert assigned.addresses(here, NOW, RANGE) == {A.node_id: ADDRESS}
    assert address_view(here, RANGE, NOW).fixed == {A.node_id: ADDRESS.packed}
    assert assigned.names(here, NOW) == {A.node_id: "kitchen"}
    assert assigned.labels(here, NOW) == {A.node_id: {"a": "1", "b": "2"}}
    assert assigned.admitted_for_good(here, NOW) == {B.node_id}
    assert assigned.closed_grants(here, NOW) == {GRANT}


def test_a_statement_is_taken_back_by_deleting_it() -> None:
    key = assigned.closed_key(GRANT)
    here = said((key, assigned.MARK))
    here.apply(root_entry("assigned", key, sequence=11, deleted=True), NOW)
    assert assigned.closed_grants(here, NOW) == frozenset()


def test_no_labels_are_another_thing_than_no_statement() -> None:
    key = assigned.node_key(A.node_id, assigned.LABELS)
    member = replica([A]).directory.member(A.node_id)
    assert member is not None
    assert assigned.labels(said((key, assigned.labels_value({}))), NOW) == {A.node_id: {}}
    assert assigned.labels_of(member, {}) == dict(member.labels)
    assert assigned.labels_of(member, {A.node_id: {"x": "y"}}) == {"x": "y"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (f"{A.text}/address", b"\x0a\x0a\x00"),
        (f"{A.text}/address", bytes([10, 11, 0, 7])),
        (f"{A.text}/address", bytes([10, 10, 0, 0])),
        (f"{A.text}/address", bytes([10, 10, 255, 255])),
        (f"{A.text}/address", b""),
        (f"{A.text.upper()}/address", ADDRESS.packed),
        (f"{A.text}/address/", ADDRESS.packed),
        (f"{A.text}x/address", ADDRESS.packed),
        ("/address", ADDRESS.packed),
        ("address", ADDRESS.packed),
        (f"{A.text}/name", b"\xff"),
        (f"{A.text}/name", b""),
        (f"{A.text}/name", b"Upper"),
        (f"{A.text}/name", b"a" * 64),
        (f"{A.text}/labels", b""),
        (f"{A.text}/labels", codec.encode((("b", "2"), ("a", "1")))),
        (f"{A.text}/labels", codec.encode((("a", "1"), ("a", "2")))),
        (f"{A.text}/labels", codec.encode((("a", ""),))),
        (f"{A.text}/labels", codec.encode((("skerry.internal/operator", "1"),))),
        (f"{A.text}/labels", codec.encode({"a": "1"})),
        (f"{A.text}/admitted", b""),
        (f"{A.text}/admitted", b"\x00"),
        (f"{A.text}", assigned.MARK),
        (f"grant/{id_text(GRANT)}", assigned.MARK),
        (f"grant/{id_text(GRANT)}/closed", b"\x02"),
        (f"grant/{id_text(GRANT)}/closed/x", assigned.MARK),
        ("grant/abc/closed", assigned.MARK),
        ("grant/closed", assigned.MARK),
    ],
)
def test_what_is_malformed_counts_for_nothing(key: str, value: bytes) -> None:
    here = said((key, value))
    assert assigned.addresses(here, NOW, RANGE) == {}
    assert assigned.names(here, NOW) == {}
    assert assigned.labels(here, NOW) == {}
    assert assigned.admitted_for_good(here, NOW) == frozenset()
    assert assigned.closed_grants(here, NOW) == frozenset()


@given(st.binary(max_size=64), st.sampled_from(["address", "name", "labels", "admitted"]))
def test_any_value_is_read_as_something_or_nothing(value: bytes, kind: str) -> None:
    here = said((f"{A.text}/{kind}", value))
    for name in assigned.names(here, NOW).values():
        assert assigned.name_value(name) == value
    for labels in assigned.labels(here, NOW).values():
        assert assigned.labels_value(labels) == value
    for address in assigned.addresses(here, NOW, RANGE).values():
        assert assigned.address_value(address) == value


@given(st.text(max_size=40))
def test_only_one_text_reads_as_an_id(text: str) -> None:
    found = assigned.read_id(text)
    assert found is None or id_text(found) == text


def test_no_statement_makes_a_visitor() -> None:
    assert OPERATOR_LABEL.startswith(assigned.RESERVED_LABELS)


def test_what_no_statement_can_say_is_refused_with_words() -> None:
    with pytest.raises(StatementError, match="Skerry's own"):
        assigned.labels_value({"skerry.internal/operator": "1"})
    with pytest.raises(StatementError, match="cannot be the labels"):
        assigned.labels_value({"a b": "1"})
    with pytest.raises(StatementError, match="bytes together"):
        assigned.labels_value({f"k{at}": "v" * 63 for at in range(16)})
    with pytest.raises(ProvisioningError, match="name of a node"):
        assigned.name_value("Not a name")


def test_only_the_root_key_says_such_things() -> None:
    here = replica([A])
    one = entry(A, "assigned", assigned.node_key(A.node_id, assigned.NAME), b"mine")
    assert here.apply(one, NOW).verdict is Verdict.REJECTED
