"""The control plane of one node, sans-IO: overlay and ledger as one thing.

It has the interface of `overlay.core.Core`, whose events it is fed: what comes out of the core for
the ledger goes into the gossip, what the gossip wants sent goes out through the core, and what the
ledger says decides who is a peer, under which addresses, and by which secrets (`policies`).
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from random import Random

from appliance.clock import Look
from appliance.control import keyring
from appliance.control.actions import LedgerChanged, Told
from appliance.control.policies import INFORMED_KEY, Policies
from appliance.ledger import gossip
from appliance.ledger.directory import Directory
from appliance.ledger.entry import Entry
from appliance.ledger.errors import WriteError
from appliance.ledger.hlc import Clock
from appliance.ledger.state import Change, Replica
from appliance.ledger.swim import Status
from appliance.ledger.timekeeper import Quality, Reading, Timekeeper
from appliance.ledger.writer import Writer
from appliance.overlay import events
from appliance.overlay.admission import Admits
from appliance.overlay.clock import Now
from appliance.overlay.core import Core
from appliance.overlay.peers import Peer
from appliance.overlay.refusals import Refusals
from appliance.problem import Problem
from provisioning.errors import FormatError
from provisioning.identity import Identity
from provisioning.keys import id_text

COMPACT_SECONDS = 3600.0
# A node that finds nobody asks what time it is: its own clock may be why.
ASK_TIME_SECONDS = (0.0, 5.0, 10.0, 20.0, 40.0, 60.0)
# The names of a slot are good for an hour before and after; a jump of this many may matter.
JUMP_SECONDS = 60.0
TOLD_MAX = 64
TOLD_SECONDS = 600.0
# An identity whose own entries keep coming from elsewhere is in use twice.
FORGOTTEN_MAX = 32

Action = events.Action


@dataclass(frozen=True, slots=True)
class Kept:
    """What an earlier run left: the ledger's file, and the clock's look."""

    entries: Iterable[Entry] = ()
    high_water: int = 0
    sequence: int = 0
    guess_ms: int = 0


Reader = Callable[[float], Reading]
CoreFactory = Callable[[Admits, Reader], Core]


class ControlPlane:
    """Begin with `start`, then `handle` every event, as with the overlay's core."""

    def __init__(
        self,
        identity: Identity,
        make_core: CoreFactory,
        *,
        kept: Kept,
        remembered: Mapping[str, bytes],
        random: Callable[[int], bytes],
        now: Now,
        clock: Look,
        config: gossip.GossipConfig | None = None,
    ) -> None:
        self.identity = identity
        self._mono = now.mono
        self.told: dict[bytes, Told] = {}
        chance = Random(int.from_bytes(random(16)))  # noqa: S311 - whom to gossip with
        # A clock that does not run while the machine is off tells no more than a guess.
        guess_ms = max(kept.guess_ms, 0 if clock.kept else clock.wall_ms)
        self.timekeeper = Timekeeper(identity.time_floor * 1000, guess_ms, now.mono)
        self.wall(clock, now.mono)
        replica = Replica(Directory(identity.network))
        replica.restore(kept.entries, self.timekeeper.now_ms(now.mono), own=identity.node_id)
        writer = Writer(
            replica,
            Clock(kept.high_water),
            owner=identity.node_id,
            sign=identity.sign,
            sequence=kept.sequence,
        )
        self.gossip = gossip.Gossip(writer, self.timekeeper, chance, now.mono, config)
        secrets = keyring.load(remembered.get(keyring.STORE_KEY), identity.network)
        self.core = make_core(
            # Not there yet: the core asks when somebody knocks.
            lambda member: self.policies.judge(member),  # noqa: PLW0108
            self.timekeeper.own_reading,
        )
        informed = INFORMED_KEY in remembered
        self.policies = Policies(identity, self.core, self.gossip, secrets, informed=informed)
        self._catching_up = keyring.Hearing()
        self._contacts = -1
        self._pending: list[Change] = []
        self._own_pending = False
        self._forgotten = 0
        self._offset: float | None = None
        self._ask_at: float | None = None
        self._asked = 0
        self._compact_at = now.mono + COMPACT_SECONDS

    # The interface of the core

    def start(self, adopted: events.TunnelStats, now: Now) -> list[Action]:
        """Return what brings the interface, the remembered peers and the ledger up."""
        now = self._moment(now.mono)
        out: list[Action] = []
        self.policies.begin(now)
        self._absorb(self.core.start(adopted, now), now, out)
        self._plan_time_question(now.mono)
        self._follow_up(now, out)
        return out

    def tunnel(self, now: Now) -> list[events.Action]:
        """Return what fills a tunnel that had to be made again."""
        return self.core.tunnel(self._moment(now.mono))

    def handle(self, event: events.Event, now: Now) -> list[Action]:
        """Return what follows from an event; whatever is due by now is done as well.

        Not with each of many datagrams, though: what they mean for the ledger is worked out by the
        `Tick` after them, which `next_timer` asks for.
        """
        now = self._moment(now.mono)
        out: list[Action] = []
        if isinstance(event, events.LocalAddresses):
            self.policies.local_addresses(event.hosts)
        self._absorb(self.core.handle(event, now), now, out)
        if not isinstance(event, events.DatagramReceived | events.ProbeReceived):
            self._follow_up(now, out)
        self._flush(out)
        return out

    def next_timer(self) -> float | None:
        """Return the monotonic time of the next `Tick` that has something to do."""
        if self.gossip.busy or self._contacts != self.core.generation:
            return 0.0
        maybe = self.core.next_timer(), self._ask_at, self.policies.next_timer()
        times = [self.gossip.next_timer(), self._compact_at]
        return min([*times, *(one for one in maybe if one is not None)])

    # What the edge shows

    @property
    def peers(self) -> Mapping[bytes, Peer]:
        """The members that were accepted, by node id."""
        return self.core.peers

    @property
    def refusals(self) -> Refusals:
        """Who was refused lately, the newest last."""
        return self.core.refusals

    @property
    def ipv4(self) -> ipaddress.IPv4Address | None:
        """The node's own IPv4 overlay address."""
        return self.policies.places.own

    @property
    def ipv6(self) -> ipaddress.IPv6Address:
        """The node's own IPv6 overlay address."""
        return self.core.ipv6

    # What else the edge tells

    def unix(self, mono: float) -> float:
        """Return what time it is, in Unix seconds."""
        return self.timekeeper.now_ms(mono) / 1000

    def wall(self, look: Look, mono: float) -> None:
        """Take note of a look at the machine's own clock."""
        worth = look.synced or look.kept
        self.timekeeper.wall(look.wall_ms if worth else 0, synced=look.synced, mono=mono)

    def perform(self, actions: Iterable[gossip.Action], mono: float) -> list[Action]:
        """Return what follows from the gossip's actions after a write from outside."""
        now = self._moment(mono)
        out: list[Action] = []
        self._gossip(actions, now, out)
        self._follow_up(now, out)
        return out

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What is wrong that a person should know."""
        found = list(self.policies.problems())
        unix = self.unix(self._mono)
        told = [one for one in self.told.values() if unix - one.at < TOLD_SECONDS]
        if told and not found and not any(one.up for one in self.peers.values()):
            last = max(told, key=lambda one: one.at)
            found.append(
                Problem(
                    "not-let-in",
                    f"{last.name} does not let this node in: {last.detail}",
                    "Give the node a new token: erase its data partition, then `skerry token "
                    "new` on the operator's machine.",
                )
            )
        if self._forgotten > FORGOTTEN_MAX:
            found.append(
                Problem(
                    "identity-twice",
                    "members keep showing this node entries that it has signed but never written: "
                    "another machine runs with a copy of its identity",
                    "Erase the data partition of the copy; every machine needs a token of its own.",
                )
            )
        return tuple(found)

    # Flow

    def _moment(self, mono: float) -> Now:
        self._mono = self.policies.mono = mono
        return Now(mono, self.unix(mono))

    def _look_at_time(self, now: Now, out: list[Action]) -> None:
        """Have the node announced anew if it turns out to be another time: names go by it.

        Others' messages may not open by that time, so they are asked in the way that needs none.
        """
        offset = now.unix - now.mono
        if self._offset is not None and abs(offset - self._offset) > JUMP_SECONDS:
            out.append(events.EpochsChanged())
            text = f"the time is {offset - self._offset:+.0f} s from what it was taken for"
            out.append(events.Log(logging.WARNING, text, {"event": "clock-jump"}))
            self._offset = offset
            self._absorb(self.core.ask_time(now), now, out)
        if self._offset is None:
            self._offset = offset

    def _absorb(self, actions: Iterable[events.Action], now: Now, out: list[Action]) -> None:
        """Take what is for the ledger out of the overlay's actions; the rest is for the edge."""
        for action in actions:
            match action:
                case events.Delivered(peer, data):
                    self.gossip.datagram(peer, data, now.mono)
                case events.Behind(peer, epoch):
                    for message in self.policies.catch_up(peer, epoch, now):
                        self._absorb(self.core.catch_up(peer, message, now), now, out)
                case events.CaughtUp(peer, data):
                    self._caught_up(peer, data, now, out)
                case events.RefusedBy(node_id, name, cause, detail):
                    self._refused_by(Told(node_id, name, cause, detail, now.unix), out)
                case events.TimeTold(node_id, ms, quality):
                    self.timekeeper.report(node_id, Reading(ms, Quality(quality)), now.mono)
                case events.Send() | events.SendInside():
                    self._flush(out)
                    out.append(action)
                case _:
                    out.append(action)

    def _follow_up(self, now: Now, out: list[Action]) -> None:
        """Do what the ledger has to do by now, and what follows from it."""
        self._look_at_time(self._moment(now.mono), out)
        self._meet(now)
        if self.gossip.busy:
            self._gossip(self.gossip.work(now.mono), now, out)
        if self.gossip.next_timer() <= now.mono:
            self._gossip(self.gossip.tick(now.mono), now, out)
        if self._compact_at <= now.mono:
            self._compact_at = now.mono + COMPACT_SECONDS
            self._compact(now, out)
        if self._ask_at is not None and self._ask_at <= now.mono:
            self._ask_at = None
            self._absorb(self.core.ask_time(now), now, out)
            self._plan_time_question(now.mono)
        self._decide(now, out)
        self._meet(now)
        self._flush(out)

    def _meet(self, now: Now) -> None:
        """Tell the gossip whom it can talk to."""
        if self._contacts == self.core.generation:
            return
        self._contacts = self.core.generation
        contacts = self.core.contacts()
        self.gossip.set_peers(contacts, now.mono)
        if contacts:
            self._ask_at, self._asked = None, 0
        elif self._ask_at is None:
            self._plan_time_question(now.mono)

    def _decide(self, now: Now, out: list[Action]) -> None:
        for step in self.policies.decide(now):
            match step:
                case gossip.Send() | gossip.Changed() | gossip.Alive() | gossip.Note():
                    self._gossip((step,), now, out)
                case _:
                    self._absorb((step,), now, out)

    def _gossip(self, actions: Iterable[gossip.Action], now: Now, out: list[Action]) -> None:
        for action in actions:
            match action:
                case gossip.Send(peer, data):
                    self._absorb(self.core.carry(peer, data, now), now, out)
                case gossip.Changed(change):
                    self._changed(change)
                case gossip.Alive(node, status):
                    if status is not Status.ALIVE:
                        self._absorb(self.core.doubt(node, now), now, out)
                    self.policies.liveness_changed()
                case gossip.Note(code, message, peer):
                    self._forgotten += code == "own-entry"
                    fields = {"event": f"ledger-{code}", "peer": id_text(peer) if peer else ""}
                    out.append(events.Log(logging.WARNING, message, fields))

    def _changed(self, change: Change) -> None:
        self._pending.append(change)
        entry = change.entry
        self._own_pending |= change.new is not None and entry.owner == self.identity.node_id
        self.policies.changed(entry)

    def _flush(self, out: list[Action]) -> None:
        """Let what changed be kept before anything else leaves the node."""
        if not self._pending:
            return
        writer = self.gossip.writer
        out.append(
            LedgerChanged(
                tuple(self._pending), self._own_pending, writer.clock.reserved, writer.sequence
            )
        )
        self._pending, self._own_pending = [], False

    def _caught_up(self, peer: bytes, data: bytes, now: Now, out: list[Action]) -> None:
        if not self._catching_up.admits(peer, now.mono):
            return
        try:
            actions, honest = self.policies.caught_up(keyring.read_catch_up(data), now)
            self._gossip(actions, now, out)
            wrong = "" if honest else "something in it is not signed by the root key"
        except FormatError as error:
            wrong = str(error)
        if wrong:
            self._catching_up.mute(peer, now.mono)
            fields = {"event": "catch-up", "peer": id_text(peer)}
            out.append(events.Log(logging.WARNING, f"a catch-up that is none: {wrong}", fields))

    def _refused_by(self, told: Told, out: list[Action]) -> None:
        before = self.told.pop(told.node_id, None)
        self.told[told.node_id] = told
        if len(self.told) > TOLD_MAX:
            del self.told[next(iter(self.told))]
        if before is None or before.cause != told.cause:
            text = f"{told.name} does not let this node in: {told.detail}"
            fields = {"event": "refused-by", "peer": id_text(told.node_id), "cause": told.cause}
            out.append(events.Log(logging.WARNING, text, fields))

    def _compact(self, now: Now, out: list[Action]) -> None:
        try:
            written = self.gossip.writer.compact(self.timekeeper.now_ms(now.mono))
        except WriteError as error:
            out.append(events.Log(logging.WARNING, str(error), {"event": "ledger-compact"}))
            return
        for one in written:
            self._gossip(self.gossip.local(one, now.mono), now, out)

    def _plan_time_question(self, mono: float) -> None:
        """Ask at once without a clock; with one, only if nobody is found."""
        guessing = self.timekeeper.own_reading(mono).quality is Quality.GUESSED
        step = min(self._asked + (not guessing), len(ASK_TIME_SECONDS) - 1)
        self._ask_at = mono + ASK_TIME_SECONDS[step]
        self._asked += 1
