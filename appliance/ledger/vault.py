"""One node's secrets for programs, people and the control plane: a keeper tied to its ledger.

Recipe for the shell that runs the ledger::

    vault = Vault(keeper, gossip, time.monotonic, members, perform)
    vault.work()                    # once, before anything new is let in
    ...
    vault.changed(change)           # of every change, once it is on the disk
    if mono >= vault.next_timer():
        vault.work()
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Sequence

from appliance.ledger.entry import Entry
from appliance.ledger.errors import WriteError
from appliance.ledger.gossip import Action, Gossip
from appliance.ledger.keeper import Info, Keeper, Write
from appliance.ledger.rules import EPOCH, MEMBER, REVOKED
from appliance.ledger.secrets import SECRET, Secret
from appliance.ledger.state import Change
from provisioning.membership import Member

log = logging.getLogger(__name__)

# Changes come in swarms, and each look is a pass over all secrets (10 ms for 1,000 boxes on a PC):
# looking takes a tenth of the time at most.
PAUSE_SECONDS = 0.1
SHARE = 9.0
CONCERNS = frozenset({SECRET, MEMBER, REVOKED, EPOCH})
UNSTORED_MAX = 256


class Vault:
    """What a node does with the network's secrets.

    ``clock`` is the monotonic clock that the gossip runs by; ``members`` gives who is in, this node
    too; ``perform`` does what a write of the ledger causes; ``alive`` gives whom one may count on,
    ``name_of`` what people call a node (`LedgerAccess.owner_name`). ``on_exposed`` is called with
    all exposed secrets when one is found: what lives by it (cluster credentials) puts a new value.
    """

    def __init__(
        self,
        keeper: Keeper,
        gossip: Gossip,
        clock: Callable[[], float],
        members: Callable[[], Iterable[Member]],
        perform: Callable[[list[Action]], None],
        *,
        alive: Callable[[], Collection[bytes]] | None = None,
        name_of: Callable[[bytes], str | None] | None = None,
        on_exposed: Callable[[frozenset[str]], None] | None = None,
    ) -> None:
        self._keeper = keeper
        self._gossip = gossip
        self._clock = clock
        self._members = members
        self._perform = perform
        self._alive = alive
        self._name_of = name_of
        self._on_exposed = on_exposed
        self._exposed: frozenset[str] = frozenset()
        self._due = float("-inf")
        self._not_before = float("-inf")
        self._unstored: dict[bytes, Callable[[], None]] = {}

    # Fed by the shell

    def changed(self, change: Change, *, stored: bool = True) -> None:
        """Take note of a change of the replica; ``stored``: own writes are on the disk."""
        if change.entry.bucket in CONCERNS:
            soon = max(self._clock() + PAUSE_SECONDS, self._not_before)
            self._due = min(self._due, soon)
        if change.new is not None:
            done = self._unstored.pop(change.new.entry_id, None)
            if done is not None and stored:
                done()

    def next_timer(self) -> float:
        """Return the monotonic time at which `work` has something to do."""
        return self._due

    def work(self) -> None:
        """Open what came in; seal, take over and tidy up what is this node's to do by now."""
        mono = self._clock()
        alive = self._alive() if self._alive is not None else None
        now_ms = self._gossip.timekeeper.now_ms(mono)
        writes = self._keeper.look(self._members(), now_ms, mono, alive=alive)
        due = self._keeper.next_timer()
        took = self._clock() - mono
        self._not_before = mono + took + max(PAUSE_SECONDS, SHARE * took)
        self._due = float("inf") if due is None else max(due, self._not_before)
        try:
            for one in writes:
                self._write(one)
        except WriteError as error:
            # The ledger is full, say; the next change is the next try.
            log.warning("a secret could not be passed on: %s", error)
        self._tell_exposed()  # last: who hears of it may put a new value at once

    # For programs and people

    def secrets(self) -> Sequence[Info]:
        """Return what there is, by name, without any value."""
        return self._keeper.infos(self._members(), self._now_ms())

    def exposed(self) -> frozenset[str]:
        """Return the names of secrets that one has had who is out now: put a new value."""
        return self._keeper.exposed(self._now_ms())

    def get(self, name: str) -> Secret:
        """Return a secret with its value. Raises SecretError: this node does not hold it."""
        return self._keeper.get(name)

    def put(self, name: str, value: bytes, roles: Iterable[str]) -> Entry:
        """Put a secret's next value for members with one of the roles; return its notice.

        Raises SecretError or WriteError.
        """
        return self._all(self._keeper.put(name, value, roles, self._members(), self._now_ms()))

    def remove(self, name: str) -> Entry:
        """End a secret for all members. Raises SecretError or WriteError."""
        return self._all(self._keeper.remove(name, self._now_ms()))

    def when_stored(self, entry: Entry, done: Callable[[], None]) -> None:
        """Call ``done`` once what `put` or `remove` returned is on the disk, at once if it is."""
        if entry.entry_id in self._unstored:
            self._unstored[entry.entry_id] = done
        else:
            done()

    def node_name(self, node_id: bytes) -> str | None:
        """Return what people call a node, None if it is no member."""
        if self._name_of is not None:
            return self._name_of(node_id)
        member = self._gossip.replica.directory.member(node_id)
        return member.name if member is not None else None

    # The parts of it

    def _tell_exposed(self) -> None:
        new = self._keeper.last_exposed - self._exposed
        self._exposed = self._keeper.last_exposed
        for name in sorted(new):
            log.warning(
                "the secret %s is exposed: a node that is out has had its value; change what it "
                "opens and put the new one: skerry secret put %s -",
                name,
                name,
                extra={"skerry_secret": name},
            )
        if new and self._on_exposed is not None:
            self._on_exposed(self._exposed)

    def _all(self, writes: Sequence[Write]) -> Entry:
        """Perform writes, the notice last; then look, so that the value can be asked for."""
        for one in writes[:-1]:
            self._write(one)
        notice = self._write(writes[-1], awaited=True)
        self.work()
        return notice

    def _write(self, write: Write, *, awaited: bool = False) -> Entry:
        now_ms = self._now_ms()
        writer = self._gossip.writer
        if write.value is None:
            written = writer.delete(SECRET, write.key, now_ms)
        else:
            written = writer.put(SECRET, write.key, write.value, now_ms)
        if awaited:
            if len(self._unstored) >= UNSTORED_MAX:
                del self._unstored[next(iter(self._unstored))]
            self._unstored[written.entry.entry_id] = _nobody
        self._perform(self._gossip.local(written, self._clock()))
        return written.entry

    def _now_ms(self) -> int:
        return self._gossip.timekeeper.now_ms(self._clock())


def _nobody() -> None:
    """Nobody waits for this write."""
