"""A node that is to go is emptied first: what is asked of Kubernetes, and what is said of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from appliance.cluster import cluster_entries, orders
from appliance.kubernetes.draining import DEADLINE_SECONDS, Cordon, cordons, eviction, read_pods
from appliance.kubernetes.errors import KubeApiError
from appliance.ledger.assigned import read_id
from appliance.ledger.said import Heard
from tests.fakes.cluster_world import IDS, NETWORK, World, founded, node_object

pytestmark = pytest.mark.anyio
SECOND = read_id(IDS[1]) or b""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def pod(name: str, **changed: object) -> dict[str, Any]:
    meta = {"name": name, "namespace": "default", "uid": f"uid-{name}"} | changed
    return {"metadata": meta, "status": {"phase": "Running"}}


async def draining(folder: Path) -> World:
    """Return the founder of a cluster whose second node was ordered to have no pods."""
    world = await founded(folder)
    world.api.objects["second"] = node_object(1)
    world.api.pods = {
        "web": pod("web"),
        "own": pod("own", ownerReferences=[{"kind": "DaemonSet"}]),
        "static": pod("static", annotations={"kubernetes.io/config.mirror": "x"}),
        "done": pod("done") | {"status": {"phase": "Succeeded"}},
    }
    world.supervisor.orders[orders.drain_key(SECOND)] = orders.DRAIN_VALUE
    return world


def left(world: World) -> dict[bytes, int] | None:
    """Return what the leader says of the nodes that are to be empty."""
    own = read_id(IDS[0]) or b""
    heard = [Heard(own, key, value) for key, (_, value) in world.supervisor.entries.items()]
    found = cluster_entries.read(heard).drained.get(own)
    return None if found is None else dict(found.left)


async def test_a_node_is_closed_and_its_pods_are_evicted(tmp_path: Path) -> None:
    world = await draining(tmp_path)
    await world.turns(2)
    assert world.api.objects["second"].spec.unschedulable
    assert not world.api.objects["founder"].spec.unschedulable
    assert set(world.api.pods) == {"own", "static", "done"}
    assert ("POST", "/api/v1/namespaces/default/pods/web/eviction") in world.api.asked
    assert not [one for one in world.api.asked if one[0] == "DELETE"]
    await world.turns(2)
    assert left(world) == {SECOND: 0}


async def test_a_budget_holds_a_pod_until_the_deadline(tmp_path: Path) -> None:
    world = await draining(tmp_path)
    world.api.blocked = True
    await world.turns(20)
    assert "web" in world.api.pods
    assert left(world) == {SECOND: 1}
    assert world.status["problems"] == []
    await world.turns(2, DEADLINE_SECONDS)
    assert "web" not in world.api.pods
    assert ("DELETE", "/api/v1/namespaces/default/pods/web") in world.api.asked


async def test_an_order_that_is_taken_back_opens_the_node_again(tmp_path: Path) -> None:
    world = await draining(tmp_path)
    await world.turns(3)
    world.supervisor.orders.clear()
    await world.turns(3)
    assert not world.api.objects["second"].spec.unschedulable
    assert left(world) == {}


async def test_without_an_order_nothing_is_asked(tmp_path: Path) -> None:
    world = await founded(tmp_path)
    await world.turns(5)
    assert world.api.asked == []
    assert left(world) is None


async def test_what_kubernetes_refuses_is_a_problem_and_stops_nothing_else(tmp_path: Path) -> None:
    world = await draining(tmp_path)
    world.api.pods["web"]["metadata"] = "nonsense"
    await world.turns(5)
    assert [one["code"] for one in world.status["problems"]] == ["draining"]
    assert world.status["node_ready"]


def test_what_a_person_closed_stays_closed() -> None:
    closed = node_object(1)
    marked = node_object(2, annotations={"skerry/drained": "true"})
    nodes = [closed, marked]
    assert cordons(nodes, {IDS[1]}) == (Cordon("second", on=True), Cordon("third", on=False))
    assert cordons(nodes, {IDS[2]}) == (Cordon("third", on=True),)
    assert b'"unschedulable": null' in Cordon("third", on=False).patch


def test_only_the_pod_that_was_seen_is_evicted() -> None:
    (one,) = read_pods(b'{"items":[{"metadata":{"name":"a","namespace":"b","uid":"c"}}]}')
    assert b'"uid": "c"' in eviction(one)
    with pytest.raises(KubeApiError):
        read_pods(b"[]")


def test_an_order_is_of_the_root_key_and_whole() -> None:
    key = orders.drain_key(SECOND)
    for heard, wanted in (
        (Heard(NETWORK, key, orders.DRAIN_VALUE), {SECOND}),
        (Heard(NETWORK, key, b"\x02"), set()),
        (Heard(SECOND, key, orders.DRAIN_VALUE), set()),
        (Heard(NETWORK, "cluster/drain/x", orders.DRAIN_VALUE), set()),
    ):
        assert orders.read_orders([heard], NETWORK).drain == wanted
