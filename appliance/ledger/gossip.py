"""One node of the ledger, sans-IO: writes, datagrams and time in; datagrams and changes out.

It ties together a replica (`state`), news (`push`), reconciliation (`reconcile`), liveness
(`swim`) and time (`timekeeper`). Sealing and peer authentication are the overlay's; entries are
verified here whoever relays them. Reading a datagram only queues it: `work` does the costly part,
a bounded number of messages at a time and one peer after the other, so that a flood delays only
the one who makes it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from random import Random

from appliance.ledger import reconcile
from appliance.ledger.entry import Entry, read_entry
from appliance.ledger.errors import EntryError, MessageError
from appliance.ledger.exchanges import Exchanges
from appliance.ledger.hlc import MAX_SKEW_MS, ms_of
from appliance.ledger.limits import Allowance, Offence, PeerAccount
from appliance.ledger.messages import (
    SALT_SIZE,
    Ack,
    Digests,
    Entries,
    Ids,
    Message,
    Ping,
    PingRequest,
    Want,
    decode_message,
    encode_message,
    pack_entries,
)
from appliance.ledger.push import WAVE_SECONDS, News
from appliance.ledger.rules import MEMBER, REVOKED
from appliance.ledger.state import TRANSIENT, Change, Outcome, Reason, Replica, Verdict
from appliance.ledger.swim import Detector, Probe, Status, StatusChanged, SwimConfig
from appliance.ledger.timekeeper import Quality, Reading, Timekeeper
from appliance.ledger.writer import Writer, Written

RECONCILE_SECONDS = 30.0
FIRST_SECONDS = 0.02
# About 0.1 ms each on a PC, 1 ms on a Pi 3: a flood holds the event loop up no longer than this.
WORK = 48
RETOLD_PER_SECOND = 4.0
RETOLD_BURST = 32.0
LEFT_MAX = 1024
ORPHANS_MAX = 512
ORPHANS_PER_PEER = 64


@dataclass(frozen=True, slots=True)
class Send:
    """Seal these bytes and send them to a member."""

    peer: bytes
    data: bytes


@dataclass(frozen=True, slots=True)
class Changed:
    """The replica changed: store it, tell whoever watches."""

    change: Change


@dataclass(frozen=True, slots=True)
class Alive:
    """Somebody's liveness changed in this node's eyes."""

    node: bytes
    status: Status


@dataclass(frozen=True, slots=True)
class Note:
    """Something for the log; ``code`` is stable, ``peer`` who it is about."""

    code: str
    message: str
    peer: bytes


Action = Send | Changed | Alive | Note


@dataclass(frozen=True, slots=True)
class GossipConfig:
    """Seconds between reconciliations, and the liveness probes' times (None: no probes)."""

    reconcile: float = RECONCILE_SECONDS
    swim: SwimConfig | None = field(default_factory=SwimConfig)


def _answer(replica: Replica, message: Digests | Ids | Want) -> list[Message]:
    match message:
        case Digests():
            return reconcile.on_digests(replica, message)
        case Ids():
            return reconcile.on_ids(replica, message)
        case Want():
            return reconcile.on_want(replica, message)


class Gossip:
    """A node among its peers. ``mono`` is a monotonic clock in seconds."""

    def __init__(
        self,
        writer: Writer,
        timekeeper: Timekeeper,
        random: Random,
        mono: float,
        config: GossipConfig | None = None,
    ) -> None:
        self.writer = writer
        self.replica = writer.replica
        self.timekeeper = timekeeper
        self.config = config or GossipConfig()
        self.rejected: dict[Reason, int] = {}
        self._random = random
        self._news = News(random)
        self._accounts: dict[bytes, PeerAccount] = {}
        self._left: OrderedDict[bytes, PeerAccount] = OrderedDict()
        self._peers: list[bytes] = []
        self._turn: deque[bytes] = deque()
        self._exchanges = Exchanges()
        self._orphans: dict[bytes, list[tuple[bytes, Entry]]] = {}
        self._wave_at: float | None = None
        self._retelling = Allowance(RETOLD_PER_SECOND, RETOLD_BURST, RETOLD_BURST, mono)
        self._reconcile_at = mono + random.random()
        self._ring_next = True
        self._latest_ms = 0
        swim = self.config.swim
        self.detector = Detector(writer.owner, random, swim, mono) if swim else None
        self._watched = -1

    # In

    def set_peers(self, peers: Iterable[bytes], mono: float) -> None:
        """Say to whom datagrams can be sent now. A new peer is reconciled with soon."""
        wanted = sorted(set(peers) - {self.writer.owner})
        new = set(wanted) - self._accounts.keys()
        for gone in sorted(self._accounts.keys() - set(wanted)):
            # Kept for a while: who is muted does not come back clean by reconnecting.
            self._left[gone] = self._accounts.pop(gone)
            if len(self._left) > LEFT_MAX:
                self._left.popitem(last=False)
            self._exchanges.forget(gone)
            self.timekeeper.forget(gone)
        for one in wanted:
            if one in new:
                self._accounts[one] = (
                    self._left.pop(one) if one in self._left else PeerAccount(mono)
                )
        self._peers = wanted
        if new:
            at = mono + FIRST_SECONDS * (1 + self._random.random())
            self._exchanges.first(self._random.choice(sorted(new)), at)

    def local(self, written: Written, mono: float) -> list[Action]:
        """Tell the peers what this node wrote (it is in the replica already)."""
        out: list[Action] = [Changed(one) for one in written.outcome.changes]
        self._spread(written.entry, None, mono)
        self._tell(mono, out, fresh=True)
        return out

    def inject(self, entry: Entry, mono: float) -> tuple[Outcome, list[Action]]:
        """Take in what another owner signed and somebody handed in here, and tell the peers.

        It is judged as if a peer had sent it, only that nobody is blamed for it.
        """
        out: list[Action] = []
        # As from this node itself: it is no peer, so nothing is sent back or held against it.
        outcome = self._apply(self.writer.owner, entry, mono, out)
        self._tell(mono, out, fresh=True)
        return outcome, out

    def datagram(self, peer: bytes, data: bytes, mono: float) -> bool:
        """Queue a datagram from an authenticated peer. False: dropped unread."""
        account = self._accounts.get(peer)
        if account is None or not account.admit(data, mono):
            return False
        if len(account.queue) == 1:
            self._turn.append(peer)
        return True

    def work(self, mono: float, budget: int = WORK) -> list[Action]:
        """Handle queued datagrams, one peer after the other, until ``budget`` is used up.

        A datagram costs one, and one for each signature that was checked.
        """
        out: list[Action] = []
        while self._turn and budget > 0:
            peer = self._turn.popleft()
            account = self._accounts.get(peer)
            if account is None or not account.queue:
                continue
            data = account.queue.popleft()
            if account.queue:
                self._turn.append(peer)
            budget -= 1 + self._handle(peer, account, data, mono, out)
        self._tell(mono, out, fresh=True)
        return out

    @property
    def busy(self) -> bool:
        """Whether `work` has something to do."""
        return bool(self._turn)

    def tick(self, mono: float) -> list[Action]:
        """Do what is due by now."""
        out: list[Action] = []
        self._look_at_clock(mono, out)
        out.extend(Changed(one) for one in self.replica.sweep(self.timekeeper.now_ms(mono)))
        if self._wave_at is not None and mono >= self._wave_at:
            self._tell(mono, out, fresh=False)
        for peer in self._exchanges.take_due(mono):
            self._open(peer, mono, out)
        if mono >= self._reconcile_at:
            self._reconcile_at = mono + self.config.reconcile * (0.75 + self._random.random() / 2)
            partner = self._partner() if self._peers else None
            if partner is not None and not self._exchanges.waits(partner, mono):
                self._exchanges.regular(partner)
                self._open(partner, mono, out)
        if self.detector is not None:
            if self._watched != self.replica.directory.generation:
                self._watched = self.replica.directory.generation
                self.detector.set_members(one.node_id for one in self.replica.directory)
            if mono >= self.detector.next_timer():
                self._probes(self.detector.tick(mono, self._reading(mono)), out)
        return out

    def next_timer(self) -> float:
        """Return the monotonic time at which `tick` has something to do."""
        maybe = self._exchanges.next_timer(), self._wave_at
        times = [self._reconcile_at, *(one for one in maybe if one is not None)]
        if self.detector is not None:
            times.append(self.detector.next_timer())
        return min(times)

    # Messages

    def _handle(
        self, peer: bytes, account: PeerAccount, data: bytes, mono: float, out: list[Action]
    ) -> int:
        """Handle one datagram; return what it cost beyond reading it."""
        try:
            message = decode_message(data)
        except MessageError as error:
            if not error.newer:
                self._offence(peer, Offence.MALFORMED, str(error), mono, out)
            return 0
        match message:
            case Entries(reply, records):
                self._entries(peer, records, mono, out, reply=reply)
                return len(records)
            case Digests() if self._exchanges.waits(peer, mono):
                pass
            case Digests() | Ids() | Want():
                answers = _answer(self.replica, message)
                for answer in answers:
                    self._send(peer, account, answer, mono, out)
                if answers:
                    self._exchanges.differs(peer, mono)
            case Ping() | Ack():
                if message.ms:
                    reading = Reading(message.ms, Quality(message.quality))
                    self.timekeeper.report(peer, reading, mono)
                self._liveness(peer, message, mono, out)
            case PingRequest():
                self._liveness(peer, message, mono, out)
        return 0

    def _entries(
        self,
        peer: bytes,
        records: tuple[bytes, ...],
        mono: float,
        out: list[Action],
        *,
        reply: bool,
    ) -> None:
        fresh = 0
        for record in records:
            try:
                entry = read_entry(record)
            except EntryError as error:
                if not error.newer:
                    self._offence(peer, Offence.MALFORMED, str(error), mono, out)
                    return
                continue
            outcome = self._apply(peer, entry, mono, out, tell=not reply)
            fresh += outcome.verdict is Verdict.ACCEPTED
            if outcome.reason is Reason.FORGED:
                return
            if outcome.newer is not None and not reply:
                # The peer passes on what is outdated: what it lacks is one entry.
                self._answer_with(peer, outcome.newer, mono, out)
        if reply and fresh and peer in self._accounts:
            self._exchanges.received(peer, fresh, mono)

    def _apply(
        self, peer: bytes, entry: Entry, mono: float, out: list[Action], *, tell: bool = True
    ) -> Outcome:
        now_ms = self.timekeeper.now_ms(mono)
        outcome = self.replica.apply(entry, now_ms)
        out.extend(Changed(one) for one in outcome.changes)
        match outcome.verdict:
            case Verdict.ACCEPTED:
                self.writer.clock.observe(entry.stamp, now_ms)
                for change in outcome.changes:
                    if change.old is not None:
                        self._news.forget(change.old.entry_id)
                self._recover(peer, entry, out)
                # What reconciliation brings is news only where a partition has healed.
                if tell or self._retelling.take(1.0, mono):
                    self._spread(entry, peer, mono)
                if entry.bucket == MEMBER:
                    self._adopt(entry.owner, mono, out)
            case Verdict.KNOWN:
                self._news.heard(entry.entry_id, peer)
            case Verdict.REJECTED:
                self._refused(peer, entry, outcome.reason, mono, out)
        return outcome

    def _refused(
        self, peer: bytes, entry: Entry, reason: Reason | None, mono: float, out: list[Action]
    ) -> None:
        if reason is None:
            return
        self.rejected[reason] = self.rejected.get(reason, 0) + 1
        if reason is Reason.UNKNOWN_OWNER and entry.bucket not in {MEMBER, REVOKED}:
            self._keep_orphan(peer, entry)
        elif reason is Reason.FORGED:
            # Nobody passes on what it has verified itself unless it was right.
            self._offence(peer, Offence.FORGED, f"{entry.bucket}/{entry.key}", mono, out)
        elif reason not in TRANSIENT | {Reason.OVER_QUOTA, Reason.VOIDED}:
            what = f"{entry.bucket}/{entry.key}: {reason.value}"
            self._offence(peer, Offence.AGAINST_RULES, what, mono, out)

    def _recover(self, peer: bytes, entry: Entry, out: list[Action]) -> None:
        if self.writer.recover(entry):
            said = f"an own entry that this node had forgotten, number {entry.sequence}"
            out.append(Note("own-entry", said, peer))

    def _liveness(
        self, peer: bytes, message: Ping | Ack | PingRequest, mono: float, out: list[Action]
    ) -> None:
        if self.detector is not None:
            self._probes(self.detector.receive(peer, message, mono, self._reading(mono)), out)

    def _probes(self, items: list[Probe | StatusChanged], out: list[Action]) -> None:
        for one in items:
            match one:
                case Probe(to, message):
                    out.append(Send(to, encode_message(message)))
                case StatusChanged(node, status):
                    out.append(Alive(node, status))

    # Entries whose owner is not known yet

    def _keep_orphan(self, peer: bytes, entry: Entry) -> None:
        waiting = self._orphans.setdefault(entry.owner, [])
        of_peer = sum(one == peer for group in self._orphans.values() for one, _ in group)
        total = sum(map(len, self._orphans.values()))
        if of_peer < ORPHANS_PER_PEER and total < ORPHANS_MAX:
            waiting.append((peer, entry))
        elif not waiting:
            del self._orphans[entry.owner]

    def _adopt(self, owner: bytes, mono: float, out: list[Action]) -> None:
        for peer, entry in self._orphans.pop(owner, ()):
            self._apply(peer, entry, mono, out)

    # Out

    def _spread(self, entry: Entry, source: bytes | None, mono: float) -> None:
        if self.replica.by_id(entry.entry_id) is None:
            return
        self._news.add(entry, max(len(self.replica.directory), len(self._peers) + 1), source)
        if self._wave_at is None:
            self._wave_at = mono + WAVE_SECONDS

    def _tell(self, mono: float, out: list[Action], *, fresh: bool) -> None:
        if not len(self._news):
            self._wave_at = None
            return
        for peer, records in self._news.wave(self._peers, fresh=fresh).items():
            out.extend(
                Send(peer, encode_message(one)) for one in pack_entries(records, reply=False)
            )
        if not fresh:
            self._wave_at = mono + WAVE_SECONDS if len(self._news) else None

    def _answer_with(self, peer: bytes, entry: Entry, mono: float, out: list[Action]) -> None:
        account = self._accounts.get(peer)
        if account is not None:
            self._send(peer, account, Entries(reply=True, records=(entry.record,)), mono, out)

    def _open(self, peer: bytes, mono: float, out: list[Action]) -> None:
        account = self._accounts.get(peer)
        if account is not None:
            salt = self._random.randbytes(SALT_SIZE)
            self._send(peer, account, reconcile.opening(self.replica, salt), mono, out)

    def _send(
        self, peer: bytes, account: PeerAccount, message: Message, mono: float, out: list[Action]
    ) -> None:
        data = encode_message(message)
        if account.may_send(len(data), mono):
            out.append(Send(peer, data))

    def _partner(self) -> bytes:
        """Return the ring's next peer or a random one, in turn.

        The ring leaves no pair of neighbours to chance; the random one makes paths short.
        """
        self._ring_next = not self._ring_next
        if self._ring_next:
            later = [one for one in self._peers if one > self.writer.owner]
            return min(later or self._peers)
        return self._random.choice(self._peers)

    # Conduct and time

    def _offence(
        self, peer: bytes, offence: Offence, what: str, mono: float, out: list[Action]
    ) -> None:
        account = self._accounts.get(peer)
        if account is None:
            return
        if account.offence(offence, mono):
            seconds = account.muted_until - mono
            said = f"not listened to for {seconds:.0f} s: {offence.name.lower()}, last {what}"
            out.append(Note("peer-muted", said, peer))

    def _reading(self, mono: float) -> Reading:
        return self.timekeeper.own_reading(mono)

    def _look_at_clock(self, mono: float, out: list[Action]) -> None:
        """Undo what a wrong clock did, once it is known to have been wrong."""
        now_ms = self.timekeeper.now_ms(mono)
        behind = now_ms + MAX_SKEW_MS < max(self._latest_ms, ms_of(self.writer.clock.last))
        self._latest_ms = now_ms if behind else max(now_ms, self._latest_ms)
        if not behind:
            return
        for written in self.writer.rewrite_future(now_ms):
            out.extend(Changed(one) for one in written.outcome.changes)
            self._spread(written.entry, None, mono)
        out.extend(Changed(one) for one in self.replica.expel_future(now_ms))
        out.append(Note("clock-back", "this node's clock was ahead and was put back", b""))
