"""The SQLite file behind the store: how it is set, checked, read and written.

- ``journal_mode=WAL``: a commit appends frames with checksums to one file and never overwrites a
  page in place, so a write torn by a power cut is recognised and dropped as a whole; on flash,
  appending is also what wears least.
- ``synchronous=FULL``: what was written survives a power cut. NORMAL would save one fsync a commit
  and lose the last ones; commits are rare here, so FULL costs little.
- ``locking_mode=EXCLUSIVE``: the node has one supervisor. A second one on the same directory is
  told so, and no shared-memory file is needed.
- every row carries a digest, since SQLite itself does not notice a flipped bit inside a value.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import stat
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path

from skerry.errors import SkerryError

SCHEMA = 1
# From schema N to N + 1; a release reads its own schema and every one that has a step here.
MIGRATIONS: dict[int, tuple[str, ...]] = {}
LARGEST_VALUE = 16 * 1024 * 1024
BUSY_SECONDS = 1.0
_PARTS = ("-wal", "-journal", "-shm", "")
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


class StoreError(SkerryError):
    """The state database can't be used at all."""


class DamagedError(Exception):
    """The file holds something that we did not write."""

    def __init__(self, message: str, salvaged: dict[str, bytes] | None = None) -> None:
        super().__init__(message)
        self.salvaged = salvaged or {}


class NewerError(Exception):
    """A later release wrote the file."""


def open_and_load(path: Path) -> tuple[sqlite3.Connection, dict[str, bytes]]:
    """Return an open, sound database and what it holds.

    :raises DamagedError: with the entries that are provably as we wrote them.
    :raises NewerError: a later release wrote it.
    :raises StoreError: another process has it open.
    :raises sqlite3.Error: it can't be written.
    """
    connection = None
    try:
        _check_kind(path)
        connection = connect(path, longest=LARGEST_VALUE, journal=1024 * 1024)
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
        if is_damage(error):
            raise DamagedError(str(error), salvaged) from error
        raise
    except DamagedError as error:
        salvaged = _salvage(connection)
        if connection is not None:
            connection.close()
        raise DamagedError(str(error), salvaged) from error
    except NewerError:
        if connection is not None:
            connection.close()
        raise


def read_only(path: Path) -> dict[str, bytes]:
    """Return the entries of a file that can't be written (its disk is full, say).

    :raises DamagedError, sqlite3.Error: it can't be read either.
    """
    uri = f"{path.absolute().as_uri()}?immutable=1"
    with closing(sqlite3.connect(uri, uri=True)) as connection:
        return _rows(connection)


def write(connection: sqlite3.Connection, changes: Mapping[str, bytes | None]) -> None:
    """Set, or with None delete, entries: all of them or, with sqlite3.Error, none."""
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


def _check_kind(path: Path) -> None:
    """Raise DamagedError for what SQLite would not call damaged: no files, or a single byte."""
    for suffix in ("", "-wal", "-journal"):
        place = Path(f"{path}{suffix}")
        with suppress(OSError):
            if not stat.S_ISREG(place.lstat().st_mode):
                raise DamagedError(f"{place.name} is not a regular file")
    with suppress(OSError):
        if path.lstat().st_size == 1:  # taken for an empty database
            raise DamagedError("it has a single byte")


def connect(path: Path, *, longest: int, journal: int) -> sqlite3.Connection:
    """Open a file that survives power cuts and is ours alone; both limits in bytes.

    :raises sqlite3.Error: it cannot be opened, or somebody else has it.
    """
    with suppress(OSError):  # SQLite says better than we could what is wrong with the path
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        # A damaged length must not make us ask for all memory there is.
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, longest)
        for pragma in (
            "locking_mode=EXCLUSIVE",
            "cell_size_check=ON",
            "trusted_schema=OFF",
            "journal_mode=WAL",
            "synchronous=FULL",
            f"journal_size_limit={journal}",
        ):
            connection.execute(f"PRAGMA {pragma}").fetchall()
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _check_and_load(connection: sqlite3.Connection) -> dict[str, bytes]:
    """Return all entries of a sound database; an empty file becomes one.

    :raises DamagedError: something is wrong with it.
    :raises NewerError: a later release wrote it.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA:
        raise NewerError(f"has schema {version}, this release knows up to {SCHEMA}")
    found = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if found != "ok":
        raise DamagedError(f"its integrity check says: {found}")
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
            raise DamagedError(f"it has schema {version}, which no release has written")
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
            raise DamagedError(f"the entry {key!r} is not what was written")
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


def is_damage(error: sqlite3.Error) -> bool:
    """Say whether the file is at fault, and not its disk, another process or ourselves."""
    if isinstance(error, (sqlite3.ProgrammingError, sqlite3.InterfaceError)):
        return False  # our own fault, not the file's
    if getattr(error, "sqlite_errorcode", 0) in _READ_DAMAGE:
        return True
    return _code(error) not in _CANNOT_WRITE | {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def is_full(error: Exception, directory: Path) -> bool:
    """Say whether it failed for lack of room."""
    if _code(error) == sqlite3.SQLITE_FULL:
        return True
    with suppress(OSError):
        room = os.statvfs(directory)
        return room.f_bavail == 0 or (room.f_files > 0 and room.f_favail == 0)
    return False


def set_aside(path: Path, why: str, now: float, *, keep: int) -> Path:
    """Give a database another name beside it, with its log, and return that.

    The name has ``why`` and the time (Unix seconds). Of one kind the newest ``keep`` stay: a dying
    disk piles up no more. What can't be moved stays where it is.
    """
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(max(now, 0)))
    name = f"{path.name}.{why}-{stamp}"
    aside, again = path.with_name(name), 1
    while aside.exists():
        again += 1
        aside = path.with_name(f"{name}-{again}")
    # The log goes along under the name that SQLite looks for beside the database.
    for suffix in _PARTS:
        with suppress(OSError):
            Path(f"{path}{suffix}").rename(f"{aside}{suffix}")
    with suppress(OSError):
        copies = sorted(path.parent.glob(f"{path.name}.{why}-*"))
        bases = [one for one in copies if not one.name.endswith(_PARTS[:-1])]
        for one in bases[:-keep]:
            for suffix in _PARTS:
                Path(f"{one}{suffix}").unlink(missing_ok=True)
    return aside if aside.exists() else path
