"""The node's small state database: bytes by key, safe on SD cards and under power cuts.

Everything is held in memory and written through, so a read never fails and a full disk loses
nothing while the process lives. What the database holds may be lost without losing the node: its
identity is stored elsewhere. The file: :mod:`appliance.database`.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from appliance.database import (
    DamagedError,
    NewerError,
    StoreError,
    is_damage,
    is_full,
    open_and_load,
    read_only,
    set_aside,
    write,
)
from appliance.problem import Problem

KEPT_ASIDE = 8

Clock = Callable[[], float]


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
            with suppress(sqlite3.Error, DamagedError):
                store._entries = read_only(path)
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

    def change(self, values: Mapping[str, bytes | None]) -> bool:
        """Set or (None) remove several keys in one write; the result is as for :meth:`put`."""
        for key, value in values.items():
            if self._entries.get(key) == value:
                continue
            if value is None:
                del self._entries[key]
            else:
                self._entries[key] = value
            self._unsaved[key] = value
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
            write(self._connection, self._unsaved)
        except sqlite3.ProgrammingError:
            raise  # our own defect: loud, and no reason to touch the file
        except StoreError as error:
            self._cannot_write(error)
            return False
        except sqlite3.Error as error:
            self._disconnect()
            if is_damage(error):
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
            self._connection, entries = open_and_load(self._path)
        except DamagedError as error:
            self._entries = self._with_unsaved(error.salvaged)
            self._start_afresh(str(error))
        except NewerError as error:
            self._entries = self._with_unsaved({})
            self._set_aside_newer(str(error))
        else:
            self._entries = self._with_unsaved(entries)

    def _with_unsaved(self, entries: dict[str, bytes]) -> dict[str, bytes]:
        """After a time in memory only, what was set meanwhile is newer than the file."""
        changed = {**entries, **self._unsaved}
        return {key: value for key, value in changed.items() if value is not None}

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
            self._connection, _ = open_and_load(self._path)
            write(self._connection, self._unsaved)
            self._unsaved.clear()
        except (DamagedError, NewerError, sqlite3.Error) as error:
            self._disconnect()
            self._cannot_write(error)

    def _set_aside(self, why: str) -> Path:
        return set_aside(self._path, why, self._clock(), keep=KEPT_ASIDE)

    def _disconnect(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _cannot_write(self, error: Exception) -> None:
        if is_full(error, self._path.parent):
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
