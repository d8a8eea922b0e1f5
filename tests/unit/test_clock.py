"""The machine's clock: what a look says, what is asked for, and what root lets nobody ask for."""

from __future__ import annotations

import os
import stat
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance import clock, machine
from appliance.clock import (
    BEHIND_MS,
    CEILING_MS,
    MARK_SECONDS,
    RTC_SECONDS,
    RTC_SLACK_MS,
    STALE_MS,
    ClockError,
    Facts,
    Kernel,
    Look,
    SystemClock,
    ask,
    has_rtc,
    is_kept,
    is_marked,
    judge,
    judge_kernel,
    read_kernel,
    rtc_ms,
    time_to_ask,
)
from skerry.__main__ import main

EPOCH = 1_795_000_000_000
DAY = 86_400_000


class Machine:
    """Two clocks that a test moves."""

    def __init__(self, directory: Path) -> None:
        self.wall = EPOCH / 1000
        self.boot = 100.0
        self.delay = 0.0
        self.kernel: Kernel | None = Kernel(synced=True, max_error_us=5000)
        self.mark = directory / "synchronized"
        self.rtc = directory / "rtc"
        (self.rtc / "rtc0").mkdir(parents=True)
        self.rtc_shows(EPOCH)

    def clock(self) -> SystemClock:
        return SystemClock(
            wall=lambda: self.wall,
            boot=self._boot,
            kernel=lambda: self.kernel,
            mark=self.mark,
            rtc_class=self.rtc,
        )

    def rtc_shows(self, ms: int) -> None:
        (self.rtc / "rtc0" / "since_epoch").write_text(f"{ms // 1000}\n")

    def _boot(self) -> float:
        self.boot += self.delay
        self.wall += self.delay
        return self.boot

    def run(self, seconds: float, *, wall: float | None = None) -> None:
        self.boot += seconds
        self.wall += seconds if wall is None else wall


@pytest.fixture
def here(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_clock_that_runs_on_made_no_step(here: Machine) -> None:
    looking = here.clock()
    assert looking.look() == Look(EPOCH, synced=True, kept=True, step_ms=0)
    here.run(5)
    assert looking.look().step_ms == 0
    here.run(3600, wall=3600 + 1.5)  # slewed, as hard as the kernel does
    assert looking.look().step_ms == 0


@pytest.mark.parametrize("step", [86_400.0, -86_400.0, -EPOCH / 1000 + 5, 0.8, -0.8])
def test_a_step_is_seen_once_with_its_size(here: Machine, step: float) -> None:
    looking = here.clock()
    looking.look()
    here.run(5, wall=5 + step)
    assert looking.look().step_ms == pytest.approx(step * 1000, abs=1)
    here.run(5)
    assert looking.look().step_ms == 0


def test_a_process_that_is_slow_to_read_sees_no_steps(here: Machine) -> None:
    looking = here.clock()
    for delay in (0.0, 0.3, 0.0, 0.2):
        here.delay = delay
        assert looking.look().step_ms == 0
        here.run(5)


def test_who_may_not_ask_the_kernel_goes_by_timesyncds_mark(here: Machine) -> None:
    here.kernel = None
    looking = here.clock()
    assert not looking.look().synced
    here.mark.touch()
    for age, synced in ((0.0, True), (MARK_SECONDS - 1, True), (MARK_SECONDS + 1, False)):
        os.utime(here.mark, (here.wall - age, here.wall - age))
        assert looking.look().synced is synced
        assert is_marked(here.mark, here.wall - 2 * age) is synced


def test_without_a_real_time_clock_what_a_boot_begins_with_is_no_clock(tmp_path: Path) -> None:
    assert has_rtc(tmp_path / "none") is None  # a container: nobody can tell
    assert is_kept(EPOCH, tmp_path / "none")
    empty = tmp_path / "rtc"
    empty.mkdir()
    assert has_rtc(empty) is False
    assert rtc_ms(empty) is None
    assert not is_kept(EPOCH, empty)
    (empty / "rtc0").mkdir()
    assert has_rtc(empty) is True
    assert rtc_ms(empty) is None
    for text, found in (("1795000000\n", EPOCH), ("", None), ("-5\n", -5000), ("x" * 99, None)):
        (empty / "rtc0" / "since_epoch").write_text(text)
        assert rtc_ms(empty) == found
        # An empty battery: it counts from long ago, and bears nothing out.
        assert is_kept(EPOCH + 1000, empty) is (found == EPOCH)


def test_the_real_time_clock_is_asked_now_and_then_and_after_a_step(here: Machine) -> None:
    looking = here.clock()
    assert looking.look().kept
    here.rtc_shows(EPOCH - 300 * DAY)
    here.run(5)
    assert looking.look().kept  # not asked yet
    here.run(RTC_SECONDS)
    assert not looking.look().kept
    here.rtc_shows(EPOCH)
    here.run(5)
    assert not looking.look().kept
    here.run(5, wall=60)
    assert looking.look().kept
    here.run(5, wall=5 - 86_400)
    assert not looking.look().kept


@pytest.mark.parametrize(
    ("state", "status", "max_error_us", "synced"),
    [
        (0, 0x2001, 5000, True),
        (1, 0x2001, 5000, True),  # a leap second is near
        (5, 0x2041, 16_000_000, False),
        (0, 0x2041, 5000, False),
        (5, 0x2001, 5000, False),
        (0, 0x2001, 16_000_000, False),
        (0, 0x2001, -1, False),
    ],
)
def test_what_the_kernels_words_mean(
    state: int, status: int, max_error_us: int, synced: bool
) -> None:
    assert judge_kernel(state, status, max_error_us).synced is synced


def test_this_kernel_answers_and_what_it_takes_to_ask_is_made_once() -> None:
    said = read_kernel()
    assert said is None or 0 <= said.max_error_us <= 16_000_000
    assert clock._adjtimex() is clock._adjtimex()


# Asking

WRONG = Look(EPOCH - 300 * DAY, synced=False, kept=False)


@pytest.mark.parametrize(
    ("look", "agreed", "by_clocks", "asked"),
    [
        (WRONG, EPOCH, True, True),
        (replace(WRONG, kept=True), EPOCH, True, True),  # before what is surely past
        (replace(WRONG, wall_ms=EPOCH - 30 * DAY), EPOCH, True, True),
        (replace(WRONG, wall_ms=EPOCH - 30 * DAY, kept=True), EPOCH, True, False),
        (replace(WRONG, synced=True), EPOCH, True, False),
        (WRONG, EPOCH, False, False),  # members that have no clock either
        (WRONG, EPOCH - 300 * DAY + BEHIND_MS - 1, True, False),
        (WRONG, EPOCH - 301 * DAY, True, False),  # never back
    ],
)
def test_when_the_supervisor_asks(look: Look, agreed: int, by_clocks: bool, asked: bool) -> None:
    found = time_to_ask(look, agreed, by_clocks=by_clocks, floor_ms=EPOCH - 100 * DAY)
    assert found == (agreed if asked else None)


def test_what_is_asked_for_is_understood_and_allows_for_a_slow_start(tmp_path: Path) -> None:
    path = tmp_path / "time"
    assert ask(path, EPOCH, boot=100.0)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert list(tmp_path.iterdir()) == [path]
    assert not ask(path, EPOCH + 1, boot=100.0)
    assert judge(path.read_bytes(), replace(FACTS, boot_ms=112_500)) == EPOCH + 12_500


# Setting

FACTS = Facts(
    wall_ms=EPOCH - 30 * DAY,
    boot_ms=100_000,
    floor_ms=EPOCH - 100 * DAY,
    synced=False,
    rtc_ms=None,
)


def request(wanted: int, at: int = 100_000) -> bytes:
    return b"%d %d\n" % (wanted, at)


@pytest.mark.parametrize(
    ("wanted", "facts", "why"),
    [
        (EPOCH, replace(FACTS, synced=True), "a time server keeps the clock"),
        (EPOCH, replace(FACTS, rtc_ms=FACTS.wall_ms), "this machine's real-time clock"),
        (EPOCH, replace(FACTS, rtc_ms=FACTS.wall_ms - RTC_SLACK_MS), "real-time clock"),
        (FACTS.wall_ms - DAY, FACTS, "never put back"),
        (FACTS.wall_ms + BEHIND_MS - 1, FACTS, "never put back"),
        (0, FACTS, "never put back"),
        (FACTS.floor_ms + CEILING_MS + 1, FACTS, "too far in the future"),
        (10**15 - 1, FACTS, "too far in the future"),
        (EPOCH, replace(FACTS, boot_ms=99_999), "not of now"),
        (EPOCH, replace(FACTS, boot_ms=100_001 + STALE_MS), "not of now"),
    ],
)
def test_what_root_does_for_nobody(wanted: int, facts: Facts, why: str) -> None:
    with pytest.raises(ClockError, match=why):
        judge(request(wanted), facts)


def test_what_root_does() -> None:
    assert judge(request(EPOCH), FACTS) == EPOCH
    # An RTC whose battery is empty shows the year of its making.
    assert judge(request(EPOCH), replace(FACTS, rtc_ms=1_420_000_000_000)) == EPOCH


@given(st.one_of(st.binary(max_size=64), st.from_regex(rb"[0-9 \n+-]{0,40}", fullmatch=True)))
def test_whatever_is_asked_for_the_clock_goes_forward_within_bounds_or_stays(data: bytes) -> None:
    try:
        wanted = judge(data, FACTS)
    except ClockError:
        return
    assert FACTS.wall_ms + BEHIND_MS <= wanted <= FACTS.floor_ms + CEILING_MS


@pytest.mark.parametrize(
    "data", [b"", b"\n", b"1", b"1 2 3", b"1  2", b"-1 2", b"1 2\n\n", "١ ٢".encode(), b"1\t2"]
)
def test_what_is_no_request(data: bytes) -> None:
    with pytest.raises(ClockError, match="not a time"):
        judge(data, FACTS)


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Catches what would set the clock; the machine is RTC-less and two years behind."""
    found: list[float] = []
    monkeypatch.setattr(time, "clock_settime", lambda _clock, value: found.append(value))
    monkeypatch.setattr(clock, "read_kernel", lambda: Kernel(synced=False, max_error_us=0))
    monkeypatch.setattr(clock, "rtc_ms", lambda: None)
    monkeypatch.setattr(machine, "image_epoch", lambda: time.time() - 86_400)
    return found


def test_the_command_sets_it(
    tmp_path: Path, moved: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "time"
    wanted = time.time() + 7 * 86_400
    ask(path, int(wanted * 1000))
    assert main(["clock", "set-once", str(path)]) == 0
    assert moved == [pytest.approx(wanted, abs=5)]
    assert "the clock was put forward by 10080m" in capsys.readouterr().err


def test_whatever_is_in_its_way_the_command_does_nothing_and_does_not_fail(
    tmp_path: Path,
    moved: list[float],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A failed service would be started again and again by its path unit."""
    good = tmp_path / "good"
    ask(good, int((time.time() + 7 * 86_400) * 1000))
    link, pipe, huge = tmp_path / "link", tmp_path / "pipe", tmp_path / "huge"
    link.symlink_to(good)
    os.mkfifo(pipe)
    huge.write_bytes(b"1" * 100)
    for path in (tmp_path / "none", link, pipe, huge, tmp_path):
        assert main(["clock", "set-once", str(path)]) == 0
        said = capsys.readouterr().err
        assert said.startswith("the clock stays as it is: ")
    monkeypatch.setattr(clock, "read_kernel", lambda: None)
    assert main(["clock", "set-once", str(good)]) == 0
    assert "a time server keeps the clock" in capsys.readouterr().err
    assert moved == []
