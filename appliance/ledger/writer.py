"""Local writes: what this node says, stamped, numbered, signed and tried on its own replica first.

Sequence numbers never repeat. A node that lost its database learns its own last number back from
its peers: an entry of its own that it did not know moves the number up (:meth:`Writer.recover`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from appliance.ledger.entry import KEY_MAX, Entry, Signer, make_entry
from appliance.ledger.errors import EntryError, WriteError
from appliance.ledger.hlc import Clock, ms_of
from appliance.ledger.rules import BUCKETS, DAY_MS, FLOOR, Bucket
from appliance.ledger.state import Outcome, Reason, Replica, Verdict
from provisioning.keys import id_text

# Tombstones younger than this are left alone: compaction costs a rewrite of what is older than
# they.
TOMBSTONE_MS = DAY_MS
TOMBSTONES_MIN = 16


@dataclass(frozen=True, slots=True)
class Written:
    """A local write as it has to be stored and told to peers."""

    entry: Entry
    outcome: Outcome


class Writer:
    """Writes as one owner into a replica.

    ``sequence`` and ``clock.reserved`` have to be persisted before a written entry leaves the node.
    """

    def __init__(
        self, replica: Replica, clock: Clock, *, owner: bytes, sign: Signer, sequence: int = 0
    ) -> None:
        self.clock = clock
        self.owner = owner
        self.sequence = max([sequence, *(one.sequence for one in replica.owned(owner))])
        self.replica = replica
        self._sign = sign

    def put(
        self, bucket: str, key: str, value: bytes, now_ms: int, *, lease_ms: int | None = None
    ) -> Written:
        """Write a value. Raises WriteError saying which rule stands against it."""
        return self._write(bucket, key, value, now_ms, lease_ms=lease_ms)

    def delete(self, bucket: str, key: str, now_ms: int) -> Written:
        """Write that a key has no value any more. Raises WriteError."""
        lease_ms = _rule(bucket).lease_max_ms
        return self._write(bucket, key, b"", now_ms, lease_ms=lease_ms, deleted=True)

    def recover(self, entry: Entry) -> bool:
        """Take note of an entry of one's own from elsewhere. True if it tells of forgotten writes.

        If that happens again and again, two nodes use one identity.
        """
        if entry.owner != self.owner or entry.sequence <= self.sequence:
            return False
        self.sequence = entry.sequence
        return True

    def rewrite_future(self, now_ms: int) -> list[Written]:
        """Put the clock and one's own entries back after the clock turned out to be ahead."""
        ahead = [one for one in self.replica.owned(self.owner) if ms_of(one.stamp) > now_ms]
        if not self.clock.rebase(now_ms):
            return []
        return [
            self._again(one, self.clock.tick(now_ms), now_ms)
            for one in sorted(ahead, key=lambda one: one.sequence)
        ]

    def compact(self, now_ms: int) -> list[Written]:
        """Do one step towards forgetting old tombstones, without a way back for what they deleted.

        First what lives and is older than they is written anew, in later calls the floor is raised:
        from then on no replica takes anything older. Call it every minute or less often.
        """
        rows = [one for one in self.replica.owned(self.owner) if not BUCKETS[one.bucket].final]
        old = [
            one.sequence
            for one in rows
            if one.deleted and one.expires is None and ms_of(one.stamp) + TOMBSTONE_MS <= now_ms
        ]
        if len(old) < TOMBSTONES_MIN:
            return []
        last = max(old)
        keep = [one for one in rows if one.sequence < last and not one.deleted]
        keep += [
            one for one in rows if one.deleted and one.sequence < last and one.sequence not in old
        ]
        if keep:
            # Their stamps stay: what was written before another's value must not win over it now.
            keep.sort(key=lambda one: one.sequence)
            return [self._again(one, one.stamp, now_ms) for one in keep if one.live(now_ms)]
        floor = (last + 1).to_bytes(8)
        return [self.put(FLOOR, id_text(self.owner), floor, now_ms)]

    def _again(self, entry: Entry, stamp: int, now_ms: int) -> Written:
        rule = BUCKETS[entry.bucket]
        expires = entry.expires
        if expires is not None and rule.lease_max_ms is not None:
            expires = min(expires, ms_of(stamp) + rule.lease_max_ms)
        return self._sign_and_apply(replace(entry, stamp=stamp, expires=expires), now_ms)

    def _write(
        self,
        bucket: str,
        key: str,
        value: bytes,
        now_ms: int,
        *,
        lease_ms: int | None,
        deleted: bool = False,
    ) -> Written:
        _rule(bucket)
        present = self.replica.slot(bucket, key, self.owner)
        stamp = self.clock.tick(now_ms)
        expires = None if lease_ms is None else min(now_ms, ms_of(stamp)) + lease_ms
        if expires is not None and present is not None and present.expires is not None:
            # A shorter lease would uncover the longer one once it has run out.
            expires = max(expires, present.expires)
        draft = Entry(self.owner, 0, stamp, bucket, key, value, expires, deleted, b"", b"")
        return self._sign_and_apply(draft, now_ms)

    def _sign_and_apply(self, draft: Entry, now_ms: int) -> Written:
        rule = BUCKETS[draft.bucket]
        try:
            entry = make_entry(
                self._sign,
                self.replica.directory.network.network_id,
                owner=draft.owner,
                sequence=self.sequence + 1,
                stamp=draft.stamp,
                bucket=draft.bucket,
                key=draft.key,
                value=draft.value,
                expires=draft.expires,
                deleted=draft.deleted,
            )
        except EntryError as error:
            raise WriteError(
                f"{draft.bucket}/{draft.key[:KEY_MAX]} cannot be written: {error}",
                hint=f"keys are 1 to {KEY_MAX} of A-Z a-z 0-9 . _ : / @ -, values at most "
                f"{rule.value_max} bytes",
            ) from error
        self._check_quota(entry, self.replica.slot(*entry.slot), rule)
        outcome = self.replica.apply(entry, now_ms)
        if outcome.verdict is not Verdict.ACCEPTED:
            reason = outcome.reason.value if outcome.reason else outcome.verdict.value
            raise WriteError(
                f"{entry.bucket}/{entry.key} was not written: {reason}",
                hint=_hint(outcome.reason, rule),
            )
        self.sequence = entry.sequence
        return Written(entry, outcome)

    def _check_quota(self, entry: Entry, present: Entry | None, rule: Bucket) -> None:
        """Refuse here what would cost the owner its oldest entry everywhere."""
        count, size = self.replica.usage(self.owner, rule.name)
        count += 0 if present else 1
        size += entry.size - (present.size if present else 0)
        if count > rule.entries or size > rule.bytes:
            raise WriteError(
                f"{rule.name}/{entry.key} was not written: it would be entry {count} of "
                f"{rule.entries}, {size} bytes of {rule.bytes} that one member may have there",
                hint="delete some of this node's entries first; a deleted one counts for a day",
            )


def _rule(bucket: str) -> Bucket:
    rule = BUCKETS.get(bucket)
    if rule is None:
        raise WriteError(f"there is no bucket {bucket!r}", hint=f"known: {', '.join(BUCKETS)}")
    return rule


def _hint(reason: Reason | None, rule: Bucket) -> str:
    match reason:
        case Reason.TOO_LARGE:
            return f"values in {rule.name} have at most {rule.value_max} bytes"
        case Reason.WRONG_WRITER:
            roles = f" ({', '.join(sorted(rule.roles))})" if rule.roles else ""
            return f"{rule.name} is written by {rule.writers.value}{roles}"
        case Reason.WRONG_LEASE if rule.lease_max_ms is None:
            return f"entries in {rule.name} have no lease"
        case Reason.WRONG_LEASE:
            most = (rule.lease_max_ms or 0) // 1000
            return f"entries in {rule.name} need a lease of at most {most} s: --lease 60s"
        case _:
            return f"{rule.name} holds {rule.what}"
