"""The records of updates in ``/data/update``: written atomically, read with suspicion.

A record that cannot be understood is kept aside under another name, said, and treated as absent.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from ota.errors import OtaError, Trouble
from ota.trial import RECORD_FORMAT, Failures, GoodSlots, Pending

PENDING = "pending.json"
FAILED = "failed.json"
GOOD = "good.json"
_LONGEST = 256 * 1024

Record = TypeVar("Record", Pending, Failures, GoodSlots)


class _Header(msgspec.Struct):
    format: int


class Records:
    """The update directory. ``problems`` collects what was found damaged, in clear words."""

    def __init__(self, directory: Path, *, now: Callable[[], float] = time.time) -> None:
        self.directory = directory
        self.problems: list[str] = []
        self._now = now

    def pending(self) -> Pending | None:
        """Return the undecided update, if there is one."""
        return self._load(PENDING, Pending)

    def failures(self) -> Failures:
        """Return the versions that failed."""
        return self._load(FAILED, Failures) or Failures()

    def good_slots(self) -> GoodSlots:
        """Return what each slot held when it was last good."""
        return self._load(GOOD, GoodSlots) or GoodSlots()

    def save_pending(self, pending: Pending) -> None:
        """Write the undecided update; OtaError if that cannot be done."""
        self.write(PENDING, msgspec.json.encode(pending))

    def save_failures(self, failures: Failures) -> None:
        """Write the versions that failed; OtaError if that cannot be done."""
        self.write(FAILED, msgspec.json.encode(failures))

    def save_good_slots(self, slots: GoodSlots) -> None:
        """Write the good slots; OtaError if that cannot be done."""
        self.write(GOOD, msgspec.json.encode(slots))

    def clear_pending(self) -> None:
        """Remove the undecided update; needs no free space."""
        try:
            (self.directory / PENDING).unlink(missing_ok=True)
            self._sync_directory(self.directory)
        except OSError as error:
            raise _cannot_write(self.directory / PENDING, error) from error

    def write(self, name: str, content: bytes) -> None:
        """Replace a file of the directory: after a power cut it is the old or the new one."""
        path = self.directory / name
        temporary = path.with_name(f".{path.name}.new")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            self._sync_directory(path.parent)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise _cannot_write(path, error) from error

    @staticmethod
    def _sync_directory(directory: Path) -> None:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _load(self, name: str, kind: type[Record]) -> Record | None:
        path = self.directory / name
        try:
            with path.open("rb") as file:
                content = file.read(_LONGEST + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            self.problems.append(f"{path} cannot be read: {error.strerror}")
            return None
        if len(content) > _LONGEST:
            self._set_aside(path, f"larger than {_LONGEST} bytes")
            return None
        try:
            found = msgspec.json.decode(content, type=_Header).format
            if found == RECORD_FORMAT:
                return msgspec.json.decode(content, type=kind)
            why = f"format {found}; this release reads {RECORD_FORMAT}"
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            why = str(error)
        self._set_aside(path, why)
        return None

    def _set_aside(self, path: Path, why: str) -> None:
        aside = path.with_name(f"{path.name}.damaged-{int(self._now())}")
        try:
            path.replace(aside)
        except OSError as error:
            self.problems.append(
                f"{path} is damaged ({why}) and cannot be moved: {error.strerror}; ignored"
            )
        else:
            self.problems.append(f"{path} is damaged ({why}): ignored, kept as {aside.name}")


def _cannot_write(path: Path, error: OSError) -> OtaError:
    full = error.errno in {errno.ENOSPC, errno.EDQUOT}
    return OtaError(
        f"{path} cannot be written: {error.strerror}",
        hint="free space on /data" if full else "is this a Skerry node, and are you root?",
        trouble=Trouble.SPACE if full else Trouble.RECORD,
    )
