"""What a boot means for an update, and what may be installed: pure decisions and their records.

An installation leaves a *pending* record before its slot is activated. After the reboot the record
and the slot that was booted tell whether this is a trial, a roll-back or an ordinary boot. The boot
loader counts tries by itself; nothing here has to run for a bad slot to be left.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum

import msgspec

RECORD_FORMAT = 1
FAILURES_KEPT = 50


class Phase(StrEnum):
    """How far an update has come."""

    INSTALLING = "installing"  # RAUC writes the slot; nothing is activated
    ACTIVATED = "activated"  # the next boot tries the slot
    PROVEN = "proven"  # it was healthy; only the mark may be missing


class Origin(StrEnum):
    """Why the slot is to be booted."""

    INSTALL = "install"
    ROLLBACK = "rollback"


class Pending(msgspec.Struct, frozen=True, kw_only=True):
    """An update that is not decided yet. Slots are boot names ("A"); times are unix seconds.

    ``boot_id`` is the kernel's id of the boot in which it was written; ``boots`` counts the trial
    boots that came as far as our own units.
    """

    format: int
    phase: Phase
    origin: Origin
    target: str
    target_name: str
    version: str
    build_id: str
    from_slot: str
    from_version: str
    installed_at: int
    boot_id: str
    boots: int = 0


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """A version that was tried and did not hold."""

    version: str
    build_id: str
    slot: str
    failed_at: int
    reason: str
    boots: int


class Failures(msgspec.Struct, frozen=True, kw_only=True):
    """The file of failed versions, oldest first."""

    format: int = RECORD_FORMAT
    failures: tuple[Failure, ...] = ()


class GoodSlot(msgspec.Struct, frozen=True, kw_only=True):
    """What a slot held when it was last marked good."""

    version: str
    build_id: str
    good_at: int


class GoodSlots(msgspec.Struct, frozen=True, kw_only=True):
    """The file of slots that have run well, by boot name."""

    format: int = RECORD_FORMAT
    slots: dict[str, GoodSlot] = {}


@dataclass(frozen=True, slots=True)
class Boot:
    """What runs now: boot name of the slot (None: not booted from a slot), boot id, release."""

    slot: str | None
    boot_id: str
    version: str
    build_id: str


class Standing(Enum):
    """What the running boot is."""

    COMMITTED = "committed"
    AWAITING_REBOOT = "awaiting reboot"
    TRIAL = "trial"
    ROLLED_BACK = "rolled back"
    INTERRUPTED = "installation interrupted"
    NO_SLOT = "not booted from a slot"


def judge(pending: Pending | None, boot: Boot, *, first: str | None = None) -> Standing:
    """Say what this boot is.

    ``first`` is the boot name that the boot loader prefers, None if unknown: it tells an update
    that was tried and left from one that lost power before it was activated.
    """
    if boot.slot is None:
        return Standing.NO_SLOT
    if pending is None:
        return Standing.COMMITTED
    if pending.target == boot.slot:
        return Standing.COMMITTED if pending.phase is Phase.PROVEN else Standing.TRIAL
    if pending.boot_id == boot.boot_id:
        return Standing.AWAITING_REBOOT
    if pending.phase is Phase.INSTALLING and first != pending.target:
        return Standing.INTERRUPTED
    if pending.phase is Phase.ACTIVATED and first not in {None, pending.target}:
        return Standing.INTERRUPTED
    return Standing.ROLLED_BACK


def same_release(version: str, build_id: str, other_version: str, other_build_id: str) -> bool:
    """Whether two releases are the same: by build id where both have one, else by version."""
    if build_id and other_build_id:
        return build_id == other_build_id
    return bool(version) and version == other_version


def find_failure(failures: Failures, version: str, build_id: str) -> Failure | None:
    """Return the latest failure of this release, if it has one."""
    return next(
        (
            failure
            for failure in reversed(failures.failures)
            if same_release(version, build_id, failure.version, failure.build_id)
        ),
        None,
    )


def with_failure(failures: Failures, failure: Failure) -> Failures:
    """Return the failures with this one as the latest, each release once, at most 50."""
    kept = [
        known
        for known in failures.failures
        if not same_release(known.version, known.build_id, failure.version, failure.build_id)
    ]
    return Failures(failures=(*kept, failure)[-FAILURES_KEPT:])


def without_failure(failures: Failures, version: str, build_id: str) -> Failures:
    """Return the failures without this release: it has proved itself since."""
    return Failures(
        failures=tuple(
            known
            for known in failures.failures
            if not same_release(known.version, known.build_id, version, build_id)
        )
    )


def with_good(slots: GoodSlots, slot: str, good: GoodSlot | None) -> GoodSlots:
    """Return the good slots with this one set, or forgotten if ``good`` is None."""
    rest = {name: known for name, known in slots.slots.items() if name != slot}
    return GoodSlots(slots={**rest, slot: good} if good else rest)


def rollback_reason(pending: Pending, tries: int | None) -> str:
    """Say why the update was rolled back, from what is known after the fact.

    ``tries`` is the boot loader's counter of the slot, None if it cannot be read.
    """
    if pending.phase is Phase.PROVEN:
        return "it had been healthy once, but later the boot loader left it"
    if pending.boots == 0:
        tried = f" in {tries} boots" if tries else ""
        return (
            "it never came as far as the node's own services"
            f"{tried}: kernel panic, damaged root file system, hang or loss of power"
        )
    return "it started, but did not become healthy in time"


def boots_tried(pending: Pending, tries: int | None) -> int:
    """Return how often the slot was booted, by the better of the two counts."""
    return max(pending.boots, tries or 0)
