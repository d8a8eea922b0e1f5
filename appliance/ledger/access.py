"""What programs and people may do with this node's ledger: read, write, publish, watch.

Sans-IO: what a write causes goes to ``perform`` (the shell stores and sends it), and the shell
tells :meth:`LedgerAccess.changed` of every change of the replica. Buckets that the nodes' own
protocols live by can be read by all and written by nobody here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from appliance.ledger.assigned import NAME, node_key, read_id
from appliance.ledger.entry import Entry, read_entry
from appliance.ledger.errors import EntryError, LedgerError, WriteError
from appliance.ledger.gossip import Action, Gossip
from appliance.ledger.hlc import ms_of
from appliance.ledger.rules import ASSIGNED, BUCKETS, Bucket, Writers
from appliance.ledger.secrets import SECRET
from appliance.ledger.state import Change, Outcome, Verdict
from appliance.ledger.subscription import Subscription
from appliance.ledger.writer import Written
from provisioning.keys import id_text
from provisioning.names import is_name

# What people and programs write; the other buckets are the nodes' own or the root key's. Secrets
# have a way of their own (`vault`): a bare write there would take the place of a sealed value.
OPEN = frozenset({"service", "cluster", "shared", "lease"})
# Keys that begin with the writer's id.
UNDER_OWN_ID = frozenset({Writers.OWNER, Writers.ROLE_OWNER})
UNSTORED_MAX = 1024


class NoBucketError(LedgerError):
    """A bucket that this release does not have."""


class NotOpenError(WriteError):
    """A bucket, or another member's place in one, that people do not write."""


class MissingError(LedgerError):
    """A key that has no value."""


@dataclass(frozen=True, slots=True)
class BucketView:
    """A bucket as a whole: its rule, whether people may write it, what it holds.

    ``entries`` and ``bytes`` count what this node holds of all owners, tombstones included.
    """

    rule: Bucket
    open: bool
    entries: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Published:
    """What became of a record; ``entry_id`` None: it is no entry, ``reason`` says why."""

    entry_id: bytes | None
    verdict: Verdict
    reason: str = ""


class LedgerAccess:
    """One node's ledger, for whoever may use the local API.

    ``clock`` is the monotonic clock (seconds) that the gossip runs by.
    """

    def __init__(
        self,
        gossip: Gossip,
        clock: Callable[[], float],
        perform: Callable[[list[Action]], None],
    ) -> None:
        self._gossip = gossip
        self._clock = clock
        self._perform = perform
        self._subscriptions: set[Subscription] = set()
        # Own writes that the shell has not told of yet: not on the disk yet.
        self._unstored: dict[bytes, Callable[[], None]] = {}

    @property
    def network_id(self) -> bytes:
        """The network whose ledger it is."""
        return self._gossip.replica.directory.network.network_id

    @property
    def node_id(self) -> bytes:
        """The node that writes here."""
        return self._gossip.writer.owner

    def now_ms(self) -> int:
        """Return what time it is by the ledger, in Unix milliseconds."""
        return self._gossip.timekeeper.now_ms(self._clock())

    # Reading

    def buckets(self) -> Sequence[BucketView]:
        """Return all buckets, in the order of their rules."""
        counts = dict.fromkeys(BUCKETS, 0)
        sizes = dict.fromkeys(BUCKETS, 0)
        for entry in self._gossip.replica:
            counts[entry.bucket] += 1
            sizes[entry.bucket] += entry.size
        return [
            BucketView(rule, name in OPEN, counts[name], sizes[name])
            for name, rule in BUCKETS.items()
        ]

    def get(self, bucket: str, key: str) -> Entry | None:
        """Return the entry that counts for a key. Raises NoBucketError.

        Where keys begin with a node id, a key without one means this node's own.
        """
        return self._gossip.replica.get(bucket, self._full_key(bucket, key), self.now_ms())

    def list(self, bucket: str, prefix: str = "") -> Sequence[Entry]:
        """Return what counts in a bucket, in the order of the keys. Raises NoBucketError."""
        check_bucket(bucket)
        return self._gossip.replica.entries(bucket, self.now_ms(), prefix)

    def dump(self) -> Sequence[bytes]:
        """Return every record that this node holds, tombstones included."""
        return [entry.record for entry in self._gossip.replica]

    def owner_name(self, owner: bytes) -> str | None:
        """Return what people call an owner: a node's name, or the network's."""
        directory = self._gossip.replica.directory
        if owner == self.network_id:
            return directory.network.name
        member = directory.member(owner)
        if member is None:
            return None
        given = self._gossip.replica.get(ASSIGNED, node_key(owner, NAME), self.now_ms())
        name = given.value.decode("ascii", "replace") if given else ""
        return name if is_name(name) else member.name

    # Writing

    def put(self, bucket: str, key: str, value: bytes, lease_s: int | None = None) -> Entry:
        """Write a value; return the entry.

        Under a bucket whose keys begin with the owner's id, ``key`` may go without it. Raises
        NoBucketError, NotOpenError, and WriteError with the rule that stands against it.
        """
        full = self._own_key(bucket, key)
        lease_ms = None if lease_s is None else lease_s * 1000
        writer = self._gossip.writer
        return self._done(writer.put(bucket, full, value, self.now_ms(), lease_ms=lease_ms))

    def delete(self, bucket: str, key: str) -> Entry:
        """Take a key's value away, whoever wrote it; return the tombstone.

        Raises what `put` does, and MissingError if there is no value.
        """
        full = self._own_key(bucket, key)
        if self.get(bucket, full) is None:
            raise MissingError(f"{bucket}/{full} has no value", hint=f"skerry ledger ls {bucket}")
        return self._done(self._gossip.writer.delete(bucket, full, self.now_ms()))

    def when_stored(self, entry: Entry, done: Callable[[], None]) -> None:
        """Call ``done`` once the shell has told of a write, at once if it has already.

        ``entry`` is what `put` or `delete` returned. The shell tells of a change when it is on the
        disk: who is answered then loses nothing.
        """
        if entry.entry_id in self._unstored:
            self._unstored[entry.entry_id] = done
        else:
            done()

    def publish(self, records: Iterable[bytes]) -> Sequence[Published]:
        """Take in what the root key signed and spread it; say of each what became of it."""
        return [self._publish(record) for record in records]

    # Watching

    def watch(
        self, bucket: str | None, prefix: str = "", *, wake: Callable[[], None]
    ) -> Subscription:
        """Return the present state of a bucket (None: of all) and all that follows.

        ``wake`` is called when there is something to take after there was nothing. Close it when
        done. Raises NoBucketError.
        """
        if bucket is not None:
            check_bucket(bucket)
        buckets = tuple(BUCKETS) if bucket is None else (bucket,)
        made = Subscription(
            buckets, prefix, self._gossip.replica, self.now_ms, wake, self._subscriptions.discard
        )
        self._subscriptions.add(made)
        return made

    def changed(self, change: Change, *, stored: bool = True) -> None:
        """Tell whoever watches. The replica has to be in its new state already.

        ``stored``: an own write is on the disk; whoever waits for that is told.
        """
        if change.new is not None:
            done = self._unstored.pop(change.new.entry_id, None)
            if done is not None and stored:
                done()
        if self._subscriptions:
            now_ms = self.now_ms()
            for one in tuple(self._subscriptions):
                one.changed(change, now_ms)

    def close(self) -> None:
        """End all subscriptions: this node's ledger is not served any more."""
        for one in tuple(self._subscriptions):
            one.close()

    # The parts of it

    def _done(self, written: Written) -> Entry:
        if len(self._unstored) >= UNSTORED_MAX:
            del self._unstored[next(iter(self._unstored))]
        self._unstored[written.entry.entry_id] = _nobody
        self._perform(self._gossip.local(written, self._clock()))
        return written.entry

    def _publish(self, record: bytes) -> Published:
        try:
            entry = read_entry(record)
        except EntryError as error:
            return Published(None, Verdict.REJECTED, str(error))
        if entry.owner != self.network_id:
            reason = "not of this network's root key; what nodes write spreads by itself"
            return Published(entry.entry_id, Verdict.REJECTED, reason)
        outcome, actions = self._gossip.inject(entry, self._clock())
        self._perform(actions)
        return Published(entry.entry_id, outcome.verdict, self._reason(entry, outcome))

    def _reason(self, entry: Entry, outcome: Outcome) -> str:
        if outcome.verdict is Verdict.STALE:
            return "a newer one is here already"
        if outcome.reason is None:
            return ""
        ahead_s = (ms_of(entry.stamp) - self.now_ms()) // 1000
        ahead = f" ({ahead_s} s ahead of this node)" if ahead_s > 0 else ""
        return f"{outcome.reason.value}{ahead}"

    def _full_key(self, bucket: str, key: str) -> str:
        """Return the key with this node's id before it if the bucket wants one and it has none."""
        rule = check_bucket(bucket)
        if rule.writers not in UNDER_OWN_ID | {Writers.SELF} or read_id(key.partition("/")[0]):
            return key
        return f"{id_text(self._gossip.writer.owner)}/{key}"

    def _own_key(self, bucket: str, key: str) -> str:
        """Return the key to write under. Raises NotOpenError where people do not write."""
        full = self._full_key(bucket, key)
        rule = BUCKETS[bucket]
        if bucket not in OPEN:
            raise NotOpenError(
                f"{bucket} is not written by hand: it holds {rule.what}, by {rule.writers.value}",
                hint="secrets have commands of their own: skerry secret"
                if bucket == SECRET
                else f"open to people and programs: {', '.join(sorted(OPEN))}",
            )
        own = id_text(self._gossip.writer.owner)
        if rule.writers in UNDER_OWN_ID and full.partition("/")[0] != own:
            raise NotOpenError(
                f"{bucket}/{key} is another member's place",
                hint=f"this node writes under {own}/; a NAME alone is put there",
            )
        return full


def _nobody() -> None:
    """Nobody waits for this write."""


def check_bucket(bucket: str) -> Bucket:
    """Return a bucket's rule. Raises NoBucketError."""
    rule = BUCKETS.get(bucket)
    if rule is None:
        raise NoBucketError(
            f"there is no bucket {bucket[:80]!r}", hint=f"known: {', '.join(BUCKETS)}"
        )
    return rule
