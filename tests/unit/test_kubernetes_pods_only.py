"""The agent where Kubernetes is somebody else's: pods' networking and one record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.cluster.conflist import read_conflist
from appliance.cni.provider import NoPods, Pods
from appliance.kubernetes.errors import KubeApiError, KubernetesError
from appliance.kubernetes.places import Places
from appliance.kubernetes.pods_only import AWAY_SECONDS, PodsOnly, node_name
from appliance.kubernetes.records import NodeObject, Record, Remove, read_node
from appliance.kubernetes.report import read
from appliance.kubernetes.service_account import read_account
from tests.fakes.cluster_process import places_in
from tests.fakes.cluster_world import FakeCni, FakeSupervisor, pod_range

pytestmark = pytest.mark.anyio
NODE = "ip-10-0-0-1.example"
RANGES = tuple(pod_range(1).values())
CA = "-----BEGIN CERTIFICATE-----\nTm90IG9uZQ==\n-----END CERTIFICATE-----\n"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class FakeNodes:
    """Kubernetes' Nodes of which there is one; ``refuses`` is what it says to everything."""

    def __init__(self, recorded: tuple[str, ...] = ()) -> None:
        self.recorded = recorded
        self.changes: list[Record | Remove] = []
        self.refuses: KubeApiError | None = None

    def node(self, name: str) -> NodeObject | None:
        if self.refuses is not None:
            raise self.refuses
        if name != NODE:
            return None
        spec = ",".join(f'"{one}"' for one in self.recorded)
        return read_node(
            f'{{"metadata":{{"name":"{name}"}},"spec":{{"podCIDRs":[{spec}]}}}}'.encode()
        )

    def perform(self, change: Record | Remove) -> None:
        assert isinstance(change, Record)
        self.changes.append(change)
        self.recorded = change.ranges


class Node:
    """An agent and what is around it."""

    def __init__(self, folder: Path, nodes: FakeNodes | None = None, name: str = NODE) -> None:
        found = places_in(folder, folder / "run/api.sock")
        self.places: Places = replace(found, pods_only=True)
        self.supervisor = FakeSupervisor()
        self.cni = FakeCni()
        self.nodes = nodes or FakeNodes()
        self.now = 0.0
        clock: Callable[[], float] = lambda: self.now  # noqa: E731 - with its type
        self.agent = PodsOnly(
            self.places,
            supervisor=self.supervisor,
            cni=self.cni,
            name=name,
            connect=lambda: self.nodes,
            clock=clock,
        )

    async def turns(self, number: int = 2, step: float = 2.0) -> None:
        for _ in range(number):
            await self.agent.turn()
            await self.agent.ask_kubernetes()
            self.now += step

    @property
    def status(self) -> dict[str, object]:
        return read(self.places.status) or {}

    @property
    def problems(self) -> list[str]:
        found = self.status["problems"]
        assert isinstance(found, list)
        return [one["code"] for one in found]


async def test_a_range_is_recorded_once_and_pods_have_it(tmp_path: Path) -> None:
    node = Node(tmp_path)
    await node.agent.turn()
    # Kubernetes may have another one recorded: it is asked before the first pod.
    assert not node.places.conflist.exists()
    await node.turns(5)
    assert node.nodes.changes == [Record(NODE, RANGES)]
    network = read_conflist(node.places.conflist.read_bytes())
    assert tuple(map(str, network.ranges)) == RANGES
    # Nobody here would open the gate.
    assert node.cni.used[-1] == Pods(network, "skerry0", gate=False)
    assert (node.status["state"], node.status["role"]) == ("ready", "pods")


async def test_it_says_nothing_in_the_ledger_and_starts_nothing(tmp_path: Path) -> None:
    node = Node(tmp_path)
    await node.turns(5)
    assert node.supervisor.entries == {}
    assert node.supervisor.secrets == {}
    assert not node.places.config.exists()


async def test_what_kubernetes_gave_out_itself_is_refused(tmp_path: Path) -> None:
    node = Node(tmp_path, FakeNodes(("10.244.77.0/24",)))
    await node.turns(3)
    assert node.nodes.changes == []
    assert not node.places.conflist.exists()
    assert isinstance(node.cni.used[-1], NoPods)
    assert node.problems == ["pod-range-conflict"]


async def test_pods_go_on_while_nobody_answers(tmp_path: Path) -> None:
    node = Node(tmp_path)
    await node.turns(3)
    text = node.places.conflist.read_bytes()
    node.supervisor.away = True
    node.nodes.refuses = KubeApiError("the Kubernetes API does not answer")
    await node.turns(3)
    assert node.problems == []
    await node.turns(3, AWAY_SECONDS)
    assert sorted(node.problems) == ["kubernetes-away", "supervisor-away"]
    assert node.places.conflist.read_bytes() == text
    assert isinstance(node.cni.used[-1], Pods)
    node.supervisor.away, node.nodes.refuses = False, None
    await node.turns(3)
    assert node.status["state"] == "ready"


async def test_a_revoked_node_carries_no_pods(tmp_path: Path) -> None:
    node = Node(tmp_path)
    await node.turns(3)
    node.supervisor.revoked.add(node.supervisor.document["node_id"])
    await node.turns(1)
    assert not node.places.conflist.exists()
    assert isinstance(node.cni.used[-1], NoPods)


async def test_a_token_for_no_pods_is_told(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.supervisor.document |= {"roles": ["none"], "range": None}
    await node.turns(2)
    assert node.problems == ["no-pods-role"]
    assert node.nodes.changes == []


async def test_a_node_that_kubernetes_does_not_know_is_told(tmp_path: Path) -> None:
    node = Node(tmp_path, name="another")
    await node.turns(3, AWAY_SECONDS)
    assert node.problems == ["kubernetes-away"]
    assert not node.places.conflist.exists()


def test_without_a_name_of_the_node_it_says_the_way_out() -> None:
    assert node_name({"NODE_NAME": NODE}) == NODE
    with pytest.raises(KubernetesError, match="needs the name"):
        node_name({})


def test_a_service_account_is_read_anew_each_time(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text(CA)
    where = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "6443"}
    account = read_account(where, tmp_path)
    assert (account.server, account.authority) == ("https://[fd00::1]:6443", CA)
    for token in ("first", "second"):
        (tmp_path / "token").write_text(f"{token}\n")
        assert account.bearer() == token
        assert token not in repr(account)
    for bad in ("", "two\nlines", "\x00"):
        (tmp_path / "token").write_text(bad)
        with pytest.raises(KubernetesError, match="holds no token"):
            account.bearer()


@pytest.mark.parametrize(
    "where",
    [{}, {"KUBERNETES_SERVICE_HOST": "evil.example/x"}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}],
)
def test_no_service_account_is_told(tmp_path: Path, where: dict[str, str]) -> None:
    with pytest.raises(KubernetesError):
        read_account(where, tmp_path)
