"""What a node writes to its medium: rates by a clock, and what the kernel's files say."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

import pytest

from appliance.kubernetes import medium, wear
from appliance.kubernetes.wear import CARD_BYTES_PER_DAY, JUDGED_SECONDS, Counter, Wear, Writes

MINUTE = 60.0
MB = 1_000_000


def fed(rates: list[tuple[int, int]], *, card: bool = True, start: int = 500 * MB) -> Wear:
    """Return what is known after so many minutes at so many bytes each."""
    made, now, written = Wear(), 1000.0, start
    made.take(now, Counter("mmcblk0p7", written, card))
    for minutes, each in rates:
        for _ in range(minutes):
            now, written = now + MINUTE, written + each
            assert made.due(now)
            made.take(now, Counter("mmcblk0p7", written, card))
    return made


def test_the_first_look_knows_only_what_was_written_since_boot() -> None:
    found = fed([]).writes
    assert found is not None
    assert (found.since_boot, found.per_day, found.seconds) == (500 * MB, None, 0)


def test_a_rate_is_that_of_the_last_ten_minutes() -> None:
    found = fed([(5, MB)]).writes
    assert found is not None
    assert (found.per_day, found.seconds) == (1440 * MB, 5 * 60)
    busy_first = fed([(120, 50 * MB), (10, MB)]).writes
    assert busy_first is not None
    assert (busy_first.per_day, busy_first.seconds) == (1440 * MB, 600)


def test_it_is_looked_at_once_a_minute() -> None:
    made = fed([(2, MB)])
    now = 1000.0 + 2 * MINUTE
    assert not made.due(now + MINUTE - 1)
    assert made.due(now + MINUTE)


def test_a_counter_that_began_anew_gives_no_rate_out_of_nothing() -> None:
    made = fed([(10, MB)])
    made.take(5000.0, Counter("mmcblk0p7", 10, card=True))
    assert made.writes is not None
    assert made.writes.per_day is None
    made.take(5060.0, Counter("sda1", 10**12, card=False))  # another medium
    assert made.writes is not None
    assert (made.writes.per_day, made.writes.device) == (None, "sda1")


def test_without_a_medium_there_is_nothing_to_say() -> None:
    made = fed([(10, MB)])
    made.take(5000.0, None)
    assert made.writes is None
    assert made.problems == ()


@pytest.mark.parametrize("per_day", [CARD_BYTES_PER_DAY // 2, CARD_BYTES_PER_DAY * 3])
@pytest.mark.parametrize("card", [True, False])
def test_a_card_that_is_worn_out_is_a_problem(per_day: int, *, card: bool) -> None:
    made = fed([(int(JUDGED_SECONDS / 60), per_day // 1440)], card=card)
    wrong = card and per_day > CARD_BYTES_PER_DAY
    assert [one.code for one in made.problems] == ["card-writes"] * wrong
    if wrong:
        assert "30 GB a day are written to the card mmcblk0p7" in made.problems[0].message


def test_a_busy_hour_is_none() -> None:
    an_hour = 2 * CARD_BYTES_PER_DAY // 1440
    assert fed([(359, 10 * an_hour)]).problems == ()  # not judged yet
    assert fed([(300, MB), (60, 2 * an_hour)]).problems == ()
    late = fed([(3000, MB), (60, 2 * an_hour)])
    assert late.problems == ()
    assert late.writes is not None
    assert late.writes.per_day is not None
    assert late.writes.per_day > CARD_BYTES_PER_DAY  # but shown


def test_what_is_remembered_is_bounded() -> None:
    made = fed([(5000, MB)])
    assert len(made._samples) <= JUDGED_SECONDS / wear.SAMPLE_SECONDS + 2


def test_words() -> None:
    assert wear.words(Writes("vda7", 500 * MB, 0, None)) == "500 MB since boot to vda7"
    said = wear.words(Writes("vda7", 1_234 * MB, 3600, 1296 * MB))
    assert said == "1.2 GB since boot to vda7; 900 kB a minute, 1.3 GB a day (over the last 60 min)"
    assert wear.read_words(asdict(Writes("vda7", 500 * MB, 0, None))) == "500 MB since boot to vda7"
    assert [wear.read_words(one) for one in (None, 7, {"device": "vda7"})] == ["-", "-", "-"]
    assert [wear.size(one) for one in (0, 999, 9_940_000, 10_000_000, 12_000_000_000)] == [
        "0 kB",
        "1 kB",
        "9.9 MB",
        "10 MB",
        "12 GB",
    ]


STAT = (
    "   12033    2413  1037514   11208  40417  28071 2164450 100293  0  76324 114533 0 0 0 0 0 0\n"
)


@pytest.mark.parametrize(
    ("text", "sectors"),
    [(STAT, 2164450), ("", None), ("1 2 3", None), ("a b c d e f g h", None), ("1 " * 7, 1)],
)
def test_the_kernels_line(text: str, sectors: int | None) -> None:
    assert medium.sectors_written(text) == sectors


def blocks_of(folder: Path, disk: str, partition: str, removable: str) -> Path:
    """Return a folder as ``/sys/dev/block``, with the device that a folder is on."""
    number = folder.stat().st_dev
    place = folder / "sys/devices" / disk
    (place / partition).mkdir(parents=True)
    (place / "removable").write_text(removable)
    (place / partition / "partition").write_text("7\n")
    (place / partition / "stat").write_text(STAT)
    blocks = folder / "sys/dev/block"
    blocks.mkdir(parents=True)
    name = f"{os.major(number)}:{os.minor(number)}"
    (blocks / name).symlink_to(Path("../../devices") / disk / partition)
    return blocks


@pytest.mark.parametrize(
    ("disk", "partition", "removable", "card"),
    [
        ("mmcblk0", "mmcblk0p7", "0\n", True),
        ("sda", "sda7", "1\n", True),
        ("nvme0n1", "nvme0n1p7", "0\n", False),
    ],
)
def test_the_medium_of_a_folder(
    tmp_path: Path, disk: str, partition: str, removable: str, *, card: bool
) -> None:
    blocks = blocks_of(tmp_path, disk, partition, removable)
    assert medium.counter(tmp_path, blocks) == Counter(partition, 2164450 * 512, card)
    assert medium.counter(tmp_path / "missing", blocks) is None
    assert medium.counter(tmp_path, tmp_path / "sys") is None
