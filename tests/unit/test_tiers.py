"""The tiers of tests: nothing is run twice, nothing forgotten."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

from tests import run

FILES = {f"tests/vm/{path.name}" for path in (run.ROOT / "tests" / "vm").glob("test_*.py")}


def files_of(command: tuple[str, ...]) -> set[str]:
    """Return the files under tests/vm that a command of a tier runs."""
    ignored = {word.removeprefix("--ignore=") for word in command if word.startswith("--ignore=")}
    named = {word for word in command if word in FILES}
    return FILES - ignored if "tests/vm" in command else named


def test_each_file_of_machines_is_in_one_lane() -> None:
    commands = [
        command
        for tier in run.select(["all"])
        if tier.name in ("vm", "cluster")
        for command in tier.commands
    ]
    lanes = [files_of(command) for command in commands]
    assert all(lanes)
    assert sum(len(lane) for lane in lanes) == len(set().union(*lanes))
    assert set().union(*lanes) == FILES


def test_what_is_asked_for_by_name_is_a_marker_and_a_tier_and_not_in_all() -> None:
    project = tomllib.loads((run.ROOT / "pyproject.toml").read_text())
    markers = {line.split(":")[0] for line in project["tool"]["pytest"]["ini_options"]["markers"]}
    assert set(run.ASKED_FOR) <= markers
    assert [tier.name for tier in run.select(list(run.ASKED_FOR))]
    assert not {tier.name for tier in run.select(["all"])} & set(run.ASKED_FOR)
    text = (run.ROOT / "Makefile").read_text()
    assert all(f"tests.run {name}\n" in text for name in run.ASKED_FOR)


def test_an_unknown_tier_is_refused_by_name() -> None:
    with pytest.raises(SystemExit, match="unknown tier nonsense; known: all"):
        run.select(["nonsense"])


def python(words: str) -> tuple[str, ...]:
    return (sys.executable, "-S", "-c", words)


def test_side_by_side_one_failure_is_told_with_its_command(
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    commands = (python("print('first')"), python("print('second'); raise SystemExit(3)"))
    assert not run.run(run.Tier("t", "", commands, side_by_side=True))
    said = capfdbinary.readouterr().out.decode()
    assert said.index("first") < said.index("second") < said.index("failed with status 3")
    assert run.run(run.Tier("t", "", commands[:1], side_by_side=True))


def test_what_is_early_runs_in_its_order_and_is_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "order"
    rows = tuple(python(f"open({str(file)!r}, 'a').write('{letter}')") for letter in "ab")
    assert run.Command(*rows).wait()
    assert file.read_text() == "ab"


def test_nothing_is_early_if_it_comes_first() -> None:
    tier = run.Tier("images", "", (python("raise SystemExit(1)"),), early=True)
    assert run.begin_early([tier]) == {}
