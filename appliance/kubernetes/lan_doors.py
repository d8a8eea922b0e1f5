"""Without a tunnel Kubernetes is on the LAN: opens the node's packet filter for it, and no wider.

The filter (``firewall.nft``) has a set of members, who reach API, etcd and kubelet, and a chain for
the networks whose machines reach the API; both are empty otherwise. With a tunnel nothing is done.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time
from collections.abc import Callable, Iterable

from appliance import programs
from appliance.kubernetes.facts import Cluster
from appliance.kubernetes.lan_address import Lan

log = logging.getLogger(__name__)

# A filter that was loaded anew has forgotten it.
AGAIN_SECONDS = 20.0
_TABLE = "inet skerry"
_MEMBERS, _API = f"{_TABLE} lan_members", f"{_TABLE} lan_api"
# Gives nft a text. Raises ProgramError.
Lay = Callable[[str], object]


def text(members: Iterable[str], networks: Iterable[ipaddress.IPv4Network]) -> str:
    """Return what lets these in and nobody else, for nft: all at once, or not at all."""
    addresses = sorted({str(ipaddress.IPv4Address(one)) for one in members})
    lines = [f"flush set {_MEMBERS}", f"flush chain {_API}"]
    if addresses:
        lines.append(f"add element {_MEMBERS} {{ {', '.join(addresses)} }}")
    lines += [f"add rule {_API} ip saddr {one} accept" for one in sorted(set(networks))]
    return "\n".join(lines) + "\n"


def members_of(cluster: Cluster) -> frozenset[str]:
    """Return the IPv4 addresses of the members that are in Kubernetes, this node's too."""
    return frozenset(
        address
        for one in cluster.document.members
        if set(one.roles) - {"none"}
        for address in one.addresses
        if ":" not in address
    )


class LanDoors:
    """The filter of this node. ``clock`` is monotonic seconds."""

    def __init__(
        self, lan: Lan, lay: Lay | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._lan = lan
        self._lay = lay or _nft
        self._clock = clock
        self._laid = ""
        self._at = float("-inf")
        self._trouble = ""

    async def keep(self, cluster: Cluster, *, serves: bool) -> None:
        """Let in who has to get in: if the API is served here, everybody on the LAN to that."""
        if cluster.document.vpn or not cluster.node_addresses:
            return
        try:
            await asyncio.to_thread(self._keep, cluster, serves)
        except (OSError, programs.ProgramError) as error:
            # Such as on a machine whose packet filter is not Skerry's.
            if str(error) != self._trouble:
                log.warning("the packet filter is not opened for Kubernetes: %s", error)
            self._trouble = str(error)

    def _keep(self, cluster: Cluster, serves: bool) -> None:
        port = self._lan.find(cluster.node_addresses[0]) if serves else None
        networks = [one.network for one in port.addresses] if port is not None else []
        wanted, now = text(members_of(cluster), networks), self._clock()
        if wanted == self._laid and now - self._at < AGAIN_SECONDS:
            return
        self._lay(wanted)
        self._laid, self._at, self._trouble = wanted, now, ""


def _nft(given: str) -> None:
    programs.run("nft", ["-f", "-"], given, doing="opening the packet filter")
