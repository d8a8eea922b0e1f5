"""The ledger on the data partition: entries as they were signed, in one SQLite file.

Nothing in it is unique to this node but its sequence number and its clock's high-water mark; the
rest comes back from peers. So a file that is damaged is kept aside and begun afresh, one of a
later format likewise, and the node goes on.

How SQLite is set, and why: ``journal_mode=WAL`` with ``synchronous=NORMAL``: a power cut may take
the last commits along, never the file, and what is lost is fetched again. Only `commit(own=True)`
waits for the disk (``synchronous=FULL``): a sequence number that others may have seen must not be
given twice. Changes are gathered and written together, so an SD card sees a few commits a minute.
``locking_mode=EXCLUSIVE``: one supervisor, no shared-memory file. Every row carries a digest,
since SQLite does not notice a flipped bit; the signature of every entry is checked again when it
is loaded.
"""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from appliance.database import connect, set_aside
from appliance.ledger.entry import ENTRY_MAX, Entry, read_entry
from appliance.ledger.errors import EntryError, LedgerError
from appliance.ledger.hlc import ms_of
from appliance.ledger.state import Change
from appliance.problem import Problem

SCHEMA = 1
# From schema N to N + 1; a release reads its own schema and every one that has a step here.
MIGRATIONS: dict[int, tuple[str, ...]] = {}
KEPT_ASIDE = 4
# Bytes of the largest value that is read: a damaged length must not ask for all memory.
LONGEST = 1024 * 1024
_CREATE = (
    "CREATE TABLE entry (id BLOB PRIMARY KEY, record BLOB NOT NULL, digest BLOB NOT NULL)"
    " STRICT, WITHOUT ROWID",
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID",
)
_META = ("high_water", "sequence")

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the file held; ``skipped`` entries could not be read and are left out."""

    entries: tuple[Entry, ...]
    high_water: int
    sequence: int
    skipped: int = 0

    @property
    def guess_ms(self) -> int:
        """The latest time that the file knows of: where a node without a clock begins."""
        return ms_of(max([self.high_water, *(one.stamp for one in self.entries)]))


class _DamagedError(Exception):
    pass


class _NewerError(Exception):
    pass


class LedgerFile:
    """The file of one node. Made by :meth:`open`; used from one thread."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._connection: sqlite3.Connection | None = None
        self._pending: dict[bytes, bytes | None] = {}
        self._meta: dict[str, int] = {}
        self._lost: Problem | None = None
        self._unwritable: Problem | None = None

    @classmethod
    def open(cls, path: Path, *, clock: Clock = time.time) -> tuple[LedgerFile, Loaded]:
        """Open or make the file; whatever is wrong with it is in :meth:`problems`.

        Raises LedgerError only if another process has it open.
        """
        file = cls(path, clock)
        loaded = Loaded((), 0, 0)
        try:
            loaded = file._load()
        except _NewerError as error:
            file._begin_afresh("newer", str(error))
        except _DamagedError as error:
            file._begin_afresh("corrupt", str(error))
        except sqlite3.Error as error:
            if _is_busy(error):
                raise LedgerError(
                    f"{path} is in use by another process",
                    hint="one supervisor runs per state directory: systemctl status skerry",
                ) from error
            if isinstance(error, sqlite3.DatabaseError) and _is_damage(error):
                file._begin_afresh("corrupt", str(error))
            else:
                file._cannot_write(error)
        return file, loaded

    def change(self, changes: Iterable[Change]) -> None:
        """Take note of changes; they are written by the next commit."""
        for one in changes:
            if one.old is not None:
                self._pending[one.old.entry_id] = None
            if one.new is not None:
                self._pending[one.new.entry_id] = one.new.record

    def mark(self, *, high_water: int, sequence: int) -> None:
        """Take note of the clock's high-water mark and the last own sequence number."""
        self._meta = {"high_water": high_water, "sequence": sequence}

    @property
    def dirty(self) -> bool:
        """Whether a commit has something to write."""
        return bool(self._pending or self._meta)

    def commit(self, *, own: bool = False) -> bool:
        """Write what was noted, as one transaction; with ``own`` it survives a power cut.

        False: it could not be written (`problems` says why) and is kept for the next try.
        """
        try:
            if self._connection is None:
                self._connection = connect(self._path, longest=LONGEST, journal=4 * LONGEST)
                _prepare(self._connection)
            self._write(self._connection, own=own)
        except (sqlite3.Error, _DamagedError, _NewerError) as error:
            self._disconnect()
            if isinstance(error, _DamagedError) or _is_damage(error):
                self._begin_afresh("corrupt", f"found while writing: {error}")
            else:
                self._cannot_write(error)
            return False
        self._pending.clear()
        self._meta = {}
        self._unwritable = None
        return True

    def rewrite(self, entries: Iterable[Entry]) -> None:
        """Note all entries again: after the file was begun afresh while the node ran."""
        for one in entries:
            self._pending[one.entry_id] = one.record

    def close(self) -> None:
        """Commit and close."""
        if self.dirty:
            self.commit(own=True)
        self._disconnect()

    def problems(self) -> tuple[Problem, ...]:
        """Return what is wrong now, and what was lost since :meth:`open`."""
        return tuple(one for one in (self._lost, self._unwritable) if one)

    # The file

    def _load(self) -> Loaded:
        self._connection = connect(self._path, longest=LONGEST, journal=4 * LONGEST)
        try:
            _prepare(self._connection)
            return _read(self._connection)
        except BaseException:
            self._disconnect()
            raise

    def _write(self, connection: sqlite3.Connection, *, own: bool) -> None:
        connection.execute(f"PRAGMA synchronous={'FULL' if own else 'NORMAL'}")
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            for entry_id, record in self._pending.items():
                if record is None:
                    connection.execute("DELETE FROM entry WHERE id = ?", (entry_id,))
                else:
                    connection.execute(
                        "INSERT OR REPLACE INTO entry VALUES (?, ?, ?)",
                        (entry_id, record, _digest(entry_id, record)),
                    )
            for name, value in self._meta.items():
                connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def _begin_afresh(self, why: str, reason: str) -> None:
        self._disconnect()
        aside = set_aside(self._path, why, self._clock(), keep=KEPT_ASIDE)
        if why == "newer":
            self._lost = Problem(
                "ledger-newer",
                f"{self._path} {reason}; this release does not use it",
                f"It is kept untouched as {aside}; the ledger is fetched from peers.",
            )
        else:
            self._lost = Problem(
                "ledger-lost",
                f"{self._path} was damaged: {reason}",
                f"It is kept as {aside}, and the ledger is fetched from peers; what only this node "
                "knew is lost. If this comes back, replace the disk or SD card.",
            )
        try:
            self._connection = connect(self._path, longest=LONGEST, journal=4 * LONGEST)
            _prepare(self._connection)
        except (sqlite3.Error, _DamagedError, _NewerError) as error:
            self._disconnect()
            self._cannot_write(error)

    def _disconnect(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _cannot_write(self, error: Exception) -> None:
        self._unwritable = Problem(
            "ledger-unwritable",
            f"{self._path} can't be written ({error}); the node goes on with its ledger in memory",
            "Check free space and the disk: `df /data`, `journalctl -k`. It is tried again by "
            "itself.",
        )


def _prepare(connection: sqlite3.Connection) -> None:
    """Bring an empty or older file to this schema."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA:
        raise _NewerError(f"has format {version}, this release knows up to {SCHEMA}")
    tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_schema")}
    if version == 0 and not tables:
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            for statement in _CREATE:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {SCHEMA:d}")
        return
    while version < SCHEMA:
        steps = MIGRATIONS.get(version)
        if steps is None:
            raise _DamagedError(f"it has format {version}, which no release has written")
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            for statement in (*steps, f"PRAGMA user_version = {version + 1:d}"):
                connection.execute(statement)
        version += 1


def _read(connection: sqlite3.Connection) -> Loaded:
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise _DamagedError(f"its check says: {found}")
    entries, skipped = [], 0
    for entry_id, record, digest in connection.execute("SELECT id, record, digest FROM entry"):
        entry = _entry(entry_id, record, digest)
        if entry is None:
            skipped += 1
        else:
            entries.append(entry)
    meta = dict(connection.execute("SELECT name, value FROM meta").fetchall())
    high_water, sequence = (max(meta.get(name, 0), 0) for name in _META)
    return Loaded(tuple(entries), high_water, sequence, skipped)


def _entry(entry_id: bytes, record: bytes, digest: bytes) -> Entry | None:
    """Return the entry of a row, or None for one that is not what was written.

    One bad row costs one entry, which peers have as well; the file as a whole is not given up.
    """
    if digest != _digest(entry_id, record) or len(record) > ENTRY_MAX:
        return None
    try:
        entry = read_entry(record)
    except EntryError:
        return None
    return entry if entry.entry_id == entry_id else None


def _digest(entry_id: bytes, record: bytes) -> bytes:
    return hashlib.blake2b(entry_id + record, digest_size=8).digest()


def _is_busy(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
    }


def _is_damage(error: Exception) -> bool:
    code = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF in {
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_TOOBIG,
        sqlite3.SQLITE_FORMAT,
        sqlite3.SQLITE_MISMATCH,
    } or code in {sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ}
