"""The ledger's file: what was committed is there, whatever happened in between."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from appliance import database
from appliance.ledger import storage
from appliance.ledger.errors import LedgerError
from appliance.ledger.state import Change
from appliance.ledger.storage import KEPT_ASIDE, SCHEMA, LedgerFile, Loaded
from tests.fakes.ledger import NOW, entry, member_entry, node, replica, writer

A = node(1)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def filled(path: Path, count: int = 3) -> None:
    file, _ = LedgerFile.open(path)
    file.change([Change(None, member_entry(A))])
    for number in range(count):
        made = entry(A, "shared", f"k{number}", bytes(50), sequence=number + 2)
        file.change([Change(None, made)])
    file.mark(high_water=77, sequence=count + 1)
    assert file.commit(own=True)
    file.close()


def reopened(path: Path) -> tuple[Loaded, tuple[str, ...]]:
    file, loaded = LedgerFile.open(path, clock=lambda: 0.0)
    codes = tuple(one.code for one in file.problems())
    file.close()
    return loaded, codes


def test_what_was_committed_is_there(path: Path) -> None:
    filled(path)
    loaded, codes = reopened(path)
    assert (len(loaded.entries), loaded.high_water, loaded.sequence) == (4, 77, 4)
    assert codes == ()
    assert loaded.guess_ms == NOW
    here = replica()
    assert here.restore(loaded.entries, loaded.guess_ms) == 0
    assert len(here) == 4
    assert path.stat().st_mode & 0o777 == 0o600


def test_changes_replace_and_remove(path: Path) -> None:
    here = replica([A])
    file, _ = LedgerFile.open(path)
    mine = writer(A, here)
    for value in (b"1", b"2"):
        file.change(mine.put("shared", "k", value, NOW).outcome.changes)
    file.change(mine.put("lease", "x", b"v", NOW, lease_ms=5).outcome.changes)
    assert file.dirty
    file.commit()
    file.change(here.sweep(NOW + 5))
    assert file.commit()
    file.close()
    loaded, _ = reopened(path)
    assert [(one.key, one.value) for one in loaded.entries] == [("k", b"2")]


def test_a_second_supervisor_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.0)
    filled(path)
    file, _ = LedgerFile.open(path)
    file.mark(high_water=1, sequence=1)
    file.commit()
    with pytest.raises(LedgerError, match="another process"):
        LedgerFile.open(path)
    file.close()


@pytest.mark.parametrize("junk", [b"junk", b"SQLite format 3\0" + bytes(84), os.urandom(8192)])
def test_a_damaged_file_is_kept_aside_and_begun_afresh(path: Path, junk: bytes) -> None:
    path.write_bytes(junk)
    loaded, codes = reopened(path)
    assert loaded.entries == ()
    assert codes == ("ledger-lost",)
    assert (path.parent / "ledger.db.corrupt-19700101T000000Z").read_bytes() == junk
    filled(path)
    assert len(reopened(path)[0].entries) == 4


def test_a_torn_file_loads_or_is_kept_aside_and_is_usable_then(path: Path) -> None:
    filled(path, 60)
    whole = path.read_bytes()
    for cut in (1, 100, 4096, 5000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        reopened(path)
        filled(path, 1)
        assert len(reopened(path)[0].entries) >= 2


def test_one_flipped_bit_costs_one_entry(path: Path) -> None:
    filled(path)
    with sqlite3.connect(path) as connection:
        connection.execute(
            "UPDATE entry SET record = zeroblob(length(record)) WHERE id = ?",
            (member_entry(A).entry_id,),
        )
    connection.close()
    loaded, codes = reopened(path)
    assert (len(loaded.entries), loaded.skipped, codes) == (3, 1, ())


def test_a_later_format_is_kept_untouched(path: Path) -> None:
    filled(path)
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    connection.close()
    loaded, codes = reopened(path)
    assert (loaded.entries, codes) == ((), ("ledger-newer",))
    kept = sqlite3.connect(path.parent / "ledger.db.newer-19700101T000000Z")
    assert kept.execute("SELECT count(*) FROM entry").fetchone() == (4,)
    kept.close()


def test_an_older_format_is_brought_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(path)
    monkeypatch.setattr(storage, "SCHEMA", SCHEMA + 1)
    monkeypatch.setattr(storage, "MIGRATIONS", {SCHEMA: ("CREATE TABLE later (x INTEGER)",)})
    assert len(reopened(path)[0].entries) == 4
    monkeypatch.setattr(storage, "MIGRATIONS", {})
    assert len(reopened(path)[0].entries) == 4


def test_copies_kept_aside_are_bounded(path: Path) -> None:
    for _ in range(KEPT_ASIDE + 3):
        path.write_bytes(b"junk")
        reopened(path)
    assert len(list(path.parent.glob("*.corrupt-*"))) <= KEPT_ASIDE


def test_what_cannot_be_written_is_kept_and_tried_again(tmp_path: Path) -> None:
    directory = tmp_path / "gone"
    file, loaded = LedgerFile.open(directory / "ledger.db")
    assert loaded.entries == ()
    file.change([Change(None, member_entry(A))])
    assert not file.commit()
    assert [one.code for one in file.problems()] == ["ledger-unwritable"]
    directory.mkdir()
    assert file.commit()
    assert file.problems() == ()
    file.close()
    assert len(reopened(directory / "ledger.db")[0].entries) == 1


def test_damage_found_while_writing_begins_afresh_and_everything_is_noted_again(
    path: Path,
) -> None:
    file, _ = LedgerFile.open(path)
    assert file._connection is not None
    file._connection.execute("DROP TABLE entry")
    file.change([Change(None, member_entry(A))])
    assert not file.commit()
    assert [one.code for one in file.problems()] == ["ledger-lost"]
    file.rewrite([member_entry(A)])
    assert file.commit()
    file.close()
    assert len(reopened(path)[0].entries) == 1


_WRITER = """
import sys
from pathlib import Path
from appliance.ledger.state import Change
from appliance.ledger.storage import LedgerFile
from tests.fakes.ledger import entry, node
file, loaded = LedgerFile.open(Path(sys.argv[1]))
number = loaded.sequence
last = {one.key: one for one in loaded.entries}
while True:
    number += 1
    made = entry(node(1), "shared", f"k{number % 7}", bytes(3000), sequence=number)
    file.change([Change(last.get(made.key), made)])
    last[made.key] = made
    file.mark(high_water=number, sequence=number)
    file.commit(own=True)
    print(number, flush=True)
"""


def test_killed_at_any_point_it_has_all_that_was_promised(path: Path) -> None:
    """kill -9 in the middle of writing, a few times over."""
    promised = 0
    for after in (1, 4, 9):
        process = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, cwd=ROOT
        )
        assert process.stdout is not None
        with process:
            for _ in range(after):
                promised = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
            rest = process.stdout.read().split()
            promised = int(rest[-1]) if rest else promised
        loaded, codes = reopened(path)
        assert codes == ()
        assert loaded.skipped == 0
        assert loaded.sequence >= promised
        assert max(one.sequence for one in loaded.entries) == loaded.sequence
        assert len(loaded.entries) == min(7, loaded.sequence)
