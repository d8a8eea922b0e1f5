"""What the CNI server has written down, on a tmpfs: records of attachments, and the leases.

A record is replaced as a whole: written beside, then renamed. Whoever is killed between leaves a
file that is swept at the next start. On a tmpfs what was written is there after a kill; a reboot
takes it all, as it takes what it tells of.
"""

from __future__ import annotations

import hashlib
import logging
from contextlib import suppress
from pathlib import Path

from appliance.cni import ipam, journal
from appliance.cni.ipam import IpamError, State
from appliance.cni.journal import Entry, JournalError
from appliance.cni.spec import Attachment
from skerry.errors import SkerryError

log = logging.getLogger(__name__)

_LEASES = "leases"
_RECORDS = "records"
_NEW = ".new"
_SPOILT = ".spoilt"


class StoreError(SkerryError):
    """Something can't be written down."""


class Store:
    """The folder of one CNI server; one thread at a time writes for one attachment."""

    def __init__(self, folder: Path, boot_id: str) -> None:
        self._folder = folder
        self._records = folder / _RECORDS
        self._boot_id = boot_id

    def open(self) -> None:
        """Make the folders; nobody else can read them. Raises StoreError."""
        try:
            for folder in (self._folder, self._records):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                folder.chmod(0o700)
            for left in (*self._folder.glob(f"*{_NEW}"), *self._records.glob(f"*{_NEW}")):
                left.unlink(missing_ok=True)
        except OSError as error:
            raise _cannot(self._folder, error) from error

    def load(self) -> tuple[State, dict[Attachment, Entry], bool]:
        """Return leases and entries of this boot, and whether every record could be read.

        What can't be read is set aside under another name. Raises StoreError.
        """
        entries: dict[Attachment, Entry] = {}
        complete = True
        for path in sorted(self._records.iterdir()):
            if path.name.endswith(_SPOILT):
                complete = False
                continue
            try:
                entry = self._load(path)
            except (JournalError, OSError) as error:
                complete = False
                _set_aside(path, error)
                continue
            if entry is None:
                path.unlink(missing_ok=True)
            else:
                entries[entry.attachment] = entry
        return self._load_leases(), entries, complete

    def write(self, entry: Entry) -> None:
        """Write an attachment's record. Raises StoreError."""
        self._write(self._record(entry.attachment), journal.dump(entry, self._boot_id))

    def forget(self, attachment: Attachment) -> None:
        """Remove an attachment's record. Raises StoreError."""
        path = self._record(attachment)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise _cannot(path, error) from error

    def write_leases(self, state: State) -> None:
        """Write the leases. Raises StoreError."""
        self._write(self._folder / _LEASES, ipam.dump(state))

    def forget_spoilt(self) -> None:
        """Remove what could not be read, once the runtime has said what is valid."""
        for path in self._records.glob(f"*{_SPOILT}"):
            path.unlink(missing_ok=True)

    def _load(self, path: Path) -> Entry | None:
        entry = journal.load(path.read_bytes(), self._boot_id)
        if entry is not None and self._record(entry.attachment) != path:
            raise JournalError(f"{path} has the name of another record")
        return entry

    def _load_leases(self) -> State:
        path = self._folder / _LEASES
        try:
            return ipam.at_boot(ipam.load(path.read_bytes()), self._boot_id)
        except FileNotFoundError:
            pass
        except (IpamError, OSError) as error:
            _set_aside(path, error)
        return ipam.empty(self._boot_id)

    def _record(self, attachment: Attachment) -> Path:
        # None of the three can hold a slash.
        text = f"{attachment.network}/{attachment.container}/{attachment.ifname}"
        return self._records / hashlib.sha256(text.encode()).hexdigest()

    def _write(self, path: Path, data: bytes) -> None:
        fresh = path.with_name(path.name + _NEW)
        try:
            fresh.write_bytes(data)
            fresh.replace(path)
        except OSError as error:
            # Where there is no room, half a record would take up what there is.
            with suppress(OSError):
                fresh.unlink(missing_ok=True)
            raise _cannot(path, error) from error


def _set_aside(path: Path, error: Exception) -> None:
    log.warning("%s can't be read and is set aside: %s", path, error)
    try:
        path.replace(path.with_name(path.name + _SPOILT))
    except OSError as refused:
        log.warning("%s can't be set aside: %s", path, refused)


def _cannot(path: Path, error: OSError) -> StoreError:
    return StoreError(
        f"{path} can't be written: {error.strerror}",
        hint=f"is there room? `df {path.parent}`",
    )
