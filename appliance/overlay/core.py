"""The heart of the overlay, sans-IO: events in, actions out, the clock as an argument.

It follows leads to members, authenticates them (`handshake`), keeps WireGuard's peer table and the
node's overlay addresses right, carries messages for the ledger, and watches members by probes
inside the tunnel. `service` performs the actions. The order of the returned actions matters.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from appliance.ledger.timekeeper import Reading
from appliance.overlay import addresses, events, wire
from appliance.overlay.address_plan import AddressPlan
from appliance.overlay.admission import Admits, Door
from appliance.overlay.clock import Now
from appliance.overlay.courier import Courier
from appliance.overlay.endpoint import Endpoint, IPNetwork, is_candidate, unpack_endpoint
from appliance.overlay.errors import WireError
from appliance.overlay.greeter import Greeter
from appliance.overlay.guard import Guard
from appliance.overlay.handshake import Handshakes
from appliance.overlay.inbox import Inbox, Proven, Stray
from appliance.overlay.liveness import Change
from appliance.overlay.outcomes import (
    Accepted,
    Acknowledged,
    Facts,
    GaveUp,
    Outcome,
    Refused,
    Transmit,
    TurnedAway,
)
from appliance.overlay.peers import Peer, fall_silent, load_peers, owner_of, peer_log
from appliance.overlay.post import Letter, Post
from appliance.overlay.refusals import Refusals
from appliance.overlay.seal import Sealer
from appliance.overlay.timing import TimeDesk
from appliance.overlay.upkeep import Upkeep
from appliance.overlay.visitors import Visitors
from appliance.overlay.watch import LOWER_WAITS, Watch
from appliance.overlay.words import cause_of
from provisioning.identity import Identity
from provisioning.keys import id_text
from provisioning.membership import CertificateError

Actions = list[events.Action]
# How often a member that speaks in an older epoch is reported.
BEHIND_SECONDS = 3.0
ASKED_FOR_TIME_MAX = 32


@dataclass(frozen=True, slots=True)
class CoreConfig:
    """Its UDP port, whether there is a tunnel, and ranges into which no path may lead."""

    port: int
    vpn: bool
    host_range: ipaddress.IPv4Network
    refused: tuple[IPNetwork, ...]


class Core:
    """One node's view of its network. Begin with `start`, then `handle` every event.

    ``admits`` decides who is let in beyond the certificate's chain; None: whose grant has not
    expired. ``reading`` is the clock that others are told (monotonic seconds in).
    """

    def __init__(
        self,
        identity: Identity,
        config: CoreConfig,
        sealer: Sealer,
        *,
        random: Callable[[int], bytes],
        remembered: Mapping[str, bytes],
        admits: Admits | None = None,
        reading: Callable[[float], Reading] | None = None,
    ) -> None:
        self.identity = identity
        self.config = config
        self.peers: dict[bytes, Peer] = {}
        self.refusals = Refusals()
        self.guard = Guard()
        self.keyring = sealer.keyring
        # Moves when contacts, who is up, or members change.
        self.generation = 0
        ipv6 = addresses.ula_address(identity.network.network_id, identity.member().node_key)
        self._plan = AddressPlan(ipv6, self.peers)
        self._post = Post(sealer, random)
        self._watch = Watch(identity.node_id, self.peers, self._post, random, vpn=config.vpn)
        self._courier = Courier(identity.node_id, self.peers, self._post, vpn=config.vpn)
        self._visitors = Visitors(self.peers, self._courier.sessions)
        self._inbox = Inbox(self._post, self._courier, self.peers, self._usable, config.vpn)
        self._door = Door(admits, self.peers)
        self._own: tuple[str, ...] = ()
        self._started = False
        self._upkeep = Upkeep(self.peers, config.vpn)
        self._unix = 0.0
        self._epochs_changed = False
        self._overlap_ends: float | None = None
        self._places_changed = False
        self._handshakes = Handshakes(identity, self._door.denies, self._facts, random)
        self._time = TimeDesk(identity, self._handshakes.certificates, reading, random)
        self._greeter = Greeter(self._handshakes, self.keyring, self.peers)
        self.peers.update(load_peers(remembered, identity))

    # What the edge shows

    @property
    def ipv4(self) -> ipaddress.IPv4Address | None:
        """The node's own IPv4 overlay address."""
        return self._plan.ipv4

    @property
    def ipv6(self) -> ipaddress.IPv6Address:
        """The node's own IPv6 overlay address."""
        return self._plan.ipv6

    # In and out

    def start(self, adopted: events.TunnelStats, now: Now) -> Actions:
        """Return what brings the interface and the remembered peers up.

        ``adopted``: what an earlier run left; its peers are where they are, not where they were.
        """
        actions: Actions = []
        self._started = True
        self._upkeep.take(adopted.peers)
        for peer in tuple(self.peers.values()):
            if denied := self._door.denies(peer.member, now):
                actions += self.expel(peer.node_id, denied.cause, denied.detail, now)
        if self.config.vpn:
            actions.append(self._plan.own())
        for peer in self.peers.values():
            self._watch.hurry(peer, now)
            self._greeter.follow(peer, now)
        self._plan.update()
        actions += self._upkeep.set(list(self.peers.values()))
        self._upkeep.begin(now.mono)
        self._due(now, actions)
        return actions

    def tunnel(self, now: Now) -> Actions:
        """Return what fills a tunnel that had to be made again; its peers are probed soon."""
        for peer in self.peers.values():
            self._watch.hurry(peer, now)
        return [self._plan.own(), *self._upkeep.set(list(self.peers.values()))]

    def handle(self, event: events.Event, now: Now) -> Actions:
        """Return what follows from an event; whatever is due by now is done as well.

        But not with each of many datagrams: a `Tick` does it after them (`next_timer`).
        """
        actions: Actions = []
        self._unix = now.unix
        match event:
            case events.DatagramReceived(data, source):
                self._datagram(data, source, now, actions)
                return actions
            case events.ProbeReceived(data, source):
                self._inside(data, source, now, actions)
                return actions
            case events.Discovered(key, endpoints):
                usable = tuple(one for one in endpoints if self._usable(one))
                self._greeter.discovered(key, usable, event, now)
            case events.LocalAddresses(hosts):
                self._moved(hosts, now, actions)
            case events.TunnelStats(peers):
                self._upkeep.take(peers)
                self._places_changed = True
        self._due(now, actions)
        return actions

    def next_timer(self) -> float | None:
        """Return the monotonic time of the next `Tick` that has something to do."""
        parts = self._upkeep, self._greeter, self._watch, self._visitors
        times = [self._overlap_ends, *(one.next_timer() for one in parts)]
        return min((one for one in times if one is not None), default=None)

    # What the ledger and its owner want

    def contacts(self) -> frozenset[bytes]:
        """Return the members to which `carry` can send now."""
        unix = self._unix
        return frozenset(
            peer.node_id for peer in self.peers.values() if self._courier.reaches(peer, unix)
        )

    def carry(self, node_id: bytes, data: bytes, now: Now) -> Actions:
        """Return what brings a ledger message (up to `wire.CARRIED_MAX` bytes) to a member.

        Nothing if there is no way to it: it is no contact.
        """
        peer = self.peers.get(node_id)
        return self._courier.send(wire.Kind.GOSSIP, peer, data, now) if peer else []

    def catch_up(self, node_id: bytes, data: bytes, now: Now) -> Actions:
        """Return what brings up to 8 KiB to a member that may lack the current secret."""
        peer = self.peers.get(node_id)
        return self._courier.send(wire.Kind.CATCH_UP, peer, data, now) if peer else []

    def expel(self, node_id: bytes, cause: str, detail: str, now: Now) -> Actions:
        """Return what throws a member out at once. Whether it may come back, ``admits`` says."""
        peer = self.peers.pop(node_id, None)
        self._courier.sessions.forget(node_id)
        self._handshakes.forget(node_id)
        if peer is None:
            return []
        actions = self._upkeep.remove(peer)
        actions.append(events.Remember(peer.store_key, None))
        self._greeter.forget(peer, now)
        place = peer.endpoint or Endpoint(str(peer.ipv6), 1)
        self.refusals.note(cause, f"{peer.member.name}: {detail}", place, now)
        message = f"{peer.member.name} is out: {detail}"
        actions.append(peer_log(logging.WARNING, message, peer, "expelled"))
        self.generation += 1
        return actions

    def set_addresses(
        self,
        own: ipaddress.IPv4Address | None,
        others: Mapping[bytes, ipaddress.IPv4Address],
        now: Now,
        *,
        networks: Mapping[bytes, tuple[str, ...]] = MappingProxyType({}),
    ) -> Actions:
        """Assign the overlay's IPv4 addresses; before `start`: what to begin with.

        ``networks``: what is behind each node, this one too.
        """
        own_networks = networks.get(self.identity.node_id, ())
        changed = self._plan.assign(own, others, own_networks, networks)
        if not self._started:
            return []
        actions: Actions = [self._plan.own()] if changed else []
        self._set_peers(actions)
        self._due(now, actions)
        return actions

    def set_secrets(self, secrets: Mapping[int, bytes], current: int, since_unix: float) -> None:
        """Take up the secrets of the epochs. What follows is due at once: call `handle` soon.

        Raises ValueError if the current one is not among them.
        """
        before = self.keyring.current
        changed = self.keyring.replace(secrets, current, since_unix)
        if not changed and before == current:
            return
        self._greeter.unlearn(changed)
        self._epochs_changed = True
        self._greeter.begin_epoch()

    def ask_time(self, now: Now) -> Actions:
        """Return what asks everybody within reach for the time."""
        data = self._post.timeless(self._time.ask(now.mono), self.keyring.current)
        places = [peer.endpoint for peer in self.peers.values() if peer.endpoint]
        targets = list(dict.fromkeys((*places, *self._greeter.leads.endpoints())))
        return [
            events.Broadcast(data),
            *(events.Send(data, one) for one in targets[:ASKED_FOR_TIME_MAX]),
        ]

    def doubt(self, node_id: bytes, now: Now) -> Actions:
        """Probe a member that somebody suspects."""
        actions: Actions = []
        if (peer := self.peers.get(node_id)) is not None and peer.up:
            self._watch.doubt(peer, now)
            self._due(now, actions)
        return actions

    # Datagrams

    def _datagram(self, data: bytes, source: Endpoint, now: Now, actions: Actions) -> None:
        try:
            got = self._inbox.outside(data, source, now)
            match got:
                case Proven():
                    self._proven(got, source, now, actions)
                case Stray(peer):
                    self._outcomes(self._greeter.stray(peer, now), now, actions)
                case Letter():
                    self._letter(got, source, now, actions)
        except (WireError, CertificateError) as error:
            self._refuse(cause_of(error), str(error), source, now, actions)

    def _inside(self, data: bytes, source: str, now: Now, actions: Actions) -> None:
        try:
            if (got := self._inbox.inside(data, source, now)) is not None:
                self._proven(got, None, now, actions)
        except WireError as error:
            self._refuse(error.cause, str(error), Endpoint(source, 1), now, actions)

    def _letter(self, letter: Letter, source: Endpoint, now: Now, actions: Actions) -> None:
        match letter.payload:
            case wire.TimeAsk() as ask:
                if answer := self._time.answer(ask, source, now.mono):
                    sealed = self._post.timeless(answer, letter.epoch)
                    actions.append(events.Send(sealed, source))
            case wire.Signed() as signed if letter.kind is wire.Kind.TIME_TELL:
                if told := self._time.told(
                    signed, now.mono, lambda one: self._door.denies(one, now)
                ):
                    actions.append(told)
            case wire.Signed() as signed:
                outcomes = self._handshakes.receive(letter.kind, signed, source, now, letter.epoch)
                self._outcomes(outcomes, now, actions)

    def _proven(self, got: Proven, source: Endpoint | None, now: Now, actions: Actions) -> None:
        peer = got.peer
        self._visitors.heard(peer, now)
        if source is None or isinstance(got.payload, wire.Carried):
            self._spoke(peer, got.epoch, now, actions)
        if isinstance(got.payload, wire.Probe):
            change, follows = self._watch.received(got, got.payload, source, now)
            actions += follows
            if change is Change.UP:
                peer.silent = False
                self.generation += 1
                self._upkeep.look_soon(now.mono)
            return
        if peer.silent:
            peer.silent = False
            self.generation += 1
        said = events.Delivered if got.kind is wire.Kind.GOSSIP else events.CaughtUp
        actions.append(said(peer.node_id, got.payload.data))

    def _spoke(self, peer: Peer, epoch: int, now: Now, actions: Actions) -> None:
        """Note that a peer, proven, spoke in an epoch; what came late takes nothing back."""
        peer.epoch = max(peer.epoch, epoch)
        if peer.epoch < self.keyring.current and now.mono >= peer.behind_said + BEHIND_SECONDS:
            peer.behind_said = now.mono
            actions.append(events.Behind(peer.node_id, peer.epoch))

    # Handshakes

    def _outcomes(self, outcomes: Iterable[Outcome], now: Now, actions: Actions) -> None:
        for one in outcomes:
            match one:
                case Transmit(message, destination, epoch):
                    actions += self._post.outside(message, destination, epoch, now)
                case Accepted():
                    self._accept(one, now, actions)
                case Acknowledged(node_id, _, session):
                    self._courier.sessions.confirm(session)
                    self.generation += 1
                    if (peer := self.peers.get(node_id)) and not peer.up:
                        self._watch.hurry(peer, now, ready=True)
                case Refused(cause, detail, source, final):
                    self._refuse(cause, detail, source, now, actions)
                    if final:
                        self._greeter.leads.rest(source, now.mono)
                case TurnedAway(member, cause, detail, source):
                    self._greeter.leads.rest(source, now.mono)
                    actions.append(events.RefusedBy(member.node_id, member.name, cause, detail))
                case GaveUp(target):
                    # Its lead says when to try again.
                    self.generation += fall_silent(self.peers.values(), target)

    def _accept(self, one: Accepted, now: Now, actions: Actions) -> None:
        member, body = one.member, one.body
        owner = owner_of(member.wg_key, self.identity.member(), self.peers)
        if owner not in {None, member.node_id}:
            # Both hold its private key (a copied disk, say): the first one's entry stays as it is.
            detail = f"{member.name} uses the WireGuard key of {id_text(owner or b'')}"
            self._refuse("tunnel-key-taken", detail, one.source, now, actions)
            return
        self._courier.sessions.add(member.node_id, one.session, ready=not one.initiated)
        self.generation += 1
        peer = self.peers.get(member.node_id)
        new = peer is None
        if peer is None:
            ipv6 = addresses.ula_address(self.identity.network.network_id, member.node_key)
            peer = self.peers[member.node_id] = Peer(member, one.certificate, ipv6)
        elif peer.boot == body.boot and peer.serial >= body.serial:
            self._spoke(peer, body.epoch, now, actions)
            return  # said before what we know already
        rejoined = peer.boot != body.boot
        if rejoined:
            peer.epoch = body.epoch
        peer.member, peer.certificate, peer.silent = member, one.certificate, False
        peer.boot, peer.serial, peer.accepted_at = body.boot, body.serial, now.mono
        if self._visitors.welcome(peer, one.source, now, actions):
            return
        listed = tuple(unpack_endpoint(packed) for packed in body.candidates)
        peer.locate(one.source, tuple(place for place in listed if self._usable(place)))
        self._places_changed = True
        self._greeter.accepted(peer, one.source, now, new=new)
        if new:
            message = f"{member.name} is a member"
            actions.append(peer_log(logging.INFO, message, peer, "accepted"))
        self._set_peers(actions, also=peer)
        actions.append(events.Remember(peer.store_key, peer.record()))
        self._spoke(peer, body.epoch, now, actions)
        if new or rejoined or not peer.up:
            self._watch.hurry(peer, now, ready=not one.initiated)

    def _set_peers(self, actions: Actions, *, also: Peer | None = None) -> None:
        """Set the peers whose addresses have changed, and the one that is said."""
        changed = self._plan.update()
        if also is not None and also not in changed:
            changed.append(also)
        actions += self._upkeep.set(changed)

    # Time

    def _due(self, now: Now, actions: Actions) -> None:
        if self._epochs_changed:
            self._epochs_changed = False
            actions.append(events.EpochsChanged())
            ends = self.keyring.overlap_ends_in(now.unix)
            self._overlap_ends = None if ends is None else now.mono + ends
        if self._overlap_ends is not None and self._overlap_ends <= now.mono:
            # Who has not the new secret by now is no contact any more.
            self._overlap_ends = None
            self.generation += 1
        self._outcomes(self._greeter.due(now), now, actions)
        down, probes = self._watch.due(now)
        actions += probes
        for peer in down:
            # Without a tunnel there is no other way than the one that was probed.
            peer.silent = not self.config.vpn
            self.generation += 1
            self._greeter.leads.hasten(peer.node_id, now.mono)
        actions += self._upkeep.due(now.mono)
        self.generation += self._visitors.leave(now.mono)
        if said := self.guard.report(now.mono):
            actions.append(events.Log(logging.WARNING, said, {"event": "flood"}))
        if self._places_changed:
            self._places_changed = False
            hosts = {peer.endpoint.host for peer in self.peers.values() if peer.endpoint}
            self.guard.know(hosts, now.mono)

    # What the edges tell

    def _moved(self, hosts: tuple[str, ...], now: Now, actions: Actions) -> None:
        first, changed = not self._own, set(hosts) != set(self._own)
        self._own = hosts
        if first or not changed:
            return
        # Members learn the new endpoint from where our message comes; a path that broke shows soon.
        self._outcomes(self._greeter.greet(self.peers.values(), now), now, actions)
        for peer in self.peers.values():
            self._watch.doubt(peer, now, LOWER_WAITS)
        self._greeter.leads.hasten(None, now.mono)

    # Helpers

    def _facts(self, epoch: int) -> Facts:
        if epoch != self.keyring.current:
            # Who is out may read this.
            return Facts(port=self.config.port)
        listed = tuple(
            Endpoint(host, self.config.port).pack()
            for host in self._own
            if is_candidate(host, own=(), refused=self.config.refused)
        )
        return Facts(self.config.port, listed[: wire.CANDIDATES_MAX])

    def _usable(self, endpoint: Endpoint) -> bool:
        return is_candidate(endpoint.host, own=self._own, refused=self.config.refused)

    def _refuse(
        self, cause: str, detail: str, source: Endpoint, now: Now, actions: Actions
    ) -> None:
        if line := self.refusals.note(cause, detail, source, now):
            actions.append(line)
