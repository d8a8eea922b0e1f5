"""Who founds the cluster: single-decree Paxos over the nodes' own ledger entries.

Each voter is acceptor and may be proposer; its one entry (`cluster_entries.Vote`) is its state, and
the gossip is the network: an entry that arrives late or twice is a message that does. An acceptor's
state only moves forwards, so that any old version of it is a true message too. A vote counts when
it is read back from the ledger: it is on the disk then.

Why there are never two: any two quorums share a voter, and that voter's promise makes the later
proposer adopt what the earlier one may have carried (Lamport, "Paxos Made Simple", 2001).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from appliance.cluster.cluster_entries import NUMBER_MAX, Ballot, Vote

# How long a proposer waits for the one before it in the order, and between its own attempts.
PATIENCE_SECONDS = 8.0
# A ballot this far above all that a voter promised is nobody's next one, but a liar's last one.
JUMP_MAX = 2**20


@dataclass(frozen=True, slots=True)
class Electorate:
    """Who votes, how many of them are a quorum, and the order of those who may propose."""

    voters: frozenset[bytes]
    quorum: int
    candidates: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Quiet:
    """What the founding looked like when it last changed, and when that was (monotonic)."""

    seen: tuple[Ballot | None, int, int] | None = None
    since: float = 0.0


@dataclass(frozen=True, slots=True)
class Step:
    """``vote``: what this node has to say next, if anything; ``chosen``: whom a quorum chose."""

    quiet: Quiet
    vote: Vote | None = None
    chosen: bytes | None = None
    wake: float | None = None


def step(
    own: bytes,
    votes: Mapping[bytes, Vote],
    electorate: Electorate,
    now: float,
    quiet: Quiet,
    *,
    may_propose: bool,
) -> Step:
    """Return this node's next move. ``votes`` are as they stand in the ledger, its own too.

    Only voters' entries count. ``now`` is monotonic seconds; no other clock plays a part.
    """
    heard = {node: vote for node, vote in votes.items() if node in electorate.voters}
    mine = heard.get(own, Vote())
    quiet = _quiet(heard, _limit(mine), now, quiet)
    chosen = chosen_by(heard.values(), electorate.quorum)
    if chosen is not None or own not in electorate.voters:
        return Step(quiet, chosen=chosen)
    if (answered := _answer(mine, heard, electorate.voters)) != mine:
        return Step(quiet, answered)
    if not may_propose or own not in electorate.candidates:
        return Step(quiet)
    return _propose(own, mine, heard, electorate, now, quiet)


def chosen_by(votes: Iterable[Vote], quorum: int) -> bytes | None:
    """Return whom a quorum has accepted in one and the same ballot."""
    counts = Counter((one.accepted, one.value) for one in votes if one.accepted is not None)
    for (_, value), count in counts.items():
        if count >= quorum:
            return value
    return None


def _quiet(heard: Mapping[bytes, Vote], limit: int, now: float, before: Quiet) -> Quiet:
    top = _top(heard, limit)
    promised = sum(one.promised == top for one in heard.values())
    accepted = sum(one.accepted == top for one in heard.values())
    seen = top, promised, accepted
    return before if before.seen == seen else Quiet(seen, now)


def _top(heard: Mapping[bytes, Vote], limit: int) -> Ballot | None:
    """Return the highest ballot that anybody speaks of, up to a number."""
    ballots = (
        one for vote in heard.values() for one in (vote.promised, vote.accepted, vote.proposed)
    )
    return max((one for one in ballots if one and one.number <= limit), default=None)


def _limit(mine: Vote) -> int:
    """Return the highest number that this voter takes for one."""
    return (0 if mine.promised is None else mine.promised.number) + JUMP_MAX


def _answer(mine: Vote, heard: Mapping[bytes, Vote], voters: frozenset[bytes]) -> Vote:
    """Return this acceptor's state after the highest ballot that it hears of."""
    limit = _limit(mine)
    asked = [
        vote
        for node, vote in heard.items()
        if vote.proposed and vote.proposed.node == node and vote.proposed.number <= limit
    ]
    if not asked:
        return mine
    best = max(asked, key=lambda vote: (vote.proposed, vote.proposal or b""))
    ballot = best.proposed
    assert ballot is not None  # noqa: S101 - only such were taken
    if mine.promised is not None and ballot < mine.promised:
        return mine
    answered = msgspec.structs.replace(mine, promised=ballot)
    # Whom this voter does not know (yet) it does not agree to.
    if best.proposal not in voters or mine.accepted == ballot:
        return answered
    return msgspec.structs.replace(answered, accepted=ballot, value=best.proposal)


def _propose(
    own: bytes,
    mine: Vote,
    heard: Mapping[bytes, Vote],
    electorate: Electorate,
    now: float,
    quiet: Quiet,
) -> Step:
    top = _top(heard, _limit(mine))
    if mine.proposed is not None and mine.proposed == top:
        if mine.proposal is not None:
            return Step(quiet)
        promised = [one for one in heard.values() if one.promised == top]
        if len(promised) < electorate.quorum:
            return Step(quiet)
        bound = max(
            (one for one in promised if one.accepted is not None and one.accepted < top),
            key=lambda one: one.accepted or top,
            default=None,
        )
        value = own if bound is None else bound.value
        if value not in electorate.voters:
            return Step(quiet)
        return Step(quiet, msgspec.structs.replace(mine, proposal=value))
    place = electorate.candidates.index(own) + (top is not None)
    due = quiet.since + place * PATIENCE_SECONDS
    if now < due:
        return Step(quiet, wake=due)
    number = 1 if top is None else top.number + 1
    if number > NUMBER_MAX:
        return Step(quiet)
    return Step(quiet, msgspec.structs.replace(mine, proposed=Ballot(number, own), proposal=None))
