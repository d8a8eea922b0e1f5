"""Post-mortems: why an update did not hold, kept in the data partition across the roll-back.

``post-mortem/TRIAL/attempt-N.json`` is written by the failing slot, one for each boot that came as
far as our units; ``summary.json`` by the slot that the boot loader fell back to. A trial is named
after the time and version of its installation.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from ota.errors import OtaError
from ota.records import Records
from ota.trial import Pending

DIRECTORY = "post-mortem"
KEPT = 10
_COMMAND_SECONDS = 60.0
_LONGEST_OUTPUT = 64 * 1024
_LONGEST_FILE = 1024 * 1024

Run = Callable[[Sequence[str]], str]


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """What one failed trial boot left behind; ``at`` is unix seconds by its own clock."""

    format: int = 1
    boot: int
    boot_id: str
    at: int
    uptime_s: float
    reasons: tuple[str, ...]
    failed_units: tuple[str, ...]
    journal: tuple[str, ...]


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """Why an update is no longer the running system."""

    format: int = 1
    version: str
    build_id: str
    slot: str
    back_on_slot: str
    back_on_version: str
    at: int
    boots: int
    reason: str
    reasons: tuple[str, ...] = ()
    failed_units: tuple[str, ...] = ()


def trial_name(pending: Pending) -> str:
    """Return the folder of a trial; safe as a file name whatever the version says."""
    try:
        when = datetime.fromtimestamp(pending.installed_at, UTC).strftime("%Y%m%dT%H%M%SZ")
    except (OverflowError, ValueError, OSError):
        when = "unknown-time"
    version = re.sub(r"[^A-Za-z0-9._+~-]", "_", pending.version)[:64].lstrip(".")
    return f"{when}-{version or 'unknown'}"


def run_command(argv: Sequence[str]) -> str:
    """Return what a command printed, or what kept it from it; never raises, never waits long."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_COMMAND_SECONDS,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"({argv[0]}: {error})"
    return done.stdout[-_LONGEST_OUTPUT:].decode("utf-8", "replace")


def examine(pending: Pending, boot_id: str, *, run: Run = run_command) -> Attempt:
    """Look at the failing system: the supervisor's reasons, failed units, the journal's end."""
    failed = run(["systemctl", "list-units", "--failed", "--plain", "--no-legend", "--no-pager"])
    tail = ["journalctl", "--boot", "--no-pager", "--output=short-monotonic"]
    journal = run([*tail, "--lines=120", "--priority=warning"])
    units = run([*tail, "--lines=60", "--unit=skerry.service", "--unit=skerry-health.service"])
    return Attempt(
        boot=pending.boots,
        boot_id=boot_id,
        at=int(time.time()),
        uptime_s=round(time.clock_gettime(time.CLOCK_BOOTTIME), 1),
        reasons=supervisor_reasons(run(["skerry", "status", "--json"])),
        failed_units=tuple(line.split()[0] for line in failed.splitlines() if line.split()),
        journal=(*journal.splitlines(), *units.splitlines()),
    )


def supervisor_reasons(status: str) -> tuple[str, ...]:
    """Return the state and problems out of ``skerry status --json``, or what it said instead."""
    try:
        document = json.loads(status)
    except (ValueError, RecursionError):
        return tuple(line for line in status.splitlines()[-5:] if line.strip())
    if not isinstance(document, dict):
        return ()
    reasons = [f"state: {document['state']}"] if "state" in document else []
    problems = document.get("problems") or document.get("reasons") or []
    for problem in problems if isinstance(problems, list) else []:
        text = problem.get("message", problem) if isinstance(problem, dict) else problem
        reasons.append(str(text))
    return tuple(reasons[:50])


def write_attempt(records: Records, pending: Pending, attempt: Attempt) -> str:
    """Keep the report of one failed boot; return its name. OtaError if there is no room."""
    name = f"{DIRECTORY}/{trial_name(pending)}/attempt-{attempt.boot}.json"
    records.write(name, msgspec.json.format(msgspec.json.encode(attempt)))
    return name


def attempts(records: Records, pending: Pending) -> list[Attempt]:
    """Return the reports that the failing slot left, oldest first; damaged ones are skipped."""
    folder = records.directory / DIRECTORY / trial_name(pending)
    found = []
    for path in folder.glob("attempt-*.json"):
        with contextlib.suppress(OSError, msgspec.DecodeError, UnicodeDecodeError):
            found.append(msgspec.json.decode(_bounded(path), type=Attempt))
    return sorted(found, key=lambda attempt: attempt.boot)


def write_summary(records: Records, pending: Pending, summary: Summary) -> str:
    """Keep the verdict, drop the oldest trials; return its name. OtaError if there is no room."""
    name = f"{DIRECTORY}/{trial_name(pending)}/summary.json"
    try:
        records.write(name, msgspec.json.format(msgspec.json.encode(summary)))
    finally:
        _drop_old(records.directory / DIRECTORY)
    return name


def last_summary(records: Records) -> Summary | None:
    """Return the latest verdict that can be read."""
    for folder in sorted((records.directory / DIRECTORY).glob("*/"), reverse=True):
        with contextlib.suppress(OSError, msgspec.DecodeError, UnicodeDecodeError, OtaError):
            return msgspec.json.decode(_bounded(folder / "summary.json"), type=Summary)
    return None


def _bounded(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_LONGEST_FILE)


def _drop_old(directory: Path) -> None:
    for folder in sorted(directory.glob("*/"), reverse=True)[KEPT:]:
        shutil.rmtree(folder, ignore_errors=True)
