"""What comes out of handshakes (`appliance.overlay.handshake`), and what goes in of our own."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.overlay.endpoint import Endpoint, PackedEndpoint
from appliance.overlay.sessions import SessionKey
from appliance.overlay.wire import Body
from provisioning.membership import Member


@dataclass(frozen=True, slots=True)
class Facts:
    """What the node says of itself in a body."""

    port: int
    candidates: tuple[PackedEndpoint, ...] = ()


@dataclass(frozen=True, slots=True)
class Transmit:
    """Send a message, sealed in an epoch."""

    message: bytes
    destination: Endpoint
    epoch: int


@dataclass(frozen=True, slots=True)
class Accepted:
    """The node at ``source`` proved to be a member, and said ``body`` of itself just now.

    It shares ``session`` with us, for sure once it is acknowledged or if it began.
    """

    member: Member
    certificate: bytes
    body: Body
    source: Endpoint
    initiated: bool
    session: SessionKey


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The other side has accepted us too."""

    node_id: bytes
    source: Endpoint
    session: bytes


@dataclass(frozen=True, slots=True)
class Refused:
    """A message was refused; ``cause`` is a short code, ``detail`` says it in words.

    ``final``: there is no use in asking there again soon.
    """

    cause: str
    detail: str
    source: Endpoint
    final: bool = False


@dataclass(frozen=True, slots=True)
class TurnedAway:
    """A member at ``source`` says that it does not let us in."""

    member: Member
    cause: str
    detail: str
    source: Endpoint


@dataclass(frozen=True, slots=True)
class GaveUp:
    """Nobody answered at the target."""

    target: Endpoint


Outcome = Transmit | Accepted | Acknowledged | Refused | TurnedAway | GaveUp
