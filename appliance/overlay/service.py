"""The overlay of one node: an asyncio shell around `core`.

Recipe::

    overlay = Overlay(identity, store, OverlayConfig(interface="skerry0"), brain=plane)
    await overlay.start()
    ...
    print(overlay.snapshot())
    await overlay.stop()      # the tunnel and its peers stay
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from appliance.overlay import addresses, conntrack, events, links
from appliance.overlay.action_queue import ActionQueue
from appliance.overlay.brain import Brain, pod_ranges, refused_ranges
from appliance.overlay.clock import Now
from appliance.overlay.config import FWMARK, MTU, OverlayConfig
from appliance.overlay.control_socket import ControlSocket, open_plain, open_raw
from appliance.overlay.endpoint import Endpoint, parse_endpoint
from appliance.overlay.errors import OverlayError
from appliance.overlay.inside import InsideSocket
from appliance.overlay.mdns import Mdns
from appliance.overlay.status import OverlayStatus, PeerStatus, peer_status, refusal_status
from appliance.overlay.wireguard import Device, PeerState, PeerTable, WireGuard
from appliance.problem import Problem
from appliance.store import Store
from provisioning.identity import Identity
from provisioning.keys import wireguard_public_key

__all__ = ["Overlay", "OverlayConfig", "OverlayStatus", "PeerStatus"]

log = logging.getLogger(__name__)

T = TypeVar("T")
SEED_SECONDS = 120.0
REVIVE_SECONDS = 5.0
LOOK_AGAIN_SECONDS = 5.0
DEFECT_SECONDS = 1.0
REMEMBER_SECONDS = 1.0


class Overlay:
    """Finds the members of the network and keeps the encrypted paths to them."""

    def __init__(
        self,
        identity: Identity,
        store: Store,
        config: OverlayConfig,
        *,
        brain: Brain,
        perform_other: Callable[[events.Action], Awaitable[None]] | None = None,
        unix: Callable[[float], float] | None = None,
    ) -> None:
        """``perform_other`` gets the actions that are none of the edge's.

        ``brain`` decides (`control.plane`). ``unix`` turns monotonic into Unix seconds; None: the
        machine's clock.
        """
        self._identity = identity
        self._store = store
        self._config = config
        settings = identity.network.settings
        self._vpn = settings.vpn
        self._host_range = ipaddress.IPv4Network(settings.host_range)
        self._ula = addresses.ula_prefix(identity.network.network_id)
        self._pod_ranges = pod_ranges(identity)
        self._refused = refused_ranges(identity)
        self._brain = brain
        self._perform_other = perform_other
        self._clock = unix or self._machine_clock
        self._worker: ThreadPoolExecutor | None = None
        self._table: PeerTable | None = None
        self._control: ControlSocket | None = None
        self._inside: InsideSocket | None = None
        self._monitor: socket.socket | None = None
        self._mdns: Mdns | None = None
        self._queue = ActionQueue()
        self._tasks: list[asyncio.Task[None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._settle: asyncio.TimerHandle | None = None
        self._uplinks: tuple[links.UplinkAddress, ...] = ()
        self._failed: dict[str, Problem] = {}
        self._revive_at = 0.0
        self._defect_until = 0.0
        self._stopped = False
        self._timing = False
        self._to_remember: dict[str, bytes | None] = {}
        self._writing: asyncio.TimerHandle | None = None

    # Life

    async def start(self) -> None:
        """Bring the interface up, adopt what an earlier run left, begin to look for members.

        Raises OverlayError saying what is missing; `stop` cleans up then too.
        """
        loop = asyncio.get_running_loop()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="overlay")
        self._monitor = links.open_monitor()
        adopted = events.TunnelStats({})
        if self._vpn:
            adopted = _stats(await self._open_tunnel())
            self._control = open_raw(self._config.listen_port)
        else:
            self._control = open_plain(self._config.listen_port)
        self._mdns = Mdns(
            self._brain.core.keyring,
            self._identity.node_id,
            self._config.listen_port,
            self._feed,
            clock=self._unix,
        )
        for action in self._brain.start(adopted, self._now()):
            await self._perform(action)
        if self._vpn:
            self._open_inside()
        self._control.listen(loop, self._received, self._brain.core.guard.admits)
        # What changed meanwhile waits in there: the brain is told nothing before it has begun.
        loop.add_reader(self._monitor, links.drain_monitor, self._monitor, self._links_changed)
        self._settled()
        self._tasks.append(asyncio.create_task(self._perform_all()))
        if self._identity.network.settings.peers:
            self._tasks.append(asyncio.create_task(self._look_up_seeds()))
        self._set_timer()

    async def stop(self) -> None:
        """Stop looking and answering; the tunnel, its addresses and its peers stay."""
        self._stopped = True
        loop = asyncio.get_running_loop()
        for timer in (self._timer, self._settle, self._writing):
            if timer is not None:
                timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        self._write()
        if self._monitor is not None:
            loop.remove_reader(self._monitor)
            self._monitor.close()
            self._monitor = None
        if self._mdns is not None:
            await self._mdns.close()
        if self._control is not None:
            self._control.close(loop)
            self._control = None
        if self._inside is not None:
            self._inside.close(loop)
            self._inside = None
        if self._worker is not None:
            if self._table is not None:
                await self._blocking(self._table.wireguard.close)
            self._worker.shutdown()
            self._worker = None

    def snapshot(self) -> OverlayStatus:
        """Return what is so now, from memory."""
        # WireGuard stamps its handshakes by the machine's clock, whatever the network's time is.
        brain, unix, mono = self._brain, time.time(), time.monotonic()
        own = [str(brain.ipv4)] if brain.ipv4 else []
        uplink = self._uplinks[0] if self._uplinks else None
        return OverlayStatus(
            interface=self._config.interface if self._vpn else "",
            mode=self._table.wireguard.mode if self._table else "off",
            addresses=(*own, str(brain.ipv6)) if self._vpn else (),
            listen_port=self._config.listen_port,
            peers=tuple(peer_status(peer, unix) for peer in brain.peers.values()),
            refusals=tuple(refusal_status(one, mono) for one in brain.refusals),
            problems=self._problems(),
            uplink=uplink.interface if uplink else "",
            mtu=MTU if self._vpn or uplink is None else uplink.mtu,
        )

    # Events and actions

    def _now(self) -> Now:
        return Now(time.monotonic(), self._unix())

    def _unix(self) -> float:
        return self._clock(time.monotonic())

    def _machine_clock(self, _mono: float) -> float:
        # A machine without a clock of its own may boot in 1970.
        return max(time.time(), float(self._identity.time_floor))

    def _feed(self, event: events.Event) -> None:
        if self._stopped:
            return
        try:
            self._queue.put(self._brain.handle(event, self._now()))
        except Exception:
            # A defect costs one event, and a while until what is due is tried again; not the node.
            log.exception("a defect while handling %s", type(event).__name__)
            self._defect_until = time.monotonic() + DEFECT_SECONDS
        self._set_timer()

    def enact(self, actions: Iterable[events.Action]) -> None:
        """Perform what the brain wants outside of an event, and look when it wants a tick."""
        if self._stopped:
            return
        self._queue.put(actions)
        if self._worker is not None:
            self._set_timer()

    def _set_timer(self) -> None:
        """Look for the next tick, once for all events of this turn of the loop."""
        if not self._timing:
            self._timing = True
            asyncio.get_running_loop().call_soon(self._set_timer_now)

    def _set_timer_now(self) -> None:
        self._timing = False
        if self._timer is not None:
            self._timer.cancel()
        at = self._brain.next_timer()
        if at is None or self._stopped:
            return
        wait = max(max(at, self._defect_until) - time.monotonic(), 0.0)
        self._timer = asyncio.get_running_loop().call_later(wait, self._feed, events.Tick())

    async def _perform_all(self) -> None:
        while True:
            action = await self._queue.take()
            name = type(action).__name__
            try:
                await self._perform(action)
                self._failed.pop(name, None)
            except OverlayError as error:
                self._fail(name, error)
                await self._revive(name)
            except Exception:
                # One action is lost; the core notices by what does not happen.
                log.exception("a defect while doing %s", name)

    def _fail(self, name: str, error: OverlayError) -> None:
        problem = Problem("overlay-edge", str(error), error.hint or "")
        if self._failed.get(name) != problem:
            log.warning("%s", error, extra={"skerry_event": "overlay-edge"})
        self._failed[name] = problem

    async def _revive(self, name: str) -> None:
        """Make the tunnel again if it is gone: its process was ended, its interface removed."""
        if time.monotonic() < self._revive_at:
            return
        self._revive_at = time.monotonic() + REVIVE_SECONDS
        try:
            await self._open_tunnel()
            for action in self._brain.tunnel(self._now()):
                await self._perform(action)
            self._open_inside()
            self._set_timer()
        except OverlayError as error:
            self._fail(name, error)
        else:
            self._failed.clear()

    def _open_inside(self) -> None:
        loop = asyncio.get_running_loop()
        if self._inside is not None:
            self._inside.close(loop)
            self._inside = None
        self._inside = InsideSocket.open(
            self._brain.ipv6, self._config.probe_port, self._config.interface
        )
        self._inside.listen(loop, self._inside_received)

    async def _perform(self, action: events.Action) -> None:
        match action:
            case events.Send() | events.SendInside() | events.Broadcast():
                self._send(action)
            case events.EpochsChanged():
                if self._mdns is not None:
                    self._mdns.rotate()
            case events.Remember(key, value):
                self._remember(key, value)
            case events.Log(level, message, fields):
                extra = {f"skerry_{name}": value for name, value in fields.items()}
                log.log(level, "%s", message, extra=extra)
            case (
                events.SetPeer()
                | events.RemovePeer()
                | events.KeepOnlyPeers()
                | events.ReadStats()
                | events.SetAddresses()
                | events.FlushConntrack()
            ):
                if self._table is not None:
                    await self._perform_on_tunnel(action, self._table)
            case _ if self._perform_other is not None:
                await self._perform_other(action)

    def _remember(self, key: str, value: bytes | None) -> None:
        """Have a hint written soon, with others: each write waits for the disk."""
        if not self._to_remember and not self._stopped:
            loop = asyncio.get_running_loop()
            self._writing = loop.call_later(REMEMBER_SECONDS, self._write)
        self._to_remember[key] = value

    def _write(self) -> None:
        values, self._to_remember = self._to_remember, {}
        self._store.change(values)

    def _send(self, action: events.Send | events.SendInside | events.Broadcast) -> None:
        match action:
            case events.Send(data, destination) if self._control is not None:
                self._control.send(data, destination)
            case events.SendInside(data, address) if self._inside is not None:
                self._inside.send(data, address)
            case events.Broadcast(data) if self._control is not None:
                self._control.broadcast(data, links.broadcast_hosts(self._uplinks))

    async def _perform_on_tunnel(self, action: events.Action, table: PeerTable) -> None:
        match action:
            case events.SetPeer(key, endpoint, allowed):
                await self._blocking(partial(table.set, key, endpoint, allowed))
            case events.RemovePeer(key):
                await self._blocking(partial(table.remove, key))
            case events.KeepOnlyPeers(keys):
                for key in (await self._blocking(table.read)).keys() - keys:
                    log.info("removing a peer that nobody vouched for since the start")
                    await self._blocking(partial(table.remove, key))
            case events.ReadStats():
                found = await self._blocking(table.read)
                self._feed(_stats(found))
            case events.FlushConntrack(prefixes):
                await self._blocking(partial(conntrack.flush, prefixes))
            case events.SetAddresses(ipv4, ipv6, networks):
                own = (ipv6,) if ipv4 is None else (ipv4, ipv6)
                ranges = (self._host_range, self._ula, *self._pod_ranges)
                here = tuple(ipaddress.ip_network(one) for one in networks)
                await self._blocking(
                    partial(links.set_addresses, self._config.interface, own, ranges)
                )
                await self._blocking(partial(links.refuse_locally, here))

    async def _blocking(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._worker, call)

    # Edges

    async def _open_tunnel(self) -> Mapping[bytes, PeerState]:
        device = Device(
            self._config.interface,
            self._identity.wg_private,
            wireguard_public_key(self._identity.wg_private),
            self._config.listen_port,
            FWMARK,
        )
        wireguard, adopted = await self._blocking(partial(_open, self._config, device))
        self._table = PeerTable(wireguard)
        await self._blocking(partial(links.set_up, self._config.interface))
        log.info(
            "%s %s (%s WireGuard, UDP port %d)",
            "adopted" if adopted else "made",
            self._config.interface,
            wireguard.mode,
            self._config.listen_port,
            extra={"skerry_event": "tunnel", "skerry_adopted": adopted},
        )
        return await self._blocking(self._table.read)

    def _received(self, data: bytes, source: Endpoint) -> None:
        self._feed(events.DatagramReceived(data, source))

    def _inside_received(self, data: bytes, source: str) -> None:
        self._feed(events.ProbeReceived(data, source))

    def _links_changed(self) -> None:
        if self._settle is None and not self._stopped:
            self._settle = asyncio.get_running_loop().call_later(
                links.SETTLE_SECONDS, self._settled
            )

    def _settled(self) -> None:
        self._settle = None
        task = asyncio.create_task(self._look_at_uplinks())
        self._tasks = [one for one in self._tasks if not one.done()] + [task]

    async def _look_at_uplinks(self) -> None:
        look = partial(links.uplink_addresses, self._config.uplinks, own=self._config.interface)
        try:
            self._uplinks = await self._blocking(look)
        except Exception:
            log.exception("the uplinks can't be read; trying again soon")
            if not self._stopped:
                loop = asyncio.get_running_loop()
                self._settle = loop.call_later(LOOK_AGAIN_SECONDS, self._settled)
            return
        if self._table is not None and not links.exists(self._config.interface):
            # Reading what is not there fails, and so it is made again.
            self._queue.put([events.ReadStats()])
        hosts = tuple(dict.fromkeys(one.host for one in self._uplinks))
        self._feed(events.LocalAddresses(hosts))
        if self._mdns is not None and self._identity.network.settings.mdns:
            await self._mdns.set_hosts(tuple(one for one in hosts if not self._inside_range(one)))

    def _inside_range(self, host: str) -> bool:
        address = ipaddress.ip_address(host)
        return any(address in one for one in self._refused if one.version == address.version)

    async def _look_up_seeds(self) -> None:
        """Resolve the token's bootstrap peers, now and then again: names may move."""
        loop = asyncio.get_running_loop()
        while True:
            for text in self._identity.network.settings.peers:
                endpoint = parse_endpoint(text)
                found = (endpoint,) if endpoint else await _resolve(loop, text)
                if found:
                    self._feed(events.Discovered(f"seed:{text}", found))
            await asyncio.sleep(SEED_SECONDS)

    def _problems(self) -> tuple[Problem, ...]:
        problems = list(self._failed.values())
        problems += self._brain.problems
        clash = [one for one in self._uplinks if self._inside_range(one.host)]
        if clash:
            problems.append(
                Problem(
                    "range-overlap",
                    f"{clash[0].interface} has address {clash[0].host}, inside a range that this "
                    "network uses for itself: members are not looked for there",
                    "make the network with another host_range, pod_cidr or service_cidr",
                )
            )
        return tuple(problems)


def _open(config: OverlayConfig, device: Device) -> tuple[WireGuard, bool]:
    from appliance.overlay.wireguard_userspace import SOCKETS, UserspaceWireGuard

    userspace = UserspaceWireGuard(config.interface, config.wireguard_go)
    running = (SOCKETS / f"{config.interface}.sock").exists()
    if config.wireguard == "userspace" or (config.wireguard == "auto" and running):
        return userspace, userspace.ensure(device)
    from appliance.overlay.wireguard_kernel import KernelWireGuard

    kernel = KernelWireGuard(config.interface)
    try:
        return kernel, kernel.ensure(device)
    except OverlayError as error:
        kernel.close()
        if config.wireguard == "kernel":
            raise
        log.info("%s; trying userspace WireGuard", error)
        return userspace, userspace.ensure(device)


async def _resolve(loop: asyncio.AbstractEventLoop, text: str) -> tuple[Endpoint, ...]:
    host, _, port = text.rpartition(":")
    try:
        found = await loop.getaddrinfo(host, int(port), type=socket.SOCK_DGRAM)
    except OSError as error:
        log.info("the bootstrap peer %s can't be looked up: %s", text, error)
        return ()
    return tuple(dict.fromkeys(Endpoint(str(one[4][0]), int(port)) for one in found))


def _stats(found: Mapping[bytes, PeerState]) -> events.TunnelStats:
    return events.TunnelStats(
        {
            key: events.TunnelPeer(one.endpoint, one.handshake, one.received, one.sent, one.allowed)
            for key, one in found.items()
        }
    )
