"""Who is let in, and who is not any more (docs/ledger.md, "Who is in").

A certificate's chain proves a grant; here it is asked whether the grant may be used, and by this
node: revoked, expired or closed, used up. Of these only a revocation, and the count of a grant,
throw anybody out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from appliance.ledger import claims
from appliance.ledger.assigned import admitted_for_good, closed_grants
from appliance.ledger.claims import Rank, Said, View, said_of
from appliance.ledger.directory import Directory
from appliance.ledger.state import Replica
from appliance.overlay.admission import Denied
from provisioning.membership import Member

REVOKED_CAUSE = "revoked"
EXPIRED_CAUSE = "grant-expired"
CLOSED_CAUSE = "grant-closed"
USED_UP_CAUSE = "grant-used-up"
# Reconciling with a first member takes milliseconds; this is for the others to show up as well.
INFORMED_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Bar:
    """A grant whose count is reached: the last rank that is in, and the words for the others."""

    view: View
    rank: Rank
    words: str

    def denied(self, member: Member) -> Denied:
        """Return why a member is not in."""
        return Denied(USED_UP_CAUSE, f"the grant of {member.name}'s token is {self.words}")


@dataclass(frozen=True, slots=True)
class Standing:
    """What the ledger, and this node's memory, say about everybody.

    ``excess`` are members beyond the count of their grant, with the reason. ``vouched`` are those
    whom somebody in good standing saw come in while their grant was open, ``witnessed`` those whom
    anybody says to have seen; ``said`` tells who saw whom. ``bars`` are, by grant whose count is
    reached, the rank that a newcomer would have to beat and the words for who does not. ``now`` is
    Unix seconds; where nobody has a clock it is the latest time that is known to be past, so what
    has expired by it has expired. ``spoken``: the root key
    has admitted somebody for good, and so said who was in.
    """

    directory: Directory
    excess: dict[bytes, Denied]
    vouched: frozenset[bytes]
    closed: frozenset[bytes]
    trusting: bool
    now: float
    witnessed: frozenset[bytes] = frozenset()
    members: Mapping[bytes, Member] = field(default_factory=dict)
    bars: Mapping[bytes, Bar] = field(default_factory=dict)
    said: Said | None = None
    spoken: bool = False

    def judge(self, member: Member) -> Denied | None:
        """Return why a node whose certificate was verified is not let in, None if it is."""
        if self.directory.is_revoked(member):
            return Denied(
                REVOKED_CAUSE,
                f"{member.name}, or the grant it came with, was revoked by the operator",
            )
        if denied := self.excess.get(member.node_id) or self._beyond_count(member):
            return denied
        if self.is_open(member) or self._is_vouched(member.node_id):
            return None
        if self.trusting and member.grant_id not in self.closed:
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

    def _beyond_count(self, member: Member) -> Denied | None:
        """Judge a node whose certificate is not in the ledger yet as if it were."""
        bar = self.bars.get(member.grant_id)
        if bar is None or member.node_id in self.members:
            return None
        claim = claims.Claim(member.node_id, member.grant_id)
        return None if bar.view.rank(claim) < bar.rank else bar.denied(member)

    def _is_vouched(self, node_id: bytes) -> bool:
        if node_id in self.vouched:
            return True
        if self.said is None or node_id in self.members:
            return False
        return any(node_id in self.said.saw.get(one, ()) for one in self.vouched)

    def is_late(self, member: Member) -> bool:
        """Say whether nothing but trust could let a member in: its grant has expired."""
        denied = replace(self, trusting=False).judge(member)
        return denied is not None and denied.cause == EXPIRED_CAUSE

    def is_open(self, member: Member) -> bool:
        """Say whether the member's grant lets new nodes in now."""
        if member.grant_id in self.closed:
            return False
        return member.grant_expires is None or self.now < member.grant_expires


def standing(
    replica: Replica,
    *,
    own: Member,
    known: Collection[bytes],
    candidates: Iterable[Member] = (),
    now_ms: int,
) -> Standing:
    """Return the standing of everybody.

    ``known``: whom this node let in before, when it knew whom it should (who is in stays in).
    ``candidates``: nodes whose certificates are not in the ledger yet.

    A node that knows nobody yet takes the first it meets for members even if their grants have
    expired since: somebody has to tell it who is in (`Newcomer`; threat-model.md, "A newcomer's
    first member").
    """
    members = {one.node_id: one for one in replica.directory}
    for one in (own, *candidates):
        if not replica.directory.is_revoked(one):
            members.setdefault(one.node_id, one)
    now = now_ms / 1000
    closed = frozenset(closed_grants(replica, now_ms))
    said = said_of(replica)
    excess, bars = _excess(replica, members)
    found = Standing(replica.directory, excess, frozenset(), closed, trusting=False, now=now)
    for_good = admitted_for_good(replica, now_ms)
    inside = {own.node_id, *known, *for_good}
    vouched = _vouched(found, members, inside, said.saw)
    trusting = not vouched - {own.node_id}
    witnessed = frozenset(
        one for owner, saw in said.saw.items() if owner in members for one in saw if one in members
    )
    return replace(
        found,
        vouched=vouched,
        trusting=trusting,
        witnessed=witnessed,
        members=members,
        bars=bars,
        said=said,
        spoken=bool(for_good),
    )


def _excess(
    replica: Replica, members: dict[bytes, Member]
) -> tuple[dict[bytes, Denied], dict[bytes, Bar]]:
    users: dict[bytes, list[Member]] = {}
    for one in members.values():
        if one.grant_count is not None:
            users.setdefault(one.grant_id, []).append(one)
    excess: dict[bytes, Denied] = {}
    bars: dict[bytes, Bar] = {}
    if not users:
        return excess, bars
    view = claims.grant_view(replica, members.values())
    for grant_id, group in users.items():
        count = group[0].grant_count or 0
        if len(group) < count:
            continue
        ranked = sorted(group, key=lambda one: view.rank(view.claims[one.node_id]))
        inside, out = ranked[:count], ranked[count:]
        names = ", ".join(sorted(one.name for one in inside)[:8])
        words = f"good for {count} node{'' if count == 1 else 's'} and used by {names}"
        last = view.rank(view.claims[inside[-1].node_id]) if inside else claims.BEST_RANK
        bar = bars[grant_id] = Bar(view, last, words)
        excess.update((one.node_id, bar.denied(one)) for one in out)
    return excess, bars


def _vouched(
    found: Standing,
    members: Mapping[bytes, Member],
    inside: set[bytes],
    seen: Mapping[bytes, set[bytes]],
) -> frozenset[bytes]:
    """Return who is in whatever became of its grant: by own knowledge or the root's to begin with.

    Then whoever was seen to come in by one of these, and so on.
    """
    inside |= {one.node_id for one in members.values() if found.is_open(one)}
    inside -= found.excess.keys()
    waiting = list(inside)
    while waiting:
        for one in seen.get(waiting.pop(), ()):
            if one in members and one not in inside and one not in found.excess:
                inside.add(one)
                waiting.append(one)
    return frozenset(inside)


@dataclass(slots=True)
class Newcomer:
    """What a node makes of whom it met before it had the ledger.

    Such peers are provisional: they give it the ledger, and are judged by what is in it then.
    ``informed``: it has what its peers know, as far as can be told.
    """

    informed: bool = False
    _met: dict[bytes, float] = field(default_factory=dict)
    _since: float | None = None

    def meet(self, peers: Collection[bytes], *, contact: bool, mono: float) -> None:
        """Take note of the peers that were accepted; ``contact``: one of them answers."""
        if self.informed:
            return
        for gone in self._met.keys() - set(peers):
            del self._met[gone]
        for one in peers:
            self._met.setdefault(one, mono)
        if contact and self._since is None:
            self._since = mono
        elif not contact:
            self._since = None

    def due(self) -> float | None:
        """Return when to ask `judge`."""
        return None if self.informed or self._since is None else self._since + INFORMED_SECONDS

    def known(self, peers: Collection[bytes]) -> set[bytes]:
        """Return the peers that this node let in knowingly."""
        return set(peers) - self._met.keys()

    def settle(
        self, reckon: Callable[[set[bytes]], Standing], peers: Mapping[bytes, Member]
    ) -> dict[bytes, Denied]:
        """Judge whom it met; return who has to go. From now on it knows whom to let in.

        ``reckon`` gives everybody's standing if some are known. Those whose grants have expired are
        taken at their word if others have seen them, as long as the root key has not said who is
        in: members that came with open grants cannot speak for those who were there before them.
        Where there is nobody else, the first is believed.
        """
        self.informed = True
        met = sorted((one for one in self._met if one in peers), key=self._met.__getitem__)
        self._met.clear()
        found = reckon(set())
        if found.trusting or not found.spoken:
            late = [one for one in met if found.is_late(peers[one])]
            seen = {one for one in late if one in found.witnessed}
            if seen or (late and found.trusting):
                found = reckon(seen or {late[0]})
        judged = {one: found.judge(peers[one]) for one in met}
        return {one: denied for one, denied in judged.items() if denied is not None}
