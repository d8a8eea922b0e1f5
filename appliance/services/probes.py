"""Asks own targets whether they answer. Blocking, each at most a second, several at a time."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from appliance.services.offers import Protocol
from appliance.services.plan import Question

SECONDS = 1.0
# One lost answer is none; two in a row are an outage.
MISSES = 2
_AT_ONCE = 8


@dataclass(slots=True)
class Health:
    """What is well. Pure: fed with what came back."""

    _missed: dict[Question, int] = field(default_factory=dict)

    def heard(self, answers: dict[Question, bool]) -> frozenset[Question]:
        """Take note of one round; return to whose questions all is well."""
        before = self._missed
        self._missed = {
            one: 0 if good else min(before.get(one, MISSES) + 1, MISSES)
            for one, good in answers.items()
        }
        return frozenset(one for one, missed in self._missed.items() if missed < MISSES)


def ask(questions: Iterable[Question]) -> dict[Question, bool]:
    """Return who answers."""
    all_ = list(dict.fromkeys(questions))
    if not all_:
        return {}
    with ThreadPoolExecutor(min(_AT_ONCE, len(all_))) as pool:
        return dict(zip(all_, pool.map(_ask, all_), strict=True))


def _ask(one: Question) -> bool:
    udp = one.protocol == Protocol.UDP.value
    if udp and not one.answers:
        return True
    kind = socket.SOCK_DGRAM if udp else socket.SOCK_STREAM
    try:
        with socket.socket(socket.AF_INET, kind) as channel:
            channel.settimeout(SECONDS)
            channel.connect((one.target.host, one.target.port))
            if udp:
                channel.send(b"")
                channel.recv(1)
    except OSError:
        return False
    return True
