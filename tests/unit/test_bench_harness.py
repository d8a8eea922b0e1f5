from __future__ import annotations

import json
from pathlib import Path

from tests.bench.harness import Better, Figure, draw, write

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
