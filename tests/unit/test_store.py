from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from appliance import database
from appliance import store as store_module
from appliance.store import Store

NOW = 1_800_000_000.0


def open_store(path: Path) -> Store:
    return Store.open(path, clock=lambda: NOW)


def codes(store: Store) -> list[str]:
    return [problem.code for problem in store.problems()]


@contextmanager
def temporary_path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory) / "state.db"


def test_what_was_put_is_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    store = open_store(path)
    assert store.put("peer/b", b"2")
    assert store.put("peer/a", b"\x00\xff")
    assert store.put("other", b"")
    assert store.put("gone", b"x")
    assert store.delete("gone")
    store.close()
    store = open_store(path)
    assert store.items("peer/") == {"peer/a": b"\x00\xff", "peer/b": b"2"}
    assert (store.get("other"), store.get("gone")) == (b"", None)
    assert store.problems() == ()
    store.close()


def test_several_keys_change_in_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.db"
    store = open_store(path)
    assert store.put("gone", b"x")
    written: list[dict[str, bytes | None]] = []
    real = database.write

    def write(connection: sqlite3.Connection, values: dict[str, bytes | None]) -> None:
        written.append(dict(values))
        real(connection, values)

    monkeypatch.setattr(store_module, "write", write)
    assert store.change({"a": b"1", "b": b"2", "gone": None, "never": None})
    assert written == [{"a": b"1", "b": b"2", "gone": None}]
    assert store.change({"a": b"1", "never": None})
    assert len(written) == 1
    store.close()
    assert open_store(path).items() == {"a": b"1", "b": b"2"}


def test_it_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    store = open_store(tmp_path / "state.db")
    store.put("key", b"value")
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    store.close()


def test_a_killed_process_loses_nothing_it_was_told_is_written(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    code = (
        "import os, signal, sys; from pathlib import Path; from appliance.store import Store\n"
        "store = Store.open(Path(sys.argv[1]))\n"
        "assert store.put('key', b'value')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], timeout=20)
    store = open_store(path)
    assert store.get("key") == b"value"
    assert store.problems() == ()
    store.close()


def test_a_second_process_on_the_same_file_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.db"
    store = open_store(path)
    store.put("key", b"value")
    monkeypatch.setattr(database, "BUSY_SECONDS", 0)
    with pytest.raises(database.StoreError, match="in use by another process") as caught:
        open_store(path)
    assert "--state-dir" in (caught.value.hint or "")
    assert store.put("key", b"still ours")
    store.close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.db"]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x00" * 8192, id="zeros"),
        pytest.param(b"not a database\n" * 500, id="text"),
        pytest.param(b"SQLite format 3\x00", id="header-only"),
    ],
)
def test_a_file_that_is_no_database_is_kept_aside(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "state.db"
    path.write_bytes(damage)
    store = open_store(path)
    if damage:
        assert codes(store) == ["state-lost"]
        aside = tmp_path / "state.db.corrupt-20270115T080000Z"
        assert aside.read_bytes() == damage
        assert str(aside) in store.problems()[0].hint
    assert store.put("key", b"value")
    store.close()
    again = open_store(path)
    assert again.get("key") == b"value"
    assert again.problems() == ()
    again.close()


def test_a_directory_in_its_place_is_moved_aside(tmp_path: Path) -> None:
    (tmp_path / "state.db").mkdir()
    (tmp_path / "state.db" / "kept").touch()
    store = open_store(tmp_path / "state.db")
    assert store.put("key", b"value")
    assert codes(store) == ["state-lost"]
    assert len(list(tmp_path.glob("state.db.corrupt-*/kept"))) == 1
    store.close()


def sound_database(entries: dict[str, bytes]) -> bytes:
    with temporary_path() as path:
        store = open_store(path)
        for key, value in entries.items():
            store.put(key, value)
        store.close()
        return path.read_bytes()


ENTRIES = {f"peer/{number}": bytes([number]) * (40 * number) for number in range(40)}
SOUND = sound_database(ENTRIES)


@settings(max_examples=40, deadline=None)
@example(flips=[], length=1)
@given(
    flips=st.lists(st.tuples(st.integers(0, len(SOUND) - 1), st.integers(0, 7)), max_size=8),
    length=st.one_of(st.just(len(SOUND)), st.integers(0, len(SOUND))),
)
def test_damage_never_yields_a_wrong_value_and_never_stops_us(
    flips: list[tuple[int, int]], length: int
) -> None:
    damaged = bytearray(SOUND)
    for at, bit in flips:
        damaged[at] ^= 1 << bit
    damaged = damaged[:length]
    with temporary_path() as path:
        path.write_bytes(damaged)
        store = open_store(path)
        found = store.items()
        assert found.items() <= ENTRIES.items()
        newer = "state-newer" in codes(store)
        if found != ENTRIES and damaged:
            assert codes(store) in (["state-lost"], ["state-newer"])
            asides = [file for file in path.parent.iterdir() if file.name != path.name]
            assert any("newer" if newer else "corrupt" in file.name for file in asides)
        assert store.put("new", b"value")
        store.close()
        again = open_store(path)
        assert again.problems() == ()
        assert again.items() == {**found, "new": b"value"}
        again.close()


def test_one_flipped_bit_in_a_value_costs_that_value_only(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    secret = b"a value that can be found in the file"
    damaged = bytearray(sound_database({**ENTRIES, "marked": secret}))
    damaged[damaged.index(secret) + 5] ^= 4
    path.write_bytes(damaged)
    store = open_store(path)
    assert store.items() == ENTRIES
    assert codes(store) == ["state-lost"]
    assert "'marked'" in store.problems()[0].message
    store.close()


def test_a_later_schema_is_kept_untouched(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE later (anything)")
    connection.execute("INSERT INTO later VALUES ('kept')")
    connection.execute(f"PRAGMA user_version = {database.SCHEMA + 1}")
    connection.commit()
    connection.close()
    store = open_store(path)
    assert codes(store) == ["state-newer"]
    assert store.put("key", b"value")
    store.close()
    (aside,) = tmp_path.glob("state.db.newer-*")
    connection = sqlite3.connect(aside)
    assert connection.execute("SELECT * FROM later").fetchall() == [("kept",)]
    connection.close()


def test_the_schema_before_ours_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.db"
    path.write_bytes(sound_database({"key": b"value"}))
    monkeypatch.setattr(database, "SCHEMA", 2)
    monkeypatch.setattr(database, "MIGRATIONS", {1: ("CREATE TABLE more (x ANY) STRICT",)})
    store = open_store(path)
    assert store.get("key") == b"value"
    assert store.problems() == ()
    store.close()
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (2,)
    connection.close()


def test_copies_kept_aside_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    for number in range(store_module.KEPT_ASIDE + 3):
        path.write_bytes(b"damage %d" % number * 100)
        Store.open(path, clock=lambda number=number: NOW + number).close()  # type: ignore[misc]
    copies = sorted(tmp_path.glob("state.db.corrupt-*"))
    assert len(copies) == store_module.KEPT_ASIDE
    assert copies[-1].read_bytes().startswith(b"damage 10")


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from appliance.store import Store
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = Store.open(Path(sys.argv[1]))
assert store.put("before", b"b" * 1000)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
assert store.put("large", b"x" * 100_000) is False
(problem,) = store.problems()
assert problem.code in ("state-unwritable", "disk-full"), problem
assert "memory" in problem.message and problem.hint, problem
assert store.get("large") == b"x" * 100_000
assert store.get("before") == b"b" * 1000
assert store.delete("before") is False
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
assert store.retry() is True
assert store.problems() == ()
store.close()
store = Store.open(Path(sys.argv[1]))
assert store.items() == {"large": b"x" * 100_000}, store.items().keys()
assert store.problems() == (), store.problems()
store.close()
"""


def test_what_can_not_be_written_stays_in_memory_and_is_tried_again(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "state.db")],
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert result.returncode == 0, result.stderr


def test_a_full_disk_is_called_a_full_disk(tmp_path: Path) -> None:
    store = open_store(tmp_path / "state.db")
    connection = store._connection
    assert connection is not None
    connection.execute("PRAGMA max_page_count = 3")  # SQLITE_FULL, as with ENOSPC
    assert store.put("key", b"x" * 100_000) is False
    assert codes(store) == ["disk-full"]
    assert "du -xh /data" in store.problems()[0].hint
    assert store.put("small", b"1") is True  # a new connection: there is room again
    assert store.items() == {"key": b"x" * 100_000, "small": b"1"}
    assert store.problems() == ()
    store.close()


def test_our_own_defect_does_not_cost_the_file(tmp_path: Path) -> None:
    store = open_store(tmp_path / "state.db")
    store.put("key", b"value")
    with ThreadPoolExecutor(1) as other, pytest.raises(sqlite3.ProgrammingError):
        other.submit(store.put, "key", b"from a wrong thread").result()
    assert store.retry()
    assert store.problems() == ()
    store.close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.db"]


def test_a_file_that_somebody_looks_into_is_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0)
    path = tmp_path / "missing" / "state.db"
    store = open_store(path)
    path.parent.mkdir()
    somebody = open_store(path)
    somebody.put("key", b"theirs")
    assert store.put("key", b"ours") is False
    assert "in use by another process" in store.problems()[0].message
    somebody.close()
    assert store.retry()
    assert store.get("key") == b"ours"
    store.close()


def test_a_missing_directory_is_said_and_later_used(tmp_path: Path) -> None:
    store = open_store(tmp_path / "missing" / "state.db")
    assert store.put("key", b"value") is False
    assert codes(store) == ["state-unwritable"]
    (tmp_path / "missing").mkdir()
    assert store.retry()
    assert store.problems() == ()
    store.close()
    again = open_store(tmp_path / "missing" / "state.db")
    assert again.get("key") == b"value"
    again.close()
