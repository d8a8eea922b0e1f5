"""A visit: the operator's machine speaks to one node over UDP, as the nodes do. Sans-IO.

With the root key it signs itself a grant of one hour, with the label OPERATOR_LABEL, and a
certificate. It takes part in no overlay, has no address, writes nothing in its own name and is
gone when it stops. It authenticates by the ordinary handshake, and reconciles by the ordinary
messages (docs/wire-format.md, docs/ledger.md) until both sides have the same entries.

Silence is how a node says that nothing differs, but it is silent as well while it listens to
somebody else, or if a datagram was lost. So each round opens with a digest that cannot be right:
the node answers with its own, and if those are ours, nothing differs.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from appliance.ledger import messages, reconcile
from appliance.ledger.directory import Directory
from appliance.ledger.entry import Entry, read_entry
from appliance.ledger.errors import EntryError, MessageError
from appliance.ledger.messages import Ack, Digests, Entries, Ids, Message, Ping, Want
from appliance.ledger.state import Replica, Verdict
from appliance.operator.rootkey import RootKey
from appliance.overlay import events, wire
from appliance.overlay.clock import Now
from appliance.overlay.endpoint import Endpoint
from appliance.overlay.errors import WireError
from appliance.overlay.handshake import Handshakes
from appliance.overlay.otp import Seed
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
from appliance.overlay.post import Letter, Post
from appliance.overlay.seal import Sealer
from appliance.overlay.sessions import Sessions
from appliance.overlay.visitors import OPERATOR_LABEL
from provisioning.identity import Identity, new_identity, read_identity, write_identity
from provisioning.membership import CertificateError, Member
from provisioning.token import make_token

DEFAULT_PORT = 51820
LIFE_SECONDS = 3600
# A round that is not answered is begun again after this, and one that found something goes on.
AGAIN_SECONDS = 1.0
ON_SECONDS = 0.05
# Rounds without progress although something differs: what one of both does not take.
STUCK = 20


def visiting_identity(root: RootKey, unix: float) -> Identity:
    """Return an identity for one visit; its keys are in memory only."""
    token = make_token(
        root.network,
        root.seed,
        now=unix,
        roles=frozenset({"none"}),
        labels={OPERATOR_LABEL: "1"},
        expires=int(unix) + LIFE_SECONDS,
    )
    return read_identity(write_identity(new_identity(token, name="operator", now=unix)))


@dataclass(slots=True)
class Visitor:
    """One visit. Begin with `begin`, feed `datagram` and `tick`; ``calm``: nothing differs.

    ``trouble`` says why it cannot go on; ``replica`` is what is known so far.
    """

    root: RootKey
    target: Endpoint
    port: int
    began: Now
    random: Callable[[int], bytes] = os.urandom
    host: Member | None = None
    host_ms: int | None = None
    trouble: str | None = None
    replica: Replica = field(init=False)
    _identity: Identity = field(init=False)
    _post: Post = field(init=False)
    _handshakes: Handshakes = field(init=False)
    _sessions: Sessions = field(default_factory=Sessions)
    _met: dict[bytes, Member] = field(default_factory=dict)
    _salt: bytes = b""
    _next_at: float = 0.0
    _same: bool = False
    _progress: bool = False
    _idle: int = 0
    _unsettled: dict[bytes, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        network = self.root.network
        self._identity = visiting_identity(self.root, self.began.unix)
        self.replica = Replica(Directory(network))
        self._post = Post(Sealer(Seed(network.otp_seed, network.epoch)), self.random)
        self._handshakes = Handshakes(
            self._identity, lambda *_: None, lambda _: Facts(self.port), self.random
        )

    @property
    def calm(self) -> bool:
        """Whether both sides have the same entries, as far as they take them."""
        return self._same or self._idle >= STUCK

    @property
    def unsettled(self) -> frozenset[bytes]:
        """The ids of entries that the node was given again and again, and did not take."""
        return frozenset() if self._same else frozenset(self._unsettled)

    def begin(self, now: Now) -> list[events.Send]:
        """Knock."""
        epoch = self.root.network.epoch
        return self._outcomes(self._handshakes.initiate(self.target, now, epoch), now)

    def publish(self, entries: Sequence[Entry], now: Now) -> list[events.Send]:
        """Tell the node of entries that are in the replica already; then go on until `calm`."""
        self._same, self._idle = False, 0
        self._unsettled.clear()
        out: list[events.Send] = []
        for one in messages.pack_entries([each.record for each in entries], reply=False):
            out += self._say(one, now)
        return out + self._ask(now)

    def next_timer(self) -> float:
        """Return the monotonic time at which `tick` has something to do."""
        maybe = self._handshakes.next_timer()
        return self._next_at if maybe is None else min(self._next_at, maybe)

    def tick(self, now: Now) -> list[events.Send]:
        """Repeat what was not answered."""
        out = self._outcomes(self._handshakes.tick(now), now)
        if self._next_at > now.mono:
            return out
        if self.host is None or self.calm:
            self._next_at = now.mono + AGAIN_SECONDS
            return out
        return out + self._ask(now)

    def datagram(self, data: bytes, source: Endpoint, now: Now) -> list[events.Send]:
        """Take what came in; what is not from the node that is visited is left alone."""
        if source != self.target:
            return []
        try:
            letter = self._post.read(data, source, now)
            if letter is None or letter.timeless:
                return []
            return self._letter(letter, source, now)
        except (WireError, CertificateError, MessageError):
            # Noise, or a datagram of an epoch that this machine does not know.
            return []

    def _letter(self, letter: Letter, source: Endpoint, now: Now) -> list[events.Send]:
        payload = letter.payload
        if isinstance(payload, wire.Signed):
            outcomes = self._handshakes.receive(letter.kind, payload, source, now, letter.epoch)
            return self._outcomes(outcomes, now)
        if not isinstance(payload, wire.Carried) or letter.kind is not wire.Kind.GOSSIP:
            return []
        session = self._sessions.find(payload.session)
        if session is None or not session.open(letter.kind, letter.epoch, payload):
            return []
        return self._message(messages.decode_message(payload.data), now)

    # Being let in

    def _outcomes(self, outcomes: Sequence[Outcome], now: Now) -> list[events.Send]:
        out: list[events.Send] = []
        for one in outcomes:
            match one:
                case Transmit(message, destination, epoch):
                    out += _sends(self._post.outside(message, destination, epoch, now))
                case Accepted():
                    self._met[one.member.node_id] = one.member
                    self._sessions.add(one.member.node_id, one.session, ready=not one.initiated)
                case Acknowledged(node_id, _, session):
                    self._sessions.confirm(session)
                    if self.host is None and node_id in self._met:
                        self.host = self._met[node_id]
                        out += self._ask(now)
                case TurnedAway(member, _, detail, _):
                    self.trouble = f"{member.name} does not let this machine in: {detail}"
                case Refused(_, detail, _, _) if self.host is None:
                    self.trouble = f"its answer is refused: {detail}"
                case GaveUp():
                    self.trouble = "nobody answers there"
                case _:
                    pass
        return out

    # Reconciling

    def _ask(self, now: Now) -> list[events.Send]:
        """Begin a round."""
        self._salt = self.random(messages.SALT_SIZE)
        self._next_at = now.mono + AGAIN_SECONDS
        wrong = Digests(self._salt, ((b"", self.random(messages.SHORT)),))
        token = int.from_bytes(self.random(4))
        return self._say(wrong, now) + self._say(Ping(token, 0, 0, 0, ()), now)

    def _message(self, message: Message, now: Now) -> list[events.Send]:
        match message:
            case Entries(_, records):
                self._take(records, now)
                return []
            case Ack(_, _, ms, _, _, _, _):
                self.host_ms = ms or self.host_ms
                return []
            case Digests() | Ids() | Want():
                return self._answer(message, now)
            case _:
                return []

    def _take(self, records: Sequence[bytes], now: Now) -> None:
        for record in records:
            try:
                entry = read_entry(record)
            except EntryError:
                continue
            outcome = self.replica.apply(entry, int(now.unix * 1000))
            self._progress |= outcome.verdict is Verdict.ACCEPTED

    def _answer(self, message: Digests | Ids | Want, now: Now) -> list[events.Send]:
        if isinstance(message, Digests):
            answers = reconcile.on_digests(self.replica, message)
        elif isinstance(message, Ids):
            answers = reconcile.on_ids(self.replica, message)
        else:
            answers = reconcile.on_want(self.replica, message)
        if message.salt == self._salt and message.ranges and message.ranges[0][0] == b"":
            self._judge(same=not answers, now=now)
        out: list[events.Send] = []
        for one in answers:
            if isinstance(one, Entries):
                self._note_given(one.records)
            out += self._say(one, now)
        return out

    def _note_given(self, records: Sequence[bytes]) -> None:
        for record in records:
            entry_id = read_entry(record).entry_id
            if entry_id not in self._unsettled:
                self._unsettled[entry_id] = None
                self._progress = True

    def _judge(self, *, same: bool, now: Now) -> None:
        """Take note of whether the node's digests are ours."""
        self._same = same
        self._idle = 0 if self._progress else self._idle + 1
        self._progress = False
        self._salt = b""
        self._next_at = now.mono + ON_SECONDS

    def _say(self, message: Message, now: Now) -> list[events.Send]:
        host = self.host
        session = self._sessions.latest(host.node_id) if host else None
        if session is None:
            return []
        epoch = self.root.network.epoch
        data = messages.encode_message(message)
        carried = session.seal(wire.Kind.GOSSIP, self._identity.node_id, epoch, data)
        sealed = wire.encode_message(wire.Kind.GOSSIP, carried)
        return _sends(self._post.outside(sealed, self.target, epoch, now))


def _sends(actions: Sequence[events.Action]) -> list[events.Send]:
    return [one for one in actions if isinstance(one, events.Send)]


def parse_target(text: str) -> tuple[str, int]:
    """Return host and port of ``HOST[:PORT]``, an IPv6 address in brackets if it has a port.

    Raises ValueError.
    """
    try:
        return str(ipaddress.IPv6Address(text)), DEFAULT_PORT
    except ValueError:
        pass
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, str(DEFAULT_PORT)
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536 or host.startswith("-"):
        raise ValueError(text)
    return host, int(port)
