"""Who is alive: SWIM (Das et al. 2002) with Lifeguard's local health (Dadgar et al. 2017), sans-IO.

Every period one member is asked; if it is silent, others are asked to ask it; then it is
suspected, which it can refute by a higher incarnation; then it counts as dead here. Rumours travel
on the probes. They are not signed, so they decide nothing alone: a rumour of death only starts a
suspicion, and an answer of the node itself ends it. Liveness is advice for this node; it is never
a ledger entry.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from random import Random

from appliance.ledger.messages import (
    INCARNATION_MAX,
    RUMOURS_MAX,
    TOKEN_MAX,
    Ack,
    Ping,
    PingRequest,
    Rumour,
)
from appliance.ledger.timekeeper import Reading

HELPERS = 3
HEALTH_MAX = 8
# A node raises its incarnation by one at a time; a rumour that leaps is made up.
LEAP_MAX = 64
ONE_IN_DEAD = 4


class Status(IntEnum):
    """What this node thinks of another."""

    ALIVE = 0
    SUSPECT = 1
    DEAD = 2


@dataclass(frozen=True, slots=True)
class SwimConfig:
    """Seconds: one probe per ``period``, answered within ``timeout``.

    A suspicion lasts ``suspicion`` * log10(n + 1) periods, up to ``patience`` times that if nobody
    else shares it.
    """

    period: float = 5.0
    timeout: float = 1.0
    suspicion: float = 3.0
    patience: float = 4.0


@dataclass(frozen=True, slots=True)
class Probe:
    """A message for a member."""

    to: bytes
    message: Ping | Ack | PingRequest


@dataclass(frozen=True, slots=True)
class StatusChanged:
    """This node changed its mind about a member."""

    node: bytes
    status: Status


@dataclass(slots=True)
class _Member:
    status: Status = Status.ALIVE
    incarnation: int = 0
    suspected: float = 0.0
    accusers: set[bytes] = field(default_factory=set)


@dataclass(slots=True)
class _Asked:
    target: bytes
    deadline: float
    indirect: bool = False
    answers: int = 0
    on_behalf: tuple[bytes, int] | None = None


class Detector:
    """One node's failure detector."""

    def __init__(self, own: bytes, random: Random, config: SwimConfig, mono: float) -> None:
        self.health = 0
        self.incarnation = 0
        self._own = own
        self._random = random
        self._config = config
        self._members: dict[bytes, _Member] = {}
        self._suspects: set[bytes] = set()
        self._round: list[bytes] = []
        self._asked: dict[int, _Asked] = {}
        self._rumours: dict[bytes, tuple[Rumour, int]] = {}
        self._next = mono + random.random() * config.period
        self._probes = 0

    def set_members(self, nodes: Iterable[bytes]) -> None:
        """Watch these, and nobody else; who is new counts as alive until shown otherwise."""
        wanted = set(nodes) - {self._own}
        for gone in self._members.keys() - wanted:
            del self._members[gone]
            self._rumours.pop(gone, None)
            self._suspects.discard(gone)
        for new in wanted - self._members.keys():
            self._members[new] = _Member()

    def status(self, node: bytes) -> Status | None:
        """Return what is thought of a member, None for a stranger."""
        member = self._members.get(node)
        return member.status if member else None

    def next_timer(self) -> float:
        """Return when `tick` is due."""
        members = [self._members[node] for node in self._suspects]
        suspects = [one.suspected + self._patience(one) for one in members]
        return min([self._next, *(one.deadline for one in self._asked.values()), *suspects])

    def tick(self, now: float, reading: Reading) -> list[Probe | StatusChanged]:
        """Do what is due."""
        out: list[Probe | StatusChanged] = []
        for token in [token for token, one in self._asked.items() if one.deadline <= now]:
            self._unanswered(token, now, out)
        for node in sorted(self._suspects):
            member = self._members[node]
            if member.suspected + self._patience(member) <= now:
                self._set(node, member, Status.DEAD, out)
        if now >= self._next:
            self._next = now + self._config.period * (1 + self.health / 4)
            target = self._choose()
            if target is not None:
                self._ask(target, now, reading, out, None)
            # A suspect is asked every period: an answer of its own ends the matter.
            if self._suspects:
                suspect = self._random.choice(sorted(self._suspects))
                if suspect != target:
                    self._ask(suspect, now, reading, out, None)
        return out

    def receive(
        self, peer: bytes, message: Ping | Ack | PingRequest, now: float, reading: Reading
    ) -> list[Probe | StatusChanged]:
        """Take a message that ``peer`` sent (the overlay has authenticated it)."""
        out: list[Probe | StatusChanged] = []
        match message:
            case Ping():
                self._first_hand(peer, message.incarnation, out)
                self._hear(peer, message.rumours, now, out)
                out.append(Probe(peer, self._ack(message.token, self._own, reading, peer)))
            case PingRequest(token, target):
                if target in self._members and self._helping() < RUMOURS_MAX:
                    self._ask(target, now, reading, out, (peer, token))
            case Ack():
                self._answer(peer, message, now, reading, out)
        return out

    # Probing

    def _choose(self) -> bytes | None:
        """Return the next of a shuffled round; the dead are asked too, now and then."""
        self._probes += 1
        dead = [node for node, one in self._members.items() if one.status is Status.DEAD]
        if dead and self._probes % ONE_IN_DEAD == 0:
            return self._random.choice(dead)
        for fresh in (False, True):
            if fresh:
                self._round = list(self._members)
                self._random.shuffle(self._round)
            while self._round:
                node = self._round.pop()
                member = self._members.get(node)
                if member is not None and member.status is not Status.DEAD:
                    return node
        return self._random.choice(dead) if dead else None

    def _ask(
        self,
        target: bytes,
        now: float,
        reading: Reading,
        out: list[Probe | StatusChanged],
        on_behalf: tuple[bytes, int] | None,
    ) -> None:
        token = self._random.randrange(TOKEN_MAX)
        deadline = now + self._config.timeout * (1 + self.health)
        self._asked[token] = _Asked(target, deadline, on_behalf=on_behalf)
        rumours = self._tell(target)
        ping = Ping(token, self.incarnation, reading.ms, int(reading.quality), rumours)
        out.append(Probe(target, ping))

    def _unanswered(self, token: int, now: float, out: list[Probe | StatusChanged]) -> None:
        asked = self._asked[token]
        member = self._members.get(asked.target)
        if asked.on_behalf is not None or member is None:
            del self._asked[token]
            if asked.on_behalf is not None:
                peer, theirs = asked.on_behalf
                nack = Ack(theirs, self.incarnation, 0, 0, (), asked.target, alive=False)
                out.append(Probe(peer, nack))
            return
        if not asked.indirect:
            helpers = [
                node
                for node, one in self._members.items()
                if one.status is Status.ALIVE and node != asked.target
            ]
            chosen = self._random.sample(helpers, min(HELPERS, len(helpers)))
            asked.indirect = True
            asked.deadline = now + self._config.timeout * (2 + self.health)
            out.extend(Probe(one, PingRequest(token, asked.target)) for one in chosen)
            if chosen:
                return
        del self._asked[token]
        # Helpers say "no answer either" in time; if they are silent as well, it may be us.
        if asked.answers == 0 and len(self._members) > 1:
            self.health = min(self.health + 1, HEALTH_MAX)
        self._suspect(asked.target, member, member.incarnation, self._own, now, out)

    def _answer(
        self,
        peer: bytes,
        message: Ack,
        now: float,
        reading: Reading,
        out: list[Probe | StatusChanged],
    ) -> None:
        self._first_hand(peer, message.incarnation, out)
        self._hear(peer, message.rumours, now, out)
        asked = self._asked.get(message.token)
        if asked is None:
            return
        if not message.alive:
            asked.answers += asked.indirect and message.about == asked.target
            return
        if peer == asked.target and message.about in {peer, self._own}:
            del self._asked[message.token]
            self.health = max(self.health - 1, 0)
            if asked.on_behalf is not None:
                who, theirs = asked.on_behalf
                out.append(Probe(who, self._ack(theirs, asked.target, reading, who)))
        elif asked.indirect and message.about == asked.target:
            del self._asked[message.token]
            member = self._members.get(asked.target)
            if member is not None and member.status is Status.DEAD:
                # Second-hand: worth a question of our own.
                self._ask(asked.target, now, reading, out, None)

    def _ack(self, token: int, about: bytes, reading: Reading, to: bytes) -> Ack:
        rumours = self._tell(to)
        ms, quality = reading.ms, int(reading.quality)
        return Ack(token, self.incarnation, ms, quality, rumours, about, alive=True)

    def _helping(self) -> int:
        return sum(one.on_behalf is not None for one in self._asked.values())

    # Opinions

    def _first_hand(self, node: bytes, incarnation: int, out: list[Probe | StatusChanged]) -> None:
        member = self._members.get(node)
        if member is None:
            return
        member.incarnation = max(member.incarnation, incarnation)
        if member.status is not Status.ALIVE:
            self._set(node, member, Status.ALIVE, out)

    def _hear(
        self,
        peer: bytes,
        rumours: tuple[Rumour, ...],
        now: float,
        out: list[Probe | StatusChanged],
    ) -> None:
        for node, status, incarnation in rumours:
            if node == self._own:
                self._defend(status, incarnation)
                continue
            member = self._members.get(node)
            if member is None or incarnation > member.incarnation + LEAP_MAX:
                continue
            if status == Status.ALIVE:
                if incarnation > member.incarnation:
                    member.incarnation = incarnation
                    self._set(node, member, Status.ALIVE, out)
            elif incarnation >= member.incarnation and member.status is not Status.DEAD:
                self._suspect(node, member, incarnation, peer, now, out)

    def _defend(self, status: int, incarnation: int) -> None:
        if status == Status.ALIVE or incarnation < self.incarnation:
            return
        if incarnation > self.incarnation + LEAP_MAX:
            return
        self.incarnation = min(incarnation + 1, INCARNATION_MAX)
        self.health = min(self.health + 1, HEALTH_MAX)
        self._rumour(self._own, Status.ALIVE, self.incarnation)

    def _suspect(
        self,
        node: bytes,
        member: _Member,
        incarnation: int,
        accuser: bytes,
        now: float,
        out: list[Probe | StatusChanged],
    ) -> None:
        if member.status is Status.DEAD:
            return
        member.incarnation = max(member.incarnation, incarnation)
        if member.status is Status.ALIVE:
            member.suspected = now
            member.accusers = {accuser}
            self._set(node, member, Status.SUSPECT, out)
        elif accuser not in member.accusers and len(member.accusers) <= HELPERS:
            member.accusers.add(accuser)
            self._rumour(node, Status.SUSPECT, member.incarnation)

    def _patience(self, member: _Member) -> float:
        """Return how long a suspicion lasts: less, the more members share it (Lifeguard)."""
        shortest = (
            self._config.suspicion
            * max(1.0, math.log10(len(self._members) + 1))
            * self._config.period
        )
        longest = shortest * self._config.patience
        shared = math.log(len(member.accusers) or 1) / math.log(HELPERS + 1)
        return max(shortest, longest - (longest - shortest) * shared)

    def _set(
        self, node: bytes, member: _Member, status: Status, out: list[Probe | StatusChanged]
    ) -> None:
        if member.status is status:
            return
        member.status = status
        if status is Status.SUSPECT:
            self._suspects.add(node)
        else:
            self._suspects.discard(node)
        if status is Status.ALIVE:
            member.accusers = set()
        self._rumour(node, status, member.incarnation)
        out.append(StatusChanged(node, status))

    # Rumours

    def _rumour(self, node: bytes, status: Status, incarnation: int) -> None:
        times = 3 * math.ceil(math.log2(len(self._members) + 2))
        self._rumours[node] = ((node, int(status), incarnation), times)

    def _tell(self, to: bytes) -> tuple[Rumour, ...]:
        """Return the least told rumours, and always one about the listener: it can refute it."""
        chosen = sorted(
            self._rumours, key=lambda node: (node != to, -self._rumours[node][1], node)
        )[:RUMOURS_MAX]
        told = []
        for node in chosen:
            rumour, times = self._rumours[node]
            told.append(rumour)
            if times <= 1:
                del self._rumours[node]
            else:
                self._rumours[node] = rumour, times - 1
        member = self._members.get(to)
        if member is not None and member.status is not Status.ALIVE and to not in chosen:
            told = [(to, int(member.status), member.incarnation), *told[: RUMOURS_MAX - 1]]
        return tuple(told)
