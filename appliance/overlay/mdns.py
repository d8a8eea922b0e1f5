"""Discovery on the LAN by mDNS (RFC 6762, RFC 6763), under names that tell an outsider nothing.

A node announces itself under the names of the current OTP slot and looks for those of the slots
beside it too, so two nodes whose clocks are a slot apart still meet. After a change of epoch it is
found under the names of the one before for a while, and it looks for those of all that it knows.
The announcement holds such names, the node's underlay addresses and WireGuard's port; who answers
there has to prove itself.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine

from zeroconf import IPVersion, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from appliance.overlay.endpoint import Endpoint
from appliance.overlay.events import Discovered
from appliance.overlay.keyring import Keyring
from appliance.overlay.otp import Seed, host_name, instance_name, neighbours, service_name

log = logging.getLogger(__name__)
# It reports every packet that an uplink without a route does not take, with a traceback.
logging.getLogger("zeroconf").setLevel(logging.ERROR)

RESOLVE_MILLISECONDS = 3000
# Of two nodes that see each other, the one with the greater name leaves the other this long to
# begin, so that two handshakes seldom cross.
GREATER_WAITS = 1.5
_ROTATE_LATE = 1.0
_HOST_TTL = 120
_OTHER_TTL = 1200


class Mdns:
    """Announces this node and reports others by ``discovered``."""

    def __init__(
        self,
        keyring: Keyring,
        node_id: bytes,
        port: int,
        discovered: Callable[[Discovered], None],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._keyring = keyring
        self._node_id = node_id
        self._port = port
        self._discovered = discovered
        self._clock = clock
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._announced: dict[str, AsyncServiceInfo] = {}
        # Epoch by service type.
        self._looked_for: dict[str, int] = {}
        self._hosts: tuple[str, ...] = ()
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._lock = asyncio.Lock()

    async def set_hosts(self, hosts: tuple[str, ...]) -> None:
        """Announce on, and as, these uplink addresses from now on."""
        async with self._lock:
            if hosts == self._hosts:
                return
            self._hosts = hosts
            await self._restart()

    def rotate(self) -> None:
        """Take the names of the epochs and the slot that it is now."""
        self._spawn(self._rotate_now())

    async def close(self) -> None:
        """Say goodbye."""
        async with self._lock:
            self._hosts = ()
            await self._restart()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _restart(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._zeroconf is not None:
            await self._shut(self._zeroconf)
            self._zeroconf = None
        if not self._hosts:
            return
        both = any(":" in host for host in self._hosts)
        try:
            self._zeroconf = AsyncZeroconf(
                interfaces=list(self._hosts),
                ip_version=IPVersion.All if both else IPVersion.V4Only,
            )
            await self._rotate(self._zeroconf)
        except OSError as error:
            log.warning(
                "members can't be looked for by mDNS: %s", error, extra={"skerry_event": "mdns"}
            )

    async def _rotate(self, zeroconf: AsyncZeroconf) -> None:
        if self._timer is not None:
            self._timer.cancel()
        unix = self._clock()
        wanted = {info.name: info for info in map(self._info, self._keyring.announced(unix))}
        old, self._announced = self._announced, {**self._announced, **wanted}
        for name in wanted.keys() - old.keys():
            # The names are hashes of the node's key: nobody else has them, nothing is to be probed.
            await (await zeroconf.async_register_service(wanted[name], cooperating_responders=True))
        for name in old.keys() - wanted.keys():
            await (await zeroconf.async_unregister_service(old[name]))
            del self._announced[name]
        looked_for = {
            f"_{service_name(seed.discovery_key(slot))}._udp.local.": seed.epoch
            for seed in self._keyring.seeds()
            for slot in neighbours(seed.slot_at(unix))
        }
        if looked_for != self._looked_for or self._browser is None:
            if self._browser is not None:
                await self._browser.async_cancel()
            self._looked_for = looked_for
            self._browser = AsyncServiceBrowser(
                zeroconf.zeroconf, list(looked_for), handlers=[self._changed]
            )
        ends = self._keyring.overlap_ends_in(unix), self._keyring.seed().next_slot_in(unix)
        wait = min(max(one, 0.0) for one in ends if one is not None) + _ROTATE_LATE
        self._timer = asyncio.get_running_loop().call_later(wait, self.rotate)

    def _info(self, seed: Seed) -> AsyncServiceInfo:
        key = seed.discovery_key(seed.slot_at(self._clock()))
        service = f"_{service_name(key)}._udp.local."
        return AsyncServiceInfo(
            service,
            f"{instance_name(key, self._node_id)}.{service}",
            port=self._port,
            parsed_addresses=list(self._hosts),
            server=f"{host_name(key, self._node_id)}.local.",
            host_ttl=_HOST_TTL,
            other_ttl=_OTHER_TTL,
        )

    async def _rotate_now(self) -> None:
        async with self._lock:
            if self._zeroconf is not None:
                await self._rotate(self._zeroconf)

    async def _shut(self, zeroconf: AsyncZeroconf) -> None:
        if self._browser is not None:
            await self._browser.async_cancel()
            self._browser = None
        self._announced, self._looked_for = {}, {}
        await zeroconf.async_close()

    def _changed(
        self,
        zeroconf: Zeroconf,
        service_type: str,
        name: str,
        state_change: ServiceStateChange,
    ) -> None:
        epoch = self._looked_for.get(service_type)
        if epoch is None or epoch not in self._keyring or self._is_own(name, epoch):
            return
        if state_change is ServiceStateChange.Removed:
            # A name goes at every change of slot; the member may well be there.
            return
        self._spawn(self._resolve(zeroconf, service_type, name, epoch))

    async def _resolve(self, zeroconf: Zeroconf, service_type: str, name: str, epoch: int) -> None:
        info = AsyncServiceInfo(service_type, name)
        if not await info.async_request(zeroconf, RESOLVE_MILLISECONDS) or not info.port:
            return
        endpoints = tuple(
            Endpoint(str(address), info.port)
            for address in info.parsed_addresses(IPVersion.All)
            if "%" not in address
        )
        label = name.partition(".")[0]
        if epoch not in self._keyring:
            return
        seed = self._keyring.seed(epoch)
        own = instance_name(seed.discovery_key(seed.slot_at(self._clock())), self._node_id)
        wait = GREATER_WAITS if own > label else 0.0
        older = None if epoch == self._keyring.current else epoch
        self._discovered(Discovered(f"mdns:{label}", endpoints, wait, older))

    def _is_own(self, name: str, epoch: int) -> bool:
        seed, label = self._keyring.seed(epoch), name.partition(".")[0]
        return any(
            label == instance_name(seed.discovery_key(slot), self._node_id)
            for slot in neighbours(seed.slot_at(self._clock()))
        )

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("looking for members by mDNS: %s", error, extra={"skerry_event": "mdns"})
