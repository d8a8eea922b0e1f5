"""Range-based set reconciliation: two replicas find what each lacks, in O(d log n).

One side opens with the digest of everything; ranges whose digests differ are split sixteenfold
until one side has few ids there, which it lists. Every message is answered from the message and
the replica alone: no session is kept, so nothing is held for a peer that goes away or lies.
Digests and ids travel as six bytes salted by the opener: nobody can prepare two ids that look
alike for a salt not yet drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from appliance.ledger.messages import (
    FANOUT,
    SALT_SIZE,
    SHORT,
    Digests,
    Ids,
    Message,
    Want,
    pack_entries,
    pack_ranges,
)
from appliance.ledger.rules import MEMBER, REVOKED
from appliance.ledger.state import Replica
from appliance.ledger.trie import EMPTY, LEAF, Prefix

# How much one message can make a replica send; the next exchange goes on from there.
REPLY_MAX = 64 * 1024
_FIRST = {REVOKED: 0, MEMBER: 1}


@dataclass(slots=True)
class _Reply:
    """Collects an answer up to REPLY_MAX bytes; ``differs``: in what others are judged by."""

    room: int = REPLY_MAX
    differs: bool = False
    records: list[tuple[int, bytes]] = field(default_factory=list)
    digests: list[tuple[bytes, bytes]] = field(default_factory=list)
    ids: list[tuple[bytes, bytes]] = field(default_factory=list)
    wants: list[tuple[bytes, bytes]] = field(default_factory=list)

    def entry(self, replica: Replica, entry_id: bytes) -> None:
        entry = replica.by_id(entry_id)
        if entry is not None and self.room > 0:
            self.room -= entry.size
            self.records.append((_FIRST.get(entry.bucket, 2), entry.record))

    def range(self, into: list[tuple[bytes, bytes]], prefix: bytes, content: bytes) -> None:
        if self.room > 0:
            self.room -= len(prefix) + len(content)
            into.append((prefix, content))

    def messages(self, salt: bytes) -> list[Message]:
        """Return entries first: what they replace need not be asked for any more.

        One question at most, so that an exchange is a chain and no avalanche; what does not fit
        comes up again in the next exchange.
        """
        self.records.sort(key=lambda one: one[0])
        made: list[Message] = [*pack_entries([one for _, one in self.records], reply=True)]
        made += [Want(salt, one) for one in pack_ranges(self.wants)[:1]]
        if self.ids:
            made.append(Ids(salt, pack_ranges(self.ids)[0]))
        elif self.digests:
            made.append(Digests(salt, pack_ranges(self.digests)[0]))
        return made


def opening(replica: Replica, salt: bytes) -> Digests:
    """Return the message that begins an exchange; ``salt`` is random, SALT_SIZE bytes."""
    if len(salt) != SALT_SIZE:
        raise ValueError(f"a salt of {len(salt)} bytes")
    return Digests(salt, ((b"", _short(salt, replica.ids.digest())),))


def on_digests(replica: Replica, message: Digests) -> list[Message]:
    """Answer digests: silence where they agree."""
    salt, reply = message.salt, _Reply()
    # Certificates and revocations first: entries of members not known yet would be sent in vain.
    # One exchange in four does not wait, lest one certificate that is refused stops everything.
    patient = salt[0] & 3 != 0
    for prefix, theirs in _ranges(message):
        if patient and reply.differs and prefix[:1] > b"\0":
            break
        _compare(replica, salt, prefix, theirs, reply)
    return reply.messages(salt)


def on_ids(replica: Replica, message: Ids) -> list[Message]:
    """Answer a list of ids: send what it lacks, ask for what is new."""
    salt, reply = message.salt, _Reply()
    for prefix, listed in message.ranges:
        theirs = _split(listed)
        ours = {_short(salt, one): one for one in replica.ids.ids(tuple(prefix))}
        wanted = [one for one in theirs if one not in ours]
        known = set(theirs)
        for short, entry_id in ours.items():
            if short not in known:
                reply.entry(replica, entry_id)
        if wanted:
            reply.range(reply.wants, prefix, b"".join(wanted))
    return reply.messages(salt)


def on_want(replica: Replica, message: Want) -> list[Message]:
    """Send what is asked for and still here."""
    salt, reply = message.salt, _Reply()
    for prefix, listed in message.ranges:
        wanted = set(_split(listed))
        for entry_id in replica.ids.ids(tuple(prefix)):
            if _short(salt, entry_id) in wanted:
                reply.entry(replica, entry_id)
    return reply.messages(salt)


def _ranges(message: Digests) -> Iterator[tuple[bytes, bytes]]:
    """Yield each range and its digest, those below a range one by one."""
    for prefix, digests in message.ranges:
        if len(digests) == SHORT:
            yield prefix, digests
            continue
        for nibble in range(FANOUT):
            yield prefix + bytes([nibble]), digests[nibble * SHORT : (nibble + 1) * SHORT]


def _compare(replica: Replica, salt: bytes, prefix: bytes, theirs: bytes, reply: _Reply) -> None:
    where: Prefix = tuple(prefix)
    ids = replica.ids
    if _short(salt, ids.digest(where)) == theirs or len(where) > 2 * len(EMPTY):
        return
    reply.differs |= prefix[:1] == b"\0"
    if theirs == _short(salt, EMPTY):
        for entry_id in ids.ids(where):
            if reply.room <= 0:
                return
            reply.entry(replica, entry_id)
    elif ids.count(where) <= LEAF:
        listed = b"".join(_short(salt, one) for one in ids.ids(where))
        reply.range(reply.ids, prefix, listed)
    else:
        below = b"".join(_short(salt, ids.digest((*where, one))) for one in range(FANOUT))
        reply.range(reply.digests, prefix, below)


def _short(salt: bytes, value: bytes) -> bytes:
    return hashlib.blake2b(value, digest_size=SHORT, key=salt).digest()


def _split(ids: bytes) -> list[bytes]:
    return [ids[at : at + SHORT] for at in range(0, len(ids), SHORT)]
