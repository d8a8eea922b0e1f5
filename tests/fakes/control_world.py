"""A simulated network of control planes: no sockets, one clock, one source of chance.

Real cores, real gossip, real signatures; what is faked is the LAN, WireGuard's peer table, the disk
and the machines' clocks.
"""

from __future__ import annotations

import heapq
import ipaddress
import itertools
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from appliance.clock import Look
from appliance.cluster.ranges import NodeRange
from appliance.control.actions import LedgerChanged
from appliance.control.plane import Action, ControlPlane, Kept
from appliance.ledger import epochs
from appliance.ledger.directory import NODE_PREFIX, Directory, revocation_key
from appliance.ledger.entry import Entry, read_entry
from appliance.ledger.gossip import GossipConfig
from appliance.ledger.hlc import Clock
from appliance.ledger.rules import ADDRESS, EPOCH, REVOKED
from appliance.ledger.state import Replica
from appliance.ledger.writer import Writer
from appliance.overlay import addresses, events
from appliance.overlay.brain import refused_ranges
from appliance.overlay.clock import Now
from appliance.overlay.core import Core, CoreConfig
from appliance.overlay.endpoint import Endpoint
from appliance.overlay.otp import Seed
from appliance.overlay.seal import Sealer
from provisioning import codec
from provisioning.identity import Identity, new_identity, read_identity, write_identity
from provisioning.keys import Context, public_key, sign
from provisioning.network import NetworkInfo
from provisioning.settings import Settings
from provisioning.token import Token, make_token

UNIX = 1_795_000_000.0
PORT = 51820
# As the shell does (control/service.py).
LOOK_SECONDS = 5.0
ROOT_SEED = b"\x01" * 32
OTP_SEED = b"\x07" * 32


def make_network(
    host_range: str = "10.10.0.0/16",
    *,
    vpn: bool = True,
    pod_cidr: str = "10.244.0.0/16",
    node_bits: int = 8,
    cluster_bits: int = 0,
    api_address: str | None = None,
) -> NetworkInfo:
    settings = Settings(
        host_range=host_range,
        vpn=vpn,
        pod_cidr=pod_cidr,
        node_bits=node_bits,
        cluster_bits=cluster_bits,
        api_address=api_address,
    )
    return NetworkInfo("home", public_key(ROOT_SEED), OTP_SEED, settings=settings)


def make_grant_token(
    network: NetworkInfo | None = None,
    *,
    now: float = UNIX - 1000,
    expires: int | None = None,
    count: int | None = None,
    roles: frozenset[str] = frozenset({"auto"}),
) -> Token:
    return make_token(
        network or make_network(), ROOT_SEED, now=now, expires=expires, count=count, roles=roles
    )


def join(token: Token, name: str, *, now: float = UNIX - 500) -> Identity:
    return read_identity(write_identity(new_identity(token, name=name, now=now)))


def clashing(network: NetworkInfo, count: int, name: str = "clash") -> list[Identity]:
    """Return nodes whose first address is the same (quick with a small host range)."""
    host_range = ipaddress.IPv4Network(network.settings.host_range)
    token = make_grant_token(network)
    by_address: dict[ipaddress.IPv4Address, list[Identity]] = {}
    for number in itertools.count():
        identity = join(token, f"{name}{number}")
        first = addresses.claimed_address(identity.node_id, 0, host_range)
        group = by_address.setdefault(first, [])
        group.append(identity)
        if len(group) == count:
            return group
    raise AssertionError


class Operator:
    """The root key, and what it has written."""

    def __init__(self, network: NetworkInfo) -> None:
        self.network = network
        self.replica = Replica(Directory(network))
        self.writer = Writer(
            self.replica,
            Clock(),
            owner=network.network_id,
            sign=lambda data: sign(Context.LEDGER_ROOT, ROOT_SEED, data),
        )

    def learn(self, entries: Iterable[Entry], now_ms: int) -> None:
        self.replica.restore(entries, now_ms)
        self.writer.sequence = max(
            [self.writer.sequence, *(one.sequence for one in self.replica.owned(self.writer.owner))]
        )

    def write(self, bucket: str, key: str, value: bytes, now_ms: int) -> bytes:
        return self.writer.put(bucket, key, value, now_ms).entry.record

    def revoke(self, node_id: bytes, now_ms: int) -> bytes:
        key = revocation_key(NODE_PREFIX, node_id)
        return self.write(REVOKED, key, codec.encode(["test"]), now_ms)

    def new_epoch(
        self, number: int, secret: bytes, *, without: Sequence[bytes], now_ms: int
    ) -> list[bytes]:
        survivors = [one for one in self.replica.directory if one.node_id not in without]
        excluded = [revocation_key(NODE_PREFIX, one) for one in without]
        said = epochs.new_epoch(self.network.network_id, number, secret, survivors, excluded)
        return [self.write(EPOCH, key, value, now_ms) for key, value in said.items()]


@dataclass
class Node:
    """A machine with its disk; the plane is what runs on it."""

    identity: Identity
    address: str
    plane: ControlPlane = field(init=False)
    clock: float = 0.0  # Unix seconds of its clock, less those of the world
    has_clock: bool = True
    store: dict[str, bytes] = field(default_factory=dict)
    disk: dict[bytes, bytes] = field(default_factory=dict)
    high_water: int = 0
    sequence: int = 0
    wireguard: dict[bytes, events.SetPeer] = field(default_factory=dict)
    own: events.SetAddresses | None = None
    flushed: list[tuple[str, ...]] = field(default_factory=list)
    logs: list[events.Log] = field(default_factory=list)
    side: int = 0
    alive: bool = True

    @property
    def node_id(self) -> bytes:
        return self.identity.node_id

    @property
    def key(self) -> bytes:
        return self.identity.member().wg_key

    @property
    def range(self) -> NodeRange | None:
        return self.plane.policies.holdings.ranges.own

    @property
    def ipv4(self) -> str:
        return str(self.own.ipv4) if self.own and self.own.ipv4 else ""

    def up(self) -> set[bytes]:
        return {peer.node_id for peer in self.plane.peers.values() if peer.up}

    def value(self, key: str, now_ms: int, bucket: str = "shared") -> bytes | None:
        entry = self.plane.gossip.replica.get(bucket, key, now_ms)
        return entry.value if entry else None

    def said(self, word: str) -> bool:
        return any(word in one.message for one in self.logs)


class World:
    """Nodes on one LAN, which may be split into sides."""

    def __init__(self, seed: int = 0, *, delay: float = 0.002, loss: float = 0.0) -> None:
        self.random = random.Random(seed)  # noqa: S311 - chance that can be repeated
        self.delay = delay
        self.loss = loss
        self.now = 100.0
        self.nodes: list[Node] = []
        self.datagrams = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    @property
    def ms(self) -> int:
        return int((UNIX + self.now) * 1000)

    def add(
        self, identity: Identity, *, clock: float = 0.0, has_clock: bool = True, side: int = 0
    ) -> Node:
        node = Node(identity, f"192.168.1.{10 + len(self.nodes)}")
        node.clock, node.has_clock, node.side = clock, has_clock, side
        self.nodes.append(node)
        self.boot(node)
        return node

    def form(self, *identities: Identity) -> list[Node]:
        return [self.add(one) for one in identities]

    def boot(self, node: Node) -> None:
        """Start the supervisor on what the disk holds."""
        network = node.identity.network
        host_range = ipaddress.IPv4Network(network.settings.host_range)
        config = CoreConfig(
            PORT,
            network.settings.vpn,
            host_range,
            refused_ranges(node.identity),
        )
        sealer = Sealer(Seed(network.otp_seed, network.epoch), random=self.random.randbytes)
        entries = tuple(read_entry(one) for one in node.disk.values())
        node.plane = ControlPlane(
            node.identity,
            lambda admits, reading: Core(
                node.identity,
                config,
                sealer,
                random=self.random.randbytes,
                remembered=node.store,
                admits=admits,
                reading=reading,
            ),
            kept=Kept(entries, node.high_water, node.sequence),
            remembered=node.store,
            random=self.random.randbytes,
            now=Now(self.now, 0.0),
            clock=self.clock(node),
            config=GossipConfig(reconcile=5.0),
        )
        node.alive = True
        self._perform(node, node.plane.start(events.TunnelStats({}), self.moment(node)))
        self.feed(node, events.LocalAddresses((node.address,)))
        for other in self.nodes:
            self.introduce(node, other)
        self.at(LOOK_SECONDS, partial(self._look_at_clock, node, node.plane))

    def _look_at_clock(self, node: Node, plane: ControlPlane) -> None:
        if node.plane is plane and node.alive:
            plane.wall(self.clock(node), self.now)
            self.at(LOOK_SECONDS, partial(self._look_at_clock, node, plane))

    def introduce(self, node: Node, other: Node) -> None:
        """Let two nodes find each other by mDNS, if they are on one side and it is their time."""
        near = node is not other and node.side == other.side and node.alive and other.alive
        if not near or abs(self._unix(node) - self._unix(other)) > 3600:
            return
        for one, two in ((node, other), (other, node)):
            found = (Endpoint(two.address, PORT),)
            wait = 0.0 if one.node_id < two.node_id else 1.5
            discovered = events.Discovered(f"mdns:{two.address}", found, wait)
            self.at(self.delay, partial(self.feed, one, discovered))

    def kill(self, node: Node) -> None:
        node.alive = False

    def split(self, *sides: Sequence[Node]) -> None:
        for number, side in enumerate(sides):
            for node in side:
                node.side = number

    def heal(self) -> None:
        for node in self.nodes:
            node.side = 0
        for one, two in itertools.combinations(self.nodes, 2):
            self.introduce(one, two)

    def moment(self, node: Node) -> Now:
        return Now(self.now, self._unix(node))

    def clock(self, node: Node) -> Look:
        """Return a look at a machine's clock; without one it begins in 1970 at each boot."""
        unix = UNIX + self.now + node.clock if node.has_clock else self.now
        return Look(int(unix * 1000), synced=False, kept=node.has_clock)

    def _unix(self, node: Node) -> float:
        """Return what time a node takes it to be."""
        if hasattr(node, "plane"):
            return node.plane.unix(self.now)
        return UNIX + self.now + node.clock if node.has_clock else self.now

    def put(self, node: Node, key: str, value: bytes, bucket: str = "shared") -> None:
        ledger = node.plane.gossip
        now_ms = node.plane.timekeeper.now_ms(self.now)
        written = ledger.writer.put(bucket, key, value, now_ms)
        self._perform(node, node.plane.perform(ledger.local(written, self.now), self.now))

    def publish(self, node: Node, records: Iterable[bytes]) -> None:
        ledger = node.plane.gossip
        for record in records:
            _, actions = ledger.inject(read_entry(record), self.now)
            self._perform(node, node.plane.perform(actions, self.now))

    def feed(self, node: Node, event: events.Event) -> None:
        if node.alive:
            self._perform(node, node.plane.handle(event, self.moment(node)))

    def run(self, seconds: float, *, until: Callable[[], bool] | None = None) -> bool:
        """Let time pass; True as soon as the condition holds."""
        end = self.now + seconds
        while not (until is not None and until()):
            timers = {id(one): one.plane.next_timer() for one in self.nodes if one.alive}
            times = [one for one in timers.values() if one is not None]
            times += [self._events[0][0]] if self._events else []
            due = min(times, default=math.inf)
            if due > end:
                self.now = end
                return until is None
            self.now = max(self.now, due)
            if self._events and self._events[0][0] <= self.now:
                heapq.heappop(self._events)[2]()
                continue
            for node in self.nodes:
                timer = timers.get(id(node))
                if timer is not None and timer <= self.now:
                    self.feed(node, events.Tick())
        return True

    def at(self, wait: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + wait, next(self._numbers), what))

    # What the edge would do

    def _perform(self, node: Node, actions: Iterable[Action]) -> None:  # noqa: C901
        for action in actions:
            match action:
                case events.Send(data, destination):
                    self._send(node, data, destination)
                case events.SendInside(data, destination):
                    self._inside(node, data, destination)
                case events.Broadcast(data):
                    for other in self.nodes:
                        if other is not node:
                            self._send(node, data, Endpoint(other.address, PORT))
                case events.SetPeer():
                    node.wireguard[action.key] = action
                case events.RemovePeer(key):
                    node.wireguard.pop(key, None)
                case events.KeepOnlyPeers(keys):
                    node.wireguard = {k: v for k, v in node.wireguard.items() if k in keys}
                case events.FlushConntrack(gone):
                    node.flushed.append(gone)
                case events.SetAddresses():
                    node.own = action
                case events.Remember(key, None):
                    node.store.pop(key, None)
                case events.Remember(key, value) if value is not None:
                    node.store[key] = value
                case events.EpochsChanged():
                    for other in self.nodes:
                        self.at(self.delay, partial(self.introduce, node, other))
                case events.Log():
                    node.logs.append(action)
                case LedgerChanged():
                    self._keep(node, action)

    def _keep(self, node: Node, action: LedgerChanged) -> None:
        for change in action.changes:
            if change.old is not None:
                node.disk.pop(change.old.entry_id, None)
            if change.new is not None:
                node.disk[change.new.entry_id] = change.new.record
        if action.own:
            node.high_water, node.sequence = action.high_water, action.sequence

    def _send(self, node: Node, data: bytes, destination: Endpoint) -> None:
        for other in self.nodes:
            if other.address == destination.host and destination.port == PORT:
                event = events.DatagramReceived(data, Endpoint(node.address, PORT))
                self._travel(node, other, event)

    def _inside(self, node: Node, data: bytes, destination: str) -> None:
        for other in self.nodes:
            mine, theirs = node.wireguard.get(other.key), other.wireguard.get(node.key)
            if str(other.plane.ipv6) == destination and mine and theirs:
                self._travel(node, other, events.ProbeReceived(data, str(node.plane.ipv6)))

    def _travel(self, node: Node, other: Node, event: events.Event) -> None:
        self.datagrams += 1
        if node.side == other.side and self.random.random() >= self.loss:
            self.at(self.delay, partial(self._arrive, node, other, event))

    def _arrive(self, node: Node, other: Node, event: events.Event) -> None:
        if node.side == other.side:
            self.feed(other, event)

    # What should be so

    def all_up(self, nodes: Sequence[Node]) -> bool:
        everybody = {one.node_id for one in nodes}
        return all(everybody - {one.node_id} <= one.up() for one in nodes)

    def allowed(self, node: Node) -> Mapping[str, bytes]:
        """Return which WireGuard key a node would send to, by address."""
        found: dict[str, bytes] = {}
        for key, peer in node.wireguard.items():
            for prefix in peer.allowed:
                assert prefix not in found, "one prefix, two peers"
                found[prefix] = key
        return found

    def connected(self, nodes: Sequence[Node]) -> bool:
        """Say whether everybody has an address of its own, and all know the way to it."""
        if not self.all_up(nodes) or len({one.ipv4 for one in nodes if one.ipv4}) < len(nodes):
            return False
        return all(
            self.allowed(one).get(f"{two.ipv4}/32") == two.key
            for one in nodes
            for two in nodes
            if one is not two
        )

    def ranged(self, nodes: Sequence[Node]) -> bool:
        """Say whether everybody has a range of its own, and all lead it to its node."""
        held = {one.node_id: one.range for one in nodes}
        if None in held.values() or len(set(held.values())) < len(nodes):
            return False
        for one in nodes:
            found = one.plane.policies.holdings
            if {**found.ranges.others, one.node_id: found.ranges.own} != held:
                return False
        return all(
            self.allowed(one).get(str(network)) == two.key
            for one in nodes
            for two in nodes
            if one is not two and (its := two.range) is not None
            for network in (its.ipv4, its.ipv6)
        )

    def same_ledger(self, nodes: Sequence[Node]) -> bool:
        return len({one.plane.gossip.replica.ids.digest() for one in nodes}) == 1

    def claims(self, node: Node) -> list[str]:
        return [one.key for one in node.plane.gossip.replica.entries(ADDRESS, self.ms)]
