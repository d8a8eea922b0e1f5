"""Which backends a service has, what the kernel is told, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.ledger.said import Heard
from appliance.services import offers, rules
from appliance.services.annotations import PROBLEMS_MAX, desired_from, pods_of
from appliance.services.errors import ServiceError
from appliance.services.observing import read
from appliance.services.offers import Offer, OfferValue, service_address
from appliance.services.plan import Kubernetes, Network, Plan, Question, plan, wanted
from appliance.services.probes import Health
from appliance.services.wishes import (
    Connection,
    Exposure,
    Target,
    Wishes,
    check_exposure,
    load,
    save,
    target_of,
)
from provisioning import codec
from provisioning.keys import id_text
from tests.fakes.cluster_world import FakeSupervisor
from tests.unit.services_world import (
    HOME,
    NETWORK_ID,
    NOTHING,
    A,
    B,
    C,
    D,
    among,
    member,
    offer,
    way,
)


def reached(
    said: list[Offer], network: Network = HOME, connection: Connection | None = None
) -> tuple[tuple[str, int], ...]:
    made = plan(Wishes((), (connection or Connection("db"),)), network, said, (), NOTHING)
    return made.ways[0].targets if made.ways else ()


def hosts(said: list[Offer], network: Network = HOME) -> list[int]:
    return [int(host.rpartition(".")[2]) for host, _ in reached(said, network)]


def test_backends_of_the_own_cluster_come_first_and_then_the_others() -> None:
    everybody = [offer(B), offer(C), offer(D)]
    assert hosts(everybody) == [2]
    assert hosts([offer(B, healthy=False), offer(C), offer(D)]) == [3, 4]
    assert hosts(everybody, among(member(B, up=False))) == [3, 4]
    assert hosts(everybody, among(member(A, "far"))) == [3]
    # A machine outside of all clusters is near to none.
    assert hosts(everybody, among(own=D)) == [2, 3]


def test_what_is_down_unknown_or_without_an_address_is_no_backend() -> None:
    assert hosts([offer(bytes(16))]) == []
    assert hosts([offer(B)], among(replace(member(B), ipv4=None))) == []
    assert hosts([offer(B, "other")]) == []


def test_a_connection_may_trust_certain_nodes_only() -> None:
    pinned = Connection("db", nodes=(id_text(C),))
    assert reached([offer(B), offer(C)], connection=pinned) == (("10.10.0.3", 5432),)
    assert reached([offer(B)], connection=pinned) == ()


def test_own_exposures_are_offered_as_well_as_they_are() -> None:
    wishes = Wishes(
        (
            Exposure("web", "tcp", 80),
            Exposure("db", "tcp", 5432, "192.168.1.9:5433"),
            Exposure("dead", "udp", 53, "192.168.1.8:53"),
        ),
        (Connection("db", port=15432),),
    )
    well = {
        Question(Target("10.10.0.1", 80), "tcp"),
        Question(Target("192.168.1.9", 5433), "tcp"),
    }
    made = plan(wishes, HOME, [], well, NOTHING)
    assert {(one.name, one.healthy) for one in made.offers} == {
        ("web", True),
        ("db", True),
        ("dead", False),
    }
    address = str(service_address(NETWORK_ID, "db"))
    # Inward for the others; and this node goes to the service itself, not to its own address.
    assert made.ways == (
        way(address, "tcp", 15432, (("192.168.1.9", 5433),)),
        way("10.10.0.1", "tcp", 5432, (("192.168.1.9", 5433),), inward=True),
        way("10.10.0.1", "udp", 53, (), inward=True),
    )


def test_a_person_goes_before_an_annotation() -> None:
    mine = Exposure("db", "tcp", 5432)
    theirs = Kubernetes((Exposure("db", "tcp", 1, "k8s:a/b"),))
    made = plan(Wishes((mine,)), HOME, [], (), theirs)
    assert [one.port for one in made.offers] == [5432]
    assert [one.code for one in made.problems] == ["service-exposed-twice"]


def test_what_answers_in_one_protocol_says_nothing_of_the_other() -> None:
    """A UDP service that nobody asks counts as up; the TCP one at the same port may be down."""
    wishes = Wishes((Exposure("dns", "tcp", 53), Exposure("dns", "udp", 53)))
    at = Target("10.10.0.1", 53)
    well = Health().heard({Question(at, "tcp"): False, Question(at, "udp"): True})
    made = plan(wishes, HOME, [], well, NOTHING)
    assert {(one.protocol, one.healthy) for one in made.offers} == {("tcp", False), ("udp", True)}


def test_a_port_of_the_node_is_one_services() -> None:
    """Most Services have port 80: the second would be answered by the first one's pods."""
    mine = Exposure("web", "tcp", 80)
    theirs = Exposure("shop", "tcp", 80, "k8s:a/shop"), Exposure("bank", "tcp", 81, "k8s:b/bank")
    later = Exposure("teller", "tcp", 81, "k8s:c/teller")
    same = Exposure("money", "tcp", 81, "k8s:b/bank")
    found, problems = wanted(Wishes((mine,)), Kubernetes((*theirs, later, same)))
    assert [one.name for one in found] == ["web", "bank", "money"]
    assert {one.code for one in problems} == {"service-port-taken"}
    assert ["shop" in problems[0].message, "teller" in problems[1].message] == [True, True]
    # Nor is it free for somebody again because of a name that is taken.
    twice = Exposure("web", "tcp", 81, "k8s:d/x")
    assert wanted(Wishes((mine,)), Kubernetes((twice, *theirs)))[0][1].to == "k8s:b/bank"


def test_without_an_address_there_is_nothing_to_do() -> None:
    network = among(replace(member(A), ipv4=None))
    assert plan(Wishes((Exposure("a", "tcp", 1),)), network, [], (), NOTHING) == Plan((), ())


# The kernel's rules


WAYS = (
    way("198.19.1.1", "udp", 53, (("10.10.0.2", 53), ("10.10.0.3", 5353))),
    way("10.10.0.1", "tcp", 5432, (("192.168.1.9", 5433),), inward=True),
    way("10.10.0.1", "tcp", 80, (), inward=True),
)
BASE = frozenset({"prerouting", "output", "postrouting", "input", "here", "through"})


def chains(text: str) -> set[str]:
    words = (line.split() for line in text.splitlines())
    return {line[4] for line in words if line[:2] == ["add", "chain"]}


def test_rules_translate_and_nothing_else() -> None:
    laid, text = rules.lay(WAYS, ()), rules.switch(WAYS, "skerry0", "10.10.0.1")
    assert "meta l4proto udp dnat ip to 10.10.0.3:5353" in laid
    assert laid.count("dnat ip to") == 3
    drawn = next(line for line in laid.splitlines() if "numgen random mod 2" in line).split()[4]
    assert f"output ip daddr 198.19.1.1 udp dport 53 goto {drawn}\n" in text
    assert 'prerouting iifname "skerry0" ip daddr 10.10.0.1 tcp dport 5432 goto to-' in text
    # What is exposed and not well goes nowhere, also not to what else listens there.
    assert "dport 80 goto" not in text
    assert "ip daddr 10.10.0.1 tcp dport 80 reject\n" in text
    assert text.endswith("reject\n")
    assert rules.switch((), "skerry0", "10.10.0.1", guarded=True).endswith("through drop\n")


def test_what_is_put_in_force_was_laid_before_and_what_stays_is_not_touched() -> None:
    laid, text = chains(rules.lay(WAYS, ())), rules.switch(WAYS, "skerry0", "10.10.0.1")
    assert laid > BASE
    assert {word for word in text.split() if word.startswith(("to-", "way-"))} <= laid
    for one in (text, rules.lay(WAYS, laid)):
        assert "delete" not in one
        assert chains(one) <= BASE
    assert "add rule" not in rules.lay(WAYS, laid)
    # Of a new backend and an old one, only the new one's chains are new.
    more = (replace(WAYS[0], targets=(("10.10.0.2", 53), ("10.10.0.4", 53))),)
    new = {one for one in chains(rules.lay(more, laid)) if one not in BASE}
    assert len(new) == 2
    assert not new & laid


def test_only_what_nothing_leads_to_is_taken_away() -> None:
    laid = chains(rules.lay(WAYS, ()))
    assert rules.clear(WAYS, laid) == ""
    gone = rules.clear((), laid)
    assert {line.split()[-1] for line in gone.splitlines()} == laid - BASE
    assert rules.clear((), {"old", *BASE}).splitlines() == [
        "flush chain inet skerry-services old",
        "delete chain inet skerry-services old",
    ]


def test_our_chains_are_found_among_all() -> None:
    listing = (
        b'{"nftables": [{"metainfo": {"version": "1"}}, {"chain": {"family": "inet", "table": '
        b'"skerry-services", "name": "a", "handle": 1}}, {"chain": {"family": "ip", "table": '
        b'"skerry-services", "name": "b"}}, {"chain": {"family": "inet", "table": "c", '
        b'"name": "d"}}]}'
    )
    assert rules.chains_in(listing) == {"a"}
    for wrong in (b"", b"[]", b'{"nftables": [{"chain": 1}]}', b"\xff"):
        with pytest.raises(ServiceError):
            rules.chains_in(wrong)


# Health


def test_one_lost_answer_is_no_outage_two_are() -> None:
    health, one = Health(), Question(Target("10.0.0.1", 80), "tcp")
    # Unknown at first: not well before it has answered once.
    assert health.heard({one: False}) == set()
    assert health.heard({one: True}) == {one}
    assert health.heard({one: False}) == {one}
    assert health.heard({one: False}) == set()
    assert health.heard({}) == set()


# What a person writes


@pytest.mark.parametrize(
    "wrong",
    [
        Exposure("Db", "tcp", 1),
        Exposure("db", "sctp", 1),
        Exposure("db", "tcp", 0),
        Exposure("db", "tcp", 65536),
        Exposure("db", "tcp", 1, "127.0.0.1:80"),
        Exposure("db", "tcp", 1, "host:80"),
        Exposure("db", "tcp", 1, "10.0.0.1"),
        Exposure("db", "tcp", 1, "10.0.0.1:80; drop"),
        Exposure("db", "tcp", 1, "224.0.0.1:80"),
        Exposure("db", "tcp", 1, "k8s:a"),
        Exposure("db", "tcp", 1, "k8s:a/b/c"),
        Exposure("db", "tcp", 2379, "10.0.0.1:80"),
        Exposure("db", "udp", 51821, "10.0.0.1:80"),
        Exposure("db", "udp", 8472, "k8s:a/b"),
        Exposure("db", "tcp", 30000, "k8s:a/b"),
        Exposure("db", "udp", 32767, "k8s:a/b"),
    ],
)
def test_what_cannot_be_exposed_is_refused(wrong: Exposure) -> None:
    with pytest.raises(ServiceError):
        check_exposure(wrong)


def test_the_file_is_read_as_it_was_written_and_nothing_else(tmp_path: Path) -> None:
    wishes = Wishes((Exposure("db", "tcp", 1, "k8s:a/b:http"),), (Connection("x", 5, ("n",)),))
    assert load(tmp_path) == Wishes()
    save(tmp_path, wishes)
    assert load(tmp_path) == wishes
    for text in (b"{", b'{"exposures": [{"name": "a"}]}', b'{"more": 1}', b"[" * 9000):
        (tmp_path / "services.json").write_bytes(text)
        with pytest.raises(ServiceError, match="cannot be read"):
            load(tmp_path)
    save(tmp_path, Wishes((Exposure("db", "tcp", 0),)))
    with pytest.raises(ServiceError, match=r"in .*services.json: 0 is no port"):
        load(tmp_path)


# What comes out of the ledger


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("db/tcp", b""),
        ("db/tcp", codec.encode(OfferValue(2, 80, True))),  # noqa: FBT003
        ("db/tcp", codec.encode(OfferValue(1, 0, True))),  # noqa: FBT003
        ("db/tcp", codec.encode(OfferValue(1, 70000, True))),  # noqa: FBT003
        ("db/tcp", codec.encode(OfferValue(1, 80, True)) + b"\x00"),  # noqa: FBT003
        ("db/sctp", codec.encode(OfferValue(1, 80, True))),  # noqa: FBT003
        ("Db/tcp", codec.encode(OfferValue(1, 80, True))),  # noqa: FBT003
        ("db; flush ruleset/tcp", codec.encode(OfferValue(1, 80, True))),  # noqa: FBT003
        ("db/tcp/x", codec.encode(OfferValue(1, 80, True))),  # noqa: FBT003
        ("", b"whatever people left there"),
    ],
)
def test_malformed_offers_count_for_nothing(key: str, value: bytes) -> None:
    good = offer(B)
    hostile = Heard(A, f"{id_text(A)}/{key}", value)
    assert offers.read([hostile, Heard(B, good.key, good.value)]) == (good,)


def test_nobody_offers_for_another() -> None:
    assert offers.read([Heard(B, offer(A).key, offer(A).value)]) == ()


@given(st.binary(max_size=80), st.text(max_size=40))
def test_whatever_stands_there_is_read_without_a_word(value: bytes, key: str) -> None:
    offers.read([Heard(A, f"{id_text(A)}/{key}", value)])
    document = {"entries": [{"owner": id_text(A), "key": key, "value": "*", "encoding": "base64"}]}
    assert read(FakeSupervisor().document, document).offers == ()


def test_an_answer_that_is_not_the_supervisors_is_said() -> None:
    with pytest.raises(ServiceError, match="not understood"):
        read({}, {"entries": []})
    with pytest.raises(ServiceError, match="interface"):
        read(FakeSupervisor().document | {"interface": 'x" accept'}, {"entries": []})


# Kubernetes


def service(name: str, annotation: object, *ports: dict[str, object]) -> dict[str, object]:
    return {
        "metadata": {
            "namespace": "shop",
            "name": name,
            "annotations": {"skerry/expose": annotation},
        },
        "spec": {"ports": list(ports)},
    }


HTTP = {"name": "http", "port": 80, "protocol": "TCP"}
DNS = {"name": "dns", "port": 53, "protocol": "UDP"}


def test_annotations_say_what_to_expose() -> None:
    found, problems = desired_from(
        [service("web", "shop-web", HTTP, DNS), service("two", "a:http, b:53", HTTP, DNS)]
    )
    assert not problems
    assert found == (
        Exposure("shop-web", "tcp", 80, "k8s:shop/web:http"),
        Exposure("a", "tcp", 80, "k8s:shop/two:http"),
        Exposure("b", "udp", 53, "k8s:shop/two:dns"),
    )


@pytest.mark.parametrize(
    "wrong",
    [
        service("web", "Not A Name", HTTP),
        service("web", "x:https", HTTP),
        service("web", "x"),
        service("web", "x", {"port": "80"}),
        service("web", "x", {"port": 80, "protocol": "SCTP"}),
    ],
)
def test_annotations_that_make_no_sense_are_said(wrong: dict[str, object]) -> None:
    found, problems = desired_from([wrong])
    assert not found
    assert [one.code for one in problems] == ["service-annotation"]


def test_a_name_is_one_services_and_what_is_too_much_is_said_but_not_for_ever() -> None:
    found, problems = desired_from([service("web", "a", HTTP), service("two", "a", HTTP)])
    assert [one.to for one in found] == ["k8s:shop/web:http"]
    assert "a (tcp) is that of k8s:shop/web:http already" in problems[0].message
    many = [service(f"s{number}", f"s{number}", HTTP) for number in range(65)]
    found, problems = desired_from(many)
    assert (len(found), len(problems)) == (64, 1)
    assert "s64 is not" in problems[0].message
    loud = [service(f"s{number}", ",".join("!" * 500), HTTP) for number in range(9)]
    found, problems = desired_from([*loud, service("web", "web", HTTP)])
    assert ([one.name for one in found], len(problems)) == (["web"], PROBLEMS_MAX)


@pytest.mark.parametrize(
    "odd", [{}, {"metadata": 1}, service("web", 5, HTTP), service("../x", "a", HTTP)]
)
def test_objects_that_are_none_are_passed_over(odd: dict[str, object]) -> None:
    assert desired_from([odd]) == ((), ())


def slice_of(*addresses: str, ready: bool = True, port: object = 8080) -> dict[str, object]:
    return {
        "metadata": {"namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
        "endpoints": [{"addresses": [one], "conditions": {"ready": ready}} for one in addresses],
    }


def test_ready_pods_are_the_backends() -> None:
    slices = [
        slice_of("10.244.1.5", "10.244.2.6"),
        slice_of("10.244.9.9", ready=False),
        slice_of("127.0.0.1", "not an address"),
        slice_of("10.244.1.7", port="http"),
    ]
    exposures, _ = desired_from([service("web", "web", HTTP)])
    found = Kubernetes(exposures, pods_of(exposures, slices))
    pods = (Target("10.244.1.5", 8080), Target("10.244.2.6", 8080))
    assert found.pods == {"k8s:shop/web:http": pods}
    assert pods_of([Exposure("x", "tcp", 1, "10.0.0.1:1")], slices) == {}
    well = {Question(pod, "tcp") for pod in pods}
    made = plan(Wishes(), HOME, [], well, found)
    assert made.offers == (Offer("web", "tcp", A, 80, healthy=True),)
    assert made.ways[0].targets == (("10.244.1.5", 8080), ("10.244.2.6", 8080))


def test_a_target_is_an_address_and_a_port() -> None:
    assert target_of("192.168.1.20:5432") == Target("192.168.1.20", 5432)


def test_nobody_takes_the_ports_of_the_node_itself() -> None:
    port = {"port": 6443, "protocol": "TCP"}
    metadata = {"namespace": "x", "name": "y", "annotations": {"skerry/expose": "mine"}}
    exposures, problems = desired_from([{"metadata": metadata, "spec": {"ports": [port]}}])
    assert exposures == ()
    assert "6443" in problems[0].message
    # As it is it may be offered: nothing is led elsewhere.
    check_exposure(Exposure("api", "tcp", 6443))
    check_exposure(Exposure("db", "udp", 2379, "10.0.0.1:80"))
    check_exposure(Exposure("db", "tcp", 30000, "10.0.0.1:80"))
    check_exposure(Exposure("db", "tcp", 32768, "k8s:a/b"))
    for number in (2379, 2380, 10250):
        with pytest.raises(ServiceError, match="own"):
            check_exposure(Exposure("mine", "tcp", number, "192.168.1.20:1"))
