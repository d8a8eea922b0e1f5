"""Credentials that one who is out has seen are made anew, and what runs takes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from appliance.kubernetes.config import Keys
from appliance.kubernetes.credentials import read_token
from appliance.kubernetes.kubeconfig import kubeconfig_text, unpack
from appliance.kubernetes.observing import Observer
from appliance.kubernetes.part import Kind, Part
from appliance.kubernetes.places import SERVER_UNIT
from appliance.kubernetes.sealing import Sealer
from tests.fakes.cluster_world import ADMIN, IDS, PEM, SERVER_TOKEN, founded, make_world

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_a_token_that_was_seen_is_made_anew_and_the_server_takes_it(tmp_path: Path) -> None:
    world = await founded(tmp_path)
    before = world.supervisor.secrets["cluster-agent-token"]
    before["row"]["exposed"] = True
    await world.turns(15)
    after = world.supervisor.secrets["cluster-agent-token"]
    assert after["row"]["generation"] == 2
    assert after["value"] != before["value"]
    assert after["value"].rpartition(":")[2] in world.places.config.read_text()
    assert world.units.calls == [("start", SERVER_UNIT), ("restart", SERVER_UNIT)]


async def test_a_server_that_becomes_an_agent_forgets_the_servers_token(tmp_path: Path) -> None:
    world = make_world(tmp_path, own=1)
    world.places.config.parent.mkdir(parents=True)
    world.places.config.write_text(f'token: "{SERVER_TOKEN}"\n')
    world.places.kubelet_kubeconfig.parent.mkdir(parents=True)
    world.places.kubelet_kubeconfig.touch()
    agents = SERVER_TOKEN.replace("server", "node")
    world.supervisor.give_secret("cluster-agent-token", agents)
    observed = await Observer(world.supervisor).observe()
    sealer, part = Sealer(world.places, world.supervisor), Part(Kind.AGENT, "it was replaced")
    assert sealer.keys(observed, part) == Keys(agents)
    # The one that it has joined by stays, whatever is sealed for those to come.
    world.places.config.write_text(f'token: "{agents}"\n')
    world.supervisor.give_secret("cluster-agent-token", agents[:-1] + "0", generation=2)
    assert sealer.keys(await Observer(world.supervisor).observe(), part) == Keys(agents)


async def test_after_a_server_is_revoked_token_and_kubeconfig_are_others(tmp_path: Path) -> None:
    world = await founded(tmp_path)
    config, sealed = world.places.config.read_text(), world.supervisor.secrets
    for one in sealed.values():
        one["row"]["exposed"] = True
    await world.turns(15)
    token = sealed["cluster-server-token"]["value"]
    assert read_token(token, "it").authority == read_token(SERVER_TOKEN, "it").authority
    assert token != SERVER_TOKEN
    assert "\ntoken:" not in config
    assert f'token: "{token}"' in world.places.config.read_text()
    assert world.units.calls == [("start", SERVER_UNIT), ("restart", SERVER_UNIT)]
    # The administrator of the old token gets its successor when the engine has made it.
    kubeconfig = sealed["cluster-kubeconfig"]
    assert kubeconfig["row"]["exposed"]
    kind = f"{IDS[0]}/kubeconfig"
    _, before = world.supervisor.entries[kind]
    world.places.server_token.write_text(f"{token}\n")
    other = PEM.replace("Tm90", "QW5k")
    world.places.kubeconfig.write_text(kubeconfig_text(replace(ADMIN, certificate=other), "x"))
    await world.turns(15)
    assert unpack(sealed["cluster-kubeconfig"]["value"], "it").certificate == other
    assert not any(one["row"]["exposed"] for one in sealed.values())
    assert world.supervisor.entries[kind][1] != before
    # All is as it should be: nothing restarts again, nothing is sealed again.
    assert [one["row"]["generation"] for one in sealed.values()] == [2, 2, 2]
    assert len(world.units.calls) == 2
