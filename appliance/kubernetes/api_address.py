"""Puts the API's address (`cluster.vip`) on this node while it holds it, and takes it away.

With the tunnel on the loopback interface: the supervisor keeps the overlay's own clear of strange
addresses, and the kernel answers for an address whichever interface it stands on. Without it on the
LAN (`lan_address`). Root; blocking calls in threads.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import time
from collections.abc import Callable

from appliance.cluster import vip
from appliance.kubernetes.facts import Cluster
from appliance.kubernetes.lan_address import Lan, LanAddress
from appliance.kubernetes.observing import Observed
from appliance.kubernetes.report import ApiReport
from appliance.ledger.assigned import read_id
from appliance.problem import Problem
from provisioning.clusters import cluster_of

log = logging.getLogger(__name__)

_SERVING = frozenset({"server", "auto"})
# On or off; raises OSError.
Put = Callable[[str, bool], None]


def held_here(observed: Observed) -> bool:
    """Say whether this node is to have the address, by what the ledger says."""
    document = observed.cluster.document
    able = [
        read_id(one.node_id) or b""
        for one in document.members
        if not _SERVING.isdisjoint(one.roles) and cluster_of(one.labels) == document.cluster
    ]
    holder = vip.holder(vip.claims(observed.said, able))
    return holder is not None and holder == read_id(document.node_id)


class ApiAddress:
    """The address on this node; what an earlier run left is found and taken away too.

    ``clock`` is monotonic seconds.
    """

    def __init__(
        self,
        put: Put | None = None,
        lan: Lan | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._put = put or put_on_loopback
        self._lan = LanAddress(lan or _machine_lan())
        self._clock = clock
        self._held: bool | None = None
        self._cluster: Cluster | None = None
        self.problems: tuple[Problem, ...] = ()

    def report(self) -> ApiReport | None:
        """Return what there is to say of the address; None: nothing is known yet."""
        if self._cluster is None:
            return None
        api = self._cluster.document.api
        return ApiReport(api.address, self._held is True, api.why, api.hint)

    async def keep(
        self, observed: Observed, *, serves: bool, leads: bool, away: bool = False
    ) -> None:
        """Make it so. What fails is tried again with the next call.

        ``away``: what was observed is of earlier. ``leads``: this node's engine knows of no other
        leader. A LAN believes whoever spoke last, so it has to hold there besides the claim.
        """
        cluster = self._cluster = observed.cluster
        api = cluster.document.api
        if not api.address:
            return
        wanted = serves and not api.why and held_here(observed)
        try:
            if not cluster.document.vpn:
                held, problem = await asyncio.to_thread(
                    self._keep_on_lan, cluster, wanted and leads
                )
                self._say(problem)
            elif not away and wanted != self._held:
                await asyncio.to_thread(self._put, api.address, wanted)
                held = wanted
                self._say(None)
            else:
                return
        except OSError as error:
            self._say(_failed(api.address, error))
            return
        if held != self._held and (held or self._held):
            log.info("the API's address %s is %s", api.address, "here now" if held else "given up")
        self._held = held

    def _keep_on_lan(self, cluster: Cluster, wanted: bool) -> tuple[bool, Problem | None]:
        address = ipaddress.IPv4Address(cluster.document.api.address)
        problem = None
        if wanted and cluster.node_addresses:
            problem = self._lan.keep(address, cluster.node_addresses[0], self._clock())
        else:
            self._lan.leave(address)
        return self._lan.here, problem

    def _say(self, problem: Problem | None) -> None:
        problems = () if problem is None else (problem,)
        if problem is not None and problems != self.problems:
            log.warning("%s", problem.message)
        self.problems = problems


def _failed(address: str, error: OSError) -> Problem:
    return Problem(
        "api-address-failed",
        f"the API's address {address} can't be changed: {error}",
        "It is tried again all the time. `ip address` shows what is where.",
    )


def _machine_lan() -> Lan:
    from appliance.kubernetes.lan_edge import MachineLan

    return MachineLan()


def put_on_loopback(address: str, on: bool) -> None:
    """Add or remove the address; that it is so already is no error."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    ipaddress.IPv4Address(address)
    with IPRoute() as netlink:
        (loopback, *_) = netlink.link_lookup(ifname="lo")
        try:
            netlink.addr("add" if on else "del", index=loopback, address=address, prefixlen=32)
        except NetlinkError as error:
            if error.code not in {errno.EEXIST, errno.EADDRNOTAVAIL}:
                raise OSError(error.code, str(error)) from error
