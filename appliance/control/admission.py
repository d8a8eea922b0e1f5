"""Who is let in, and who is not any more (docs/ledger.md, "Who is in").

A certificate's chain proves a grant; here it is asked whether the grant may be used, and by this
node: revoked, expired or closed, used up. Of these only a revocation, and the count of a grant,
throw anybody out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from appliance.ledger import claims
from appliance.ledger.assigned import admitted_for_good, closed_grants
from appliance.ledger.directory import Directory
from appliance.ledger.rules import WITNESS
from appliance.ledger.state import Replica
from appliance.overlay.admission import Denied
from provisioning.keys import id_text
from provisioning.membership import Member

REVOKED_CAUSE = "revoked"
EXPIRED_CAUSE = "grant-expired"
CLOSED_CAUSE = "grant-closed"
USED_UP_CAUSE = "grant-used-up"


@dataclass(frozen=True, slots=True)
class Standing:
    """What the ledger, and this node's memory, say about everybody.

    ``excess`` are members beyond the count of their grant, with the reason. ``vouched`` are those
    whom somebody in good standing saw come in while their grant was open. ``now`` is Unix seconds,
    None while nobody knows the time: then no grant counts as expired.
    """

    directory: Directory
    excess: dict[bytes, Denied]
    vouched: frozenset[bytes]
    closed: frozenset[bytes]
    trusting: bool
    now: float | None

    def judge(self, member: Member) -> Denied | None:
        """Return why a node whose certificate was verified is not let in, None if it is."""
        if self.directory.is_revoked(member):
            return Denied(
                REVOKED_CAUSE,
                f"{member.name}, or the grant it came with, was revoked by the operator",
            )
        if denied := self.excess.get(member.node_id):
            return denied
        if self.is_open(member) or member.node_id in self.vouched or self.trusting:
            return None
        if member.grant_id in self.closed:
            return Denied(
                CLOSED_CAUSE,
                f"the grant of {member.name}'s token was closed: a later token replaced it",
            )
        return Denied(
            EXPIRED_CAUSE,
            f"the grant of {member.name}'s token has expired, and no member saw it come in before",
        )

    def is_open(self, member: Member) -> bool:
        """Say whether the member's grant lets new nodes in now."""
        if member.grant_id in self.closed:
            return False
        return member.grant_expires is None or self.now is None or self.now < member.grant_expires


def standing(
    replica: Replica,
    *,
    own: Member,
    known: Collection[bytes],
    candidates: Iterable[Member] = (),
    now_ms: int,
    clock: bool,
) -> Standing:
    """Return the standing of everybody.

    ``known``: whom this node has let in before (who is in stays in). ``candidates``: nodes whose
    certificates are not in the ledger yet. ``clock``: whether anybody knows what time it is.

    A node that knows nobody yet takes the first it meets for members even if their grants have
    expired since: somebody has to tell it who is in (threat-model.md, "A newcomer's first
    member").
    """
    members = {one.node_id: one for one in replica.directory}
    for one in (own, *candidates):
        if not replica.directory.is_revoked(one):
            members.setdefault(one.node_id, one)
    now = now_ms / 1000 if clock else None
    closed = frozenset(closed_grants(replica, now_ms))
    excess = _excess(replica, members, now_ms)
    found = Standing(replica.directory, excess, frozenset(), closed, trusting=False, now=now)
    vouched = _vouched(replica, found, members, {own.node_id, *known}, now_ms)
    trusting = not vouched - {own.node_id}
    return Standing(replica.directory, excess, vouched, closed, trusting, now)


def _excess(replica: Replica, members: dict[bytes, Member], now_ms: int) -> dict[bytes, Denied]:
    counted: dict[bytes, int] = {
        one.grant_id: one.grant_count for one in members.values() if one.grant_count is not None
    }
    if not counted:
        return {}
    view = claims.grant_view(replica, members.values(), now_ms)
    excess: dict[bytes, Denied] = {}
    for grant_id, count in counted.items():
        users = [one for one in members.values() if one.grant_id == grant_id]
        if len(users) <= count:
            continue
        inside = claims.admitted(view, grant_id, count)
        names = ", ".join(sorted(members[one].name for one in inside)[:8])
        for one in users:
            if one.node_id not in inside:
                excess[one.node_id] = Denied(
                    USED_UP_CAUSE,
                    f"the grant of {one.name}'s token is good for {count} node"
                    f"{'' if count == 1 else 's'} and used by {names}",
                )
    return excess


def _vouched(
    replica: Replica,
    found: Standing,
    members: dict[bytes, Member],
    known: set[bytes],
    now_ms: int,
) -> frozenset[bytes]:
    """Return who is in whatever became of its grant: to begin with by own knowledge, or the root's.

    Then whoever was seen to come in by one of these, and so on.
    """
    inside = known | set(admitted_for_good(replica, now_ms))
    inside |= {one.node_id for one in members.values() if found.is_open(one)}
    inside -= found.excess.keys()
    seen: dict[bytes, set[bytes]] = {}
    ids = {id_text(one): one for one in members}
    for entry in replica.entries(WITNESS, now_ms):
        _, _, rest = entry.key.partition("/")
        kind, _, claimant = rest.partition("/")
        if kind == claims.GRANT_KIND and claimant in ids:
            seen.setdefault(entry.owner, set()).add(ids[claimant])
    waiting = list(inside)
    while waiting:
        for one in seen.get(waiting.pop(), ()):
            if one not in inside and one not in found.excess:
                inside.add(one)
                waiting.append(one)
    return frozenset(inside)
