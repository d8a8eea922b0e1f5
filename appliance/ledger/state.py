"""One node's copy of the ledger: a join-semilattice of signed entries.

`Replica.apply` may be fed anything, from anybody, in any order and any number of times; replicas
that were fed the same set hold the same entries. How each rule keeps that (docs/ledger.md, "Why
replicas agree"): a slot (bucket, key, owner) holds the highest of its owner's sequence numbers; a
quota keeps the owner's newest entries; a floor voids what is older than a number; a revocation
voids an owner. Time is the caller's (`timekeeper`), in Unix milliseconds.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from appliance.ledger.directory import Directory
from appliance.ledger.entry import Entry
from appliance.ledger.hlc import is_future, ms_of
from appliance.ledger.rules import BUCKETS, FLOOR, MEMBER, REVOKED, Bucket, Winner, Writers
from appliance.ledger.trie import Trie
from provisioning.keys import id_text

# A network's ledger as a whole; beyond it only owners that are here already may replace things.
TOTAL_BYTES_MAX = 256 * 1024 * 1024


class Verdict(Enum):
    """What became of an entry. STALE: a newer one of its slot is here already."""

    ACCEPTED = "accepted"
    KNOWN = "known"
    STALE = "stale"
    REJECTED = "rejected"


class Reason(Enum):
    """Why an entry was rejected; the value is how a log line puts it."""

    UNKNOWN_BUCKET = "a bucket that this release does not know"
    TOO_LARGE = "a value larger than its bucket allows"
    WRONG_WRITER = "its owner may not write there"
    WRONG_LEASE = "a lease that its bucket does not allow"
    FORBIDDEN_DELETE = "what cannot be deleted"
    FUTURE = "stamped in the future"
    EXPIRED = "its lease has run out"
    VOIDED = "older than its owner's floor"
    UNKNOWN_OWNER = "its owner is no member, or not known yet"
    FORGED = "not signed by its owner"
    OVER_QUOTA = "its owner wrote more than the bucket's quota"
    FULL = "the ledger is full"


# Reasons that may pass: the sender did nothing wrong, the entry may be good later.
TRANSIENT = frozenset(
    {Reason.FUTURE, Reason.UNKNOWN_OWNER, Reason.UNKNOWN_BUCKET, Reason.FULL, Reason.EXPIRED}
)


@dataclass(frozen=True, slots=True)
class Change:
    """One slot's change: ``old`` went, ``new`` came."""

    old: Entry | None
    new: Entry | None

    @property
    def entry(self) -> Entry:
        """The entry that tells bucket, key and owner."""
        one = self.new or self.old
        assert one is not None  # noqa: S101 - a change without both is never made
        return one


@dataclass(frozen=True, slots=True)
class Outcome:
    """A verdict; the changes in order (the entry itself first), or the newer entry if STALE."""

    verdict: Verdict
    reason: Reason | None = None
    changes: tuple[Change, ...] = ()
    newer: Entry | None = None


_KNOWN = Outcome(Verdict.KNOWN)


Follower = Callable[[Change], None]


class Replica:
    """All entries, the members they prove, and an index for reconciliation (``ids``)."""

    def __init__(self, directory: Directory, *, total_bytes_max: int = TOTAL_BYTES_MAX) -> None:
        self.directory = directory
        self.ids = Trie()
        self.bytes = 0
        self._network_id = directory.network.network_id
        self._total_bytes_max = total_bytes_max
        self._by_id: dict[bytes, Entry] = {}
        self._keys: dict[str, dict[str, dict[bytes, Entry]]] = {name: {} for name in BUCKETS}
        self._owned: dict[bytes, dict[str, dict[str, Entry]]] = {}
        self._sizes: dict[tuple[bytes, str], int] = {}
        self._leases: list[tuple[int, bytes]] = []
        self._followers: dict[str, list[Follower]] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._by_id.values())

    # Reading

    def by_id(self, entry_id: bytes) -> Entry | None:
        """Return an entry by its id, tombstones included."""
        return self._by_id.get(entry_id)

    def get(self, bucket: str, key: str, now_ms: int) -> Entry | None:
        """Return the entry that counts for a key, or None if there is none or it was deleted."""
        slots = self._keys.get(bucket, {}).get(key)
        if not slots:
            return None
        live = [one for one in slots.values() if one.live(now_ms)]
        if not live:
            return None
        if BUCKETS[bucket].winner is Winner.EARLIEST:
            found = min(live, key=lambda one: (one.deleted, one.stamp, one.owner))
        else:
            found = max(live, key=lambda one: (one.stamp, one.owner))
        return None if found.deleted else found

    def entries(self, bucket: str, now_ms: int, prefix: str = "") -> list[Entry]:
        """Return what counts in a bucket, in the order of the keys."""
        keys = sorted(key for key in self._keys.get(bucket, {}) if key.startswith(prefix))
        return [one for key in keys if (one := self.get(bucket, key, now_ms)) is not None]

    def versions(self, bucket: str, now_ms: int) -> Iterator[Entry]:
        """Yield what every owner says under every key of a bucket, not only what counts."""
        for owners in self._keys.get(bucket, {}).values():
            yield from (one for one in owners.values() if not one.deleted and one.live(now_ms))

    def follow(self, bucket: str, follower: Follower) -> None:
        """Tell of every entry in a bucket, now and as they come and go; tombstones are entries.

        For what would have to be worked out anew from a whole bucket otherwise.
        """
        for owners in self._keys[bucket].values():
            for one in owners.values():
                follower(Change(None, one))
        self._followers.setdefault(bucket, []).append(follower)

    def owned(self, owner: bytes) -> Iterator[Entry]:
        """Yield all entries of an owner, tombstones included."""
        for entries in self._owned.get(owner, {}).values():
            yield from entries.values()

    def slot(self, bucket: str, key: str, owner: bytes) -> Entry | None:
        """Return what an owner last wrote under a key, a tombstone included."""
        return self._keys.get(bucket, {}).get(key, {}).get(owner)

    def usage(self, owner: bytes, bucket: str) -> tuple[int, int]:
        """Return how many entries and bytes an owner has in a bucket."""
        return len(self._owned.get(owner, {}).get(bucket, ())), self._sizes.get((owner, bucket), 0)

    def floor(self, owner: bytes) -> int:
        """Return the sequence number below which an owner's entries are void."""
        entry = self.slot(FLOOR, id_text(owner), owner)
        return int.from_bytes(entry.value) if entry else 0

    # Writing

    def apply(self, entry: Entry, now_ms: int) -> Outcome:
        """Judge an entry and take it in if it is good; the cheap questions are asked first."""
        if entry.entry_id in self._by_id:
            return _KNOWN
        reason = self._misfit(entry, now_ms)
        if reason is not None:
            return Outcome(Verdict.REJECTED, reason)
        present = self.slot(*entry.slot)
        if present is not None and present.order > entry.order:
            return Outcome(Verdict.STALE, newer=present)
        reason = self._unfounded(entry, BUCKETS[entry.bucket])
        if reason is not None:
            return Outcome(Verdict.REJECTED, reason)
        changes = self._insert(entry)
        if entry.entry_id not in self._by_id:
            return Outcome(Verdict.REJECTED, Reason.OVER_QUOTA, changes)
        return Outcome(Verdict.ACCEPTED, changes=changes)

    def restore(self, entries: Iterable[Entry], now_ms: int, *, own: bytes | None = None) -> int:
        """Load entries that this node has verified before; return how many were refused now.

        Revocations and certificates go first, so that nothing is refused for its place in the file.
        Every signature is checked again: a disk is not trusted more than a peer.

        What ``own`` wrote under a clock that was ahead is taken in too: it is this node's to put
        right (`writer.Writer.rewrite_future`), and would be lost otherwise.
        """
        first = {REVOKED: 0, MEMBER: 1, FLOOR: 2}
        refused = 0
        for entry in sorted(entries, key=lambda one: first.get(one.bucket, 3)):
            at = max(now_ms, ms_of(entry.stamp)) if entry.owner == own else now_ms
            refused += self.apply(entry, at).verdict is Verdict.REJECTED
        return refused

    def sweep(self, now_ms: int) -> tuple[Change, ...]:
        """Drop what has run out by ``now_ms``; a refused entry of the past stays refused."""
        # Once each: what was dropped and came again stands in the queue twice.
        gone: dict[bytes, Entry] = {}
        while self._leases and self._leases[0][0] <= now_ms:
            _, entry_id = heapq.heappop(self._leases)
            entry = self._by_id.get(entry_id)
            if entry is not None:
                gone[entry_id] = entry
        return tuple(self._drop(entry) for entry in gone.values())

    def expel_future(self, now_ms: int) -> tuple[Change, ...]:
        """Drop what turned out to be from the future: after the node's own clock was put back."""
        return tuple(self._drop(entry) for entry in list(self) if is_future(entry.stamp, now_ms))

    # Judging

    def _misfit(self, entry: Entry, now_ms: int) -> Reason | None:
        """Return what is wrong with an entry whoever signed it."""
        rule = BUCKETS.get(entry.bucket)
        if rule is None:
            return Reason.UNKNOWN_BUCKET
        if len(entry.value) > rule.value_max:
            return Reason.TOO_LARGE
        if not _may_own(entry, rule, self._network_id):
            return Reason.WRONG_WRITER
        if entry.deleted and rule.final:
            return Reason.FORBIDDEN_DELETE
        if not _lease_fits(entry, rule):
            return Reason.WRONG_LEASE
        if is_future(entry.stamp, now_ms):
            return Reason.FUTURE
        if not entry.live(now_ms):
            return Reason.EXPIRED
        if not rule.final and entry.sequence < self.floor(entry.owner):
            return Reason.VOIDED
        return Reason.FULL if self._is_full_for(entry) else None

    def _is_full_for(self, entry: Entry) -> bool:
        """Say whether the ledger has no room: replacing goes on, floors rise, the root is heard.

        Else whoever filled it could not be revoked.
        """
        if self.bytes + entry.size <= self._total_bytes_max or entry.owner == self._network_id:
            return False
        if entry.bucket == FLOOR and entry.owner in self._owned:
            return False
        present = self.slot(*entry.slot)
        return present is None or len(present.value) < len(entry.value)

    def _unfounded(self, entry: Entry, rule: Bucket) -> Reason | None:
        """Return what is wrong with its owner or signature."""
        if entry.owner == self._network_id:
            key = self.directory.network.root_key
        else:
            member = self.directory.judge(entry)
            if member is None:
                return Reason.UNKNOWN_OWNER
            if rule.roles and not rule.roles & member.roles:
                return Reason.WRONG_WRITER
            key = member.node_key
        return None if entry.signed_by(key, self._network_id) else Reason.FORGED

    # Changing

    def _insert(self, entry: Entry) -> tuple[Change, ...]:
        old = self.slot(*entry.slot)
        if old is not None:
            self._drop(old)
        self._by_id[entry.entry_id] = entry
        self._keys[entry.bucket].setdefault(entry.key, {})[entry.owner] = entry
        self._owned.setdefault(entry.owner, {}).setdefault(entry.bucket, {})[entry.key] = entry
        self._account(entry, entry.size)
        self.ids.add(entry.entry_id)
        self._lease(entry)
        for tell in self._followers.get(entry.bucket, ()):
            tell(Change(None, entry))
        trimmed = list(self._trim(entry.owner, entry.bucket))
        if entry.entry_id not in self._by_id:
            trimmed = [one for one in trimmed if one.old is not entry]
            return (*([Change(old, None)] if old else ()), *trimmed)
        return (Change(old, entry), *trimmed, *self._consequences(entry))

    def _trim(self, owner: bytes, bucket: str) -> Iterator[Change]:
        """Drop the owner's oldest entries beyond the quota."""
        rule = BUCKETS[bucket]
        while True:
            count, size = self.usage(owner, bucket)
            if count <= rule.entries and size <= rule.bytes:
                return
            entries = self._owned[owner][bucket]
            yield self._drop(min(entries.values(), key=lambda one: one.order))

    def _account(self, entry: Entry, size: int) -> None:
        self.bytes += size
        owned = entry.owner, entry.bucket
        self._sizes[owned] = self._sizes.get(owned, 0) + size
        if not self._sizes[owned]:
            del self._sizes[owned]

    def _lease(self, entry: Entry) -> None:
        if entry.expires is None:
            return
        heapq.heappush(self._leases, (entry.expires, entry.entry_id))
        if len(self._leases) > 2 * len(self._by_id) + 64:
            # What was replaced before its time leaves a place in the queue.
            self._leases = [one for one in self._leases if one[1] in self._by_id]
            heapq.heapify(self._leases)

    def _consequences(self, entry: Entry) -> Iterator[Change]:
        if entry.bucket == MEMBER:
            member = self.directory.judge(entry)
            if member is not None:
                self.directory.add(member)
        elif entry.bucket == REVOKED:
            for owner in self.directory.revoke(entry.key):
                yield from [self._drop(one) for one in list(self.owned(owner))]
        elif entry.bucket == FLOOR:
            floor = self.floor(entry.owner)
            for one in list(self.owned(entry.owner)):
                if one.sequence < floor and not BUCKETS[one.bucket].final:
                    yield self._drop(one)

    def _drop(self, entry: Entry) -> Change:
        del self._by_id[entry.entry_id]
        owners = self._keys[entry.bucket][entry.key]
        del owners[entry.owner]
        if not owners:
            del self._keys[entry.bucket][entry.key]
        buckets = self._owned[entry.owner]
        del buckets[entry.bucket][entry.key]
        if not buckets[entry.bucket]:
            del buckets[entry.bucket]
        if not buckets:
            del self._owned[entry.owner]
        self.ids.remove(entry.entry_id)
        self._account(entry, -entry.size)
        for tell in self._followers.get(entry.bucket, ()):
            tell(Change(entry, None))
        return Change(entry, None)


def _may_own(entry: Entry, rule: Bucket, network_id: bytes) -> bool:
    """Say whether the owner's kind and the key fit the bucket; roles and signature come later."""
    by_network = entry.owner == network_id
    own = id_text(entry.owner)
    match rule.writers:
        case Writers.ROOT:
            return by_network
        case Writers.SELF:
            return entry.key == own and len(entry.value) == 8
        case Writers.OWNER | Writers.ROLE_OWNER:
            mine = entry.key == own or (entry.key.startswith(own + "/") and rule.entries > 1)
            return not by_network and mine
        case Writers.ROLE | Writers.ANY:
            return not by_network


def _lease_fits(entry: Entry, rule: Bucket) -> bool:
    if rule.lease_max_ms is None:
        return entry.expires is None
    return entry.expires is not None and entry.expires <= ms_of(entry.stamp) + rule.lease_max_ms
