"""The machine's clock: what it shows, what it is worth, whether somebody moved it; and its repair.

What a time server disciplines the kernel knows (adjtimex(2)). The supervisor's unit is kept from
that call even for reading (ProtectClock=), so there the file that systemd-timesyncd touches at each
synchronisation tells. Whether the clock went on while the machine was off, a real-time clock that
shows the same tells: without one, the time that a boot begins with is no more than the last one
known, however possible it looks.

A wrong clock of such a machine is repaired once per boot: the supervisor leaves the time that its
members agree on in a file (`ask`), and a small root service, which trusts that file for nothing,
sets it if that does no harm (`judge`; docs/image.md, "Time").
"""

from __future__ import annotations

import errno
import functools
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from provisioning.files import read_small
from skerry.errors import SkerryError

TIMESYNC_MARK = Path("/run/systemd/timesync/synchronized")
RTC_CLASS = Path("/sys/class/rtc")
# systemd-timesyncd asks its server at least every 34 minutes; some answers may get lost.
MARK_SECONDS = 3 * 3600.0
# A difference between two looks that no slewing makes (500 ppm at most), beyond what reading costs.
STEP_SECONDS = 0.5
SLEW = 0.001
# linux/timex.h
_STA_UNSYNC = 0x0040
_TIME_ERROR = 5
_MAX_ERROR_US = 16_000_000
# Not worth moving the clock for.
BEHIND_MS = 60_000
# What may be asked for at most after the image was built: a support life, not a certificate's end.
CEILING_MS = 10 * 365 * 86_400_000
STALE_MS = 10 * 60_000
# An RTC that shows about what the system shows is where that comes from.
RTC_SLACK_MS = 3_600_000
# Reading an RTC may take milliseconds.
RTC_SECONDS = 600.0
_REQUEST_LIMIT = 64


class ClockError(SkerryError):
    """The clock is not set, and why."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """What adjtimex says: whether a time server disciplines the clock, and the bound of error."""

    synced: bool
    max_error_us: int


@dataclass(frozen=True, slots=True)
class Look:
    """One look at the clock. Unix milliseconds.

    ``synced``: a time server disciplines it. ``kept``: a real-time clock bears it out, or may do
    so. ``step_ms``: how far somebody moved it since the look before, 0 if it just went on.
    """

    wall_ms: int
    synced: bool
    kept: bool
    step_ms: int = 0

    @property
    def unix(self) -> float:
        """The time in Unix seconds."""
        return self.wall_ms / 1000


class SystemClock:
    """Looks at the machine's clock; cheap enough for every few seconds.

    ``boot`` is a clock that counts through suspension, in seconds.
    """

    def __init__(
        self,
        *,
        wall: Callable[[], float] = time.time,
        boot: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
        kernel: Callable[[], Kernel | None] | None = None,
        mark: Path = TIMESYNC_MARK,
        rtc_class: Path = RTC_CLASS,
    ) -> None:
        self._wall = wall
        self._boot = boot
        self._kernel = kernel or read_kernel
        self._mark = mark
        self._rtc_class = rtc_class
        self._kept = False
        self._asked_rtc: float | None = None
        self._before: tuple[float, float] | None = None

    def look(self) -> Look:
        """Return what the clock shows now."""
        wall, boot = self._read()
        step = 0.0
        if self._before is not None:
            run = boot - self._before[1]
            step = (wall - self._before[0]) - run
            if abs(step) <= STEP_SECONDS + SLEW * run:
                step = 0.0
        self._before = wall, boot
        if self._asked_rtc is None or step or boot - self._asked_rtc >= RTC_SECONDS:
            self._asked_rtc = boot
            self._kept = is_kept(int(wall * 1000), self._rtc_class)
        return Look(int(wall * 1000), self._synced(wall), self._kept, int(step * 1000))

    def _read(self) -> tuple[float, float]:
        """Read both clocks at one moment: the best of three, since something may come between."""
        moments = (self._moment() for _ in range(3))
        wall, begun, ended = min(moments, key=lambda one: one[2] - one[1])
        return wall, (begun + ended) / 2

    def _moment(self) -> tuple[float, float, float]:
        begun = self._boot()
        return self._wall(), begun, self._boot()

    def _synced(self, wall: float) -> bool:
        kernel = self._kernel()
        if kernel is not None:
            return kernel.synced
        return is_marked(self._mark, wall)


def read_kernel() -> Kernel | None:
    """Return what the kernel says of its clock; None if this process may not ask."""
    result = _adjtimex()()
    return None if result is None else judge_kernel(*result)


@functools.cache
def _adjtimex() -> Callable[[], tuple[int, int, int] | None]:
    """Return a call of adjtimex that changes nothing: its result, status and maxerror."""
    # Not before it is needed: most commands never look at the clock.
    import ctypes

    class Timex(ctypes.Structure):
        # struct timex up to what is read here; the kernel fills in all of it.
        _fields_ = (
            ("modes", ctypes.c_uint),
            ("offset", ctypes.c_long),
            ("freq", ctypes.c_long),
            ("maxerror", ctypes.c_long),
            ("esterror", ctypes.c_long),
            ("status", ctypes.c_int),
            ("rest", ctypes.c_char * 256),
        )

    function = ctypes.CDLL(None).adjtimex

    def call() -> tuple[int, int, int] | None:
        timex = Timex()
        state = int(function(ctypes.byref(timex)))
        return None if state < 0 else (state, int(timex.status), int(timex.maxerror))

    return call


def judge_kernel(state: int, status: int, max_error_us: int) -> Kernel:
    """Say what adjtimex's result, status and maxerror mean.

    The kernel lets the error grow by 500 ppm: without news it calls itself unsynchronised at 16 s.
    """
    synced = state != _TIME_ERROR and not status & _STA_UNSYNC and 0 <= max_error_us < _MAX_ERROR_US
    return Kernel(synced, max_error_us)


def is_marked(mark: Path, wall: float) -> bool:
    """Say whether systemd-timesyncd has synchronised the clock lately."""
    with suppress(OSError):
        return abs(wall - mark.stat().st_mtime) <= MARK_SECONDS
    return False


def has_rtc(rtc_class: Path = RTC_CLASS) -> bool | None:
    """Say whether there is a real-time clock; None where the kernel does not tell (a container)."""
    try:
        return any(rtc_class.iterdir())
    except OSError:
        return None


def rtc_ms(rtc_class: Path = RTC_CLASS) -> int | None:
    """Return the latest time that a real-time clock shows, None if none shows any."""
    found = []
    with suppress(OSError):
        for one in rtc_class.iterdir():
            with suppress(OSError, ValueError):
                found.append(int((one / "since_epoch").read_text()[:24]) * 1000)
    return max(found, default=None)


def is_kept(wall_ms: int, rtc_class: Path = RTC_CLASS) -> bool:
    """Say whether a real-time clock bears out what the clock shows, or may do so.

    One with an empty battery counts from some year long ago, while the system goes by files. A
    container that sees none is believed: its host has one, as a rule.
    """
    if has_rtc(rtc_class) is None:
        return True
    rtc = rtc_ms(rtc_class)
    return rtc is not None and abs(rtc - wall_ms) <= RTC_SLACK_MS


# Asking


def time_to_ask(look: Look, agreed_ms: int, *, by_clocks: bool, floor_ms: int) -> int | None:
    """Return the time to ask for, None if the machine's clock is none of our business.

    ``agreed_ms`` is the timekeeper's time, ``by_clocks`` whether members with a clock made it
    (quality KEPT or better). ``floor_ms`` is surely past.
    """
    wrong = look.wall_ms < floor_ms or not look.kept
    behind = agreed_ms - look.wall_ms >= BEHIND_MS
    return agreed_ms if by_clocks and wrong and behind and not look.synced else None


def ask(path: Path, wanted_ms: int, *, boot: float | None = None) -> bool:
    """Leave the time to set in ``path``. False: it is there already; raises OSError.

    The service may take a while to start: the request says when, by the time since boot, it was.
    """
    if path.exists():
        return False
    at = time.clock_gettime(time.CLOCK_BOOTTIME) if boot is None else boot
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "w") as file:
        os.fchmod(file.fileno(), 0o644)  # root without its capabilities reads it as anybody does
        file.write(f"{wanted_ms} {int(at * 1000)}\n")
    fresh.rename(path)
    return True


# Setting: as root, with CAP_SYS_TIME and nothing else


@dataclass(frozen=True, slots=True)
class Facts:
    """What root itself knows, in milliseconds; ``floor_ms`` is when the image was built."""

    wall_ms: int
    boot_ms: int
    floor_ms: int
    synced: bool
    rtc_ms: int | None


def judge(request: bytes, facts: Facts) -> int:
    """Return the time to set now. Raises ClockError for whatever might do harm.

    The request may be anything: who took over the supervisor wrote it. It gets no clock that a
    time server or an RTC keeps, none moved back, none past the ceiling.
    """
    wanted = _read_request(request, facts)
    if facts.synced:
        raise ClockError("a time server keeps the clock")
    rtc = facts.rtc_ms
    if rtc is not None and rtc >= facts.floor_ms and abs(rtc - facts.wall_ms) <= RTC_SLACK_MS:
        raise ClockError(
            "the clock comes from this machine's real-time clock",
            hint="If that is wrong, set both: timedatectl set-time 'YYYY-MM-DD HH:MM'",
        )
    if wanted < facts.wall_ms + BEHIND_MS:
        raise ClockError("the clock is not behind; it is never put back")
    if wanted > facts.floor_ms + CEILING_MS:
        raise ClockError("the time asked for is too far in the future")
    return wanted


def _read_request(request: bytes, facts: Facts) -> int:
    words = request.removesuffix(b"\n").split(b" ")
    if len(words) != 2 or not all(word.isdigit() and len(word) <= 15 for word in words):
        raise ClockError("what was asked for is not a time")
    wanted, asked_at = (int(word) for word in words)
    age = facts.boot_ms - asked_at
    if not 0 <= age <= STALE_MS:
        raise ClockError("what was asked for is not of now")
    return wanted + age


def read_facts(floor_ms: int) -> Facts:
    """Look at the machine, as root."""
    kernel = read_kernel()
    return Facts(
        wall_ms=int(time.time() * 1000),
        boot_ms=int(time.clock_gettime(time.CLOCK_BOOTTIME) * 1000),
        floor_ms=floor_ms,
        # Who cannot ask does not set.
        synced=kernel is None or kernel.synced,
        rtc_ms=rtc_ms(),
    )


def set_clock(path: Path, floor_ms: int) -> int:
    """Set the clock as ``path`` asks, if that does no harm; return by how many ms it moved.

    Raises ClockError, FileError or OSError; then nothing was done.
    """
    request = read_small(path, _REQUEST_LIMIT)
    facts = read_facts(floor_ms)
    wanted = judge(request, facts)
    try:
        time.clock_settime(time.CLOCK_REALTIME, wanted / 1000)
    except OSError as error:
        if error.errno == errno.EPERM:
            raise ClockError(
                "this process may not set the clock", hint="skerry-clock.service does"
            ) from error
        raise
    return wanted - facts.wall_ms
