"""One command's work: look, settle what was left over, say something, keep it, publish it.

Everything is on the disk before it is sent (`outbox`), so a command may be cut off anywhere. What a
broken-off publish leaves in the network is safe by the order of the entries (`statements`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from appliance.ledger.entry import Entry
from appliance.ledger.hlc import MAX_SKEW_MS
from appliance.ledger.rules import EPOCH
from appliance.ledger.state import Reason, Verdict
from appliance.operator.errors import ClockError, PublishError
from appliance.operator.outbox import Outbox, load_outbox, save_outbox
from appliance.operator.publisher import Publisher, Result, batches
from appliance.operator.rootkey import RootKey
from appliance.operator.snapshot import Snapshot, empty_snapshot, fetch_snapshot, last_snapshot
from appliance.operator.statements import Desk, Settled, epoch_of, is_announcement
from provisioning.durations import moment_text
from provisioning.operator_files import save_epoch

T = TypeVar("T")
Note = Callable[[str], None]
_TAKEN = {Verdict.ACCEPTED.value, Verdict.KNOWN.value}
_AGAIN = "the next command publishes them first; to do only that: skerry network sync"


@dataclass(slots=True)
class Report:
    """What became of the entries. ``waiting`` are in the outbox, ``trouble`` says why."""

    where: str = ""
    made: int = 0
    published: int = 0
    waiting: int = 0
    epoch: int = 0
    trouble: PublishError | None = None
    superseded: int = 0
    reasons: list[str] = field(default_factory=list)

    @property
    def status(self) -> int:
        """The exit status."""
        return 1 if self.waiting else 0


@dataclass(slots=True)
class Work:
    """A network's directory at work; the caller holds its lock (`operator_files.locked`)."""

    directory: Path
    root: RootKey
    publisher: Publisher | PublishError
    now_ms: int
    note: Note

    def do(self, intent: Callable[[Desk, Snapshot], T], *, blind: bool = False) -> tuple[T, Report]:
        """Carry out an intent and publish what it says.

        What was left over is published first, and if that cannot be, nothing else is. Without a
        node that answers it works on what was seen last, and the outbox keeps what it says;
        ``blind`` allows that even if nothing was ever seen. Raises what the intent raises (nothing
        of it is kept then), PublishError if nothing could be done, ClockError.
        """
        report = Report(epoch=self.root.network.epoch)
        snapshot = self._snapshot(report, blind=blind)
        outbox = load_outbox(self.directory, self.root.network)
        desk = Desk(
            self.root, snapshot.replica, self.now_ms, sequence=outbox.sequence, stamp=outbox.stamp
        )
        settled = desk.settle(outbox.unseen, outbox.secrets)
        report.superseded = len(settled.superseded)
        trouble = desk.epoch_trouble(settled.displaced)
        self._learn(desk, report)
        outbox = self._left_over(outbox, desk, settled)
        if snapshot.fresh:
            outbox = self._publish(outbox, (*settled.resend, *desk.made), report)
        held_up = bool(outbox.pending)
        known, before = set(desk.secrets), len(desk.made)
        done = intent(desk, snapshot)
        if trouble is not None and known == set(desk.secrets):
            begun = desk.new_epochs()
            self.note(f"{trouble}: epoch {begun[-1]} begins in its place")
        made = desk.made[before:]
        report.made = len(made)
        outbox = self._save(outbox, desk, (*outbox.pending, *made), outbox.sent)
        if snapshot.fresh and not held_up:
            outbox = self._publish(outbox, made, report)
        report.waiting = len(outbox.pending)
        return done, report

    def _snapshot(self, report: Report, *, blind: bool) -> Snapshot:
        network = self.root.network
        try:
            if isinstance(self.publisher, PublishError):
                raise self.publisher
            report.where = self.publisher.where
            return fetch_snapshot(self.directory, network, self.publisher, self.now_ms)
        except PublishError as error:
            report.trouble = error
            snapshot = last_snapshot(self.directory, network, self.now_ms)
            if snapshot is None and not blind:
                raise
        if snapshot is None:
            return empty_snapshot(network, self.now_ms)
        if snapshot.at_ms > self.now_ms + MAX_SKEW_MS:
            raise ClockError(
                f"this machine's clock says {moment_text(self.now_ms / 1000)}, but it saw the "
                f"network at {moment_text(snapshot.at_ms / 1000)}; nothing was signed",
                hint="set this machine's clock (timedatectl), then give the command again",
            )
        self.note(
            f"{report.trouble}; working on what was seen {moment_text(snapshot.at_ms / 1000)}"
        )
        return snapshot

    def _learn(self, desk: Desk, report: Report) -> None:
        """Keep the epoch that the network is in, whoever began it."""
        found = desk.known_epoch()
        if found is not None:
            self._set_epoch(*found, report)
            desk.root = self.root

    def _set_epoch(self, number: int, secret: bytes, report: Report) -> None:
        network = save_epoch(self.directory, number, secret)
        self.root = replace(self.root, network=network)
        report.epoch = number

    def _left_over(self, before: Outbox, desk: Desk, settled: Settled) -> Outbox:
        """Write down what of the outbox is still to be sent, or to be seen again."""
        again = {one.entry_id for one in settled.resend}
        sent = tuple(one for one in before.sent if one.entry_id in again)
        pending = tuple(one for one in before.pending if one.entry_id in again)
        return self._save(before, desk, (*pending, *desk.made), sent)

    def _save(
        self, before: Outbox, desk: Desk, pending: tuple[Entry, ...], sent: tuple[Entry, ...]
    ) -> Outbox:
        """Write down all that is to be sent, before anything is."""
        needed = {epoch_of(one.key) for one in (*sent, *pending) if one.bucket == EPOCH}
        network = self.root.network
        secrets = {
            number: secret
            for number, secret in desk.secrets.items()
            if number in needed or number > network.epoch
        }
        outbox = Outbox(desk.sequence, desk.stamp, pending, sent, secrets)
        if outbox != before:
            save_outbox(self.directory, network, outbox)
        return outbox

    def _publish(self, outbox: Outbox, entries: Sequence[Entry], report: Report) -> Outbox:
        """Send, and note after each batch what arrived; what did not ends it."""
        assert not isinstance(self.publisher, PublishError)  # noqa: S101 - it was fetched from
        for part in _parts(entries):
            try:
                results = self.publisher.publish([one.record for one in part])
            except PublishError as error:
                report.trouble = error
                return outbox
            pairs = list(zip(part, results, strict=False))
            taken = {one.entry_id for one, result in pairs if result.verdict in _TAKEN}
            for one in part:
                if is_announcement(one) and one.entry_id in taken:
                    self._announced(one, outbox, report)
            outbox = outbox.taken(taken)
            save_outbox(self.directory, self.root.network, outbox)
            report.published += len(taken)
            if any(self._stops(one, result, report) for one, result in pairs):
                return outbox
            if len(results) < len(part):
                report.reasons.append(f"{self.publisher.where} did not answer for all of them")
                return outbox
        return outbox

    def _announced(self, entry: Entry, outbox: Outbox, report: Report) -> None:
        number = epoch_of(entry.key)
        secret = outbox.secrets.get(number) if number is not None else None
        if number is not None and secret is not None and number >= self.root.network.epoch:
            self._set_epoch(number, secret, report)

    def _stops(self, entry: Entry, result: Result, report: Report) -> bool:
        """Say whether what became of an entry forbids to send what follows it."""
        if result.verdict in _TAKEN:
            return False
        if result.verdict == Verdict.STALE.value:
            report.reasons.append(
                f"{entry.bucket}/{entry.key}: another operator said something at the same time"
            )
            return entry.bucket == EPOCH
        reason = result.reason or f"verdict {result.verdict[:40]!r}"
        if reason == Reason.FUTURE.value:
            reason += ": this machine's clock is ahead of the network's (timedatectl)"
        report.reasons.append(f"{entry.bucket}/{entry.key} was refused: {reason}")
        return True


def _parts(entries: Sequence[Entry]) -> Iterator[Sequence[Entry]]:
    """Split entries into batches; an announcement begins one, so that its boxes are there."""
    run: list[Entry] = []
    for one in entries:
        if is_announcement(one):
            yield from _sized(run)
            run = []
        run.append(one)
    yield from _sized(run)


def _sized(entries: Sequence[Entry]) -> Iterator[Sequence[Entry]]:
    at = 0
    for part in batches([one.record for one in entries]):
        yield entries[at : at + len(part)]
        at += len(part)


def tell(report: Report, note: Note, what: str) -> None:
    """Say for people what became of it."""
    if report.superseded:
        note(
            f"{report.superseded} earlier statement(s) of this machine were left out: "
            "others said something later"
        )
    for reason in report.reasons:
        note(reason)
    if report.trouble is not None and report.trouble.hint and report.waiting:
        note(f"{report.trouble}: {report.trouble.hint}")
    if report.waiting:
        note(f"not yet published: {what}")
        note(f"{report.waiting} statement(s) wait in the outbox; {_AGAIN}")
    elif report.published:
        note(f"{what}: published through {report.where} ({report.published} statement(s))")
    else:
        note(f"{what}: nothing had to be published")
