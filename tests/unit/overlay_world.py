"""A simulated network of overlay cores: no sockets, one clock, one source of chance."""

from __future__ import annotations

import dataclasses
import heapq
import ipaddress
import itertools
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from appliance.ledger.timekeeper import Reading
from appliance.overlay import addresses, events
from appliance.overlay.admission import Admits
from appliance.overlay.clock import Now
from appliance.overlay.core import Core, CoreConfig
from appliance.overlay.endpoint import Endpoint
from appliance.overlay.events import Action
from appliance.overlay.handshake import Handshakes
from appliance.overlay.otp import Seed
from appliance.overlay.outcomes import Facts
from appliance.overlay.seal import Sealer
from appliance.overlay.wire import Body, Kind
from provisioning.identity import Identity, new_identity, read_identity, write_identity
from provisioning.keys import public_key
from provisioning.membership import Member, make_certificate, verify_certificate
from provisioning.network import NetworkInfo
from provisioning.settings import Settings
from provisioning.token import Token, make_token

T = TypeVar("T")
UNIX = 1_795_000_000.0
PORT = 51820
ROOT_SEED = b"\x01" * 32
OTP_SEED = b"\x07" * 32
FIRST_IPV4 = ipaddress.IPv4Address("10.10.0.10")


def make_network(
    root_seed: bytes = ROOT_SEED, *, otp_seed: bytes = OTP_SEED, host_range: str = "10.10.0.0/16"
) -> NetworkInfo:
    settings = Settings(host_range=host_range)
    return NetworkInfo("home", public_key(root_seed), otp_seed, settings=settings)


def make_identity(
    name: str = "one",
    *,
    network: NetworkInfo | None = None,
    root_seed: bytes = ROOT_SEED,
    expires: int | None = None,
    labels: Mapping[str, str] | None = None,
    wg_key: bytes | None = None,
) -> Identity:
    """Return a new node; with ``wg_key`` its certificate names a key that it does not hold."""
    token: Token = make_token(
        network or make_network(root_seed),
        root_seed,
        now=UNIX - 1000,
        expires=expires,
        labels=labels,
    )
    record = new_identity(token, name=name, now=UNIX - 500)
    identity = read_identity(write_identity(record))
    if wg_key is None:
        return identity
    certificate = make_certificate(
        identity.network,
        token.grant,
        token.grant_seed,
        node_seed=record.node_seed,
        wg_key=wg_key,
        name=name,
        issued=int(UNIX),
    )
    member = verify_certificate(
        certificate, network=identity.network, now=UNIX, admitted=lambda _: False
    )
    return dataclasses.replace(identity, certificate=certificate, _member=member)


@dataclass
class Host:
    """A node: its core, what it would do to the machine, and its place on the LAN."""

    core: Core
    address: str
    store: dict[str, bytes] = field(default_factory=dict)
    wireguard: dict[bytes, events.SetPeer] = field(default_factory=dict)
    own: events.SetAddresses | None = None
    logs: list[events.Log] = field(default_factory=list)
    # What the core tells its owner, and what else it wants done.
    told: list[Action] = field(default_factory=list)
    admits: Admits | None = None
    reading: Callable[[float], Reading] | None = None
    # What the ledger would give it.
    ipv4: ipaddress.IPv4Address | None = None
    actions: int = 0
    alive: bool = True

    @property
    def key(self) -> bytes:
        return self.core.identity.member().wg_key

    @property
    def node_id(self) -> bytes:
        return self.core.identity.node_id

    def up(self) -> set[bytes]:
        return {peer.node_id for peer in self.core.peers.values() if peer.up}

    def causes(self) -> set[str]:
        return {refusal.cause for refusal in self.core.refusals}


class CarelessHandshakes(Handshakes):
    """Those of a node that takes part with whomever: it does not judge the other's tunnel key."""

    def _check_tunnel_key(self, kind: Kind, body: Body, member: Member) -> None:
        pass


# What becomes of a datagram: seconds until each of its copies arrives.
Fate = Callable[[random.Random], tuple[float, ...]]


def reliable(_: random.Random) -> tuple[float, ...]:
    return (0.001,)


class World:
    """Hosts on one LAN."""

    def __init__(self, seed: int = 0, *, fate: Fate = reliable, vpn: bool = True) -> None:
        self.random = random.Random(seed)  # noqa: S311 - chance that can be repeated
        self.fate = fate
        self.vpn = vpn
        self.now = 0.0
        self.hosts: list[Host] = []
        self.sent: list[tuple[Endpoint, Endpoint, bytes]] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def moment(self) -> Now:
        return Now(self.now, UNIX + self.now)

    def add(
        self,
        identity: Identity,
        *,
        store: dict[str, bytes] | None = None,
        admits: Admits | None = None,
        reading: Callable[[float], Reading] | None = None,
    ) -> Host:
        host = Host(None, f"192.168.1.{10 + len(self.hosts)}", dict(store or {}))  # type: ignore[arg-type]
        host.admits, host.reading = admits, reading
        if self.vpn:
            host.ipv4 = FIRST_IPV4 + len(self.hosts)
        self._boot(host, identity)
        self.hosts.append(host)
        if self.vpn:
            for one in self.hosts:
                self.do(one, one.core.set_addresses(one.ipv4, self._others(one), self.moment()))
        return host

    def add_careless(self, identity: Identity) -> Host:
        """Add a node that does not check tunnel keys."""
        host = self.add(identity)
        careless = CarelessHandshakes(
            identity, lambda _, __: None, lambda _: Facts(PORT), self.random.randbytes
        )
        host.core._handshakes = host.core._greeter.handshakes = careless
        return host

    def restart(self, host: Host) -> None:
        """Start the supervisor anew, with its store; WireGuard's peers are still there."""
        self._boot(host, host.core.identity)

    def _boot(self, host: Host, identity: Identity) -> None:
        network = identity.network
        host_range = ipaddress.IPv4Network(network.settings.host_range)
        ranges = (host_range, addresses.ula_prefix(network.network_id))
        host.core = Core(
            identity,
            CoreConfig(PORT, self.vpn, host_range, ranges),
            Sealer(Seed(network.otp_seed, network.epoch), random=self.random.randbytes),
            random=self.random.randbytes,
            remembered=host.store,
            admits=host.admits,
            reading=host.reading,
        )
        host.core.set_addresses(host.ipv4, self._others(host), self.moment())
        adopted = {
            key: events.TunnelPeer(one.endpoint, None, 0, 0, frozenset(one.allowed))
            for key, one in host.wireguard.items()
        }
        self._perform(host, host.core.start(events.TunnelStats(adopted), self.moment()))
        self.feed(host, events.LocalAddresses((host.address,)))

    def _others(self, host: Host) -> dict[bytes, ipaddress.IPv4Address]:
        others = (one for one in self.hosts if one is not host)
        return {one.node_id: one.ipv4 for one in others if one.ipv4 is not None}

    def introduce(self, host: Host, other: Host) -> None:
        """Tell a host where another one is, as mDNS would."""
        found = (Endpoint(other.address, PORT),)
        self.feed(host, events.Discovered(f"mdns:{other.address}", found))

    def feed(self, host: Host, event: events.Event) -> None:
        if host.alive:
            self._perform(host, host.core.handle(event, self.moment()))

    def do(self, host: Host, actions: list[Action]) -> None:
        """Perform what a call of the core's returned."""
        self._perform(host, actions)

    def run(self, seconds: float, *, until: Callable[[], bool] | None = None) -> bool:
        """Let time pass; True as soon as the condition holds."""
        end = self.now + seconds
        while not (until is not None and until()):
            times = [host.core.next_timer() for host in self.hosts if host.alive]
            times += [self._events[0][0]] if self._events else []
            due = min((one for one in times if one is not None), default=end)
            if due > end:
                self.now = end
                return until is None
            self.now = max(self.now, due)
            if self._events and self._events[0][0] <= self.now:
                heapq.heappop(self._events)[2]()
                continue
            for host in self.hosts:
                timer = host.core.next_timer()
                if timer is not None and timer <= self.now:
                    self.feed(host, events.Tick())
        return True

    def at(self, wait: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + wait, next(self._numbers), what))

    def _perform(self, host: Host, actions: list[Action]) -> None:
        for action in actions:
            host.actions += 1
            match action:
                case events.Send(data, destination):
                    source = Endpoint(host.address, PORT)
                    self.sent.append((source, destination, data))
                    self.deliver(source, destination, data)
                case events.SendInside(data, destination):
                    self._inside(host, data, destination)
                case events.Broadcast(data):
                    for other in self.hosts:
                        if other is not host:
                            place = Endpoint(other.address, PORT)
                            self.deliver(Endpoint(host.address, PORT), place, data)
                case events.Remember(key, None):
                    host.store.pop(key, None)
                case events.Remember(key, value) if value is not None:
                    host.store[key] = value
                case events.Log():
                    host.logs.append(action)
                case _:
                    self._perform_on_tunnel(host, action)

    @staticmethod
    def _perform_on_tunnel(host: Host, action: Action) -> None:
        match action:
            case events.SetPeer():
                for key, other in host.wireguard.items():
                    # The last writer takes a prefix, as in WireGuard.
                    kept = tuple(one for one in other.allowed if one not in action.allowed)
                    host.wireguard[key] = events.SetPeer(key, other.endpoint, kept)
                host.wireguard[action.key] = action
            case events.RemovePeer(key):
                host.wireguard.pop(key, None)
            case events.KeepOnlyPeers(keys):
                host.wireguard = {k: v for k, v in host.wireguard.items() if k in keys}
            case events.SetAddresses():
                host.own = action
            case _:
                host.told.append(action)

    def said(self, host: Host, kind: type[T]) -> list[T]:
        """Return what the core told its owner."""
        return [one for one in host.told if isinstance(one, kind)]

    def deliver(self, source: Endpoint, destination: Endpoint, data: bytes) -> None:
        for wait in self.fate(self.random):
            self.at(wait, lambda: self._arrive(source, destination, data))

    def _arrive(self, source: Endpoint, destination: Endpoint, data: bytes) -> None:
        for host in self.hosts:
            here = host.address == destination.host and destination.port == PORT
            if here and host.core.guard.admits(source.host, self.now):
                self.feed(host, events.DatagramReceived(data, source))

    def _inside(self, host: Host, data: bytes, destination: str) -> None:
        for other in self.hosts:
            mine, theirs = host.wireguard.get(other.key), other.wireguard.get(host.key)
            if str(other.core.ipv6) != destination or not mine or not theirs:
                continue
            way = mine.endpoint is not None and mine.endpoint.host == other.address
            if way and other.alive:
                event = events.ProbeReceived(data, str(host.core.ipv6))
                self.at(0.001, partial(self.feed, other, event))
