"""What can be wrong with a node, in words for its owner, found from facts."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from skerry.errors import SkerryError

log = logging.getLogger(__name__)

START_SECONDS = 120.0
# Worth knowing only: `lifecycle` counts it as no reason.
CLOCK_BY_MEMBERS = "clock-by-members"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    ``code`` is stable and for machines (``disk-full``); ``message`` says what is wrong, with the
    value and the place; ``hint`` is the way out.
    """

    code: str
    message: str
    hint: str


def data_problem(trouble: str) -> Problem | None:
    """Say what the initrd had to say of the data partition."""
    if not trouble:
        return None
    return Problem(
        "data-partition",
        f"{trouble}; this boot keeps its data in memory: an identity made now is lost with it",
        "Look at the disk (journalctl -k, smartctl), replace it if it is failing, and restart.",
    )


def overlay_problem(error: Exception) -> Problem:
    """Say why the overlay did not start; a defect goes to the journal as a whole."""
    if isinstance(error, SkerryError):
        return Problem("overlay", str(error), error.hint or "")
    if isinstance(error, TimeoutError):
        return Problem(
            "overlay",
            f"the overlay did not start within {START_SECONDS:.0f} s",
            "It is tried again by itself; journalctl -u skerry says more.",
        )
    if isinstance(error, OSError):
        return Problem(
            "overlay",
            f"the overlay can't be started: {error.strerror or error}",
            "It is tried again by itself; journalctl -u skerry says more.",
        )
    log.error("a defect while starting the overlay", exc_info=error)
    return Problem(
        "overlay",
        f"the overlay can't be started: a defect ({type(error).__name__})",
        "It is tried again by itself; please report what `journalctl -u skerry -p err` shows.",
    )


def clock_problem(now: float, floor: float, *, members: bool = False) -> Problem | None:
    """Say whether the wall clock can't be right: it is before a time that has certainly passed.

    ``floor`` is the latest such time known (unix seconds): when the image was built, when the token
    was made. A day of slack forgives a workstation's clock that runs ahead. ``members``: some
    answer in the tunnel, and the node goes by their time: worth knowing then, and no trouble.
    """
    if now >= floor - 86400:
        return None
    if members:
        return Problem(
            CLOCK_BY_MEMBERS,
            f"this machine's clock says {_date(now)}, which has passed; the node goes by its "
            "members' time",
            "Give the node a network with time (NTP), or replace the battery of its clock.",
        )
    return Problem(
        "clock",
        f"the clock says {_date(now)}, but it is later than {_date(floor)}: members can't be "
        "found with a wrong clock",
        "Give the node a network with time (NTP), replace the battery of its clock, or set it: "
        "`timedatectl set-time 'YYYY-MM-DD HH:MM'`. If it is right, the token was made by a wrong "
        "one: make another.",
    )


def room_problem(free: int, where: str, least: int) -> Problem | None:
    """Say whether a disk is (nearly) full: ``free`` bytes of at least ``least`` are left."""
    if free >= least:
        return None
    return Problem(
        "disk-full",
        f"{where} has {free // 1024} KiB left, {least // 1024} KiB are needed to go on safely",
        f"Free space: `du -xh {where} | sort -h | tail` names the largest folders, "
        "`journalctl --vacuum-size=16M` shortens the journal.",
    )


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(min(max(seconds, 0), 2**40)))
