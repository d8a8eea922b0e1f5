"""A secret's boxes: who can open them, and that one cannot pass for another."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.ledger.rules import BUCKETS
from appliance.ledger.secrets import (
    GENERATION_MAX,
    SECRET,
    VALUE_MAX,
    Boxed,
    Secret,
    SecretError,
    Shelf,
    box_key,
    check_name,
    check_roles,
    make,
    may_read,
    may_write,
    notice_value,
    read_shelves,
    seal,
    unseal,
)
from appliance.ledger.state import Replica, Verdict
from provisioning.membership import Member
from tests.fakes.ledger import NOW, Node, entry, network, node, replica, seed

SERVER = node(1, roles=("server",), by=1)
OTHER = node(2, roles=("server",), by=1)
AUTO = node(3, roles=("auto",), by=3)
AGENT = node(4, roles=("agent",), by=4)
LONELY = node(5, roles=("none",), by=5)
EVERYBODY = [SERVER, OTHER, AUTO, AGENT, LONELY]
NETWORK = network().network_id
HERE = replica(EVERYBODY)


def member(of: Node, into: Replica = HERE) -> Member:
    found = into.directory.member(of.node_id)
    assert found is not None
    return found


def made(value: bytes = b"s3cret", *, name: str = "k3s", generation: int = 1) -> Secret:
    return make(NETWORK, name, value, ["server"], generation, NOW)


def shelf_of(*boxes: tuple[Node, str, bytes]) -> Shelf:
    """What a replica has after these writers' entries; all are taken."""
    here = replica(EVERYBODY)
    for number, (of, key, value) in enumerate(boxes, 1):
        one = entry(of, SECRET, key, value, sequence=number)
        assert here.apply(one, NOW).verdict is Verdict.ACCEPTED
    return read_shelves(here, NOW).get("k3s", Shelf())


def boxed(secret: Secret, to: Node) -> Boxed:
    key = box_key("k3s", to.node_id)
    (found,) = shelf_of((SERVER, key, seal(NETWORK, secret, member(to)))).boxes
    return found


def opened(box: Boxed, secret: Secret, of: Node, *, name: str = "k3s") -> Secret | None:
    return unseal(box, secret.version, name, network_id=NETWORK, wg_private=seed("wg", of.number))


@settings(max_examples=30)
@given(st.binary(max_size=VALUE_MAX))
def test_its_reader_gets_the_value_and_nobody_else_does(value: bytes) -> None:
    secret = made(value)
    box = boxed(secret, OTHER)
    assert opened(box, secret, OTHER) == secret
    assert opened(box, secret, SERVER) is None
    assert opened(box, secret, AGENT) is None


def test_a_box_counts_in_its_own_place_only() -> None:
    secret = made()
    box = boxed(secret, OTHER)
    assert opened(box, secret, OTHER) is not None
    # Sealed to this node's key, but as another node's; under another name; for another network.
    assert opened(replace(box, node=SERVER.node_id), secret, OTHER) is None
    assert opened(box, secret, OTHER, name="other") is None
    private = seed("wg", OTHER.number)
    assert unseal(box, secret.version, "k3s", network_id=bytes(16), wg_private=private) is None
    # As the box of any other version: what it says of itself, and of its value, has to agree.
    version = secret.version
    for other in (
        replace(version, generation=2),
        replace(version, put_ms=NOW + 1),
        replace(version, roles=("agent", "server")),
        replace(version, commitment=bytes(32)),
        made(b"another").version,
    ):
        assert opened(box, replace(secret, version=other), OTHER) is None


def test_two_readers_cannot_be_given_two_values_of_one_version() -> None:
    honest = made(b"one")
    lie = replace(honest, value=b"two")
    assert opened(boxed(lie, OTHER), honest, OTHER) is None


@settings(max_examples=200)
@given(st.binary(max_size=300), st.integers(0, 400), st.integers(0, 255))
def test_what_is_no_box_opens_as_nothing(junk: bytes, at: int, change: int) -> None:
    secret = made()
    good = boxed(secret, OTHER)
    assert opened(replace(good, content=junk), secret, OTHER) is None
    bent = bytearray(good.content)
    bent[at % len(bent)] ^= change
    found = opened(replace(good, content=bytes(bent)), secret, OTHER)
    assert (found == secret) == (change == 0)


def test_a_box_does_not_tell_how_long_the_value_is() -> None:
    def size(length: int) -> int:
        return len(seal(NETWORK, made(bytes(length)), member(OTHER)))

    assert len({size(length) for length in (0, 1, 20, 63)}) == 1
    assert len({size(length) for length in range(256, 1024, 50)}) == 1
    assert len({size(length) for length in range(0, VALUE_MAX + 1, 16)}) == 5


def test_the_largest_secret_fits_an_entry() -> None:
    secret = make(
        NETWORK, "n" * 64, bytes(VALUE_MAX), ["server", "agent", "none"], GENERATION_MAX, NOW
    )
    assert len(seal(NETWORK, secret, member(OTHER))) <= BUCKETS[SECRET].value_max


def test_nothing_that_has_a_repr_shows_the_value() -> None:
    secret = made(b"the-value-itself")
    for one in (secret, boxed(secret, OTHER), shelf_of((SERVER, "k3s/x", b"the-value-itself"))):
        assert "the-value-itself" not in repr(one)
        assert secret.salt.hex() not in repr(one)
    with pytest.raises(SecretError) as error:
        made(b"v" * (VALUE_MAX + 1))
    assert "vvvv" not in str(error.value) + str(error.value.hint)


def test_who_may_read_and_who_may_write() -> None:
    def readers(*roles: str) -> list[int]:
        return [one.number for one in EVERYBODY if may_read(member(one), check_roles(roles))]

    assert [one.number for one in EVERYBODY if may_write(member(one))] == [1, 2, 3]
    assert readers("server") == readers() == [1, 2, 3]
    assert readers("agent") == [1, 2, 3, 4]
    assert readers("none") == [1, 2, 3, 5]
    # A writer can seal for all readers: it is one.
    assert check_roles(["agent"]) == ("agent", "server")


@pytest.mark.parametrize("name", ["", "A", "a/b", "-a", "a-", "a b", "a" * 65, "ä", "a\n", "../x"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(SecretError, match="cannot be the name"):
        check_name(name)


def test_words_for_what_cannot_be() -> None:
    with pytest.raises(SecretError, match="cannot be for the role 'auto'"):
        make(NETWORK, "k3s", b"", ["auto"], 1, NOW)
    with pytest.raises(SecretError, match="there is none after it"):
        make(NETWORK, "k3s", b"", [], GENERATION_MAX + 1, NOW)
    with pytest.raises(SecretError, match="3073 bytes, a secret holds 3072"):
        make(NETWORK, "k3s", bytes(3073), [], 1, NOW)


def test_the_ledger_takes_secrets_from_servers_only() -> None:
    here = replica(EVERYBODY)
    for of, verdict in ((AGENT, Verdict.REJECTED), (LONELY, Verdict.REJECTED)):
        assert here.apply(entry(of, SECRET, "k3s", b"x"), NOW).verdict is verdict
    for of in (SERVER, AUTO):
        assert here.apply(entry(of, SECRET, "k3s", b"x"), NOW).verdict is Verdict.ACCEPTED


def test_the_highest_version_counts_whoever_wrote_last() -> None:
    first, second = made(generation=1), made(generation=2)
    value = notice_value(second.version, exposed=False, copied=False)
    late = notice_value(first.version, exposed=False, copied=False)
    copy = notice_value(second.version, exposed=True, copied=True)
    shelf = shelf_of((OTHER, "k3s", value), (SERVER, "k3s", late), (AUTO, "k3s", copy))
    assert shelf.version == second.version
    assert [one.writer for one in shelf.notices(second.version)] == [OTHER.node_id, AUTO.node_id]
    assert shelf.exposed(second.version)
    assert not shelf.exposed(first.version)


@settings(max_examples=200)
@given(st.binary(max_size=120), st.sampled_from(["k3s", "k3s/x", box_key("k3s", OTHER.node_id)]))
def test_malformed_entries_count_for_nothing(value: bytes, key: str) -> None:
    good = notice_value(made().version, exposed=False, copied=False)
    shelf = shelf_of((SERVER, key, value), (OTHER, "k3s", good))
    assert shelf.version is not None
    assert shelf.version.generation == 1
    assert len(shelf.said) == 1
    assert not shelf.boxes


def test_a_notice_that_says_too_much_is_none() -> None:
    version = made().version
    for wrong in (
        replace(version, generation=0),
        replace(version, generation=GENERATION_MAX + 1),
        replace(version, put_ms=-1),
        replace(version, commitment=b"short"),
        replace(version, roles=("agent",)),
        replace(version, roles=("server", "agent")),
        replace(version, roles=("auto", "server")),
    ):
        assert not shelf_of((SERVER, "k3s", notice_value(wrong, exposed=False, copied=False))).said
