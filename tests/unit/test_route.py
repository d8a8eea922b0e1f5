"""Who owns an address, by which entries, on which path: on ledgers made by hand."""

from __future__ import annotations

import ipaddress
import json
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.api.client import ApiError, call
from appliance.api.openapi import description
from appliance.api.route import Knowledge, RouteError, RouteView, route, route_routes
from appliance.api.route_commands import draw
from appliance.cluster.ranges import pack, plan_for, range_view
from appliance.ledger.assigned import address_value, node_key
from appliance.ledger.claims import (
    ADDRESS_KIND,
    RANGE_KIND,
    Claim,
    address_view,
    claim_value,
    witness_key,
    witness_value,
)
from appliance.ledger.state import Replica
from appliance.ledger.timekeeper import Quality
from appliance.names.zone import NodeName
from appliance.overlay.addresses import claimed_address, pods_prefix, ula_address
from appliance.overlay.status import OverlayStatus, PeerStatus
from provisioning.keys import id_text
from provisioning.settings import Settings
from skerry.__main__ import main
from tests.fakes.ledger import NOW, Node, entry, network, node, replica, revocation, root_entry
from tests.fakes.served import served

NODES = [node(number) for number in (1, 2, 3, 4)]
ME, OTHER, THIRD, FOURTH = NODES
RANGE = ipaddress.IPv4Network("10.10.0.0/16")
PLAN = plan_for(network().network_id, Settings())
PODS6 = pods_prefix(network().network_id)
FIXED = ipaddress.IPv4Address("10.10.77.7")


def first(of: Node) -> ipaddress.IPv4Address:
    return claimed_address(of.node_id, 0, RANGE)


def ipv6(of: Node) -> ipaddress.IPv6Address:
    member = replica([of]).directory.member(of.node_id)
    assert member is not None
    return ula_address(network().network_id, member.node_key)


def claim(here: Replica, of: Node, address: ipaddress.IPv4Address, attempt: int | None = 0) -> None:
    value = claim_value(Claim(of.node_id, address.packed, attempt))
    here.apply(entry(of, "address", of.text, value, sequence=7), NOW)


def witness(
    here: Replica, by: Node, of: Node, address: ipaddress.IPv4Address, ms: int, quality: Quality
) -> None:
    key = witness_key(by.node_id, ADDRESS_KIND, of.node_id)
    value = witness_value(address.packed, quality)
    here.apply(entry(by, "witness", key, value, sequence=ms - NOW + 1000, ms=ms), NOW)


PEERS = (
    PeerStatus(id_text(OTHER.node_id), "n2", (), "192.0.2.2:51820", "lan", 0.84, 12.0, up=True),
    PeerStatus(id_text(THIRD.node_id), "n3", (), "192.0.2.3:51820", "lan", None, 3700.0, up=False),
)
OVERLAY = OverlayStatus("skerry0", "kernel", (), 51820, PEERS, (), ())


def known(here: Replica, *, inside: list[Node] | None = None, **changes: object) -> Knowledge:
    names = [
        NodeName(
            one.node_id, f"n{one.number}", None if one is FOURTH else first(one), ipv6(one), NOW
        )
        for one in NODES
    ]
    made = Knowledge(
        ME.node_id,
        here,
        {
            ADDRESS_KIND: address_view(here, RANGE, NOW),
            RANGE_KIND: range_view(here, PLAN, NOW),
        },
        {one.node_id for one in inside or NODES},
        names,
        OVERLAY,
        Settings(),
        NOW,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def drawn(view: RouteView) -> str:
    return draw(json.loads(msgspec.json.encode(view)))


def test_an_address_that_a_member_claims_and_others_have_seen() -> None:
    here = replica(NODES)
    claim(here, OTHER, first(OTHER))
    witness(here, THIRD, OTHER, first(OTHER), NOW + 5000, Quality.SYNCED)
    witness(here, FOURTH, OTHER, first(OTHER), NOW + 1000, Quality.GUESSED)
    view = route(str(first(OTHER)), known(here))
    assert view.owner is not None
    assert (view.owner.node_id, view.range, view.contested) == (OTHER.text, "nodes", ())
    (said,) = view.evidence
    assert (said.kind, said.bucket, said.key, said.owner) == (
        "claimed",
        "address",
        OTHER.text,
        OTHER.text,
    )
    assert [(one.who.name, one.guessed) for one in said.witnesses] == [("n3", False), ("n4", True)]
    assert drawn(view).splitlines() == [
        f"{first(OTHER)} is n2 ({OTHER.text})",
        "  by    n2 claims it, its attempt 0, 2026-11-18 11:06:40 UTC",
        f"        address/{OTHER.text}",
        "        seen by n3, 2026-11-18 11:06:45 UTC",
        "        seen by n4, 2026-11-18 11:06:41 UTC, without a clock",
        "  path  direct, skerry0 to 192.0.2.2:51820 (lan): up, 0.8 ms, handshake 12s ago",
    ]


def test_a_fixed_address_outranks_who_came_before() -> None:
    here = replica(NODES)
    taken = first(THIRD)
    claim(here, THIRD, taken)
    witness(here, ME, THIRD, taken, NOW, Quality.SYNCED)
    fixed = root_entry("assigned", node_key(OTHER.node_id, "address"), address_value(taken))
    here.apply(fixed, NOW)
    claim(here, OTHER, taken, None)
    view = route(str(taken), known(here))
    assert view.owner is not None
    assert view.owner.name == "n2"
    assert [(one.kind, one.holds) for one in view.evidence] == [("fixed", True), ("claimed", True)]
    assert [(one.who.name, one.holds) for one in view.contested] == [("n3", False)]
    text = drawn(view)
    assert "  by    the operator fixed it for n2, 2026-" in text
    assert f"        assigned/{OTHER.text}/address" in text
    assert "  not   n3 claims it, its attempt 0, 2026-11-18 11:06:40 UTC; outranked" in text


def test_an_address_kept_for_a_node_that_does_not_claim_it_is_nobodys() -> None:
    here = replica(NODES)
    key = node_key(OTHER.node_id, "address")
    here.apply(root_entry("assigned", key, address_value(FIXED)), NOW)
    view = route(str(FIXED), known(here))
    assert view.owner is None
    assert "the operator keeps 10.10.77.7 for n2, which does not claim it (yet)" in view.why
    assert [one.kind for one in view.evidence] == ["fixed"]
    assert view.path.kind == "none"


def test_a_claim_of_one_that_is_not_let_in_counts_for_nothing() -> None:
    here = replica(NODES)
    claim(here, OTHER, first(OTHER))
    view = route(str(first(OTHER)), known(here, inside=[ME, THIRD]))
    assert (view.owner, view.why) == (None, f"no member claims {first(OTHER)}")
    view = route(str(ipv6(OTHER)), known(here, inside=[ME, THIRD]))
    assert view.owner is None
    assert view.why == "it would be that of n2, which is not let in"
    here.apply(revocation(OTHER), NOW)
    assert route(str(first(OTHER)), known(here)).owner is None


def test_an_ipv6_address_follows_from_the_certificate() -> None:
    view = route(str(ipv6(OTHER)), known(replica(NODES)))
    assert view.owner is not None
    assert view.owner.name == "n2"
    (said,) = view.evidence
    assert (said.kind, said.bucket, said.key) == ("certified", "member", OTHER.text)
    assert "it follows from the key of n2" in drawn(view)
    strange = ipv6(OTHER) + 1
    assert "no member's key leads to" in route(str(strange), known(replica(NODES))).why


def test_a_pod_s_address_leads_to_the_node_that_holds_its_range() -> None:
    here = replica(NODES)
    what = PLAN.at(OTHER.node_id, 3)
    for one, attempt in ((OTHER, 3), (THIRD, PLAN.claim_for(THIRD.node_id, of(what)).attempt)):
        value = claim_value(Claim(one.node_id, what, attempt))
        here.apply(entry(one, "range", one.text, value, sequence=7), NOW)
    key = witness_key(FOURTH.node_id, RANGE_KIND, OTHER.node_id)
    seen = entry(FOURTH, "witness", key, witness_value(what, Quality.SYNCED), sequence=9)
    here.apply(seen, NOW)
    pods = PLAN.pod_range(of(what))
    for address in (pods.ipv4[9], pods.ipv6[9]):
        view = route(str(address), known(here))
        assert view.owner is not None
        assert (view.owner.node_id, view.range, view.pod_range) == (
            OTHER.text,
            "pods",
            str(of(what)),
        )
        (said,) = view.evidence
        assert (said.kind, said.bucket, said.key) == ("claimed", "range", OTHER.text)
        assert [one.who.name for one in said.witnesses] == ["n4"]
        assert [one.who.name for one in view.contested] == ["n3"]
        assert view.path.kind == "direct"
    (head, *_) = drawn(route(str(pods.ipv4[9]), known(here))).splitlines()
    assert head == f"{pods.ipv4[9]} is in the pod range {of(what)} of n2 ({OTHER.text})"
    assert route(str(pods.ipv4[9]), known(here, inside=[ME])).owner is None
    wanted = PLAN.numbered(7)
    here.apply(root_entry("assigned", node_key(ME.node_id, "range"), pack(wanted)), NOW)
    assert "the operator keeps 10.244.7.0/24 for n1" in route("10.244.7.9", known(here)).why


def of(what: bytes) -> ipaddress.IPv4Network:
    found = PLAN.read(what)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("of", "mode", "kind", "line"),
    [
        (ME, "kernel", "self", "this node itself, skerry0"),
        (OTHER, "kernel", "direct", "direct, skerry0 to 192.0.2.2:51820 (lan): up, 0.8 ms"),
        (THIRD, "kernel", "down", "skerry0 to 192.0.2.3:51820 (lan): no answer now, handshake 1h"),
        (FOURTH, "kernel", "unmet", "none: this node has not met that member yet"),
        (OTHER, "off", "coordination", "no tunnel (vpn is off); the member is at 192.0.2.2:51820"),
        (THIRD, "off", "coordination", "192.0.2.3:51820 (lan): no answer now"),
    ],
)
def test_the_path(of: Node, mode: str, kind: str, line: str) -> None:
    here = known(replica(NODES), overlay=replace(OVERLAY, mode=mode))
    view = route(str(ipv6(of)), here)
    assert view.path.kind == kind
    assert line in drawn(view)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("n2", str(first(OTHER))),
        ("N2.skerry.internal.", str(first(OTHER))),
        (OTHER.text, str(first(OTHER))),
        (" n1 ", str(first(ME))),
        ("n4", str(ipv6(FOURTH))),  # no IPv4 address
        (str(first(OTHER)), str(first(OTHER))),
        (str(ipv6(OTHER)).upper(), str(ipv6(OTHER))),
    ],
)
def test_names_are_as_good_as_addresses(asked: str, found: str) -> None:
    assert route(asked, known(replica(NODES))).address == found


def test_of_two_with_one_name_the_resolvers_choice_is_told() -> None:
    here = known(replica(NODES))
    twins = [
        replace(one, name="twin", since=3 - number)
        for number, one in enumerate(here.names[1:3], start=1)
    ]
    assert route("twin", replace(here, names=twins)).address == str(first(THIRD))


@pytest.mark.parametrize(
    ("asked", "where", "part"),
    [
        ("10.244.3.9", "pods", "it is of the pod range 10.244.3.0/24, which no member claims"),
        (str(PODS6[9]), "pods", "but of no node's part"),
        ("10.96.0.1", "services", "services' range 10.96.0.0/16"),
        ("192.0.2.1", "outside", "not of this network: nodes have 10.10.0.0/16 and fd"),
        ("2001:db8::1", "outside", "not of this network"),
        ("::ffff:10.10.0.5", "outside", "not of this network"),
        ("10.10.0.0", "nodes", "never given away"),
        ("10.10.255.255", "nodes", "never given away"),
        ("10.10.5.5", "nodes", "no member claims 10.10.5.5"),
    ],
)
def test_what_nobody_owns_and_why(asked: str, where: str, part: str) -> None:
    view = route(asked, known(replica(NODES)))
    assert (view.owner, view.range) == (None, where)
    assert part in view.why
    assert drawn(view).startswith(f"{view.address} is ")


@given(st.text(max_size=80))
def test_whatever_is_asked_gets_an_answer_or_words(asked: str) -> None:
    said = "an answer"
    try:
        route(asked, EMPTY)
    except RouteError as error:
        said = f"{error} {error.hint}"
    assert said == "an answer" or "`skerry status` shows the members" in said
    assert len(said) < 500


EMPTY = known(replica(NODES))


def test_malformed_entries_make_no_owner() -> None:
    here = replica(NODES)
    here.apply(entry(OTHER, "address", OTHER.text, b"\xff"), NOW)
    key = witness_key(THIRD.node_id, ADDRESS_KIND, OTHER.node_id)
    here.apply(entry(THIRD, "witness", key, b"\x93"), NOW)
    here.apply(root_entry("assigned", node_key(OTHER.node_id, "address"), b"12"), NOW)
    assert route(str(first(OTHER)), known(here)).owner is None


def test_over_the_socket_and_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = replica(NODES)
    claim(here, OTHER, first(OTHER))
    provided: list[Knowledge] = [known(here)]
    path = tmp_path / "api.sock"
    table = route_routes(lambda: provided[0] if provided else None)
    json.dumps(description(table))
    with served(table, path):
        assert main(["route", "n2", "--socket", str(path)]) == 0
        assert capsys.readouterr().out.startswith(f"{first(OTHER)} is n2 ({OTHER.text})\n")
        assert main(["route", "10.10.5.5", "--json", "--socket", str(path)]) == 1
        assert json.loads(capsys.readouterr().out)["owner"] is None
        assert main(["route", "nobody at all & co", "--socket", str(path)]) == 1
        assert "'nobody at all & co' is neither an address" in capsys.readouterr().err
        with pytest.raises(ApiError, match=r"needs \?address="):
            call("GET", "/v1/route", socket_path=path)
        provided.clear()
        assert main(["route", "n2", "--socket", str(path)]) == 1
        assert "in no network yet" in capsys.readouterr().err
