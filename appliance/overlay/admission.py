"""Who is let in: the question that is asked of whoever knows more than the certificate's chain."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass

from appliance.overlay.clock import Now
from provisioning.membership import Member


@dataclass(frozen=True, slots=True)
class Denied:
    """Why a member with a good certificate is not let in; ``cause`` is a short code."""

    cause: str
    detail: str


Admits = Callable[[Member], Denied | None]


@dataclass(frozen=True, slots=True)
class Door:
    """Asks ``admits``; if there is none, it goes by the grant's expiry, which throws nobody out."""

    admits: Admits | None
    known: Container[bytes]

    def denies(self, member: Member, now: Now) -> Denied | None:
        """Return why a member is not let in, None if it is."""
        if self.admits is not None:
            return self.admits(member)
        expires = member.grant_expires
        if expires is None or now.unix < expires or member.node_id in self.known:
            return None
        return Denied("grant-expired", "the grant has expired")
