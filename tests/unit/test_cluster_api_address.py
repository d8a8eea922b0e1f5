"""The API's address is on the node that leads and serves, and nowhere else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from appliance.cluster.cluster_entries import VERSION, Vip, value_of
from appliance.kubernetes.api_address import ApiAddress
from appliance.kubernetes.observing import Observed, Observer
from appliance.ledger.assigned import read_id
from appliance.ledger.said import Heard
from tests.fakes.cluster_world import IDS, World, make_world, node_object

pytestmark = pytest.mark.anyio


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
    here = ApiAddress(links.put)
    await here.keep(observed, serves=False)
    await here.keep(observed, serves=True)
    await here.keep(observed, serves=True)
    assert links.done == [("10.10.0.1", False), ("10.10.0.1", True)]
    # Another one leads in a later term.
    await here.keep(_led_by_another(observed), serves=True)
    assert links.done[2:] == [("10.10.0.1", False)]


async def test_what_fails_is_tried_again(tmp_path: Path) -> None:
    world = await founded(tmp_path)
    observed = await Observer(world.supervisor).observe()
    links = Links()
    here = ApiAddress(links.put)
    links.broken = True
    await here.keep(observed, serves=True)
    links.broken = False
    await here.keep(observed, serves=True)
    assert links.done == [("10.10.0.1", True)]


def _led_by_another(observed: Observed) -> Observed:
    other = read_id(IDS[1])
    assert other is not None
    claim = Heard(other, f"{IDS[1]}/vip", value_of(Vip(VERSION, bytes(16), 99, 0)))
    return replace(observed, said=(*observed.said, claim))
