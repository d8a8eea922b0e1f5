"""What changes and questions cost a node of a large network: counted, not timed."""

from __future__ import annotations

import hashlib
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.control.admission import standing
from appliance.ledger import claims
from appliance.ledger.claims import (
    ADDRESS_KIND,
    GRANT_KIND,
    Claim,
    Said,
    claim_value,
    is_witness,
    said_of,
    witness_key,
    witness_value,
)
from appliance.ledger.hlc import Clock
from appliance.ledger.rules import ADDRESS, WITNESS
from appliance.ledger.timekeeper import Quality
from appliance.ledger.writer import Writer
from provisioning import codec
from tests.fakes.control_world import (
    World,
    join,
    make_grant_token,
    make_network,
)
from tests.fakes.ledger import NOW, node, replica, root_entry

CROWD = tuple(node(number) for number in range(1, 6))


@settings(max_examples=40)
@given(st.integers(0, 2**32))
def test_what_is_said_is_kept_up_as_if_it_were_read_anew(seed: int) -> None:
    chance = Random(seed)  # noqa: S311 - a test
    here = replica(CROWD)
    kept = said_of(here)
    writers = {
        one: Writer(here, Clock(), owner=one.node_id, sign=one.sign, sequence=1) for one in CROWD
    }
    for _ in range(30):
        by, of = chance.choice(CROWD), chance.choice(CROWD)
        if here.directory.member(by.node_id) is None:
            continue
        what, kind = bytes([chance.randrange(3)]) * 4, chance.choice([ADDRESS_KIND, GRANT_KIND])
        key = witness_key(by.node_id, kind, of.node_id)
        match chance.randrange(8):
            case 0:
                writers[by].delete(WITNESS, key, NOW)
            case 1:
                writers[by].put(ADDRESS, by.text, claim_value(Claim(b"", what, 0)), NOW)
            case 2:
                writers[by].put(WITNESS, key, b"junk", NOW)
            case 3 if by is not CROWD[0]:
                gone = root_entry("revoked", f"node/{by.text}", codec.encode(["test"]))
                here.apply(gone, NOW)
            case _:
                writers[by].put(WITNESS, key, witness_value(what, Quality.KEPT), NOW)
    anew = Said(here)
    assert kept.claims == anew.claims
    assert kept.saw == anew.saw
    for kind in (ADDRESS_KIND, GRANT_KIND):
        assert kept.best(kind) == anew.best(kind)
        for claimant, what in kept.best(kind):
            claim = Claim(claimant, what)
            assert set(kept.witnesses(kind, claim)) == set(anew.witnesses(kind, claim))


def test_one_asks_few_members_whether_one_is_a_witness(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = Random(1)  # noqa: S311 - a test
    members = [chance.randbytes(16) for _ in range(1000)]
    hashes = 0
    real = hashlib.sha256

    def counted(data: bytes) -> object:
        nonlocal hashes
        hashes += 1
        return real(data)

    monkeypatch.setattr("appliance.ledger.claims.hashlib.sha256", counted)
    chosen = [one for one in members if is_witness(members[0], one, members)]
    assert hashes < 100 * len(members), "a million would be one for every pair"
    assert 0 < len(chosen) < 20


def test_questions_of_strangers_and_changes_do_not_read_the_whole_ledger(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Many identities made with a token for a few: each question costs a look, not a reckoning."""
    network = make_network()
    pair = make_grant_token(network, count=2)
    world = World()
    nodes = world.form(join(pair, "one"), join(pair, "two"))
    assert world.run(10, until=lambda: world.connected(nodes))
    world.run(5)
    policies = nodes[0].plane.policies
    strangers = [join(pair, f"x{number}").member() for number in range(20)]
    reckoned = 0
    real = standing

    def counted(*args: object, **rest: object) -> object:
        nonlocal reckoned
        reckoned += 1
        return real(*args, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr("appliance.control.policies.standing", counted)
    for one in strangers:
        denied = policies.judge(one)
        assert denied is not None
        assert denied.cause == "grant-used-up"
        assert one.name in denied.detail
    assert reckoned <= 1

    read = 0

    def decoded(*_: object, **__: object) -> object:
        nonlocal read
        read += 1
        raise AssertionError

    monkeypatch.setattr("appliance.ledger.claims.codec.decode", decoded)
    claims.address_view(nodes[0].plane.gossip.replica, policies._config.host_range, world.ms)
    claims.grant_view(nodes[0].plane.gossip.replica, policies.members())
    assert read == 0
