"""What the ledger means for this node: who is a peer, which addresses and secrets count.

Everything is worked out anew from the ledger when a bucket that matters has changed, at most every
SETTLE_SECONDS; a revocation at once.
"""

from __future__ import annotations

import ipaddress
import logging
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from appliance.cluster import vip
from appliance.control import keyring
from appliance.control.addressing import Places, Witness, Write
from appliance.control.admission import Newcomer, Standing, standing
from appliance.control.endpoints import (
    NODE,
    SUFFIX,
    endpoints_key,
    endpoints_value,
    read_endpoints,
)
from appliance.control.holdings import Holdings, Moved
from appliance.ledger import epochs, gossip
from appliance.ledger.assigned import names
from appliance.ledger.entry import Entry, read_entry
from appliance.ledger.errors import EntryError, WriteError
from appliance.ledger.rules import (
    ADDRESS,
    ASSIGNED,
    BUCKETS,
    EPOCH,
    MEMBER,
    RANGE,
    REVOKED,
    WITNESS,
)
from appliance.ledger.state import Reason
from appliance.ledger.swim import Status
from appliance.overlay import events
from appliance.overlay.admission import Denied
from appliance.overlay.clock import Now
from appliance.overlay.core import Core
from appliance.overlay.endpoint import Endpoint, is_candidate
from appliance.overlay.peers import Peer
from appliance.overlay.visitors import is_visitor
from appliance.problem import Problem
from provisioning.identity import Identity
from provisioning.keys import id_text
from provisioning.membership import Member

INFORMED_KEY = "control/informed"
SETTLE_SECONDS = 0.05
SETTLE_PER_MEMBER = 0.0002
ENDPOINTS_SECONDS = 8 * 3600.0
# A member that the ledger names is looked for only if it was not found otherwise by then.
LEAD_SECONDS = 4.0
STANDING_SECONDS = 5.0
RETRY_SECONDS = 5.0
AHEAD_MS = 60_000
_MATTERS = frozenset({MEMBER, REVOKED, ADDRESS, RANGE, WITNESS, ASSIGNED, EPOCH})
# Of these, what bears on who is in.
_STANDING = frozenset({MEMBER, REVOKED, WITNESS, ASSIGNED})

Step = gossip.Action | events.Action


class Policies:
    """The decisions of one node; `decide` performs nothing but local writes."""

    def __init__(
        self,
        identity: Identity,
        core: Core,
        ledger: gossip.Gossip,
        secrets: epochs.Secrets,
        *,
        informed: bool = False,
    ) -> None:
        """``informed``: an earlier run knew whom to let in, and kept `INFORMED_KEY`."""
        self.secrets = secrets
        self.holdings = Holdings(identity, vpn=core.config.vpn)
        # The monotonic time of what is under way; the plane keeps it right.
        self.mono = 0.0
        self._identity = identity
        self._network_id = identity.network.network_id
        self._config = core.config
        self._ledger = ledger
        self._replica = ledger.replica
        self._core = core
        self._witness = Witness(identity.node_id)
        self._newcomer = Newcomer(informed=informed)
        self._standing: Standing | None = None
        self._standing_until = 0.0
        self._dirty = set(_MATTERS)
        self._due: float | None = None
        self._hosts: tuple[str, ...] = ()
        self._endpoints_due: float | None = None
        self._refused_writes: dict[tuple[str, str], Problem] = {}
        self._names: dict[bytes, str] = {}
        self._moved: dict[bytes, tuple[Endpoint, ...]] = {}
        self._fresh_secrets = False

    # Asked by the core

    def judge(self, member: Member) -> Denied | None:
        """Return why a node is not let in, None if it is."""
        found = self._where_all_stand()
        now = self._now_ms(self.mono) / 1000
        # A newcomer lets in on trust whom it could know only by those that it lets in.
        trusting = found.trusting or not (self._newcomer.informed or found.spoken)
        return replace(found, now=now, trusting=trusting).judge(member)

    # Told by the plane

    def begin(self, now: Now) -> None:
        """Let the core know what it has to before it starts."""
        self.mono = self._due = now.mono
        self._meet(now.mono)
        self._new_secrets()
        own = self._identity.node_id
        self.holdings.begin(
            now.mono, known=self._replica.slot(MEMBER, id_text(own), own) is not None
        )
        # With what was known before: a restart takes no address away, not for a moment.
        for _ in self._settle_holdings(now, write=False):
            pass

    def changed(self, entry: Entry) -> None:
        """Take note of a change in the ledger."""
        if entry.bucket in _MATTERS or vip.concerns(entry.bucket, entry.key):
            self._dirty.add(entry.bucket)
            if entry.bucket in _STANDING:
                self._standing = None
            if self._due is None:
                self._due = self.mono + self._settle_seconds()
        elif entry.bucket == NODE and entry.key.endswith(SUFFIX):
            self._moved[entry.owner] = read_endpoints(entry.value)

    def liveness_changed(self) -> None:
        """Others may have to bear witness now."""
        self._dirty.add(WITNESS)
        self._due = self._due or self.mono + self._settle_seconds()

    def _settle_seconds(self) -> float:
        """Return how long changes are collected: what follows from them grows with the members."""
        return SETTLE_SECONDS + SETTLE_PER_MEMBER * len(self._replica.directory)

    def local_addresses(self, hosts: tuple[str, ...]) -> None:
        """Take note of where this node is now."""
        if hosts != self._hosts:
            self._hosts, self._endpoints_due = hosts, 0.0

    def next_timer(self) -> float | None:
        """Return when `decide` has something to do."""
        told = self._endpoints_due, self._newcomer.due(), self.holdings.due
        maybe = self._due, self._witness.due, *told
        return min((one for one in maybe if one is not None), default=None)

    def problems(self) -> tuple[Problem, ...]:
        """Return what is wrong that a person should know."""
        own = self._identity.member()
        denied = self._where_all_stand().excess.get(own.node_id)
        found = [self.holdings.places.problem, *list(self._refused_writes.values())[:1]]
        if self._replica.directory.is_revoked(own):
            found.append(
                Problem(
                    "revoked",
                    f"this node, {own.name}, was revoked by the operator: no member talks to it",
                    "A revocation is final. To use the machine again, erase its data partition "
                    "and give it a new token.",
                )
            )
        elif denied is not None:
            found.append(
                Problem(
                    denied.cause,
                    denied.detail,
                    "Make a new token (`skerry token new`), erase this node's data partition "
                    "and provision it with that one.",
                )
            )
        return tuple(one for one in found if one is not None)

    def name_of(self, member: Member) -> str:
        """Return what a member is called now."""
        return self.called(member.node_id, member.name)

    def called(self, node_id: bytes, name: str) -> str:
        """Return what a node is called whose certificate says ``name``."""
        return self._names.get(node_id, name)

    def address_of(self, node_id: bytes) -> ipaddress.IPv4Address | None:
        """Return a member's IPv4 overlay address, if it holds one."""
        if node_id == self._identity.node_id:
            return self.places.own
        return self.places.others.get(node_id)

    @property
    def places(self) -> Places:
        """Who has which overlay address."""
        return self.holdings.places

    def standing(self) -> Standing:
        """Return who is in, as it is now."""
        return self._where_all_stand()

    def members(self) -> tuple[Member, ...]:
        """Return the members that are in, this node too."""
        excess = self._where_all_stand().excess
        return tuple(one for one in self._replica.directory if one.node_id not in excess)

    def alive(self) -> frozenset[bytes]:
        """Return the members that one may count on."""
        detector = self._ledger.detector
        return frozenset(
            one.node_id
            for one in self.members()
            if detector is None or detector.status(one.node_id) is not Status.DEAD
        )

    # Epochs

    def catch_up(self, peer: bytes, epoch: int, now: Now) -> tuple[bytes, ...]:
        """Return the messages that bring a peer to our epoch."""
        known = self._core.peers.get(peer)
        member = self._replica.directory.member(peer) or (known.member if known else None)
        if member is None or self._where_all_stand().judge(member) is not None:
            return ()
        return keyring.catch_up(
            self.secrets,
            self._replica,
            member,
            epoch,
            network_id=self._network_id,
            now_ms=self._now_ms(now.mono),
        )

    def caught_up(self, message: keyring.CatchUp, now: Now) -> tuple[list[gossip.Action], bool]:
        """Take in what the root key says in a catch-up, and the secret that came with it.

        The second value is false if something in it was forged: the rest is not looked at.
        """
        out: list[gossip.Action] = []
        for record in message.records:
            try:
                entry = read_entry(record)
            except EntryError:
                continue
            if entry.owner == self._network_id:
                outcome = self._replica.apply(entry, self._now_ms(now.mono))
                if outcome.reason is Reason.FORGED:
                    return out, False
                out += [gossip.Changed(one) for one in outcome.changes]
        if message.box:
            self._advance(now, (message.box,))
        return out, True

    def _advance(self, now: Now, handed: tuple[bytes, ...] = ()) -> None:
        later = keyring.bounded(
            epochs.advance(
                self.secrets,
                self._replica,
                network_id=self._network_id,
                node_id=self._identity.node_id,
                wg_private=self._identity.wg_private,
                now_ms=self._now_ms(now.mono),
                handed=handed,
            )
        )
        if later == self.secrets:
            return
        self.secrets = later
        self._fresh_secrets = True
        self._due = now.mono

    def _end_overlap_in_time(self, now: Now) -> None:
        """Begin the overlap anew if a clock that was ahead began it: it must have an end."""
        now_ms = self._now_ms(now.mono)
        if self.secrets.since_ms > now_ms + AHEAD_MS:
            self.secrets = epochs.Secrets(self.secrets.known, now_ms)
            self._fresh_secrets, self._due = True, now.mono

    def _new_secrets(self) -> None:
        self._fresh_secrets = False
        secrets = self.secrets
        self._core.set_secrets(secrets.known, secrets.current, secrets.since_ms / 1000)

    # Deciding

    def decide(self, now: Now) -> Iterator[Step]:
        """Yield what is to be done now."""
        self.mono = now.mono
        self._end_overlap_in_time(now)
        if not self._newcomer.informed:
            self._meet(now.mono)
            informed = self._newcomer.due()
            if informed is not None and informed <= now.mono:
                yield from self._judge_those_met(now)
        if self.holdings.due is not None:
            contact = any(one.up for one in self._members_met().values())
            if self.holdings.hear(now.mono, contact=contact):
                self._due = now.mono
        if REVOKED in self._dirty:
            yield from self._expel(now)
        if self._moved:
            yield from self._follow_endpoints(now)
        due = self._due is not None and self._due <= now.mono
        witness_due = self._witness.due is not None and self._witness.due <= now.mono
        if due or witness_due:
            yield from self._settle(now)
        if self._endpoints_due is not None and self._endpoints_due <= now.mono:
            yield from self._tell_endpoints(now)

    def _settle(self, now: Now) -> Iterator[Step]:
        self._due = None
        if EPOCH in self._dirty or REVOKED in self._dirty:
            self._advance(now)
        if self._fresh_secrets:
            yield events.Remember(
                keyring.STORE_KEY, keyring.dump(self.secrets, self._identity.network)
            )
            self._new_secrets()
            yield from self._core.handle(events.Tick(), now)
        self._due = None
        self._dirty.clear()
        # What is not wanted any more is not tried again.
        self._refused_writes = {k: v for k, v in self._refused_writes.items() if k[0] == NODE}
        now_ms = self._now_ms(now.mono)
        self._names = names(self._replica, now_ms)
        yield from self._tell_certificate(now)
        yield from self._expel(now)
        yield from self._settle_holdings(now)
        yield from self._bear_witness(now)

    def _settle_holdings(self, now: Now, *, write: bool = True) -> Iterator[Step]:
        holdings, now_ms = self.holdings, self._now_ms(now.mono)
        for one in holdings.settle(self._replica, self.members(), now_ms=now_ms, mono=now.mono):
            match one:
                case Moved():
                    yield self._told_move(one)
                case Write() if write:
                    yield from self._put(one, now)
        if self._config.vpn:
            found, own = holdings.places, self._identity.node_id
            networks = {**holdings.networks, own: holdings.own_networks}
            yield from self._core.set_addresses(found.own, found.others, now, networks=networks)

    def _told_move(self, moved: Moved) -> events.Log:
        member = self._replica.directory.member(moved.winner)
        name = self.name_of(member) if member else id_text(moved.winner)
        fields = {"event": moved.event, "peer": id_text(moved.winner), "peer_name": name}
        return events.Log(logging.WARNING, f"{name} holds {moved.what}", fields)

    def _bear_witness(self, now: Now) -> Iterator[Step]:
        inside = self._inside()
        standing_now = self._where_all_stand()
        writes = self._witness.writes(
            self._replica,
            self.holdings.claims(inside),
            [one for one in self._replica.directory if standing_now.is_open(one)]
            if self._newcomer.informed
            else [],
            self.alive() | {self._identity.node_id},
            quality=self._ledger.timekeeper.quality,
            mono=now.mono,
        )
        for one in writes:
            yield from self._put(one, now)

    def _expel(self, now: Now) -> Iterator[events.Action]:
        """End it with peers that are out: at once, whatever else there is to do."""
        directory = self._replica.directory
        excess = self._where_all_stand().excess
        out = directory.is_revoked(self._identity.member())
        for peer in list(self._core.peers.values()):
            denied = excess.get(peer.node_id)
            if out or directory.is_revoked(peer.member):
                denied = Denied("revoked", "revoked by the operator")
            if denied is not None:
                yield from self._core.expel(peer.node_id, denied.cause, denied.detail, now)

    def _members_met(self) -> dict[bytes, Peer]:
        """Return the peers but for operators that look in: they tell nobody who is in."""
        peers = self._core.peers.values()
        return {one.node_id: one for one in peers if not is_visitor(one.member.labels)}

    def _meet(self, mono: float) -> None:
        met = self._members_met()
        self._newcomer.meet(met, contact=any(one.up for one in met.values()), mono=mono)

    def _judge_those_met(self, now: Now) -> Iterator[events.Action]:
        members = {one.node_id: one.member for one in self._members_met().values()}
        denied = self._newcomer.settle(partial(self._reckon, ()), members)
        self._standing = None
        yield events.Remember(INFORMED_KEY, b"\x01")
        for node_id, why in denied.items():
            yield from self._core.expel(node_id, why.cause, why.detail, now)
        self._dirty.add(WITNESS)
        self._due = now.mono

    def _inside(self) -> frozenset[bytes]:
        return frozenset(one.node_id for one in self.members())

    # What this node says of itself

    def _tell_certificate(self, now: Now) -> Iterator[Step]:
        own = self._identity
        present = self._replica.slot(MEMBER, id_text(own.node_id), own.node_id)
        if present is None or present.value != own.certificate:
            yield from self._put(Write(MEMBER, id_text(own.node_id), own.certificate), now)

    def _tell_endpoints(self, now: Now) -> Iterator[Step]:
        self._endpoints_due = now.mono + ENDPOINTS_SECONDS
        here = [
            Endpoint(host, self._config.port)
            for host in self._hosts
            if is_candidate(host, own=(), refused=self._config.refused)
        ]
        if here:
            key = endpoints_key(self._identity.node_id)
            write = Write(NODE, key, endpoints_value(here))
            yield from self._put(write, now, BUCKETS[NODE].lease_max_ms)

    def _follow_endpoints(self, now: Now) -> Iterator[Step]:
        """Look for members where the ledger says they are, unless they are found already."""
        moved, self._moved = self._moved, {}
        for node_id, endpoints in moved.items():
            found_already = node_id in self._core.contacts()
            if endpoints and node_id != self._identity.node_id and not found_already:
                key = f"ledger:{id_text(node_id)}"
                found = events.Discovered(key, endpoints, LEAD_SECONDS, node_id=node_id)
                yield from self._core.handle(found, now)

    def _put(self, write: Write, now: Now, lease_ms: int | None = None) -> Iterator[gossip.Action]:
        if self._replica.directory.is_revoked(self._identity.member()):
            return
        now_ms = self._now_ms(now.mono)
        writer, about = self._ledger.writer, (write.bucket, write.key)
        try:
            written = writer.put(write.bucket, write.key, write.value, now_ms, lease_ms=lease_ms)
        except WriteError as error:
            # Its clock was just put back, say: what is still wanted then is written later.
            self._refused_writes[about] = Problem("ledger-write", str(error), error.hint or "")
            self._due = now.mono + RETRY_SECONDS
            self._endpoints_due = min(self._endpoints_due or math.inf, self._due)
            return
        self._refused_writes.pop(about, None)
        yield from self._ledger.local(written, now.mono)

    # Standing

    def _where_all_stand(self) -> Standing:
        if self._standing is None or self._standing_until <= self.mono:
            self._standing = self._reckon()
            self._standing_until = self.mono + STANDING_SECONDS
        return self._standing

    def _reckon(
        self, candidates: tuple[Member, ...] = (), known: set[bytes] | None = None
    ) -> Standing:
        if known is None:
            known = self._newcomer.known(self._members_met())
        return standing(
            self._replica,
            own=self._identity.member(),
            known=known,
            candidates=candidates,
            now_ms=self._now_ms(self.mono),
        )

    def _now_ms(self, mono: float) -> int:
        return self._ledger.timekeeper.now_ms(mono)
