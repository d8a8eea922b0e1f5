"""An overlay that does what a test tells it, with a log of what was asked of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from appliance.api.cluster import ClusterView
from appliance.api.route import Knowledge
from appliance.config import SupervisorConfig
from appliance.control.views import LedgerView, NodeView
from appliance.names.zone import NodeName
from appliance.overlay.service import OverlayStatus, PeerStatus
from appliance.problem import Problem
from appliance.status import Told
from appliance.store import Store
from provisioning.identity import Identity
from provisioning.keys import id_text

PEER = PeerStatus(
    node_id=id_text(bytes(16)),
    name="node-2",
    addresses=("10.10.0.2",),
    endpoint="10.0.2.3:51820",
    path="lan",
    rtt_ms=1.0,
    handshake_age_s=1.0,
    up=True,
)


@dataclass
class FakeOverlay:
    """The overlay's end of the contract, with a log of what was asked of it."""

    calls: list[str] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)
    peers: tuple[PeerStatus, ...] = (PEER,)
    problems: tuple[Problem, ...] = ()
    called: list[str] = field(default_factory=list)
    defect: Exception | None = None

    def make(self, identity: Identity, _store: Store, _config: SupervisorConfig) -> FakeOverlay:
        self.called.append(identity.name)
        self.name = self.name or identity.name
        return self

    async def start(self) -> None:
        self.calls.append("start")
        if self.failures:
            raise self.failures.pop(0)

    async def stop(self) -> None:
        self.calls.append("stop")

    access: None = None
    vault: None = None
    # As the operator renamed it.
    name: str = ""

    def nodes(self) -> tuple[NodeView, ...]:
        return ()

    def cluster(self) -> ClusterView:
        raise AssertionError("nobody asks this overlay for the cluster")

    def knowledge(self) -> Knowledge:
        raise AssertionError("nobody asks this overlay for a route")

    def ledger(self) -> LedgerView:
        return LedgerView(3, 1000, 2, 1, 0, "synced")

    def told(self) -> tuple[Told, ...]:
        return ()

    def names(self) -> tuple[NodeName, ...]:
        return ()

    def snapshot(self) -> OverlayStatus:
        if self.defect:
            raise self.defect
        return OverlayStatus(
            interface="sk0",
            mode="kernel",
            addresses=("10.10.0.1",),
            listen_port=1,
            peers=self.peers,
            refusals=(),
            problems=self.problems,
        )
