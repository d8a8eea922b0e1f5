"""News: each new entry is told to a few peers at once, to a few more soon, then no more.

Rumour mongering with feedback (Demers et al., 1987): about log2(n) tellings per node reach
everybody; hearing it back from others counts as one's own telling. What it misses, `reconcile`
finds.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, field
from random import Random

from appliance.ledger.entry import Entry

AT_ONCE = 3
PER_WAVE = 2
WAVE_SECONDS = 0.1
WAVES_MAX = 30
HOT_MAX = 4096
WAVE_BYTES = 16 * 1024


def tellings(members: int) -> int:
    """Return how often a node tells a piece of news in a network of so many."""
    return 2 + math.ceil(math.log2(members + 1))


@dataclass(slots=True)
class _News:
    entry: Entry
    left: int
    knows: set[bytes] = field(default_factory=set)
    waves: int = 0


class News:
    """What this node has to tell, bounded in number; the oldest goes first when it is too much."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._hot: OrderedDict[bytes, _News] = OrderedDict()

    def __len__(self) -> int:
        return len(self._hot)

    def add(self, entry: Entry, members: int, source: bytes | None) -> None:
        """Begin to tell an entry that ``source`` (None: this node) brought."""
        news = self._hot[entry.entry_id] = _News(entry, tellings(members))
        if source is not None:
            news.knows.add(source)
        if len(self._hot) > HOT_MAX:
            self._hot.popitem(last=False)

    def heard(self, entry_id: bytes, peer: bytes) -> None:
        """Take note that a peer knows already."""
        news = self._hot.get(entry_id)
        if news is not None and peer not in news.knows:
            news.knows.add(peer)
            news.left -= 1
            if news.left <= 0:
                del self._hot[entry_id]

    def forget(self, entry_id: bytes) -> None:
        """Stop telling what is no news any more."""
        self._hot.pop(entry_id, None)

    def wave(self, peers: list[bytes], *, fresh: bool) -> dict[bytes, list[bytes]]:
        """Return the records to tell each chosen peer now; only untold news if ``fresh``."""
        out: dict[bytes, list[bytes]] = {}
        chosen: list[bytes] = []
        room = WAVE_BYTES
        for entry_id, news in list(self._hot.items()):
            if (fresh and news.waves) or room <= 0:
                continue
            count = min(PER_WAVE if news.waves else AT_ONCE, news.left)
            targets = [one for one in chosen if one not in news.knows][:count]
            if len(targets) < count:
                more = self._some(peers, news.knows, targets, count - len(targets))
                targets += more
                # Many entries go to the same few peers, in few datagrams; a few go everywhere.
                chosen += more if len(self._hot) > AT_ONCE else []
            for peer in targets:
                out.setdefault(peer, []).append(news.entry.record)
                news.knows.add(peer)
                room -= news.entry.size
            news.left -= len(targets)
            news.waves += 1
            if news.left <= 0 or not targets or news.waves >= WAVES_MAX:
                del self._hot[entry_id]
        return out

    def _some(
        self, peers: list[bytes], knows: set[bytes], taken: list[bytes], count: int
    ) -> list[bytes]:
        """Return random peers that are not known to know; cheap if few of many are."""
        found: list[bytes] = []
        for _ in range(4 * count):
            if not peers or len(found) == count:
                return found
            peer = peers[int(self._random.random() * len(peers))]
            if peer not in knows and peer not in taken and peer not in found:
                found.append(peer)
        if len(found) < count:
            rest = [one for one in peers if one not in knows and one not in (*taken, *found)]
            found += self._random.sample(rest, min(count - len(found), len(rest)))
        return found
