"""How the node stands with updates: one document, as JSON or for a person."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TypedDict

import msgspec

from ota import postmortem
from ota.errors import OtaError
from ota.installer import Slot
from ota.node import read_boot_choice
from ota.rauc import Rauc
from ota.update import Updates
from skerry.console import table


class SlotStatus(TypedDict):
    """One slot; ``tries`` is None where the boot loader's block cannot be read."""

    slot: str
    name: str
    booted: bool
    next: bool
    good: bool
    version: str
    build_id: str
    tries: int | None


class UpdateStatus(TypedDict):
    """The document of ``skerry update status --json``."""

    slot: str | None
    version: str
    build_id: str
    standing: str
    operation: str
    slots: list[SlotStatus]
    pending: dict[str, object] | None
    last_post_mortem: dict[str, object] | None
    failed: list[dict[str, object]]
    problems: list[str]


async def collect(updates: Updates, address: str | None = None) -> UpdateStatus:
    """Ask RAUC, the boot loader and the records; what cannot be asked becomes a problem line."""
    standing, pending = updates.standing()
    slots: tuple[Slot, ...] = ()
    operation = "unknown"
    problems = []
    try:
        async with Rauc.connect(address) as rauc:
            operation = await rauc.operation()
            if operation == "idle":
                slots = await rauc.slots()
            else:
                progress = await rauc.progress()
                operation = f"{operation}: {progress.percent} % ({progress.message})"
    except OtaError as error:
        problems.append(f"{error}" + (f" ({error.hint})" if error.hint else ""))
    summary = postmortem.last_summary(updates.records)
    failures = updates.records.failures().failures
    rows = [_slot_status(updates, slot) for slot in slots if slot.bootname]
    return UpdateStatus(
        slot=updates.boot.slot,
        version=updates.boot.version,
        build_id=updates.boot.build_id,
        standing=standing.value,
        operation=operation,
        slots=sorted(rows, key=lambda row: row["slot"]),
        pending=msgspec.to_builtins(pending) if pending else None,
        last_post_mortem=msgspec.to_builtins(summary) if summary else None,
        failed=[msgspec.to_builtins(failure) for failure in failures],
        problems=[*problems, *updates.records.problems],
    )


def render(status: UpdateStatus) -> str:
    """Return the document for a person."""
    lines = [
        f"version {status['version'] or '?'} in slot {status['slot'] or '?'}: {status['standing']}"
    ]
    if status["slots"]:
        rows = [_row(slot) for slot in status["slots"]]
        lines += ["", table(("SLOT", "VERSION", "STATE", "TRIES", "BUILD"), rows)]
    if status["operation"] not in {"idle", "unknown"}:
        lines += ["", f"RAUC is {status['operation']}"]
    if status["pending"]:
        pending = status["pending"]
        lines += [
            "",
            f"{pending['origin']} of version {pending['version']} in slot {pending['target']}: "
            f"{pending['phase']}, {pending['boots']} trial boots so far",
        ]
    if status["last_post_mortem"]:
        verdict = status["last_post_mortem"]
        lines += [
            "",
            f"version {verdict['version']} was rolled back {_when(verdict['at'])} after "
            f"{verdict['boots']} boots: {verdict['reason']}",
        ]
        found = [verdict.get("reasons"), verdict.get("failed_units")]
        for reasons in found:
            lines += [f"  {reason}" for reason in reasons] if isinstance(reasons, list) else []
    lines += [
        f"refused without --force: version {failure['version']}, build {failure['build_id'] or '?'}"
        for failure in status["failed"]
    ]
    lines += [f"problem: {problem}" for problem in status["problems"]]
    return "\n".join(lines)


def _slot_status(updates: Updates, slot: Slot) -> SlotStatus:
    choice = read_boot_choice(updates.files)
    known = updates.records.good_slots().slots.get(slot.bootname)
    booted = slot.bootname == updates.boot.slot
    version, build_id = slot.version, slot.build_id
    if booted:
        version, build_id = updates.boot.version, updates.boot.build_id
    elif not version and known:
        version, build_id = known.version, known.build_id
    return SlotStatus(
        slot=slot.bootname,
        name=slot.name,
        booted=booted,
        next=choice.first == slot.bootname if choice else False,
        good=slot.boot_status == "good",
        version=version,
        build_id=build_id,
        tries=choice.tries(slot.bootname) if choice else None,
    )


def _row(slot: SlotStatus) -> tuple[str, ...]:
    words = [
        word
        for word, applies in (
            ("booted", slot["booted"]),
            ("boots next", slot["next"]),
            ("good" if slot["good"] else "not good", True),
        )
        if applies
    ]
    tries = "?" if slot["tries"] is None else str(slot["tries"])
    return (slot["slot"], slot["version"] or "-", ", ".join(words), tries, slot["build_id"] or "-")


def _when(at: object) -> str:
    try:
        return datetime.fromtimestamp(int(str(at)), UTC).strftime("on %Y-%m-%d at %H:%M UTC")
    except (ValueError, OverflowError, OSError):
        return "at an unknown time"
