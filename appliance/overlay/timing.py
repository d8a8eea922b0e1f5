"""Asking members for the time, by a node that cannot know in which slot the others seal.

A question goes under a key that belongs to no slot, and carries a fresh nonce; an answer is signed
for that nonce by a member. What the answers are worth, `appliance.ledger.timekeeper` decides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from appliance.ledger.timekeeper import Reading
from appliance.overlay.certificates import Certificates
from appliance.overlay.endpoint import Endpoint
from appliance.overlay.errors import WireError
from appliance.overlay.events import TimeTold
from appliance.overlay.frames import PART_MAX
from appliance.overlay.guard import HostBuckets
from appliance.overlay.wire import (
    NONCE_SIZE,
    Kind,
    Signed,
    TimeAsk,
    TimeBody,
    decode_time,
    encode_message,
    signed_bytes,
)
from provisioning import codec
from provisioning.identity import Identity
from provisioning.membership import Member

# A question of one datagram; certificates with many labels make an answer that is longer.
ASK_SIZE = PART_MAX
ANSWERED_WITHIN = 10.0
ASKED_MAX = 8
TOLD_MAX = 64
TO_HOST = 2.0, 4.0
IN_ALL = 20.0, 20.0


@dataclass(slots=True)
class _Asked:
    nonce: bytes
    at: float
    told: set[bytes] = field(default_factory=set)


class TimeDesk:
    """Asks and answers; ``reading`` is the node's own clock, None: it answers nobody."""

    def __init__(
        self,
        identity: Identity,
        certificates: Certificates,
        reading: Callable[[float], Reading] | None,
        random: Callable[[int], bytes],
    ) -> None:
        self._identity = identity
        self._certificates = certificates
        self._reading = reading
        self._random = random
        self._asked: list[_Asked] = []
        self._answers = HostBuckets(TO_HOST, IN_ALL)

    def ask(self, mono: float) -> bytes:
        """Return a new question, for everybody."""
        nonce = self._random(NONCE_SIZE)
        self._asked = [*self._asked[1 - ASKED_MAX :], _Asked(nonce, mono)]
        bare = len(encode_message(Kind.TIME_ASK, TimeAsk(nonce, b"")))
        # A longer padding has a longer length before it, in two places.
        padding = ASK_SIZE - bare - 2
        return encode_message(Kind.TIME_ASK, TimeAsk(nonce, bytes(padding)))

    def answer(self, ask: TimeAsk, source: Endpoint, mono: float) -> bytes | None:
        """Return the answer to a question, if there is one that is no longer."""
        if self._reading is None or any(one.nonce == ask.nonce for one in self._asked):
            return None
        if not self._answers.take(source.host, mono):
            return None
        reading = self._reading(mono)
        body = codec.encode(
            TimeBody(self._identity.network.network_id, ask.nonce, reading.ms, int(reading.quality))
        )
        signature = self._identity.sign(signed_bytes(Kind.TIME_TELL, body))
        said = encode_message(Kind.TIME_TELL, Signed(self._identity.certificate, body, signature))
        return said if len(said) <= len(encode_message(Kind.TIME_ASK, ask)) else None

    def told(
        self, signed: Signed, mono: float, denies: Callable[[Member], object]
    ) -> TimeTold | None:
        """Return what a member says to a question of ours; it is heard once for each.

        Raises WireError or CertificateError for what is no member's answer.
        """
        body = decode_time(signed.body)
        if body.network_id != self._identity.network.network_id:
            raise WireError("other-network", "a message of another network")
        asked = next((one for one in self._asked if one.nonce == body.echo), None)
        if asked is None or mono > asked.at + ANSWERED_WITHIN or len(asked.told) >= TOLD_MAX:
            raise WireError("replayed", "the time, though nobody asked just now")
        member = self._certificates.verify(signed.certificate)
        if not member.verify(signed_bytes(Kind.TIME_TELL, signed.body), signed.signature):
            raise WireError(
                "bad-signature", f"not signed by the node of its certificate, {member.name}"
            )
        if member.node_id == self._identity.node_id or member.node_id in asked.told:
            return None
        if denies(member):
            return None
        asked.told.add(member.node_id)
        return TimeTold(member.node_id, body.ms, body.quality)
