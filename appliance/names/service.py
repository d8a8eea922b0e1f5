"""Names as the supervisor has them: one object that is started, fed and stopped.

Recipe::

    names = await serve_names(run_dir, identity, members)   # trouble: names.problems()
    ...
    names.call_machine(name)                                # the node has another name
    await names.stop()
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from appliance.names.hostname import want_host_name
from appliance.names.link import publish_ranges
from appliance.names.ranges import HOST, NamesError, Ranges
from appliance.names.server import PORT, Resolver
from appliance.names.services import Addresses, ServiceNames
from appliance.names.zone import NodeName, Zone, zone_of
from appliance.problem import Problem
from provisioning.identity import Identity
from skerry.errors import SkerryError

log = logging.getLogger(__name__)

RETRY_SECONDS = 15.0
FRESH_SECONDS = 1.0

# None: not known yet.
Members = Callable[[], Sequence[NodeName] | None]


class NameTable:
    """The current zone. Looks at the members only when asked, and at most once per second."""

    def __init__(
        self,
        members: Members,
        ranges: Ranges,
        services: Callable[[], Addresses] = dict,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._members = members
        self._ranges = ranges
        self._services = services
        self._clock = clock
        self._known: tuple[NodeName, ...] = ()
        self._reached: Addresses = {}
        self._looked = float("-inf")
        self._zone: Zone | None = None

    def __call__(self) -> Zone | None:
        """Return the zone; it is made anew only if a member, service, name or address changed.

        None: the members are not known yet. Once they were, the last that was known stays.
        """
        now = self._clock()
        if self._zone is None or now - self._looked >= FRESH_SECONDS:
            members, services = self._members(), self._services()
            self._looked = now
            known = self._known if members is None else tuple(members)
            never = self._zone is None
            if never and members is None:
                return None
            if never or known != self._known or services != self._reached:
                self._known, self._reached = known, services
                self._zone = zone_of(known, self._ranges, services)
        return self._zone


class Names:
    """Serves members' names on this node and calls the machine by the node's name."""

    def __init__(
        self,
        run_dir: Path,
        ranges: Ranges,
        members: Members,
        *,
        host: str = HOST,
        port: int = PORT,
    ) -> None:
        self._run_dir = run_dir
        self._ranges = ranges
        table = NameTable(members, ranges, ServiceNames(run_dir))
        self._resolver = Resolver(table, host=host, port=port)
        self._called = ""
        self._trouble: SkerryError | None = None
        self._retry: asyncio.Task[None] | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Where the resolver listens."""
        return self._resolver.address

    async def start(self) -> None:
        """Begin to answer. If that is not possible now, :meth:`problems` says why."""
        try:
            publish_ranges(self._run_dir, self._ranges)
        except OSError as error:
            log.warning("systemd-resolved can't be told of the members' names: %s", error)
        if not await self._listen():
            self._retry = asyncio.create_task(self._keep_trying())

    async def stop(self) -> None:
        """Stop answering; the machine keeps its name."""
        if self._retry is not None:
            self._retry.cancel()
            await asyncio.gather(self._retry, return_exceptions=True)
        await self._resolver.stop()

    def call_machine(self, name: str) -> None:
        """Have the machine called as the node is; cheap if it is already."""
        if name == self._called:
            return
        self._called = name
        try:
            want_host_name(self._run_dir, name)
        except (SkerryError, OSError) as error:
            log.warning("the machine keeps its host name: %s", error)

    def problems(self) -> tuple[Problem, ...]:
        """Return what keeps names from being served."""
        if self._trouble is None:
            return ()
        return (Problem("names", str(self._trouble), self._trouble.hint or ""),)

    async def _listen(self) -> bool:
        try:
            await self._resolver.start()
        except NamesError as error:
            self._trouble = error
            return False
        self._trouble = None
        return True

    async def _keep_trying(self) -> None:
        while True:
            await asyncio.sleep(RETRY_SECONDS)
            if await self._listen():
                return


async def serve_names(
    run_dir: Path, identity: Identity, members: Members, *, port: int = PORT
) -> Names:
    """Start to serve the names of ``members`` and have the machine called as the node is."""
    # With the overlay's modules, which are loaded by then or soon: they are not there before.
    from appliance.overlay.addresses import ula_prefix

    network = identity.network
    ranges = Ranges(
        ipaddress.IPv4Network(network.settings.host_range), ula_prefix(network.network_id)
    )
    names = Names(run_dir, ranges, members, port=port)
    names.call_machine(identity.name)
    await names.start()
    return names
