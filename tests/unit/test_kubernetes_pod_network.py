"""What the cluster agent makes of a network's settings for pods: native, Flannel, no tunnel."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from appliance.cluster.conflist import read_conflist
from appliance.kubernetes.places import SERVER_UNIT
from appliance.overlay.config import MTU
from tests.fakes.cluster_world import make_world

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_in_flannel_mode_pods_have_less_room_and_no_ipv6(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    world.supervisor.document["settings"]["cni"] = "flannel"
    world.supervisor.document["mtu"] = MTU
    await world.turns(10, 4)
    network = read_conflist(world.places.conflist.read_bytes())
    assert network.mtu == MTU - 50 == 1230
    assert [str(one) for one in network.ranges] == ["10.244.1.0/24"]
    assert {one.version for one in (*network.routes, *network.direct)} == {4}
    folder = world.places.flannel_dir
    variables = (folder / "flannel.env").read_text()
    assert variables == "NODE_NAME=founder\nSKERRY_INTERFACE=skerry0\n"
    settings = json.loads((folder / "net-conf.json").read_text())
    assert settings["Network"] == "10.244.0.0/16"
    assert settings["Backend"] == {"Type": "vxlan"}


async def test_without_a_tunnel_flannel_carries_pods_from_the_address_on_the_lan(
    tmp_path: Path,
) -> None:
    world = make_world(tmp_path)
    lan = {"vpn": False, "interface": "end0", "mtu": 1500, "pods_ipv6": ""}
    world.supervisor.document |= lan | {"addresses": ["169.254.7.7", "192.168.1.1", "fd00::1"]}
    await world.turns(10, 4)
    network = read_conflist(world.places.conflist.read_bytes())
    assert network.mtu == 1450
    assert [one.version for one in network.ranges] == [4]
    variables = (world.places.flannel_dir / "flannel.env").read_text()
    assert variables == "NODE_NAME=founder\nSKERRY_INTERFACE=192.168.1.1\n"
    assert 'advertise-address: "192.168.1.1"' in world.places.config.read_text()


async def test_without_a_tunnel_and_without_dhcp_it_says_what_is_missing(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    world.supervisor.document |= {"vpn": False, "addresses": ["169.254.7.7", "fe80::1"]}
    await world.turns(10, 4)
    assert [one["code"] for one in world.status["problems"]] == ["no-node-address"]
    assert world.units.calls == []
    assert not world.places.flannel_dir.exists()
    world.supervisor.document["addresses"] = ["192.168.1.1"]
    await world.turns(10, 4)
    assert world.status["problems"] == []
    assert world.units.calls == [("start", SERVER_UNIT)]


async def test_pods_that_cannot_be_connected_are_a_problem_and_the_engine_is_not_held_up(
    tmp_path: Path,
) -> None:
    world = make_world(tmp_path)
    world.supervisor.document["mtu"] = 600
    await world.turns(10, 4)
    (problem,) = [one for one in world.status["problems"] if one["code"] == "pod-network"]
    assert "the MTU 600 is not within 1280" in problem["message"]
    assert not world.places.conflist.exists()
    world.supervisor.document["mtu"] = MTU
    await world.turns(10, 4)
    assert world.places.conflist.exists()
    assert world.status["problems"] == []


async def test_a_defect_is_reported_until_all_goes_well(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    await world.turns(10, 4)
    world.agent.tell_defect(KeyError("a secret"))
    (problem,) = world.status["problems"]
    assert problem["code"] == "defect"
    assert "KeyError" in problem["message"]
    assert "secret" not in world.places.status.read_text()
    await world.turns(2)
    assert world.status["problems"] == []


async def test_flannel_is_told_nothing_in_native_mode(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    await world.turns(10, 4)
    assert world.places.conflist.exists()
    assert not world.places.flannel_dir.exists()


async def test_pod_networking_of_another_release_is_refused(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    world.supervisor.document["settings"]["cni"] = "geneve"
    await world.turns(10, 4)
    assert not world.places.conflist.exists()
    assert "'geneve' is not a valid PodNetworkMode" in world.places.status.read_text()
