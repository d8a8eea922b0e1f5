"""The node's small state database: bytes by key, safe on SD cards and under power cuts.

Everything is held in memory and written through, so a read never fails and a full disk loses
nothing while the process lives. What the database holds may be lost without losing the node: its
identity is stored elsewhere.

How SQLite is set, and why:

- ``journal_mode=WAL``: a commit appends frames with checksums to one file and never overwrites a
  page in place, so a write torn by a power cut is recognised and dropped as a whole; on flash,
  appending is also what wears least.
- ``synchronous=FULL``: ``put() -> True`` means that the value survives a power cut. NORMAL would
  save one fsync a commit and lose the last ones; commits are rare here, so FULL costs little.
- ``locking_mode=EXCLUSIVE``: the node has one supervisor. A second one on the same directory is
  told so, and no shared-memory file is needed.
- every row carries a digest, since SQLite itself does not notice a flipped bit inside a value.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

from appliance.problem import Problem
from skerry.errors import SkerryError

SCHEMA = 1
# From schema N to N + 1; a release reads its own schema and every one that has a step here.
MIGRATIONS: dict[int, tuple[str, ...]] = {}
KEPT_ASIDE = 8
LARGEST_VALUE = 16 * 1024 * 1024
BUSY_SECONDS = 1.0
_CREATE = (
    "CREATE TABLE entry (key TEXT PRIMARY KEY, value BLOB NOT NULL, digest BLOB NOT NULL)"
    " STRICT, WITHOUT ROWID"
)
_READ_DAMAGE = frozenset(
    {
        sqlite3.SQLITE_IOERR_READ,
        sqlite3.SQLITE_IOERR_SHORT_READ,
        sqlite3.SQLITE_IOERR_CORRUPTFS,
    }
)
_CANNOT_WRITE = frozenset(
    {
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_AUTH,
        sqlite3.SQLITE_NOLFS,
    }
)

Clock = Callable[[], float]


class StoreError(SkerryError):
    """The state database can't be used at all."""


class _DamagedError(Exception):
    """The file holds something that we did not write."""

    def __init__(self, message: str, salvaged: dict[str, bytes] | None = None) -> None:
        super().__init__(message)
        self.salvaged = salvaged or {}


class _NewerError(Exception):
    """A later release wrote the file."""


class Store:
    """Bytes by key. Made by :meth:`open`; used from one thread."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._connection: sqlite3.Connection | None = None
        self._entries: dict[str, bytes] = {}
        self._unsaved: dict[str, bytes | None] = {}
        self._lost: Problem | None = None
        self._unwritable: Problem | None = None

    @classmethod
    def open(cls, path: Path, *, clock: Clock = time.time) -> Store:
        """Open or make the database at ``path``; whatever is wrong with it is in ``problems()``.

        :raises StoreError: only if another process has it open.
        """
        store = cls(path, clock)
        try:
            store._connect()
        except sqlite3.Error as error:
            store._cannot_write(error)
            store._read_without_writing()
        return store

    def close(self) -> None:
        """Close the file; what could not be written is tried once more."""
        self.retry()
        self._disconnect()

    def get(self, key: str) -> bytes | None:
        """Return the value, or None."""
        return self._entries.get(key)

    def items(self, prefix: str = "") -> dict[str, bytes]:
        """Return the entries whose key starts with ``prefix``, in the order of their keys."""
        return {key: self._entries[key] for key in sorted(self._entries) if key.startswith(prefix)}

    def put(self, key: str, value: bytes) -> bool:
        """Set a value. False: it is in memory only for now, and ``problems()`` says why."""
        if self._entries.get(key) != value:
            self._entries[key] = value
            self._unsaved[key] = value
        return self.retry()

    def delete(self, key: str) -> bool:
        """Remove a key if it is there; the result is as for :meth:`put`."""
        if self._entries.pop(key, None) is not None:
            self._unsaved[key] = None
        return self.retry()

    def retry(self) -> bool:
        """Write what could not be written before; True if nothing is left in memory only."""
        if not self._unsaved and self._connection is not None:
            return True
        try:
            if self._connection is None:
                self._connect()
            if self._connection is None:
                return False
            self._write(self._unsaved)
        except sqlite3.Error as error:
            self._disconnect()
            if _is_damage(error):
                self._start_afresh(f"it was found damaged while writing ({error})")
                return self._connection is not None and not self._unsaved
            self._cannot_write(error)
            return False
        self._unsaved.clear()
        self._unwritable = None
        return True

    def problems(self) -> tuple[Problem, ...]:
        """Return what is wrong now, and what was lost since :meth:`open`."""
        return tuple(problem for problem in (self._lost, self._unwritable) if problem)

    # The file

    def _connect(self) -> None:
        try:
            self._connection, entries = _open_and_load(self._path)
        except _DamagedError as error:
            self._entries = error.salvaged | self._entries
            self._start_afresh(str(error))
            return
        except _NewerError as error:
            self._set_aside_newer(str(error))
            return
        # After a time in memory only, what was set meanwhile is newer than the file.
        for key, value in self._unsaved.items():
            entries.pop(key, None)
            if value is not None:
                entries[key] = value
        self._entries = entries

    def _write(self, changes: dict[str, bytes | None]) -> None:
        connection = self._connection
        if connection is None or not changes:
            return
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            for key, value in changes.items():
                if value is None:
                    connection.execute("DELETE FROM entry WHERE key = ?", (key,))
                else:
                    connection.execute(
                        "INSERT INTO entry VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE SET"
                        " value = excluded.value, digest = excluded.digest",
                        (key, value, _digest(key, value)),
                    )

    def _start_afresh(self, reason: str) -> None:
        """Keep the damaged file aside and write what we know into a fresh one."""
        aside = self._set_aside("corrupt")
        self._lost = Problem(
            "state-lost",
            f"the state database {self._path} was damaged: {reason}; {len(self._entries)} entries "
            f"could be kept, whatever else it remembered of members and addresses is lost",
            f"The identity is not affected, and members are found again by discovery. The damaged "
            f"file is kept as {aside}. If this comes back, replace the disk or SD card.",
        )
        self._make_fresh()

    def _set_aside_newer(self, reason: str) -> None:
        aside = self._set_aside("newer")
        self._lost = Problem(
            "state-newer",
            f"the state database {self._path} {reason}: it is not used by this release, so members "
            "and addresses remembered by the later release are not known here",
            f"Nothing is lost: it is kept untouched as {aside}. Members are found again by "
            "discovery; or install the later release again.",
        )
        self._make_fresh()

    def _make_fresh(self) -> None:
        self._unsaved = dict(self._entries)
        try:
            self._connection, _ = _open_and_load(self._path)
            self._write(self._unsaved)
            self._unsaved.clear()
        except (_DamagedError, _NewerError, sqlite3.Error) as error:
            self._disconnect()
            self._cannot_write(error)

    def _set_aside(self, why: str) -> Path:
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(max(self._clock(), 0)))
        name = f"{self._path.name}.{why}-{stamp}"
        aside, again = self._path.with_name(name), 1
        while aside.exists():
            again += 1
            aside = self._path.with_name(f"{name}-{again}")
        # The log goes along under the name that SQLite looks for beside the database.
        for suffix in ("-wal", "-journal", "-shm", ""):
            with suppress(OSError):
                Path(f"{self._path}{suffix}").rename(f"{aside}{suffix}")
        self._forget_oldest(why)
        return aside if aside.exists() else self._path

    def _forget_oldest(self, why: str) -> None:
        """Bound what a dying disk can pile up: the newest copies stay."""
        with suppress(OSError):
            copies = sorted(self._path.parent.glob(f"{self._path.name}.{why}-*"))
            for copy in copies[:-KEPT_ASIDE]:
                copy.unlink()

    def _read_without_writing(self) -> None:
        """Take what can be read from a file that can't be written (its disk is full, say)."""
        uri = f"{self._path.absolute().as_uri()}?immutable=1"
        with (
            suppress(sqlite3.Error, _DamagedError),
            closing(sqlite3.connect(uri, uri=True)) as connection,
        ):
            self._entries = _rows(connection)

    def _disconnect(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _cannot_write(self, error: Exception) -> None:
        if _is_full(error, self._path.parent):
            self._unwritable = Problem(
                "disk-full",
                f"{self._path} can't be written, its disk is full ({error}); the node goes on with "
                "its state in memory",
                "Free space on the data partition: `du -xh /data | sort -h | tail` names the "
                "largest folders. It is tried again by itself.",
            )
        else:
            self._unwritable = Problem(
                "state-unwritable",
                f"{self._path} can't be written ({error}); the node goes on with its state in "
                "memory",
                "Check the data partition: `journalctl -k -g ext4`, `findmnt /data`. It is tried "
                "again by itself.",
            )


def _open_and_load(path: Path) -> tuple[sqlite3.Connection, dict[str, bytes]]:
    """Return an open, sound database and what it holds.

    :raises _DamagedError: with the entries that are provably as we wrote them.
    :raises _NewerError: a later release wrote it.
    :raises StoreError: another process has it open.
    :raises sqlite3.Error: it can't be written.
    """
    connection = None
    try:
        connection = _open(path)
        return connection, _check_and_load(connection)
    except sqlite3.Error as error:
        salvaged = _salvage(connection)
        if connection is not None:
            connection.close()
        if _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise StoreError(
                f"{path} is in use by another process",
                hint="Is a second supervisor running? Stop it, or give this one its own "
                "--state-dir.",
            ) from error
        if _is_damage(error):
            raise _DamagedError(str(error), salvaged) from error
        raise
    except _DamagedError as error:
        salvaged = _salvage(connection)
        if connection is not None:
            connection.close()
        raise _DamagedError(str(error), salvaged) from error
    except _NewerError:
        if connection is not None:
            connection.close()
        raise


def _open(path: Path) -> sqlite3.Connection:
    with suppress(OSError):  # SQLite says better than we could what is wrong with the path
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        # A damaged length must not make us ask for all memory there is.
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LARGEST_VALUE)
        for pragma in (
            "locking_mode=EXCLUSIVE",
            "cell_size_check=ON",
            "trusted_schema=OFF",
            "journal_mode=WAL",
            "synchronous=FULL",
            "journal_size_limit=1048576",
        ):
            connection.execute(f"PRAGMA {pragma}").fetchall()
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _check_and_load(connection: sqlite3.Connection) -> dict[str, bytes]:
    """Return all entries of a sound database; an empty file becomes one.

    :raises _DamagedError: something is wrong with it.
    :raises _NewerError: a later release wrote it.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA:
        raise _NewerError(f"has schema {version}, this release knows up to {SCHEMA}")
    found = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if found != "ok":
        raise _DamagedError(f"its integrity check says: {found}")
    tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_schema")}
    if version == 0 and not tables:
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(_CREATE)
            connection.execute(f"PRAGMA user_version = {SCHEMA:d}")
        return {}
    while version < SCHEMA:
        steps = MIGRATIONS.get(version)
        if steps is None:
            raise _DamagedError(f"it has schema {version}, which no release has written")
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            for statement in (*steps, f"PRAGMA user_version = {version + 1:d}"):
                connection.execute(statement)
        version += 1
    return _rows(connection)


def _rows(connection: sqlite3.Connection) -> dict[str, bytes]:
    entries = {}
    for key, value, digest in connection.execute("SELECT key, value, digest FROM entry"):
        if not _is_ours(key, value, digest):
            raise _DamagedError(f"the entry {key!r} is not what was written")
        entries[key] = value
    return entries


def _salvage(connection: sqlite3.Connection | None) -> dict[str, bytes]:
    """Return the entries of a damaged database that are provably as we wrote them."""
    entries: dict[str, bytes] = {}
    if connection is None:
        return entries
    with suppress(sqlite3.Error):
        for key, value, digest in connection.execute("SELECT key, value, digest FROM entry"):
            if _is_ours(key, value, digest):
                entries.update({key: value})  # one by one: the next row may raise
    return entries


def _is_ours(key: object, value: object, digest: object) -> bool:
    return isinstance(key, str) and isinstance(value, bytes) and digest == _digest(key, value)


def _digest(key: str, value: bytes) -> bytes:
    return hashlib.blake2b(key.encode() + b"\0" + value, digest_size=8).digest()


def _code(error: Exception) -> int:
    """Return SQLite's primary result code."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _is_damage(error: sqlite3.Error) -> bool:
    if getattr(error, "sqlite_errorcode", 0) in _READ_DAMAGE:
        return True
    return _code(error) not in _CANNOT_WRITE | {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def _is_full(error: Exception, directory: Path) -> bool:
    if _code(error) == sqlite3.SQLITE_FULL:
        return True
    with suppress(OSError):
        room = os.statvfs(directory)
        return room.f_bavail == 0 or (room.f_files > 0 and room.f_favail == 0)
    return False
