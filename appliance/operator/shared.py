"""What the operator's commands share: a network's directory at work, words for what was done."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.ledger.assigned import read_id
from appliance.operator.errors import OperatorError, PublishError
from appliance.operator.outbox import load_outbox
from appliance.operator.publisher import Fetched, LocalPublisher, Publisher, Result
from appliance.operator.rootkey import RootKey
from appliance.operator.snapshot import Snapshot, fetch_snapshot, last_snapshot
from appliance.operator.ways import choose
from appliance.operator.work import Report, Work, tell
from provisioning import operator_commands
from provisioning import operator_files as files
from provisioning.durations import moment_text
from provisioning.network import NetworkInfo
from skerry import console


@contextmanager
def working(arguments: argparse.Namespace) -> Iterator[Work]:
    """Yield the network's directory at work: locked, its root key open, the way chosen."""
    directory = files.find_network(arguments.network)
    waiting = f"waiting for another command that works on {directory}"
    with files.locked(directory, lambda: console.note(waiting)):
        root = _root_key(directory, arguments)
        publisher: Publisher | PublishError
        try:
            publisher = told(_way(arguments, root.network, lambda: root))
        except PublishError as error:
            publisher = error
        yield Work(directory, root, publisher, now_ms(), console.note)


def _root_key(directory: Path, arguments: argparse.Namespace) -> RootKey:
    operator = files.open_network(
        directory, lambda: operator_commands.passphrase(arguments.passphrase_file)
    )
    return RootKey(operator.network, operator.root_seed)


def _way(
    arguments: argparse.Namespace, network: NetworkInfo, root: Callable[[], RootKey]
) -> Publisher:
    def visit(via: str) -> Publisher:
        from appliance.operator.visit import Visit

        return Visit(root(), via)

    return choose(arguments.via, network, visit=visit)


def finish(arguments: argparse.Namespace, words: str, report: Report, facts: dict[str, Any]) -> int:
    """Say what became of it, to people and machines; return the exit status."""
    tell(report, console.note, words)
    if arguments.json:
        print(json.dumps(facts | report_facts(report)))
    return report.status


def report_facts(report: Report) -> dict[str, Any]:
    """Return a report for machines."""
    return {
        "via": report.where or None,
        "published": report.published,
        "waiting": report.waiting,
        "superseded": report.superseded,
        "epoch": report.epoch,
        "trouble": str(report.trouble) if report.trouble else None,
        "reasons": report.reasons,
    }


@dataclass(frozen=True, slots=True)
class Told:
    """A way that takes its time, and says so."""

    way: Publisher

    @property
    def where(self) -> str:
        """How a message calls it."""
        return self.way.where

    def fetch(self) -> Fetched:
        """Return all that the node holds."""
        with console.step(f"fetching the ledger through {self.where}"):
            return self.way.fetch()

    def publish(self, records: Sequence[bytes]) -> tuple[Result, ...]:
        """Hand over one batch."""
        with console.step(f"publishing {len(records)} statement(s) through {self.where}"):
            return self.way.publish(records)


def told(way: Publisher) -> Publisher:
    """Return a way that says what it does, if it may take long."""
    return way if isinstance(way, LocalPublisher) else Told(way)


def look_around(
    directory: Path, network: NetworkInfo, arguments: argparse.Namespace
) -> tuple[Snapshot | None, PublishError | None]:
    """Return what a node shows now, or what was seen last and why it has to do."""
    try:
        publisher = told(_way(arguments, network, lambda: _root_key(directory, arguments)))
        return fetch_snapshot(directory, network, publisher, now_ms()), None
    except PublishError as error:
        return last_snapshot(directory, network, now_ms()), error


def say_snapshot(snapshot: Snapshot, trouble: PublishError | None) -> None:
    """Say how old a list is, and whether it is whole."""
    if trouble is not None:
        console.note(f"{trouble}; this is what was seen {moment_text(snapshot.at_ms / 1000)}")
        if trouble.hint:
            console.note(f"  {trouble.hint}")
    if snapshot.unread:
        console.note(f"{snapshot.unread} entries there could not be read; is this Skerry older?")


def say_waiting(directory: Path, network: NetworkInfo) -> None:
    """Say what this machine has said that is not in the list yet."""
    waiting = len(load_outbox(directory, network).pending)
    if waiting:
        console.note(f"{waiting} statement(s) wait in the outbox: skerry network sync")


def snapshot_facts(snapshot: Snapshot) -> dict[str, Any]:
    """Return whose view a list is, and of when (Unix seconds)."""
    return {"where": snapshot.where, "fresh": snapshot.fresh, "seen": snapshot.at_ms // 1000}


def now_ms() -> int:
    """Return this machine's time in Unix milliseconds."""
    return int(time.time() * 1000)


def epochs_words(begun: tuple[int, ...]) -> str:
    """Return what to say of epochs that begin."""
    return f"; epoch {begun[-1]} begins" if begun else ""


def id_of(text: str) -> bytes:
    """Return the id that is written so. Raises OperatorError."""
    found = read_id(text)
    if found is None:
        raise OperatorError(f"{text[:40]!r} is no id")
    return found
