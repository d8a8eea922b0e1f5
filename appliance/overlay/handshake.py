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
at the same time run two handshakes; the outcome is the same.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from appliance.overlay.clock import Now
from appliance.overlay.endpoint import Endpoint, PackedEndpoint
from appliance.overlay.errors import WireError
from appliance.overlay.proof import CAUSE, Statement, check_proof, make_proof
from appliance.overlay.wire import (
    BOOT_SIZE,
    FILLER,
    NONCE_SIZE,
    Body,
    Kind,
    Signed,
    decode_body,
    encode_message,
    signed_bytes,
)
from provisioning import codec
from provisioning.identity import Identity
from provisioning.membership import CertificateError, Member, verify_certificate

# Seconds after which a message is repeated; after the last one the attempt is given up.
RETRANSMIT_AFTER = (0.4, 0.8, 1.6, 3.2, 3.2)
OUTGOING_MAX = 256
HALF_OPEN_MAX = 512
HALF_OPEN_PER_PEER = 4
HALF_OPEN_SECONDS = 30.0
FINISHED_MAX = 256


@dataclass(frozen=True, slots=True)
class Facts:
    """What the node says of itself in a body."""

    port: int
    attempt: int = 0
    address: bytes = b""
    candidates: tuple[PackedEndpoint, ...] = ()


@dataclass(frozen=True, slots=True)
class Transmit:
    """Send a message."""

    message: bytes
    destination: Endpoint


@dataclass(frozen=True, slots=True)
class Accepted:
    """The node at ``source`` proved to be a member, and said ``body`` of itself just now."""

    member: Member
    certificate: bytes
    body: Body
    source: Endpoint
    initiated: bool


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The other side has accepted us too."""

    node_id: bytes
    source: Endpoint


@dataclass(frozen=True, slots=True)
class Refused:
    """A message was refused; ``cause`` is a short code, ``detail`` says it in words."""

    cause: str
    detail: str
    source: Endpoint


@dataclass(frozen=True, slots=True)
class GaveUp:
    """Nobody answered at the target."""

    target: Endpoint


Outcome = Transmit | Accepted | Acknowledged | Refused | GaveUp


@dataclass(slots=True)
class _Outgoing:
    nonce: bytes
    target: Endpoint
    message: bytes
    sent: int
    repeat_at: float
    # Set once the reply was accepted: who it is and the nonce that we confirmed.
    member: Member | None = None
    confirmed: bytes = b""


@dataclass(slots=True)
class _HalfOpen:
    nonce: bytes
    expires: float
    accepted: bool = False


@dataclass(slots=True)
class Handshakes:
    """All handshakes of a node that run at one time.

    ``admitted(node_id)`` says who is in already; ``facts()`` what the node says of itself now.
    """

    identity: Identity
    admitted: Callable[[bytes], bool]
    facts: Callable[[], Facts]
    random: Callable[[int], bytes]
    _outgoing: OrderedDict[bytes, _Outgoing] = field(default_factory=OrderedDict)
    _half_open: OrderedDict[tuple[bytes, bytes], _HalfOpen] = field(default_factory=OrderedDict)
    _finished: OrderedDict[bytes, None] = field(default_factory=OrderedDict)
    _boot: bytes = b""
    _serial: int = 0

    def __post_init__(self) -> None:
        self._boot = self.random(BOOT_SIZE)

    # What the node wants

    def initiate(self, target: Endpoint, now: Now) -> tuple[Outcome, ...]:
        """Begin with whoever is at ``target``, unless that is under way."""
        if any(one.target == target and one.member is None for one in self._outgoing.values()):
            return ()
        if len(self._outgoing) >= OUTGOING_MAX:
            self._finish(next(iter(self._outgoing)))
        nonce = self.random(NONCE_SIZE)
        message = self._message(Kind.HELLO, target, nonce=nonce)
        self._outgoing[nonce] = _Outgoing(nonce, target, message, 1, now.mono + RETRANSMIT_AFTER[0])
        return (Transmit(message, target),)

    def next_timer(self) -> float | None:
        """Return the monotonic time at which `tick` has something to do."""
        return min((one.repeat_at for one in self._outgoing.values()), default=None)

    def tick(self, now: Now) -> tuple[Outcome, ...]:
        """Repeat what got no answer, give up what never will."""
        outcomes: list[Outcome] = []
        for one in list(self._outgoing.values()):
            if one.repeat_at > now.mono:
                continue
            if one.sent >= len(RETRANSMIT_AFTER):
                self._finish(one.nonce)
                if one.member is None:
                    outcomes.append(GaveUp(one.target))
                continue
            one.repeat_at = now.mono + RETRANSMIT_AFTER[one.sent]
            one.sent += 1
            outcomes.append(Transmit(one.message, one.target))
        return tuple(outcomes)

    # What comes in

    def receive(
        self, kind: Kind, signed: Signed, source: Endpoint, now: Now
    ) -> tuple[Outcome, ...]:
        """Handle a handshake message; whatever is wrong with it becomes a Refused."""
        try:
            body = decode_body(kind, signed.body)
            self._check_network(body)
            match kind:
                case Kind.HELLO:
                    return self._hello(signed, body, source, now)
                case Kind.REPLY:
                    return self._reply(signed, body, source, now)
                case Kind.CONFIRM:
                    return self._confirm(signed, body, source, now)
                case _:
                    return self._done(signed, body, source)
        except CertificateError as error:
            return (Refused(error.cause.name.lower().replace("_", "-"), str(error), source),)
        except WireError as error:
            return (Refused(error.cause, str(error), source),)

    def _hello(self, signed: Signed, body: Body, source: Endpoint, now: Now) -> tuple[Outcome, ...]:
        member = self._verify(Kind.HELLO, signed, now)
        if member.node_id == self.identity.node_id:
            return ()  # our own, by way of a hairpin or a second uplink
        half_open = self._remember_half_open(member.node_id, body.nonce, now)
        reply = self._message(Kind.REPLY, source, nonce=half_open.nonce, to=member, echo=body.nonce)
        return (Transmit(reply, source),)

    def _reply(self, signed: Signed, body: Body, source: Endpoint, now: Now) -> tuple[Outcome, ...]:
        outgoing = self._outgoing.get(body.echo)
        if outgoing is None:
            return self._unexpected("a reply to nothing that was asked", body, source)
        member = self._verify(Kind.REPLY, signed, now)
        self._check_recipient(body)
        if member.node_id == self.identity.node_id:
            raise WireError("reflected", "a message of our own came back")
        first = outgoing.member is None
        if outgoing.member is not None and outgoing.member.node_id != member.node_id:
            raise WireError("replayed", "a second node answered the same question")
        self._check_tunnel_key(Kind.REPLY, body, member)
        outgoing.member, outgoing.confirmed, outgoing.target = member, body.nonce, source
        outgoing.message = self._message(
            Kind.CONFIRM, source, nonce=outgoing.nonce, to=member, echo=body.nonce
        )
        transmit = Transmit(outgoing.message, source)
        if not first:
            return (transmit,)
        outgoing.sent, outgoing.repeat_at = 1, now.mono + RETRANSMIT_AFTER[0]
        return Accepted(member, signed.certificate, body, source, initiated=True), transmit

    def _confirm(
        self, signed: Signed, body: Body, source: Endpoint, now: Now
    ) -> tuple[Outcome, ...]:
        member = self._verify(Kind.CONFIRM, signed, now)
        self._check_recipient(body)
        half_open = self._half_open.get((member.node_id, body.nonce))
        if half_open is None or half_open.nonce != body.echo or half_open.expires <= now.mono:
            raise WireError("replayed", "a confirmation of nothing that was asked just now")
        self._check_tunnel_key(Kind.CONFIRM, body, member)
        done = self._message(Kind.DONE, source, nonce=half_open.nonce, to=member, echo=body.nonce)
        if half_open.accepted:
            return (Transmit(done, source),)
        half_open.accepted = True
        accepted = Accepted(member, signed.certificate, body, source, initiated=False)
        return accepted, Transmit(done, source)

    def _done(self, signed: Signed, body: Body, source: Endpoint) -> tuple[Outcome, ...]:
        outgoing = self._outgoing.get(body.echo)
        if outgoing is None or outgoing.member is None or outgoing.confirmed != body.nonce:
            return self._unexpected("an acknowledgement of nothing that was said", body, source)
        if signed.certificate:
            raise WireError("malformed", "an acknowledgement with a certificate")
        self._check_signature(Kind.DONE, signed, outgoing.member)
        self._check_recipient(body)
        self._finish(outgoing.nonce)
        return (Acknowledged(outgoing.member.node_id, source),)

    # Checks

    def _verify(self, kind: Kind, signed: Signed, now: Now) -> Member:
        member = verify_certificate(
            signed.certificate,
            network=self.identity.network,
            now=now.unix,
            admitted=self.admitted,
        )
        self._check_signature(kind, signed, member)
        return member

    @staticmethod
    def _check_signature(kind: Kind, signed: Signed, member: Member) -> None:
        if not member.verify(signed_bytes(kind, signed.body), signed.signature):
            raise WireError(
                "bad-signature", f"not signed by the node of its certificate, {member.name}"
            )

    def _check_network(self, body: Body) -> None:
        if body.network_id != self.identity.network.network_id:
            raise WireError("other-network", "a message of another network")

    def _check_recipient(self, body: Body) -> None:
        if body.to != self.identity.node_id:
            raise WireError("misdirected", "a message for another node")

    def _check_tunnel_key(self, kind: Kind, body: Body, member: Member) -> None:
        """Refuse a member that names a WireGuard key in its certificate without holding it."""
        own = self.identity
        statement = Statement(kind, member.node_id, own.node_id, body.nonce, body.echo)
        if not check_proof(own.wg_private, member.wg_key, statement, body.proof):
            raise WireError(
                CAUSE,
                f"{member.name} ({member.id_text}) does not hold the WireGuard key in its "
                "certificate: that is another node's",
            )

    def _unexpected(self, what: str, body: Body, source: Endpoint) -> tuple[Outcome, ...]:
        # The network may deliver an answer twice; that is nothing to report.
        if body.echo in self._finished:
            return ()
        return (Refused("replayed", what, source),)

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
        *,
        nonce: bytes,
        to: Member | None = None,
        echo: bytes = b"",
    ) -> bytes:
        facts = self.facts()
        proof = FILLER if kind is Kind.HELLO else b""
        if to is not None and kind in {Kind.REPLY, Kind.CONFIRM}:
            statement = Statement(kind, self.identity.node_id, to.node_id, nonce, echo)
            proof = make_proof(self.identity.wg_private, to.wg_key, statement)
        self._serial += 1
        body = Body(
            network_id=self.identity.network.network_id,
            boot=self._boot,
            serial=self._serial,
            to=to.node_id if to else b"",
            nonce=nonce,
            echo=echo,
            port=facts.port,
            attempt=facts.attempt,
            address=facts.address,
            candidates=facts.candidates,
            observed=peer.pack(),
            proof=proof,
        )
        return signed_message(self.identity, kind, body)


def signed_message(identity: Identity, kind: Kind, body: Body) -> bytes:
    """Return the message of a signed body."""
    data = codec.encode(body)
    certificate = b"" if kind is Kind.DONE else identity.certificate
    signature = identity.sign(signed_bytes(kind, data))
    return encode_message(kind, Signed(certificate, data, signature))
