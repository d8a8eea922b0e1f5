"""What servers make of Kubernetes' nodes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from appliance.api.answers import ClusterFacts
from appliance.cluster.recorded import Verdict
from appliance.kubernetes import records
from appliance.kubernetes.errors import KubeApiError, SupervisorError
from appliance.kubernetes.facts import Cluster, check, read
from appliance.kubernetes.records import Record, Remove, read_lease, read_node, read_nodes
from tests.fakes.cluster_world import IDS, NAMES, FakeSupervisor, node_object, pod_range


def cluster(members: int = 2, own: int = 0) -> Cluster:
    document = FakeSupervisor(own, members).document
    return check(read(json.dumps(document).encode(), ClusterFacts, "it"))


def both(number: int) -> tuple[str, str]:
    found = pod_range(number + 1)
    return found["ipv4"], found["ipv6"]


@pytest.mark.parametrize("field", ["name", "interface"])
@pytest.mark.parametrize("text", ["x\nPATH=/tmp", 'x" accept;', "x y", "x" * 64, "\u00e9"])
def test_what_root_writes_into_units_and_rules_is_held_to_its_form(field: str, text: str) -> None:
    """The supervisor is not root; what it says ends in Flannel's environment, in nft's input."""
    document = FakeSupervisor(0, 2).document | {field: text}
    with pytest.raises(SupervisorError, match=field):
        read(json.dumps(document).encode(), ClusterFacts, "it")


def test_ranges_are_recorded_for_members_and_for_nobody_else() -> None:
    stranger = read_node(b'{"metadata": {"name": "stranger"}, "spec": {}}')
    other = node_object(4)
    nodes = (node_object(0), node_object(1, *both(1)), stranger, other)
    decided = records.decide(nodes, cluster(), frozenset())
    assert decided.changes == (Record(NAMES[0], both(0)),)
    assert decided.problems == ()
    assert decided.own is not None
    assert decided.own.verdict is Verdict.RECORD
    assert records.unknown(nodes, cluster()) == {IDS[4]}


def test_a_conflict_is_refused_and_told_for_any_node() -> None:
    nodes = (node_object(0, *both(0)), node_object(1, "10.244.200.0/24"))
    decided = records.decide(nodes, cluster(), frozenset())
    assert decided.changes == ()
    assert [one.code for one in decided.problems] == ["pod-range-conflict"]
    assert "second" in decided.problems[0].message
    assert decided.own is not None
    assert decided.own.verdict is Verdict.AGREED


def test_a_range_that_another_node_has_is_not_recorded() -> None:
    nodes = (
        node_object(0),
        read_node(b'{"metadata": {"name": "x"}, "spec": {"podCIDRs": ["10.244.1.0/25"]}}'),
    )
    decided = records.decide(nodes, cluster(), frozenset())
    assert decided.changes == ()
    assert [one.code for one in decided.problems] == ["pod-range-in-use"]


def test_a_member_that_claims_anothers_range_for_its_own_node_harms_itself_only() -> None:
    liar = node_object(1, *both(0))
    for mine in ((), both(0)):
        decided = records.decide((node_object(0, *mine), liar), cluster(), frozenset())
        assert decided.changes == (() if mine else (Record(NAMES[0], both(0)),))
        assert [one.code for one in decided.problems] == ["pod-range-conflict"]
        assert decided.own is not None
        assert decided.own.use is not None


def test_what_was_agreed_on_is_not_taken_back_for_a_strangers_sake() -> None:
    text = json.dumps({"metadata": {"name": "x"}, "spec": {"podCIDRs": list(both(0))}})
    nodes = (node_object(0, *both(0)), read_node(text.encode()))
    decided = records.decide(nodes, cluster(), frozenset())
    assert [one.code for one in decided.problems] == ["pod-range-in-use"]
    assert decided.own is not None
    assert decided.own.verdict is Verdict.AGREED


@pytest.mark.parametrize("label", ["control-plane", "etcd"])
def test_a_server_is_known_by_what_either_engine_calls_it(label: str) -> None:
    # Else a leader counts itself alone, and lets in one server after the other, for ever.
    assert node_object(1, labels={f"node-role.kubernetes.io/{label}": "true"}).keeps_state
    assert not node_object(1, labels={"node-role.kubernetes.io/worker": "true"}).keeps_state


def test_the_engine_sets_a_label_that_servers_are_known_by() -> None:
    role = Path(__file__).parents[2] / "image/engine/internal/server/role.go"
    (label,) = re.findall(r'const label = "([^"]+)"', role.read_text())
    assert node_object(1, labels={label: "true"}).keeps_state


def test_who_is_out_goes_and_its_range_is_free_at_once() -> None:
    gone = node_object(3, *both(0))
    decided = records.decide((gone, node_object(0)), cluster(), {IDS[3]})
    assert decided.changes == (Remove(NAMES[3], "uid-3"), Record(NAMES[0], both(0)))


def test_a_renamed_member_keeps_one_node_and_nobody_pushes_it_out() -> None:
    former = node_object(1, *both(1), name="former", uid="uid-former")
    # Before there is a Node of the new name, the old one stays.
    assert records.decide((former,), cluster(), frozenset()).changes == ()
    decided = records.decide((former, node_object(1)), cluster(), frozenset())
    assert decided.changes == (Remove("former", "uid-former"), Record(NAMES[1], both(1)))


@pytest.mark.parametrize(
    "text", [b"", b"null", b"[]", b'{"items": 5, "spec": 5}', b"[" * 50_000, b"\xff"]
)
def test_nonsense_from_kubernetes_is_an_error_in_words(text: bytes) -> None:
    for reader in (read_nodes, read_node, read_lease):
        with pytest.raises(KubeApiError):
            reader(text)


def test_a_lease_says_whose_and_which_term() -> None:
    found = read_lease(b'{"spec": {"holderIdentity": "founder_4b7e", "leaseTransitions": 3}}')
    assert (found.holder_node, found.transitions) == ("founder", 3)
    empty = read_lease(b'{"spec": {"holderIdentity": null, "leaseTransitions": -4}}')
    assert (empty.holder_node, empty.transitions) == ("", 0)


def test_the_patch_holds_both_fields() -> None:
    patch = json.loads(records.patch_of(Record("x", both(0))))
    assert patch == {"spec": {"podCIDR": both(0)[0], "podCIDRs": list(both(0))}}
