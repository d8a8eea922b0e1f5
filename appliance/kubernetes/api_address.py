"""Puts the API's one address (`cluster.vip`) on this node while it holds it, and takes it away.

On the loopback interface: the supervisor keeps the overlay's own clear of strange addresses, and
the kernel answers for an address whichever interface it stands on. Root; blocking calls in threads.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
from collections.abc import Callable

from appliance.cluster import vip
from appliance.kubernetes.observing import Observed
from appliance.ledger.assigned import read_id
from provisioning.clusters import cluster_of

log = logging.getLogger(__name__)

_SERVING = frozenset({"server", "auto"})
# On or off; raises OSError.
Put = Callable[[str, bool], None]


def held_here(observed: Observed, *, serves: bool) -> bool:
    """Say whether this node is to have the address: it leads by the ledger, and its API answers."""
    document = observed.cluster.document
    able = [
        read_id(one.node_id) or b""
        for one in document.members
        if not _SERVING.isdisjoint(one.roles) and not cluster_of(one.labels)
    ]
    holder = vip.holder(vip.claims(observed.said, able))
    return serves and document.vpn and holder is not None and holder == read_id(document.node_id)


class ApiAddress:
    """The address on this node; what an earlier run left is found and taken away too."""

    def __init__(self, put: Put | None = None) -> None:
        self._put = put or put_on_loopback
        self._held: bool | None = None

    async def keep(self, observed: Observed, *, serves: bool) -> None:
        """Make it so. What fails is tried again with the next call."""
        wanted = held_here(observed, serves=serves)
        if wanted == self._held:
            return
        address = str(vip.vip_address(observed.cluster.hosts))
        try:
            await asyncio.to_thread(self._put, address, wanted)
        except OSError as error:
            log.warning("the API's address %s can't be changed: %s", address, error)
            return
        if wanted or self._held:
            log.info("the API's address %s is %s", address, "here now" if wanted else "given up")
        self._held = wanted


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
