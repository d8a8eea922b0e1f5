"""The agent's loop around a fake node: what it writes, starts, seals and tells."""

from __future__ import annotations

import stat
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from appliance.cluster import cluster_entries
from appliance.cluster.cluster_entries import cluster_id
from appliance.cluster.conflist import read_conflist
from appliance.cni.provider import NoPods, Pods
from appliance.kubernetes.config import joined_in
from appliance.kubernetes.credentials import read_token
from appliance.kubernetes.errors import KubeApiError
from appliance.kubernetes.keeper import Unit, UnitFacts
from appliance.kubernetes.kubeconfig import kubeconfig_text, unpack
from appliance.kubernetes.observing import Observer
from appliance.kubernetes.operator_box import open_as_operator
from appliance.kubernetes.places import AGENT_UNIT, PODS_SLICE, SERVER_UNIT
from appliance.kubernetes.records import Record, Remove
from appliance.kubernetes.sealing import public_address
from tests.fakes.cluster_world import (
    ADMIN,
    IDS,
    NETWORK,
    SEED,
    SERVER_TOKEN,
    folder_of,
    founded,
    joined,
    make_world,
    node_object,
    pod_range,
)

pytestmark = pytest.mark.anyio
AGENT_TOKEN = SERVER_TOKEN.replace("server", "node")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_a_founder_gets_its_engine(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    await world.turns(10, 4)
    assert world.units.calls == [("start", SERVER_UNIT)]
    config = world.places.config.read_text()
    assert 'node-name: "founder"' in config
    assert 'node-ip: "10.10.0.1,fd00::1"' in config
    assert "  - " + '"allocate-node-cidrs=false"' in config
    assert "server:" not in config
    assert "\ntoken:" not in config
    assert stat.S_IMODE(world.places.config.stat().st_mode) == 0o600
    assert stat.S_IMODE(world.places.agent_secret.stat().st_mode) == 0o600
    manifest = world.places.engine_manifests / "skerry-coredns.yaml"
    assert manifest.read_text() == "# DNS at 10.96.0.10, pods in 10.244.0.0/16\n"
    network = read_conflist(world.places.conflist.read_bytes())
    assert str(network.ranges[0]) == "10.244.1.0/24"
    assert network.mtu == 1380
    services = (IPv4Network("10.96.0.0/16"),)
    assert world.cni.used[-1] == Pods(network, "skerry0", gate=True, services=services)
    assert world.status["state"] == "starting"


async def test_pods_are_prepared_before_anything_else(tmp_path: Path) -> None:
    world = make_world(tmp_path, own=1)
    await world.turns(1)
    assert world.places.conflist.exists()
    assert world.units.calls == []
    await world.turns(2)
    assert world.units.images == 1


async def test_where_nobody_founds_a_cluster_nothing_is_started(tmp_path: Path) -> None:
    world = make_world(tmp_path, own=1)
    for one in world.supervisor.document["members"]:
        one["founder"] = False
    await world.turns(10, 4)
    assert world.units.calls == []
    assert world.units.images == 0
    assert world.status["state"] == "waiting"


async def test_a_founder_records_and_seals_once(tmp_path: Path) -> None:
    world = await founded(tmp_path)
    ranges = (pod_range(1)["ipv4"], pod_range(1)["ipv6"])
    assert world.api.changes == [Record("founder", ranges)]
    secrets = world.supervisor.secrets
    assert {name: one["row"]["roles"] for name, one in secrets.items()} == {
        "cluster-server-token": ["server"],
        "cluster-agent-token": ["agent", "server"],
        "cluster-kubeconfig": ["server"],
    }
    assert secrets["cluster-server-token"]["value"] == SERVER_TOKEN
    assert secrets["cluster-agent-token"]["value"].startswith(f"K10{'ab' * 32}::node:")
    assert unpack(secrets["cluster-kubeconfig"]["value"], "it").server == "https://10.10.0.1:6443"
    assert world.status["state"] == "ready"
    entries = dict(world.supervisor.entries)
    await world.turns(10, 4)
    assert world.supervisor.entries == entries
    assert {one["row"]["generation"] for one in secrets.values()} == {1}
    assert world.units.calls == [("start", SERVER_UNIT)]


async def test_the_operator_opens_what_a_founder_sealed(tmp_path: Path) -> None:
    world = await founded(tmp_path)
    sealed = world.supervisor.entries[f"{IDS[0]}/kubeconfig"][1]
    opened = open_as_operator(SEED, NETWORK, sealed, "it")
    assert opened.server == "https://10.10.0.1:6443"
    assert opened.key.encode() not in sealed


@pytest.mark.parametrize(
    ("servers", "api", "why", "address"),
    [
        (1, "10.10.0.9", "", "10.10.0.1"),
        (3, "10.10.0.9", "", "10.10.0.9"),
        (3, "10.10.0.9", "a node has it", "10.10.0.1"),
        (3, "", "the network has no tunnel", "10.10.0.1"),
    ],
)
async def test_of_several_servers_the_address_that_moves_is_given(
    tmp_path: Path, servers: int, api: str, why: str, address: str
) -> None:
    world = make_world(tmp_path)
    world.supervisor.document["settings"] |= {"servers": servers}
    world.supervisor.document["api"] = {"address": api, "why": why}
    assert public_address(await Observer(world.supervisor).observe()) == address


async def test_an_agent_joins_with_its_own_token(tmp_path: Path) -> None:
    world = await joined(tmp_path)
    assert world.units.calls == [("start", AGENT_UNIT)]
    config = world.places.config.read_text()
    token = world.supervisor.secrets["cluster-agent-token"]["value"]
    assert f'token: "{token}"' in config
    assert 'server: "https://10.10.0.1:6443"' in config
    assert "agent-token" not in config
    assert "cluster-cidr" not in config
    assert joined_in(config) == "10.10.0.1"
    assert token not in world.places.status.read_text()


async def test_a_server_that_lets_nobody_in_is_not_asked_for_ever(tmp_path: Path) -> None:
    first = await founded(folder_of(tmp_path, "first"))
    world = make_world(folder_of(tmp_path, "second"), own=1, members=3)
    world.supervisor.entries.update(first.supervisor.entries)
    for name, one in first.supervisor.secrets.items():
        world.supervisor.give_secret(name, one["value"])
    said = cluster_entries.Server(1, cluster_id(NETWORK, "", bytes([1]) * 16), ("10.10.0.3",), 0)
    world.supervisor.entries[f"{IDS[2]}/server"] = (IDS[2], cluster_entries.value_of(said))
    await world.turns(10, 4)
    asked = [joined_in(world.places.config.read_text())]
    for _ in range(2):
        await world.turns(1, 310)
        await world.turns(2)
        asked.append(joined_in(world.places.config.read_text()))
    assert sorted(asked[:2], key=str) == ["10.10.0.1", "10.10.0.3"]
    assert asked[2] == asked[0]
    assert world.units.calls == [("start", AGENT_UNIT)] + [("restart", AGENT_UNIT)] * 2
    # Once it is in, it stays.
    world.places.kubelet_kubeconfig.parent.mkdir(parents=True)
    world.places.kubelet_kubeconfig.write_text(kubeconfig_text(ADMIN, "kubelet"))
    await world.turns(3, 310)
    assert joined_in(world.places.config.read_text()) == asked[0]


async def test_an_agent_waits_for_its_token_and_says_so(tmp_path: Path) -> None:
    world = await joined(tmp_path)
    other = make_world(folder_of(tmp_path, "other"), own=1)
    other.supervisor.entries.update(world.supervisor.entries)
    await other.turns(10, 4)
    assert other.units.calls == []
    assert not other.places.config.exists()
    assert "join token" in other.status["why"]
    other.supervisor.give_secret("cluster-agent-token", AGENT_TOKEN)
    await other.turns(2)
    assert other.units.calls == [("start", AGENT_UNIT)]


async def test_a_token_that_is_none_is_a_problem_and_stops_nothing(tmp_path: Path) -> None:
    world = await joined(tmp_path)
    world.supervisor.give_secret("cluster-agent-token", "nonsense", generation=2)
    await world.turns(3)
    assert [one["code"] for one in world.status["problems"]] == ["engine-configuration"]
    assert "nonsense" not in world.places.status.read_text()
    assert world.units.calls == [("start", AGENT_UNIT)]
    world.supervisor.give_secret("cluster-agent-token", AGENT_TOKEN, generation=3)
    await world.turns(15)
    assert world.units.calls == [("start", AGENT_UNIT), ("restart", AGENT_UNIT)]


async def test_nonsense_in_the_place_of_tokens_is_sealed_over_by_the_founder(
    tmp_path: Path,
) -> None:
    world = await founded(tmp_path)
    for name in ("cluster-agent-token", "cluster-server-token"):
        world.supervisor.give_secret(name, "nonsense", generation=2)
    await world.turns(15)
    for name in ("cluster-agent-token", "cluster-server-token"):
        assert read_token(world.supervisor.secrets[name]["value"], name).authority
    # A founder that starts with it there comes up all the same: nobody else could mend it.
    world.supervisor.give_secret("cluster-agent-token", "nonsense", generation=4)
    world.places.config.unlink()
    await world.turns(2)
    assert world.places.config.exists()


async def test_two_clusters_of_a_network_leave_each_others_secrets_alone(tmp_path: Path) -> None:
    first = await founded(folder_of(tmp_path, "first"))
    world = make_world(folder_of(tmp_path, "second"))
    world.supervisor.secrets = secrets = first.supervisor.secrets
    world.supervisor.document["cluster"] = "blue"
    for one in world.supervisor.document["members"]:
        one["labels"] = {"skerry.internal/cluster": "blue"}
    await world.turns(10, 4)
    world.engine_files()
    other = SERVER_TOKEN.replace("ab", "cd")
    world.places.server_token.write_text(other)
    world.api.objects["founder"] = node_object(0)
    await world.turns(3)
    await first.turns(3)
    assert secrets["cluster-server-token"]["value"] == SERVER_TOKEN
    assert secrets["cluster-server-token.blue"]["value"] == other
    assert {one["row"]["generation"] for one in secrets.values()} == {1}
    assert len(secrets) == 6


async def test_a_new_token_restarts_no_agent_that_is_in(tmp_path: Path) -> None:
    world = await joined(tmp_path)
    path = world.places.kubelet_kubeconfig
    path.parent.mkdir(parents=True)
    path.write_text(kubeconfig_text(ADMIN, "kubelet"))
    config = world.places.config.read_text()
    world.supervisor.give_secret("cluster-agent-token", AGENT_TOKEN, generation=2)
    await world.turns(15)
    assert world.places.config.read_text() == config
    assert world.units.calls == [("start", AGENT_UNIT)]
    # Of another cluster's authority: that is another matter.
    other = AGENT_TOKEN.replace("ab", "cd")
    world.supervisor.give_secret("cluster-agent-token", other, generation=3)
    await world.turns(15)
    assert other in world.places.config.read_text()


async def test_without_its_supervisor_everything_stays(tmp_path: Path) -> None:
    world = await founded(tmp_path)
    config, text = world.places.config.read_text(), world.places.conflist.read_bytes()
    world.supervisor.away = True
    await world.turns(50)
    assert world.units.calls == [("start", SERVER_UNIT)]
    assert (world.places.config.read_text(), world.places.conflist.read_bytes()) == (config, text)
    assert [one["code"] for one in world.status["problems"]] == ["supervisor-away"]
    world.supervisor.away = False
    await world.turns(2)
    assert world.status["state"] == "ready"


async def test_an_engine_that_ends_is_started_without_the_supervisor_too(tmp_path: Path) -> None:
    world = await founded(tmp_path)
    world.supervisor.away = True
    await world.units.stop(SERVER_UNIT)
    await world.turns(2)
    assert world.units.calls[-1] == ("start", SERVER_UNIT)


async def test_a_range_that_is_not_known_for_a_while_takes_nothing(tmp_path: Path) -> None:
    world = await founded(tmp_path)
    used = list(world.cni.used)
    world.supervisor.document["range"] = None
    await world.turns(3)
    assert world.places.conflist.exists()
    assert world.cni.used == used
    assert world.units.calls == [("start", SERVER_UNIT)]


async def test_a_refused_range_is_refused_on_both_sides(tmp_path: Path) -> None:
    world = await founded(tmp_path)
    world.api.changes.clear()
    world.api.objects["founder"] = node_object(0, "10.244.99.0/24")
    await world.turns(3)
    assert world.api.changes == []
    assert not world.places.conflist.exists()
    assert isinstance(world.cni.used[-1], NoPods)
    assert [one["code"] for one in world.status["problems"]] == ["pod-range-conflict"]
    world.api.objects["founder"] = node_object(0, pod_range(1)["ipv4"])
    await world.turns(3)
    assert world.places.conflist.exists()


async def test_a_revoked_member_loses_its_node_object(tmp_path: Path) -> None:
    world = await founded(tmp_path)
    world.api.objects["fourth"] = node_object(3)
    await world.turns(3)
    # Only unknown so far: the ledger may still be filling up.
    assert "fourth" in world.api.objects
    world.supervisor.revoked.add(IDS[3])
    await world.turns(3)
    assert Remove("fourth", "uid-3") in world.api.changes
    assert "fourth" not in world.api.objects


async def test_a_node_that_hears_that_it_is_out_ends_all_of_it(tmp_path: Path) -> None:
    world = await founded(tmp_path)
    world.units.states[PODS_SLICE] = UnitFacts(Unit.ACTIVE)
    world.supervisor.revoked.add(IDS[0])
    await world.turns(3)
    assert world.units.calls[1:] == [("stop", SERVER_UNIT), ("stop", PODS_SLICE)]
    assert not world.places.config.exists()
    assert not world.places.conflist.exists()
    assert isinstance(world.cni.used[-1], NoPods)
    assert "revoked" in world.status["why"]


async def test_an_engine_that_fails_is_a_problem_with_a_way_out(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    world.units.failing = True
    await world.turns(60)
    assert 4 <= len(world.units.calls) <= 8
    (problem,) = world.status["problems"]
    assert problem["code"] == "engine-failing"
    assert "journalctl" in problem["hint"]
    world.units.failing = False
    await world.turns(40)
    assert world.status["problems"] == []


async def test_kubernetes_that_says_no_is_told_and_asked_again(tmp_path: Path) -> None:
    world = await founded(tmp_path)
    world.api.error = KubeApiError("the Kubernetes API refused GET /: 500", status=500)
    await world.turns(3)
    # A short trouble is none.
    assert world.status["node_ready"]
    await world.turns(3, 20)
    assert not world.status["node_ready"]
    assert world.places.conflist.exists()
    world.api.error = None
    await world.turns(3)
    assert world.status["node_ready"] is True


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"node_id": 5}',
        b"[" * 100_000,
        b'{"node_id": "x", "name": "n", "network": "n", "network_id": "y"}',
        b"\xff\xfe\x00",
    ],
)
async def test_a_supervisor_that_talks_nonsense_changes_nothing(
    tmp_path: Path, text: bytes
) -> None:
    world = await founded(tmp_path)
    calls = list(world.units.calls)
    world.supervisor.broken = text
    await world.turns(3, 15)
    assert world.units.calls == calls
    assert [one["code"] for one in world.status["problems"]] == ["supervisor"]
    assert world.places.conflist.exists()


async def test_facts_that_cannot_be_are_refused(tmp_path: Path) -> None:
    world = await founded(tmp_path)
    for name, value in (
        ("network_id", "short"),
        ("addresses", ["10.10.0.1; reboot"]),
        ("pods_ipv6", "everything"),
        ("range", {"ipv4": "10.244.1.0/8", "ipv6": "::/0"}),
    ):
        before = world.supervisor.document[name]
        world.supervisor.document[name] = value
        await world.turns(2, 25)
        assert [one["code"] for one in world.status["problems"]] == ["supervisor"], name
        world.supervisor.document[name] = before
        await world.turns(1)
        assert world.status["problems"] == []
    assert world.units.calls == [("start", SERVER_UNIT)]


async def test_a_full_disk_is_a_problem_and_passes(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    world.places.conflist.parent.parent.mkdir(exist_ok=True)
    blocked = world.places.conflist.parent
    blocked.write_text("a file where the folder should be")
    await world.turns(10, 4)
    assert world.units.calls == []
    codes = {one["code"] for one in world.status["problems"]}
    assert codes == {"disk"}
    blocked.unlink()
    await world.turns(2)
    assert world.units.calls == [("start", SERVER_UNIT)]
    assert world.status["problems"] == []


async def test_a_systemd_that_is_away_is_a_problem(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    world.units.away = True
    await world.turns(10, 4)
    assert [one["code"] for one in world.status["problems"]] == ["systemd"]


async def test_the_official_engine_has_no_gate(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    world.places.foreign_engine.symlink_to("k3s")
    await world.turns(10, 4)
    used = world.cni.used[-1]
    assert isinstance(used, Pods)
    assert not used.gate
