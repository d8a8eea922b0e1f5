"""The heart of the overlay, sans-IO: events in, actions out, the clock as an argument.

It follows leads to members, authenticates them (`handshake`), keeps WireGuard's peer table and the
node's overlay addresses right, and watches members by probes inside the tunnel. `service` performs
the actions. The order of the returned actions matters.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from appliance.ledger.timekeeper import Reading
from appliance.overlay import addresses, events, wire
from appliance.overlay.admission import Admits
from appliance.overlay.claims import Claims
from appliance.overlay.clock import Now
from appliance.overlay.endpoint import Endpoint, IPNetwork, is_candidate, unpack_endpoint
from appliance.overlay.errors import WireError
from appliance.overlay.frames import Reassembler, split
from appliance.overlay.handshake import (
    Accepted,
    Acknowledged,
    Facts,
    GaveUp,
    Handshakes,
    Outcome,
    Refused,
    Transmit,
)
from appliance.overlay.leads import Leads
from appliance.overlay.liveness import Change, Liveness
from appliance.overlay.peers import CLAIM_KEY, PEER_PREFIX, Peer, peer_from_record
from appliance.overlay.refusals import Refusals
from appliance.overlay.seal import Sealer
from appliance.problem import Problem
from provisioning.identity import Identity
from provisioning.keys import id_text

# Peers that WireGuard has from an earlier run and nobody vouched for since are removed after this.
ADOPTION_SECONDS = 90.0
# Two WireGuard handshakes that cross cost both sides five seconds. So the lower node id speaks
# first inside the tunnel, an initiator once its confirmation had time to arrive; the other waits.
LOWER_WAITS = 0.25
HIGHER_WAITS = 1.5


@dataclass(frozen=True, slots=True)
class CoreConfig:
    """Its UDP port, whether there is a tunnel, and ranges into which no path may lead."""

    port: int
    vpn: bool
    host_range: ipaddress.IPv4Network
    refused: tuple[IPNetwork, ...]


class Core:
    """One node's view of its network. Begin with `start`, then `handle` every event."""

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
        ipv6 = addresses.ula_address(identity.network.network_id, identity.member().node_key)
        self.claims = Claims(identity.node_id, ipv6, config.host_range, self.peers)
        self.liveness = Liveness(identity.node_id, self.peers, random)
        # Moves when contacts, who is up, or members change.
        self.generation = 0
        self._admits = admits
        self._reading = reading
        self._sealer = sealer
        self._random = random
        self._own: tuple[str, ...] = ()
        self._leads = Leads()
        self._parts = Reassembler()
        self._prune_at: float | None = None
        self._handshakes = Handshakes(identity, self.peers.__contains__, self._facts, random)
        self._load(remembered)

    # What the edge shows

    @property
    def ipv4(self) -> ipaddress.IPv4Address | None:
        """The node's own IPv4 overlay address."""
        return self.claims.own.address if self.claims.own else None

    @property
    def ipv6(self) -> ipaddress.IPv6Address:
        """The node's own IPv6 overlay address."""
        return self.claims.ipv6

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What people have to know."""
        return (self.claims.exhausted,) if self.claims.exhausted else ()

    # In and out

    def start(self, adopted: events.TunnelStats, now: Now) -> list[events.Action]:
        """Return what brings the interface and the remembered peers up.

        ``adopted``: what an earlier run left; its peers are where they are, not where they were.
        """
        actions: list[events.Action] = []
        self._stats(adopted.peers)
        actions += self.claims.begin()
        for peer in self.peers.values():
            self.liveness.hurry(peer, now.mono, self._patience(peer))
            self._leads.set(f"peer:{id_text(peer.node_id)}", peer.candidates, now.mono)
        self._set_peers(actions)
        if self.config.vpn:
            self._prune_at = now.mono + ADOPTION_SECONDS
            actions.append(events.ReadStats())
        self._follow(now, actions)
        return actions

    def tunnel(self) -> list[events.Action]:
        """Return what fills a tunnel that had to be made again."""
        claim = self.claims.own
        actions: list[events.Action] = [
            events.SetAddresses(claim.address if claim else None, self.claims.ipv6)
        ]
        actions += [
            events.SetPeer(peer.member.wg_key, peer.endpoint, peer.allowed)
            for peer in self.peers.values()
        ]
        return actions

    def handle(self, event: events.Event, now: Now) -> list[events.Action]:
        """Return what follows from an event; whatever is due by now is done as well."""
        actions: list[events.Action] = []
        match event:
            case events.DatagramReceived(data, source):
                self._datagram(data, source, now, actions)
            case events.ProbeReceived(data, source):
                self._inside(data, source, now, actions)
            case events.Discovered(key, endpoints, wait, _, node_id):
                usable = tuple(one for one in endpoints if self._usable(one))
                self._leads.set(key, usable, now.mono + wait, node_id)
            case events.LocalAddresses(hosts):
                self._moved(hosts, now, actions)
            case events.TunnelStats(peers):
                self._stats(peers)
            case events.Tick():
                pass
        self._due(now, actions)
        return actions

    def next_timer(self) -> float | None:
        """Return the monotonic time of the next `Tick` that has something to do."""
        times = (
            self._prune_at,
            self._handshakes.next_timer(),
            self._leads.next_timer(self._satisfied()),
            self.liveness.next_timer(),
        )
        return min((one for one in times if one is not None), default=None)

    # What the ledger wants

    def contacts(self) -> frozenset[bytes]:
        """Return the members to which `carry` can send now."""
        return frozenset(peer.node_id for peer in self.peers.values() if peer.up)

    def carry(self, node_id: bytes, data: bytes, now: Now) -> list[events.Action]:
        """Return what brings a ledger message to an accepted member; nothing if there is no way."""
        return []

    def catch_up(self, node_id: bytes, data: bytes, now: Now) -> list[events.Action]:
        """Return what brings up to 8 KiB to a member that may lack the current secret."""
        return []

    def expel(self, node_id: bytes, cause: str, detail: str, now: Now) -> list[events.Action]:
        """Return what throws a member out at once."""
        return []

    def set_addresses(
        self,
        own: ipaddress.IPv4Address | None,
        others: Mapping[bytes, ipaddress.IPv4Address],
        now: Now,
    ) -> list[events.Action]:
        """Decide the overlay's IPv4 addresses; what handshakes claim counts no more."""
        return []

    def set_secrets(self, secrets: Mapping[int, bytes], current: int, since_unix: float) -> None:
        """Take up the secrets of the epochs; what follows from it is due at once."""

    def ask_time(self, now: Now) -> list[events.Action]:
        """Return what asks everybody within reach for the time."""
        return []

    def doubt(self, node_id: bytes, now: Now) -> list[events.Action]:
        """Probe a member that somebody suspects."""
        return []

    # Datagrams

    def _datagram(
        self, data: bytes, source: Endpoint, now: Now, actions: list[events.Action]
    ) -> None:
        if not self._usable(source):
            return  # our own echo, or a tunnel inside itself
        plaintext = self._sealer.unseal(data, now.unix)
        if plaintext is None:
            self._refuse(
                "unsealed",
                "not sealed with this network's secret: a node with another network's token, "
                "a clock that is more than an hour off, or noise",
                source,
                now,
                actions,
            )
            return
        try:
            message = self._parts.add(source, plaintext, now.mono)
            if message is None:
                return
            kind, payload = wire.decode_message(message)
        except WireError as error:
            self._refuse(error.cause, str(error), source, now, actions)
            return
        if isinstance(payload, wire.Probe):
            if self.config.vpn:
                self._refuse("misplaced", "a probe outside the tunnel", source, now, actions)
            else:
                self._probe(kind, payload, source, now, actions)
            return
        self._outcomes(self._handshakes.receive(kind, payload, source, now), now, actions)

    def _inside(self, data: bytes, source: str, now: Now, actions: list[events.Action]) -> None:
        """Handle a datagram from inside the tunnel: WireGuard vouches for its source address."""
        plaintext = self._sealer.unseal(data, now.unix)
        where = Endpoint(source, 1)
        try:
            message = self._parts.add(where, plaintext, now.mono) if plaintext else None
            if message is None:
                return
            kind, payload = wire.decode_message(message)
        except WireError as error:
            self._refuse(error.cause, str(error), where, now, actions)
            return
        if not isinstance(payload, wire.Probe):
            return
        peer = self.peers.get(payload.sender)
        if peer is None or str(peer.ipv6) != source:
            self._refuse("misplaced", "a probe in another node's name", where, now, actions)
            return
        self._probe(kind, payload, None, now, actions)

    def _probe(
        self,
        kind: wire.Kind,
        probe: wire.Probe,
        source: Endpoint | None,
        now: Now,
        actions: list[events.Action],
    ) -> None:
        peer = self.peers.get(probe.sender)
        if peer is None:
            return
        if kind is wire.Kind.PROBE:
            echo = wire.Probe(self.identity.node_id, probe.token)
            self._send_probe(wire.Kind.ECHO, echo, peer, source, now, actions)
            if not peer.up and not peer.token:
                # The tunnel works, then. Never while an answer is awaited: two that do so for each
                # other would go on for ever.
                peer.probe_at = min(peer.probe_at, now.mono)
        elif self.liveness.answered(peer, probe.token, now.mono) is Change.UP:
            milliseconds = (peer.rtt or 0.0) * 1000
            message = f"{peer.member.name} answers ({milliseconds:.1f} ms)"
            self._log(actions, logging.INFO, message, peer, event="peer-up")
            if self.config.vpn:
                actions.append(events.ReadStats())

    def _send_probe(
        self,
        kind: wire.Kind,
        probe: wire.Probe,
        peer: Peer,
        source: Endpoint | None,
        now: Now,
        actions: list[events.Action],
    ) -> None:
        for frame in split(wire.encode_message(kind, probe), self._random):
            data = self._sealer.seal(frame, now.unix)
            if self.config.vpn:
                actions.append(events.SendInside(data, str(peer.ipv6)))
            elif where := source or peer.endpoint:
                actions.append(events.Send(data, where))

    # Handshakes

    def _outcomes(
        self, outcomes: Iterable[Outcome], now: Now, actions: list[events.Action]
    ) -> None:
        for one in outcomes:
            match one:
                case Transmit(message, destination):
                    for frame in split(message, self._random):
                        data = self._sealer.seal(frame, now.unix)
                        actions.append(events.Send(data, destination))
                case Accepted():
                    self._accept(one, now, actions)
                case Acknowledged(node_id):
                    if (peer := self.peers.get(node_id)) and not peer.up:
                        self.liveness.hurry(peer, now.mono, self._patience(peer, ready=True))
                case Refused(cause, detail, source):
                    self._refuse(cause, detail, source, now, actions)
                case GaveUp():
                    pass  # its lead says when to try again

    def _accept(self, one: Accepted, now: Now, actions: list[events.Action]) -> None:
        member, body = one.member, one.body
        if (owner := self._owner(member.wg_key)) not in {None, member.node_id}:
            # Both hold its private key (a copied disk, say): the first one's entry stays as it is.
            detail = f"{member.name} uses the WireGuard key of {id_text(owner or b'')}"
            self._refuse("tunnel-key-taken", detail, one.source, now, actions)
            return
        claimed = None
        if body.address:
            claimed = self.claims.claimed(member.node_id, body.attempt, body.address)
            if claimed is None:
                detail = (
                    f"{member.name} claims {ipaddress.IPv4Address(body.address)}, not its place in "
                    f"{self.config.host_range}: was its token made with another host_range?"
                )
                self._refuse("wrong-address", detail, one.source, now, actions)
                return
        peer = self.peers.get(member.node_id)
        new = peer is None
        if peer is None:
            ipv6 = addresses.ula_address(self.identity.network.network_id, member.node_key)
            peer = self.peers[member.node_id] = Peer(member, one.certificate, ipv6)
        elif peer.boot == body.boot and peer.serial >= body.serial:
            return  # said before what we know already
        rejoined = peer.boot != body.boot
        peer.member, peer.certificate = member, one.certificate
        peer.boot, peer.serial, peer.accepted_at = body.boot, body.serial, now.mono
        peer.attempt, peer.ipv4 = body.attempt, claimed
        listed = tuple(unpack_endpoint(packed) for packed in body.candidates)
        self._locate(peer, one.source, listed)
        self._leads.bind(one.source, member.node_id)
        self._leads.set(f"peer:{id_text(peer.node_id)}", peer.candidates, now.mono)
        self._leads.bind(one.source, member.node_id)
        if new:
            self._log(actions, logging.INFO, f"{member.name} is a member", peer, event="accepted")
        self._settle_clash(peer, now, actions)
        self._set_peers(actions, also=peer)
        actions.append(events.Remember(peer.store_key, peer.record()))
        if new or rejoined or not peer.up:
            ready = not one.initiated
            self.liveness.hurry(peer, now.mono, self._patience(peer, ready=ready))

    def _locate(self, peer: Peer, source: Endpoint, listed: tuple[Endpoint, ...]) -> None:
        """Decide where a member is: a path that works is kept as long as the member has it."""
        usable = tuple(one for one in listed if self._usable(one))
        if not (peer.up and peer.endpoint in usable):
            peer.endpoint = source
        peer.candidates = (source, *(one for one in usable if one != source))

    # Addresses

    def _settle_clash(self, peer: Peer, now: Now, actions: list[events.Action]) -> None:
        """Move away if a member with a lower node id claims our address, and tell everybody."""
        if not self.claims.lost_to(peer):
            return
        message = f"{peer.member.name} holds {peer.ipv4}, this node moves away"
        self._log(actions, logging.WARNING, message, peer, event="address-moved")
        actions += self.claims.move()
        for one in self.peers.values():
            self._greet(one, now, actions)

    def _set_peers(self, actions: list[events.Action], *, also: Peer | None = None) -> None:
        """Set the peers whose addresses have changed, and the one that is said."""
        changed = self.claims.allowed()
        if also is not None and also not in changed:
            changed.append(also)
        if self.config.vpn:
            actions += [
                events.SetPeer(one.member.wg_key, one.endpoint, one.allowed) for one in changed
            ]

    # Time

    def _due(self, now: Now, actions: list[events.Action]) -> None:
        self._outcomes(self._handshakes.tick(now), now, actions)
        self._follow(now, actions)
        probes = self.liveness.due(now.mono)
        for peer, change, probe in probes:
            if change is Change.DOWN:
                self._leads.hasten(peer.node_id, now.mono)
                message = f"{peer.member.name} does not answer any more"
                self._log(actions, logging.WARNING, message, peer, event="peer-down")
            self._send_probe(wire.Kind.PROBE, probe, peer, None, now, actions)
        if probes and self.config.vpn:
            actions.append(events.ReadStats())
        if self._prune_at is not None and self._prune_at <= now.mono:
            self._prune_at = None
            known = frozenset(peer.member.wg_key for peer in self.peers.values())
            actions.append(events.KeepOnlyPeers(known))

    def _follow(self, now: Now, actions: list[events.Action]) -> None:
        for endpoint in self._leads.take_due(now.mono, self._satisfied()):
            self._outcomes(self._handshakes.initiate(endpoint, now), now, actions)

    def _satisfied(self) -> frozenset[bytes]:
        return frozenset(peer.node_id for peer in self.peers.values() if peer.up)

    # What the edges tell

    def _moved(self, hosts: tuple[str, ...], now: Now, actions: list[events.Action]) -> None:
        first, changed = not self._own, set(hosts) != set(self._own)
        self._own = hosts
        if first or not changed:
            return
        # Members learn the new endpoint from where our message comes; a path that broke shows soon.
        for peer in self.peers.values():
            self._greet(peer, now, actions)
            self.liveness.doubt(peer, now.mono, LOWER_WAITS)
        self._leads.hasten(None, now.mono)

    def _greet(self, peer: Peer, now: Now, actions: list[events.Action]) -> None:
        if peer.endpoint is not None:
            self._outcomes(self._handshakes.initiate(peer.endpoint, now), now, actions)

    def _stats(self, found: Mapping[bytes, events.TunnelPeer]) -> None:
        for peer in self.peers.values():
            seen = found.get(peer.member.wg_key)
            if seen is None:
                continue
            peer.handshake = seen.handshake
            # WireGuard follows a member that roams; a member is where its packets come from.
            if seen.endpoint is not None and seen.handshake is not None:
                peer.endpoint = seen.endpoint

    # Helpers

    def _patience(self, peer: Peer, *, ready: bool = False) -> float:
        """Return how long to wait before speaking inside the tunnel; ready: the peer expects us."""
        if self.identity.node_id > peer.node_id:
            return HIGHER_WAITS
        return 0.0 if ready else LOWER_WAITS

    def _facts(self) -> Facts:
        claim = self.claims.own
        listed = tuple(
            Endpoint(host, self.config.port).pack()
            for host in self._own
            if is_candidate(host, own=(), refused=self.config.refused)
        )
        return Facts(
            port=self.config.port,
            attempt=claim.attempt if claim else 0,
            address=claim.address.packed if claim else b"",
            candidates=listed[: wire.CANDIDATES_MAX],
        )

    def _owner(self, wg_key: bytes) -> bytes | None:
        """Return the node that a WireGuard key belongs to, as far as we know."""
        if wg_key == self.identity.member().wg_key:
            return self.identity.node_id
        owners = (one.node_id for one in self.peers.values() if one.member.wg_key == wg_key)
        return next(owners, None)

    def _usable(self, endpoint: Endpoint) -> bool:
        return is_candidate(endpoint.host, own=self._own, refused=self.config.refused)

    def _refuse(
        self,
        cause: str,
        detail: str,
        source: Endpoint,
        now: Now,
        actions: list[events.Action],
    ) -> None:
        if line := self.refusals.note(cause, detail, source, now):
            actions.append(line)

    def _log(
        self, actions: list[events.Action], level: int, message: str, peer: Peer, *, event: str
    ) -> None:
        fields = {
            "event": event,
            "peer": id_text(peer.node_id),
            "peer_name": peer.member.name,
            "endpoint": str(peer.endpoint) if peer.endpoint else "",
        }
        actions.append(events.Log(level, message, fields))

    def _load(self, remembered: Mapping[str, bytes]) -> None:
        self.claims.load(remembered.get(CLAIM_KEY))
        for key, value in remembered.items():
            if not key.startswith(PEER_PREFIX):
                continue
            peer = peer_from_record(value, self.identity.network, self.config.host_range)
            if peer is not None and self._owner(peer.member.wg_key) is None:
                self.peers[peer.node_id] = peer
