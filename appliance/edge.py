"""What the supervisor needs of the network's end on this node (appliance/control/service.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from appliance.config import SupervisorConfig
from appliance.store import Store
from provisioning.identity import Identity

if TYPE_CHECKING:
    from appliance.api.cluster import ClusterView
    from appliance.api.route import Knowledge
    from appliance.control.views import LedgerView, NodeView
    from appliance.ledger.access import LedgerAccess
    from appliance.ledger.vault import Vault
    from appliance.names.zone import NodeName
    from appliance.overlay.service import OverlayStatus
    from appliance.status import Told


class OverlayEdge(Protocol):
    """The overlay and the ledger, as they are while they run."""

    async def start(self) -> None:
        """Bring the interface up and begin to look for members."""

    async def stop(self) -> None:
        """Stop; the tunnel and its peers stay as they are."""

    def snapshot(self) -> OverlayStatus:
        """Return what is so now, from memory."""

    @property
    def access(self) -> LedgerAccess | None:
        """What programs and people may do with the ledger."""

    @property
    def vault(self) -> Vault | None:
        """The network's secrets."""

    @property
    def name(self) -> str:
        """What this node is called now."""

    def nodes(self) -> Sequence[NodeView]:
        """Return the members of the network."""

    def names(self) -> Sequence[NodeName]:
        """Return what members are called, for the resolver."""

    def cluster(self) -> ClusterView:
        """Return the network as Kubernetes on this node needs it."""

    def knowledge(self) -> Knowledge:
        """Return what questions for a route are answered from."""

    def ledger(self) -> LedgerView:
        """Return what there is to say of the ledger as a whole."""

    def told(self) -> tuple[Told, ...]:
        """Return which members do not let this node in, and why."""


OverlayFactory = Callable[[Identity, Store, SupervisorConfig], OverlayEdge]
