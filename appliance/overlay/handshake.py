"""Mutual authentication of two members in three messages and an acknowledgement, sans-IO.

::

    initiator                                        responder
    HELLO    nonce a                             ->
                                                 <-  REPLY    nonce b, echoes a
    (accepts) CONFIRM  nonce a, echoes b         ->
                                                 <-  DONE     nonce b, echoes a (accepts)

Each carries the sender's certificate (DONE: none) and a signed body with what the sender says of
itself; REPLY, CONFIRM and DONE also name whom they are for. Nobody is accepted before it has signed
the other's fresh nonce, so a repeated or redirected message achieves nothing; and REPLY and CONFIRM
prove, for that receiver and nonce, the WireGuard key of the certificate (`proof`). Only the
initiator retransmits: one sealed request never yields more than one answer. Two nodes that begin
at the same time run two handshakes; the outcome is the same. All messages of a handshake are sealed
in the epoch of its HELLO. A member that is not to be let in gets a REFUSAL for its nonce instead.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from appliance.overlay.admission import Denied
from appliance.overlay.certificates import Certificates
from appliance.overlay.clock import Now
from appliance.overlay.endpoint import Endpoint
from appliance.overlay.errors import WireError
from appliance.overlay.guard import HostBuckets
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
from appliance.overlay.pace import REPEATS, WINDOW, Pace
from appliance.overlay.proof import CAUSE, Statement, TunnelKeys, check_proof, make_proof
from appliance.overlay.sessions import SessionKey, session_key
from appliance.overlay.wire import (
    BOOT_SIZE,
    FILLER,
    NONCE_SIZE,
    Body,
    Kind,
    RefusalBody,
    Signed,
    decode_body,
    decode_refusal,
    encode_message,
    signed_bytes,
)
from appliance.overlay.words import cause_of, refusal_body
from provisioning import codec
from provisioning.identity import Identity
from provisioning.membership import CertificateError, Member

OUTGOING_MAX = 256
HALF_OPEN_MAX = 512
HALF_OPEN_PER_PEER = 4
HALF_OPEN_SECONDS = 30.0
ANSWERED_MAX = 128
FINISHED_MAX = 256
# Signatures that strangers can make us check: per second and at once, of one host and in all.
CHECKS_OF_HOST = 50.0, 100.0
CHECKS_IN_ALL = 200.0, 400.0


@dataclass(slots=True)
class _Outgoing:
    nonce: bytes
    target: Endpoint
    epoch: int
    message: bytes
    sent: int
    repeat_at: float
    begun: float
    # Set once the reply was accepted: who it is and the nonce that we confirmed.
    member: Member | None = None
    confirmed: bytes = b""
    session: bytes = b""


@dataclass(slots=True)
class _HalfOpen:
    nonce: bytes
    expires: float
    accepted: bool = False


@dataclass(slots=True)
class Handshakes:
    """All handshakes of a node that run at one time.

    ``denies(member, now)`` says why a member is not let in, None if it is; ``facts(epoch)`` what
    the node says of itself now.
    """

    identity: Identity
    denies: Callable[[Member, Now], Denied | None]
    facts: Callable[[int], Facts]
    random: Callable[[int], bytes]
    certificates: Certificates = field(init=False)
    # Messages that were dropped unchecked.
    dropped: int = 0
    pace: Pace = field(default_factory=Pace)
    _tunnel_keys: TunnelKeys = field(init=False)
    _outgoing: OrderedDict[bytes, _Outgoing] = field(default_factory=OrderedDict)
    _half_open: OrderedDict[tuple[bytes, bytes], _HalfOpen] = field(default_factory=OrderedDict)
    _finished: OrderedDict[bytes, None] = field(default_factory=OrderedDict)
    _checks: HostBuckets = field(default_factory=lambda: HostBuckets(CHECKS_OF_HOST, CHECKS_IN_ALL))
    # By signature: a question, the answer to it, and until when it is that.
    _answered: OrderedDict[bytes, tuple[Signed, bytes, float]] = field(default_factory=OrderedDict)
    _boot: bytes = b""
    _serial: int = 0

    def __post_init__(self) -> None:
        self._boot = self.random(BOOT_SIZE)
        self.certificates = Certificates(self.identity.network)
        self._tunnel_keys = TunnelKeys(self.identity.wg_private)

    # What the node wants

    def initiate(self, target: Endpoint, now: Now, epoch: int) -> tuple[Outcome, ...]:
        """Begin with whoever is at ``target``, unless that is under way."""
        if any(
            one.target == target and one.member is None and one.epoch == epoch
            for one in self._outgoing.values()
        ):
            return ()
        if len(self._outgoing) >= OUTGOING_MAX:
            self._finish(next(iter(self._outgoing)))
        nonce = self.random(NONCE_SIZE)
        message = self._message(Kind.HELLO, target, epoch, nonce=nonce)
        repeat_at = now.mono + self.pace.wait(1)
        self._outgoing[nonce] = _Outgoing(nonce, target, epoch, message, 1, repeat_at, now.mono)
        return (Transmit(message, target, epoch),)

    def room(self, now: Now) -> int:
        """Return how many more may be greeted now."""
        waiting = sum(
            one.member is None and self.pace.young(now.mono - one.begun)
            for one in self._outgoing.values()
        )
        return max(WINDOW - waiting, 0)

    def settle(self, target: Endpoint) -> None:
        """Stop asking who is at an endpoint: somebody from there has been accepted."""
        for one in list(self._outgoing.values()):
            if one.target == target and one.member is None:
                self._finish(one.nonce)

    def forget(self, node_id: bytes) -> None:
        """Break off everything with a node."""
        for one in list(self._outgoing.values()):
            if one.member is not None and one.member.node_id == node_id:
                self._finish(one.nonce)
        for key in [key for key in self._half_open if key[0] == node_id]:
            del self._half_open[key]
        self._answered.clear()

    def next_timer(self) -> float | None:
        """Return the monotonic time at which `tick` has something to do."""
        return min((one.repeat_at for one in self._outgoing.values()), default=None)

    def tick(self, now: Now) -> tuple[Outcome, ...]:
        """Repeat what got no answer, give up what never will."""
        outcomes: list[Outcome] = []
        for one in list(self._outgoing.values()):
            if one.repeat_at > now.mono:
                continue
            if one.sent > REPEATS:
                self._finish(one.nonce)
                if one.member is None:
                    outcomes.append(GaveUp(one.target))
                continue
            one.sent += 1
            one.repeat_at = now.mono + self.pace.wait(one.sent)
            outcomes.append(Transmit(one.message, one.target, one.epoch))
        return tuple(outcomes)

    # What comes in

    def receive(
        self, kind: Kind, signed: Signed, source: Endpoint, now: Now, epoch: int
    ) -> tuple[Outcome, ...]:
        """Handle a handshake message; whatever is wrong with it becomes a Refused."""
        try:
            if kind is Kind.REFUSAL:
                return self._refusal(signed, source, now, epoch)
            body = decode_body(kind, signed.body)
            self._check_place(body.network_id, body.epoch, epoch)
            match kind:
                case Kind.HELLO:
                    return self._hello(signed, body, source, now)
                case Kind.REPLY:
                    return self._reply(signed, body, source, now)
                case Kind.CONFIRM:
                    return self._confirm(signed, body, source, now)
                case _:
                    return self._done(signed, body, source)
        except (CertificateError, WireError) as error:
            return (Refused(cause_of(error), str(error), source),)

    def _hello(self, signed: Signed, body: Body, source: Endpoint, now: Now) -> tuple[Outcome, ...]:
        if known := self._answered.get(signed.signature):
            # The same question again: a busy machine must not be made busier by its own delay.
            question, answer, expires = known
            if question == signed and now.mono < expires:
                return (Transmit(answer, source, body.epoch),)
        if not self._may_check(source, now):
            return ()
        member = self._verify(Kind.HELLO, signed)
        if member.node_id == self.identity.node_id:
            return ()  # our own, by way of a hairpin or a second uplink
        if denied := self.denies(member, now):
            return self._turn_away(member, denied, body, source, len(signed.body))
        if not self._gives_way(member, source, now):
            return ()
        half_open = self._remember_half_open(member.node_id, body.nonce, now)
        reply = self._message(
            Kind.REPLY, source, body.epoch, nonce=half_open.nonce, to=member, echo=body.nonce
        )
        self._answered[signed.signature] = signed, reply, half_open.expires
        if len(self._answered) > ANSWERED_MAX:
            self._answered.popitem(last=False)
        return (Transmit(reply, source, body.epoch),)

    def _gives_way(self, member: Member, source: Endpoint, now: Now) -> bool:
        """Let one of two handshakes that cross go on: that of the lower node id.

        If that one's question does not get through, it is not young any more when the other asks
        again.
        """
        for one in list(self._outgoing.values()):
            if one.target != source or one.member is not None:
                continue
            if self.identity.node_id > member.node_id:
                self._finish(one.nonce)
            elif self.pace.young(now.mono - one.begun):
                return False
        return True

    def _reply(self, signed: Signed, body: Body, source: Endpoint, now: Now) -> tuple[Outcome, ...]:
        outgoing = self._outgoing.get(body.echo)
        if outgoing is None or outgoing.epoch != body.epoch:
            return self._unexpected("a reply to nothing that was asked", body.echo, source)
        member = self._verify(Kind.REPLY, signed)
        self._check_recipient(body.to)
        if member.node_id == self.identity.node_id:
            raise WireError("reflected", "a message of our own came back")
        if outgoing.member is not None and outgoing.member.node_id != member.node_id:
            raise WireError("replayed", "a second node answered the same question")
        self._check_tunnel_key(Kind.REPLY, body, member)
        if denied := self.denies(member, now):
            self._finish(outgoing.nonce)
            said = f"{member.name}: {denied.detail}"
            return (Refused(denied.cause, said, source, final=True),)
        fresh = outgoing.confirmed != body.nonce
        outgoing.member, outgoing.confirmed, outgoing.target = member, body.nonce, source
        outgoing.message = self._message(
            Kind.CONFIRM, source, body.epoch, nonce=outgoing.nonce, to=member, echo=body.nonce
        )
        transmit = Transmit(outgoing.message, source, body.epoch)
        if not fresh:
            return (transmit,)
        self.pace.answered(now.mono - outgoing.begun)
        outgoing.sent, outgoing.repeat_at = 1, now.mono + self.pace.wait(1)
        session = self._session(member, (outgoing.nonce, body.nonce), initiated=True)
        outgoing.session = session.identifier
        return (
            Accepted(member, signed.certificate, body, source, initiated=True, session=session),
            transmit,
        )

    def _confirm(
        self, signed: Signed, body: Body, source: Endpoint, now: Now
    ) -> tuple[Outcome, ...]:
        if not self._may_check(source, now):
            return ()
        member = self._verify(Kind.CONFIRM, signed)
        self._check_recipient(body.to)
        half_open = self._half_open.get((member.node_id, body.nonce))
        if half_open is None or half_open.nonce != body.echo or half_open.expires <= now.mono:
            raise WireError("replayed", "a confirmation of nothing that was asked just now")
        self._check_tunnel_key(Kind.CONFIRM, body, member)
        if denied := self.denies(member, now):
            return self._turn_away(member, denied, body, source, len(signed.body))
        done = self._message(
            Kind.DONE, source, body.epoch, nonce=half_open.nonce, to=member, echo=body.nonce
        )
        transmit = Transmit(done, source, body.epoch)
        if half_open.accepted:
            return (transmit,)
        half_open.accepted = True
        session = self._session(member, (body.nonce, half_open.nonce), initiated=False)
        return (
            Accepted(member, signed.certificate, body, source, initiated=False, session=session),
            transmit,
        )

    def _done(self, signed: Signed, body: Body, source: Endpoint) -> tuple[Outcome, ...]:
        outgoing = self._outgoing.get(body.echo)
        if outgoing is None or outgoing.member is None or outgoing.confirmed != body.nonce:
            return self._unexpected("an unasked acknowledgement", body.echo, source)
        if signed.certificate:
            raise WireError("malformed", "an acknowledgement with a certificate")
        self._check_signature(Kind.DONE, signed, outgoing.member)
        self._check_recipient(body.to)
        self._finish(outgoing.nonce)
        return (Acknowledged(outgoing.member.node_id, source, outgoing.session),)

    def _refusal(
        self, signed: Signed, source: Endpoint, now: Now, epoch: int
    ) -> tuple[Outcome, ...]:
        body = decode_refusal(signed.body)
        self._check_place(body.network_id, body.epoch, epoch)
        outgoing = self._outgoing.get(body.echo)
        if outgoing is None or outgoing.epoch != epoch:
            return self._unexpected("a refusal of nothing that was asked", body.echo, source)
        self._check_recipient(body.to)
        member = self._verify(Kind.REFUSAL, signed)
        other = outgoing.member is not None and outgoing.member.node_id != member.node_id
        if other or member.node_id == self.identity.node_id:
            raise WireError("replayed", "a refusal by a node that was not asked")
        if self.denies(member, now):
            return ()  # who is out itself has no say
        self._finish(outgoing.nonce)
        return (TurnedAway(member, body.cause, body.detail, source),)

    def _turn_away(
        self, member: Member, denied: Denied, body: Body, source: Endpoint, limit: int
    ) -> tuple[Outcome, ...]:
        """Refuse a member and tell it, in no more bytes of body than it sent."""
        told = refusal_body(body, member.node_id, denied, limit)
        message = signed_message(self.identity, Kind.REFUSAL, told)
        said = f"{member.name}: {denied.detail}"
        return Refused(denied.cause, said, source), Transmit(message, source, body.epoch)

    # Checks

    def _may_check(self, source: Endpoint, now: Now) -> bool:
        """Say whether there is time for the signatures of who was not asked."""
        if self._checks.take(source.host, now.mono):
            return True
        self.dropped += 1
        return False

    def _verify(self, kind: Kind, signed: Signed) -> Member:
        member = self.certificates.verify(signed.certificate)
        self._check_signature(kind, signed, member)
        return member

    @staticmethod
    def _check_signature(kind: Kind, signed: Signed, member: Member) -> None:
        if not member.verify(signed_bytes(kind, signed.body), signed.signature):
            what = f"not signed by the node of its certificate, {member.name}"
            raise WireError("bad-signature", what)

    def _check_place(self, network_id: bytes, said: int, epoch: int) -> None:
        if network_id != self.identity.network.network_id:
            raise WireError("other-network", "a message of another network")
        if said != epoch:
            raise WireError("replayed", f"a message of epoch {said}, sealed in epoch {epoch}")

    def _check_recipient(self, to: bytes) -> None:
        if to != self.identity.node_id:
            raise WireError("misdirected", "a message for another node")

    def _check_tunnel_key(self, kind: Kind, body: Body, member: Member) -> None:
        """Refuse a member that names a WireGuard key in its certificate without holding it."""
        own = self.identity
        statement = Statement(kind, member.node_id, own.node_id, body.nonce, body.echo)
        if not check_proof(self._tunnel_keys.shared(member.wg_key), statement, body.proof):
            who = f"{member.name} ({member.id_text})"
            what = "does not hold the WireGuard key in its certificate: that is another node's"
            raise WireError(CAUSE, f"{who} {what}")

    def _unexpected(self, what: str, echo: bytes, source: Endpoint) -> tuple[Outcome, ...]:
        # The network may deliver an answer twice; that is nothing to report.
        if echo in self._finished:
            return ()
        return (Refused("replayed", what, source),)

    def _session(
        self, member: Member, nonces: tuple[bytes, bytes], *, initiated: bool
    ) -> SessionKey:
        own = self.identity.node_id
        ids = (own, member.node_id) if initiated else (member.node_id, own)
        return session_key(self._tunnel_keys.shared(member.wg_key), nonces, ids)

    # State

    def _remember_half_open(self, node_id: bytes, nonce: bytes, now: Now) -> _HalfOpen:
        for key in [key for key, one in self._half_open.items() if one.expires <= now.mono]:
            del self._half_open[key]
        key = node_id, nonce
        half_open = self._half_open.get(key)
        if half_open is None:
            of_peer = [one for one in self._half_open if one[0] == node_id]
            if len(of_peer) >= HALF_OPEN_PER_PEER:
                del self._half_open[of_peer[0]]
            elif len(self._half_open) >= HALF_OPEN_MAX:
                self._half_open.popitem(last=False)
            half_open = self._half_open[key] = _HalfOpen(
                self.random(NONCE_SIZE), now.mono + HALF_OPEN_SECONDS
            )
        return half_open

    def _finish(self, nonce: bytes) -> None:
        del self._outgoing[nonce]
        self._finished[nonce] = None
        if len(self._finished) > FINISHED_MAX:
            self._finished.popitem(last=False)

    def _message(
        self,
        kind: Kind,
        peer: Endpoint,
        epoch: int,
        *,
        nonce: bytes,
        to: Member | None = None,
        echo: bytes = b"",
    ) -> bytes:
        facts = self.facts(epoch)
        proof = FILLER if kind is Kind.HELLO else b""
        if to is not None and kind in {Kind.REPLY, Kind.CONFIRM}:
            statement = Statement(kind, self.identity.node_id, to.node_id, nonce, echo)
            proof = make_proof(self._tunnel_keys.shared(to.wg_key), statement)
        self._serial += 1
        body = Body(
            network_id=self.identity.network.network_id,
            epoch=epoch,
            boot=self._boot,
            serial=self._serial,
            to=to.node_id if to else b"",
            nonce=nonce,
            echo=echo,
            port=facts.port,
            candidates=facts.candidates,
            observed=peer.pack(),
            proof=proof,
        )
        return signed_message(self.identity, kind, body)


def signed_message(identity: Identity, kind: Kind, body: Body | RefusalBody) -> bytes:
    """Return the message of a signed body."""
    data = codec.encode(body)
    certificate = b"" if kind is Kind.DONE else identity.certificate
    signature = identity.sign(signed_bytes(kind, data))
    return encode_message(kind, Signed(certificate, data, signature))
