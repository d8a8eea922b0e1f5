"""A server that the others replaced while it was away comes back with its disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.cluster import cluster_entries
from appliance.cluster.cluster_entries import cluster_id
from appliance.kubernetes.keeper import Unit, UnitFacts
from appliance.kubernetes.places import AGENT_UNIT, SERVER_UNIT
from tests.fakes.cluster_world import IDS, NETWORK, World, folder_of, joined, make_world

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def server_that_was_replaced(folder: Path) -> World:
    """Return a second server that comes back when the others do without it."""
    world = await joined(folder)
    planned(world, 1, joining=1)
    await world.turns(10, 4)
    world.engine_files()
    planned(world, 2)
    world.api.up = False
    world.units.states[SERVER_UNIT] = UnitFacts(Unit.RETRYING, "exit-code", restarts=5)
    world.units.calls.clear()
    return world


def planned(world: World, term: int, *, joining: int | None = None) -> None:
    """Let the founder, which leads, say who are the servers: none but itself."""
    own = bytes([1]) * 16
    taken_in = None if joining is None else bytes([joining + 1]) * 16
    said = cluster_entries.Plan(1, cluster_id(NETWORK, "", own), term, (own,), taken_in)
    world.supervisor.entries[f"{IDS[0]}/plan"] = (IDS[0], cluster_entries.value_of(said))


def aside(world: World) -> list[str]:
    return [one.name for one in world.places.data_dir.iterdir() if "replaced" in one.name]


async def test_a_replaced_server_sets_its_state_aside_and_becomes_an_agent(tmp_path: Path) -> None:
    world = await server_that_was_replaced(tmp_path)
    await world.turns(10, 4)
    assert aside(world) == ["server.replaced-1"]
    assert not world.places.state.exists()
    assert world.units.calls == [("stop", SERVER_UNIT), ("start", AGENT_UNIT)]
    assert world.status["role"] == "agent"
    # Nothing of it is in the way when it is taken in anew.
    planned(world, 3, joining=1)
    await world.turns(10, 4)
    assert world.units.calls[2:] == [("stop", AGENT_UNIT), ("start", SERVER_UNIT)]


async def test_a_replaced_server_is_not_kept_from_it_by_a_restart(tmp_path: Path) -> None:
    world = await server_that_was_replaced(tmp_path)
    await world.turns(2)
    assert world.units.calls == [("stop", SERVER_UNIT)]
    # Another process goes on, and is to take this node in anew.
    again = make_world(folder_of(tmp_path, "again"), own=1, places=world.places)
    again.supervisor.entries, again.supervisor.secrets = (
        world.supervisor.entries,
        world.supervisor.secrets,
    )
    planned(again, 3, joining=1)
    again.api.up = False
    await again.turns(10, 4)
    assert aside(again) == ["server.replaced-1"]
    assert not (again.places.state / "db").exists()
    assert again.units.calls[-1] == ("start", SERVER_UNIT)


async def test_a_replaced_server_that_may_not_work_sets_its_state_aside_and_waits(
    tmp_path: Path,
) -> None:
    world = await server_that_was_replaced(tmp_path)
    for one in (world.supervisor.document, world.supervisor.document["members"][1]):
        one["roles"] = ["server"]
    await world.turns(10, 4)
    assert aside(world) == ["server.replaced-1"]
    assert world.units.calls == [("stop", SERVER_UNIT)]
