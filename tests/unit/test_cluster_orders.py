"""``skerry cluster found | servers``: what the operator says, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from appliance.cluster.cluster_entries import VERSION, Founded, cluster_id, value_of
from appliance.cluster.model import Orders
from appliance.cluster.orders import read_orders
from appliance.operator import shared
from skerry.__main__ import main
from tests.fakes.ledger import entry, network, node, root_entry
from tests.fakes.operator import LATER, FakeNode, fake_node, make_directory

A, B = node(1, roles=("auto",)), node(2, roles=("auto",))
AGENT = node(3)
NETWORK_ID = network().network_id
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNode:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(shared, "now_ms", lambda: LATER)
    monkeypatch.setattr("time.time", lambda: LATER / 1000)
    make_directory(tmp_path / "skerry" / "networks" / "net0")
    made = fake_node([A, B, AGENT])
    monkeypatch.setattr(shared, "choose", lambda *_, **__: made)
    return made


def run(capsys: Captured, *words: str, status: int = 0) -> tuple[str, str]:
    found = main(words)
    output = capsys.readouterr()
    assert "Traceback" not in output.err
    assert found == status, output.err
    return output.out, output.err


def told(at: FakeNode) -> Orders:
    return read_orders(at.replica.entries("assigned", LATER, "cluster/"), NETWORK_ID)


def test_a_founder_is_named_once(capsys: Captured, at: FakeNode) -> None:
    out, _ = run(capsys, "cluster", "found", "n1", "--json")
    assert json.loads(out)["node_id"] == A.text
    assert told(at) == Orders(founder=A.node_id)
    _, err = run(capsys, "cluster", "found", "n1")
    assert "nothing had to be published" in err
    _, err = run(capsys, "cluster", "found", "n2", status=1)
    assert "n1 founded the cluster, or was named to" in err
    assert "skerry node remove n1" in err
    assert told(at).founder == A.node_id


def test_after_the_founder_was_removed_another_may_be_named(capsys: Captured, at: FakeNode) -> None:
    run(capsys, "cluster", "found", "n1")
    at.replica.apply(root_entry("revoked", f"node/{A.text}", b"\x91\xa0", sequence=90), LATER)
    run(capsys, "cluster", "found", "n2")
    assert told(at).founder == B.node_id


def test_a_cluster_that_is_founded_stays(capsys: Captured, at: FakeNode) -> None:
    said = Founded(VERSION, cluster_id(NETWORK_ID, "", A.node_id), A.node_id)
    at.replica.apply(entry(B, "cluster", f"{B.text}/founded", value_of(said), sequence=9), LATER)
    _, err = run(capsys, "cluster", "found", "n2", status=1)
    assert "n1 founded the cluster" in err


def test_an_agent_founds_nothing(capsys: Captured, at: FakeNode) -> None:
    _, err = run(capsys, "cluster", "found", "n3", status=1)
    assert "n3 may not be a server" in err
    assert told(at) == Orders()


def test_the_number_of_servers_is_said_and_what_it_lacks(capsys: Captured, at: FakeNode) -> None:
    _, err = run(capsys, "cluster", "servers", "3")
    assert "is to have 3 server(s); 1 more nodes" in err
    assert told(at).servers == 3
    run(capsys, "cluster", "servers", "1")
    assert told(at).servers == 1
    with pytest.raises(SystemExit):
        main(["cluster", "servers", "2"])
