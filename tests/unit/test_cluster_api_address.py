"""The API's address is on the node that leads and serves, and nowhere else."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from appliance.api.answers import ApiFacts
from appliance.cluster.cluster_entries import VERSION, Vip, value_of
from appliance.kubernetes.api_address import ApiAddress
from appliance.kubernetes.lan_address import Port
from appliance.kubernetes.observing import Observed, Observer
from appliance.kubernetes.report import ApiReport
from appliance.kubernetes.status_words import words
from appliance.ledger.assigned import read_id
from appliance.ledger.said import Heard
from provisioning.clusters import CLUSTER_LABEL
from tests.fakes.cluster_world import IDS, World, make_world, node_object
from tests.fakes.lan import Machine, Switch

pytestmark = pytest.mark.anyio

ADDRESS = ipaddress.IPv4Address("192.168.1.250")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Links:
    """A loopback interface."""

    def __init__(self) -> None:
        self.done: list[tuple[str, bool]] = []
        self.broken = False

    def put(self, address: str, on: bool) -> None:
        if self.broken:
            raise OSError(1, "no")
        self.done.append((address, on))


async def founded(folder: Path) -> World:
    world = make_world(folder)
    await world.turns(10, 4)
    world.engine_files()
    world.api.objects["founder"] = node_object(0)
    await world.turns(3)
    return world


async def test_a_founder_that_serves_claims_it_and_has_it(tmp_path: Path) -> None:
    world = await founded(tmp_path)
    observed = await Observer(world.supervisor).observe()
    links = Links()
    here = ApiAddress(links.put, Machine(Switch(), 1))
    assert here.report() is None
    await here.keep(observed, serves=False, leads=True)
    await here.keep(observed, serves=True, leads=True)
    await here.keep(observed, serves=True, leads=True)
    assert links.done == [("10.10.0.1", False), ("10.10.0.1", True)]
    assert here.report() == ApiReport("10.10.0.1", here=True)
    # Another one leads in a later term; without the supervisor nothing changes.
    await here.keep(_led_by_another(observed), serves=True, leads=True, away=True)
    assert len(links.done) == 2
    await here.keep(_led_by_another(observed), serves=True, leads=True)
    assert links.done[2:] == [("10.10.0.1", False)]


async def test_what_fails_is_tried_again(tmp_path: Path) -> None:
    world = await founded(tmp_path)
    observed = await Observer(world.supervisor).observe()
    links = Links()
    here = ApiAddress(links.put, Machine(Switch(), 1))
    links.broken = True
    await here.keep(observed, serves=True, leads=True)
    assert here.report() == ApiReport("10.10.0.1", here=False)
    assert [one.code for one in here.problems] == ["api-address-failed"]
    links.broken = False
    await here.keep(observed, serves=True, leads=True)
    assert links.done == [("10.10.0.1", True)]
    assert here.problems == ()


async def test_where_a_node_has_it_or_there_is_none_it_is_nowhere(tmp_path: Path) -> None:
    world = await founded(tmp_path)
    observed = await Observer(world.supervisor).observe()
    links = Links()
    here = ApiAddress(links.put, Machine(Switch(), 1))
    taken = ApiFacts("10.10.0.1", "the node attic had it", "Give it another.")
    await here.keep(_with(observed, api=taken), serves=True, leads=True)
    assert links.done == [("10.10.0.1", False)]
    none = ApiFacts(why="no tunnel", hint="Make the network with --api-address.")
    await here.keep(_with(observed, api=none), serves=True, leads=True)
    report = here.report()
    assert report is not None
    lines = words({"api_address": msgspec.to_builtins(report)})
    assert "address none: no tunnel. Make the network with --api-address." in lines
    assert "address 10.10.0.1, here" in words({"api_address": {"address": "10.10.0.1", "here": 1}})
    assert "address -" in words({})


async def test_a_claim_counts_for_the_claimants_own_cluster(tmp_path: Path) -> None:
    world = await founded(tmp_path)
    stolen = _led_by_another(await Observer(world.supervisor).observe())
    links = Links()
    here = ApiAddress(links.put, Machine(Switch(), 1))
    world.supervisor.document["members"][1]["labels"] = {CLUSTER_LABEL: "blue"}
    observed = await Observer(world.supervisor).observe()
    await here.keep(replace(observed, said=stolen.said), serves=True, leads=True)
    assert links.done == [("10.10.0.1", True)]


async def test_without_a_tunnel_it_is_on_the_lan_of_the_nodes_address(tmp_path: Path) -> None:
    world = await founded(tmp_path)
    observed = _on_lan(await Observer(world.supervisor).observe())
    switch = Switch()
    machine = Machine(switch, 1)
    now = [0.0]
    here = ApiAddress(Links().put, machine, lambda: now[0])
    await here.keep(observed, serves=True, leads=True)
    assert switch.holders() == [machine]
    assert here.report() == ApiReport(str(ADDRESS), here=True)
    # It stays as long as somebody keeps it there, the supervisor's silence notwithstanding.
    now[0] = switch.now = 20.0
    await here.keep(observed, serves=True, leads=True, away=True)
    switch.now = 45.0
    assert switch.holders() == [machine]
    # Each of these alone: its API is silent, its engine knows another leader, the ledger does.
    for serves, leads, said in (
        (False, True, observed),
        (True, False, observed),
        (True, True, _led_by_another(observed)),
    ):
        await here.keep(observed, serves=True, leads=True)
        assert switch.holders() == [machine]
        await here.keep(said, serves=serves, leads=leads)
        assert switch.holders() == []
    assert here.report() == ApiReport(str(ADDRESS), here=False)


async def test_what_stands_against_it_is_in_the_report(tmp_path: Path) -> None:
    world = await founded(tmp_path)
    observed = _on_lan(await Observer(world.supervisor).observe())
    switch = Switch()
    other, machine = Machine(switch, 2), Machine(switch, 1)
    other.put(other.port, ADDRESS, 1000)
    here = ApiAddress(Links().put, machine)
    world.agent._api_address = here
    await here.keep(observed, serves=True, leads=True)
    (problem,) = here.problems
    assert problem.code == "api-address-taken"
    assert "02:00:00:00:00:02" in problem.message
    world.supervisor.document |= {"vpn": False, "addresses": ["192.168.1.1"]}
    world.supervisor.document["api"] = {"address": str(ADDRESS), "why": "", "hint": ""}
    await world.turns(1)
    assert world.status["state"] == "degraded"
    assert [one["code"] for one in world.status["problems"]] == ["api-address-taken"]
    other.remove(ADDRESS)
    await world.turns(1)
    assert world.status["problems"] == []
    assert world.status["api_address"]["here"] is True
    # Netlink refuses: it is tried again, and said.
    machine.broken = True
    await world.turns(1)
    assert [one["code"] for one in world.status["problems"]] == ["api-address-failed"]
    machine.broken = False
    machine.found = Port(1, "eth0", b"", ())
    await world.turns(1)
    assert [one["code"] for one in world.status["problems"]] == ["api-address-no-lan"]


def _with(observed: Observed, **changed: object) -> Observed:
    document = msgspec.structs.replace(observed.cluster.document, **changed)
    return replace(observed, cluster=replace(observed.cluster, document=document))


def _on_lan(observed: Observed) -> Observed:
    return _with(observed, vpn=False, addresses=("192.168.1.1",), api=ApiFacts(str(ADDRESS)))


def _led_by_another(observed: Observed) -> Observed:
    other = read_id(IDS[1])
    assert other is not None
    claim = Heard(other, f"{IDS[1]}/vip", value_of(Vip(VERSION, bytes(16), 99, 0)))
    return replace(observed, said=(*observed.said, claim))
