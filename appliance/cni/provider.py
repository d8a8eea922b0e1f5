"""What the CNI server has to know of the node; whoever hosts it says so at every call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from appliance.cluster.conflist import PodNetwork
from appliance.cni import rules
from appliance.cni.ipam import PodRange
from appliance.cni.plan import Network


@dataclass(frozen=True, slots=True)
class Pods:
    """The node carries pods: how they are connected.

    ``network`` is what the CNI configuration is written from; this one counts, not the file.
    ``interface`` is the node's end of the overlay ("" if there is to be none). With ``gate``, a
    pod's traffic waits for whoever enforces policies. ``services`` are the addresses of Services:
    nobody on an uplink gets there by way of this node.
    """

    network: PodNetwork
    interface: str = "skerry0"
    gate: bool = False
    services: tuple[rules.Network, ...] = ()

    def plan(self) -> Network:
        """Return what attachments are planned by."""
        return Network(
            self.network.bridge,
            self.network.mtu,
            tuple(PodRange.of(str(one)) for one in self.network.ranges),
            tuple(map(str, self.network.routes)),
            self.gate,
        )

    def table(self) -> str:
        """Return the text of our nftables table."""
        network = self.network
        return rules.table_text(
            network.bridge,
            network.ranges,
            network.direct,
            masquerade=network.masquerade,
            services=self.services,
        )


@dataclass(frozen=True, slots=True)
class NoPods:
    """The node carries no pods now: why, and the way out."""

    reason: str
    hint: str = "`skerry status` says what it waits for"


Provider = Callable[[], Pods | NoPods]
