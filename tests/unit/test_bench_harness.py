from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from skerry.errors import SkerryError
from tests.bench import __main__ as bench
from tests.bench.harness import Benchmark, Better, Figure, draw, write
from tests.bench.process import parse_rollup, usage

LOW = Figure("supervisor-rss", 61.5, "MB", goal=60)
HIGH = Figure("ratio", 0.98, "of 1", goal=0.97, better=Better.HIGHER)
PLAIN = Figure("disk", 289.0, "MiB")


def test_a_goal_is_met_in_its_own_direction() -> None:
    assert LOW.met() is False
    assert HIGH.met() is True
    assert PLAIN.met() is None


def test_a_missed_goal_is_said_in_the_table() -> None:
    rows = draw([LOW, HIGH, PLAIN]).splitlines()
    assert rows[1].endswith("<= 60    MISSED")
    assert rows[2].endswith(">= 0.97  met")
    assert rows[3].endswith("MiB")


def test_the_file_holds_what_the_table_shows(tmp_path: Path) -> None:
    path = write("x", [LOW], directory=tmp_path)
    assert json.loads(path.read_text()) == [
        {"name": "supervisor-rss", "value": 61.5, "unit": "MB", "goal": 60, "better": "lower"}
    ]


def test_one_benchmark_goes_from_its_name_to_table_and_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = Benchmark("tiny", "nothing at all", lambda: (LOW, HIGH))
    monkeypatch.setattr(bench, "BENCHMARKS", {"tiny": tiny})
    monkeypatch.setattr(bench, "write", lambda name, found: write(name, found, directory=tmp_path))
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    assert bench.main(["all"]) == 0
    out, err = capsys.readouterr()
    assert "MISSED" in out
    assert "to repeat it: make bench-tiny" in err
    assert len(json.loads((tmp_path / "tiny.json").read_text())) == 2


def test_a_benchmark_that_fails_is_said_and_the_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> tuple[Figure, ...]:
        raise SkerryError("no image", hint="make image")

    both = {"bad": Benchmark("bad", "", fail), "good": Benchmark("good", "", lambda: (PLAIN,))}
    monkeypatch.setattr(bench, "BENCHMARKS", both)
    monkeypatch.setattr(bench, "write", lambda name, found: write(name, found, directory=tmp_path))
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    assert bench.main(["bad", "good"]) == 1
    assert "no image\n  make image" in capsys.readouterr().err
    assert (tmp_path / "good.json").exists()


@pytest.mark.parametrize("words", [[], ["no-such"], ["boot", "no-such"]])
def test_unknown_names_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(words) == 2
    assert "known: all, boot, footprint" in capsys.readouterr().err


def test_a_process_is_measured_in_bytes_and_seconds() -> None:
    seen = usage(os.getpid())
    assert seen.resident >= seen.private > 1_000_000
    assert 0 < seen.cpu < 3600
    assert parse_rollup("0-1 ---p [rollup]\nRss:    3 kB\n")["Rss"] == 3072
