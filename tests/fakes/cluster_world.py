"""A node as the cluster agent sees it: its supervisor, its systemd, its Kubernetes, its disk.

What stands in for them answers as they do in the cases that tests need, and notes what was asked.
It is not for tests of the supervisor, of systemd or of Kubernetes.
"""

from __future__ import annotations

import base64
import ipaddress
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from appliance.cni.provider import NoPods, Pods
from appliance.kubernetes.agent import Agent
from appliance.kubernetes.asking import AwayError, Supervisor
from appliance.kubernetes.draining import Draining
from appliance.kubernetes.engine import EngineKeeper
from appliance.kubernetes.errors import KubeApiError, SupervisorError, UnitError
from appliance.kubernetes.keeper import Unit, UnitFacts
from appliance.kubernetes.kubeconfig import Kubeconfig, kubeconfig_text
from appliance.kubernetes.observing import Observer
from appliance.kubernetes.places import AGENT_UNIT, IMAGES_UNIT, PODS_SLICE, SERVER_UNIT, Places
from appliance.kubernetes.records import Lease, NodeObject, Record, Remove, read_node
from appliance.kubernetes.sealing import Sealer
from appliance.kubernetes.serving import KubeSide
from appliance.overlay.addresses import pods_prefix
from appliance.problem import Problem
from provisioning.keys import id_text, public_key
from provisioning.network import network_id

SEED = bytes(range(32))
ROOT = public_key(SEED)
NETWORK = network_id(ROOT)
IDS = [id_text(bytes([number]) * 16) for number in range(1, 6)]
NAMES = ["founder", "second", "third", "fourth", "fifth"]
PEM = "-----BEGIN CERTIFICATE-----\nTm90IG9uZQ==\n-----END CERTIFICATE-----\n"
KEY = "-----BEGIN EC PRIVATE KEY-----\nTm90IG9uZSBlaXRoZXI=\n-----END EC PRIVATE KEY-----\n"
ADMIN = Kubeconfig("https://127.0.0.1:6443", PEM, PEM, KEY)
SERVER_TOKEN = f"K10{'ab' * 32}::server:{'5e' * 16}"
COREDNS = "# DNS at @CLUSTER_DNS@, pods in @POD_CIDR@\n"


def pod_range(number: int) -> dict[str, str]:
    prefix = pods_prefix(NETWORK).network_address.packed[:6]
    packed = prefix + bytes([10, 244, number, 0]) + bytes(6)
    return {
        "ipv4": f"10.244.{number}.0/24",
        "ipv6": str(ipaddress.IPv6Network((packed, 80))),
    }


def member(number: int, **changed: object) -> dict[str, Any]:
    """Return a member as ``GET /v1/cluster`` has it; 0 is the founder, all have ``auto``."""
    return {
        "node_id": IDS[number],
        "name": NAMES[number],
        "state": "up",
        "addresses": [f"10.10.0.{number + 1}", f"fd00::{number + 1}"],
        "roles": ["auto"],
        "founder": number == 0,
        "range": pod_range(number + 1),
        "fixed": False,
        "labels": {},
    } | changed


class FakeSupervisor(Supervisor):
    """The supervisor of member ``own``; ``document`` may be changed."""

    def __init__(self, own: int = 0, members: int = 2) -> None:
        super().__init__(Path("/nonexistent"))
        rows = [member(number) for number in range(members)]
        rows[own]["state"] = "self"
        mine = rows[own]
        self.own = own
        self.away = False
        self.broken: bytes | None = None
        self.entries: dict[str, tuple[str, bytes]] = {}
        self.secrets: dict[str, dict[str, Any]] = {}
        self.revoked: set[str] = set()
        self.orders: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.document: dict[str, Any] = {
            "node_id": mine["node_id"],
            "name": mine["name"],
            "network": "home",
            "network_id": id_text(NETWORK),
            "network_key": ROOT.hex(),
            "vpn": True,
            "interface": "skerry0",
            "mtu": 1380,
            "addresses": mine["addresses"],
            "roles": mine["roles"],
            "founder": mine["founder"],
            "settings": {
                "host_range": "10.10.0.0/16",
                "pod_cidr": "10.244.0.0/16",
                "node_bits": 8,
                "service_cidr": "10.96.0.0/16",
                "servers": 1,
                "expected_nodes": None,
            },
            "range": mine["range"],
            "pods_ipv6": str(pods_prefix(NETWORK)),
            "api": {"address": "10.10.0.1", "why": "", "hint": ""},
            "problems": [],
            "members": rows,
        }

    async def get(self, path: str) -> bytes:
        self.asked.append(path)
        if self.away:
            raise AwayError("the supervisor does not answer")
        if self.broken is not None:
            return self.broken
        return json.dumps(self._answer(path)).encode()

    def _answer(self, path: str) -> object:
        if path == "/v1/cluster":
            return self.document
        if path == "/v1/ledger/cluster":
            return {
                "entries": [
                    {
                        "key": key,
                        "value": base64.b64encode(value).decode(),
                        "encoding": "base64",
                        "owner": owner,
                    }
                    for key, (owner, value) in self.entries.items()
                ]
            }
        if path.startswith("/v1/ledger/assigned"):
            return {
                "entries": [
                    {
                        "key": key,
                        "value": base64.b64encode(value).decode(),
                        "encoding": "base64",
                        "owner": id_text(NETWORK),
                    }
                    for key, value in self.orders.items()
                ]
            }
        if path == "/v1/secret":
            return {"secrets": [one["row"] for one in self.secrets.values()]}
        name = path.rpartition("/")[2]
        if path.startswith("/v1/secret/") and name in self.secrets:
            one = self.secrets[name]
            return {
                "generation": one["row"]["generation"],
                "value": one["value"],
                "encoding": "utf-8",
            }
        if path.startswith("/v1/ledger/revoked/node/") and name in self.revoked:
            return {"key": f"node/{name}"}
        raise SupervisorError("there is none", status=404)

    async def put_entry(self, key: str, value: bytes) -> None:
        if self.away:
            raise AwayError("the supervisor does not answer")
        self.entries[key] = (IDS[self.own], value)

    async def put_secret(self, name: str, value: bytes, roles: tuple[str, ...]) -> None:
        before = self.secrets.get(name, {"row": {"generation": 0}})
        self.give_secret(name, value.decode(), roles, before["row"]["generation"] + 1)

    def give_secret(
        self, name: str, value: str, roles: tuple[str, ...] = ("server",), generation: int = 1
    ) -> None:
        row = {
            "name": name,
            "generation": generation,
            "roles": list(roles),
            "exposed": False,
            "readable": True,
        }
        self.secrets[name] = {"row": row, "value": value}


class FakeUnits:
    """A systemd that starts at once what it is asked for, unless it is in ``failing``."""

    def __init__(self) -> None:
        self.states = {
            name: UnitFacts(Unit.INACTIVE) for name in (SERVER_UNIT, AGENT_UNIT, PODS_SLICE)
        }
        self.calls: list[tuple[str, str]] = []
        self.images = 0
        self.failing = False
        self.away = False

    async def facts(self, *units: str) -> tuple[UnitFacts, ...]:
        if self.away:
            raise UnitError("systemd can't be asked")
        return tuple(self.states[unit] for unit in units)

    async def start(self, unit: str) -> None:
        if unit == IMAGES_UNIT:
            self.images += 1
            return
        self.calls.append(("start", unit))
        state = Unit.FAILED if self.failing else Unit.ACTIVE
        self.states[unit] = UnitFacts(state, "exit-code" if self.failing else "success")

    async def restart(self, unit: str) -> None:
        self.calls.append(("restart", unit))
        self.states[unit] = UnitFacts(Unit.ACTIVE)

    async def stop(self, unit: str) -> None:
        self.calls.append(("stop", unit))
        self.states[unit] = UnitFacts(Unit.INACTIVE)

    async def close(self) -> None:
        """Nothing is open."""


@dataclass
class FakeApi:
    """Kubernetes' API; ``error`` is raised by every call."""

    objects: dict[str, NodeObject] = field(default_factory=dict)
    changes: list[Record | Remove] = field(default_factory=list)
    error: KubeApiError | None = None
    up: bool = True
    pods: dict[str, dict[str, Any]] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    blocked: bool = False
    turn: bytes | None = None
    policies: dict[str, dict[str, Any]] = field(default_factory=dict)
    policy_calls: int = 0

    def connect(self, _: Kubeconfig) -> FakeApi:
        return self

    def ready(self) -> bool:
        return self.up and self.error is None

    def nodes(self) -> tuple[NodeObject, ...]:
        if self.error is not None:
            raise self.error
        return tuple(self.objects.values())

    def node(self, name: str) -> NodeObject | None:
        if self.error is not None:
            raise self.error
        return self.objects.get(name)

    def lease(self) -> Lease | None:
        return None

    def close(self) -> None:
        """Nothing is open."""

    def ask(self, method: str, path: str, body: bytes | None = None, _: str = "") -> bytes:
        """Serve Nodes' patches, pods and their evictions, which ``blocked`` refuses."""
        if "/leases" in path:
            return self._lease(method, body)
        if "/validatingadmissionpolic" in path:
            return self._policy(method, path, body)
        self.asked.append((method, path))
        name = path.removesuffix("/eviction").rpartition("/")[2]
        if method == "PATCH":
            one, said = self.objects[name], json.loads(body or b"")
            marks = {key: text for key, text in said["metadata"]["annotations"].items() if text}
            spec = msgspec.structs.replace(
                one.spec, unschedulable=bool(said["spec"]["unschedulable"])
            )
            meta = msgspec.structs.replace(one.metadata, annotations=marks)
            self.objects[name] = msgspec.structs.replace(one, metadata=meta, spec=spec)
        elif method == "GET":
            return json.dumps({"items": list(self.pods.values())}).encode()
        elif path.endswith("/eviction") and self.blocked:
            raise KubeApiError("a budget does not allow it", status=429)
        else:
            del self.pods[name]
        return b"{}"

    def _policy(self, method: str, path: str, body: bytes | None) -> bytes:
        """Keep what is written, with a version that moves, as Kubernetes does."""
        self.policy_calls += 1
        kind = path.split("/")[4]
        before = self.policies.get(kind)
        if method == "GET":
            if before is None:
                raise KubeApiError("there is none", status=404)
            return json.dumps(before).encode()
        said = json.loads(body or b"")
        version = "" if before is None else before["metadata"]["resourceVersion"]
        if said["metadata"].get("resourceVersion", "") != version:
            raise KubeApiError("it is another by now", status=409)
        said["metadata"]["resourceVersion"] = f"{version}1"
        self.policies[kind] = said
        return b"{}"

    def _lease(self, method: str, body: bytes | None) -> bytes:
        """Give the turn to restart to whoever asks, as if there were no other."""
        if method != "GET":
            self.turn = body or b"{}"
        if self.turn is None:
            raise KubeApiError("there is none", status=404)
        return self.turn

    def perform(self, change: Record | Remove) -> None:
        self.changes.append(change)
        if isinstance(change, Remove):
            del self.objects[change.node]
            return
        one = self.objects[change.node]
        spec = msgspec.structs.replace(one.spec, ranges=change.ranges)
        self.objects[change.node] = msgspec.structs.replace(one, spec=spec)


class FakeCni:
    """Notes what pods were to have."""

    def __init__(self) -> None:
        self.used: list[Pods | NoPods | None] = []

    async def use(self, pods: Pods | NoPods | None) -> None:
        if not self.used or self.used[-1] != pods:
            self.used.append(pods)

    async def stop(self) -> None:
        """Nothing runs."""

    def problems(self) -> tuple[Problem, ...]:
        return ()


def node_object(number: int, *ranges: str, ready: bool = True, **meta: object) -> NodeObject:
    document = {
        "metadata": {"name": NAMES[number], "uid": f"uid-{number}", "labels": {}} | meta,
        "spec": {"providerID": f"skerry://{IDS[number]}", "podCIDRs": list(ranges)},
        "status": {"conditions": [{"type": "Ready", "status": str(ready)}]},
    }
    return read_node(json.dumps(document).encode())


@dataclass
class World:
    """All of it around a real agent."""

    places: Places
    supervisor: FakeSupervisor
    units: FakeUnits
    api: FakeApi
    cni: FakeCni
    agent: Agent
    clock: list[float]

    async def turns(self, count: int, seconds: float = 2.0) -> None:
        """Let time pass."""
        for _ in range(count):
            self.clock[0] += seconds
            await self.agent.turn()
            await self.agent.ask_kubernetes()

    @property
    def status(self) -> dict[str, Any]:
        found = json.loads(self.places.status.read_text())
        assert isinstance(found, dict)
        return found

    def engine_files(self) -> None:
        """Leave what the engine of a server leaves."""
        for path, text in (
            (self.places.server_token, f"{SERVER_TOKEN}\n"),
            (self.places.kubeconfig, kubeconfig_text(ADMIN, "default")),
            (self.places.data_dir / "server/db/state.db", "state"),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


def places_in(folder: Path) -> Places:
    """Return the places of a node, with what its image brings."""
    places = Places(
        run_dir=folder / "run",
        data_dir=folder / "data",
        manifests=folder / "manifests",
        conflist=folder / "cni/10-skerry.conflist",
        kubeconfig=folder / "k3s.yaml",
        cni_dir=folder / "cni-run",
        foreign_engine=folder / "engine-is-k3s",
    )
    places.manifests.mkdir()
    (places.manifests / "coredns.yaml").write_text(COREDNS)
    return places


def make_world(
    folder: Path, *, own: int = 0, members: int = 2, places: Places | None = None
) -> World:
    """Return a node with everything in a folder; ``places``: on the disk of another, before."""
    places = places or places_in(folder)
    supervisor = FakeSupervisor(own, members)
    units, api, cni, clock = FakeUnits(), FakeApi(), FakeCni(), [1000.0]
    observer = Observer(supervisor)
    agent = Agent(
        places,
        supervisor=supervisor,
        engine=EngineKeeper(places, units, lambda: clock[0]),
        kube=KubeSide(
            places,
            observer,
            connect=api.connect,
            draining=Draining(supervisor, clock=lambda: clock[0]),
            clock=lambda: clock[0],
        ),
        sealer=Sealer(places, supervisor),
        observer=observer,
        cni=cni,
        clock=lambda: clock[0],
        wall=lambda: 1_800_000_000.0,
    )
    return World(places, supervisor, units, api, cni, agent, clock)


async def founded(folder: Path) -> World:
    """Return the founder of a cluster that serves."""
    world = make_world(folder)
    await world.turns(10, 4)
    world.engine_files()
    world.api.objects["founder"] = node_object(0)
    await world.turns(3)
    return world


async def joined(folder: Path) -> World:
    """Return the second node of a cluster whose founder serves."""
    first = await founded(folder_of(folder, "first"))
    world = make_world(folder_of(folder, "second"), own=1)
    world.supervisor.entries.update(first.supervisor.entries)
    for name, one in first.supervisor.secrets.items():
        world.supervisor.give_secret(name, one["value"])
    world.api.objects["second"] = node_object(1)
    await world.turns(10, 4)
    return world


def folder_of(folder: Path, name: str) -> Path:
    made = folder / name
    made.mkdir()
    return made
