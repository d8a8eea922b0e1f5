"""Block devices and disk image files: bounded access, and what the kernel knows of them."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import re
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from provisioning.errors import ProvisioningError

# linux/fs.h
_BLKGETSIZE64, _BLKFLSBUF, _BLKROGET, _BLKRRPART = 0x80081272, 0x1261, 0x125E, 0x125F
_CHUNK = 4 << 20
_ALIGNMENT = 4096


class StorageError(ProvisioningError):
    """A disk that may not or cannot be used."""


@dataclass(frozen=True, slots=True)
class Window:
    """A part of an open disk; nothing outside it can be reached through it."""

    handle: int
    offset: int
    size: int

    def read_at(self, offset: int, size: int) -> bytes:
        """Return exactly ``size`` bytes."""
        self._check(offset, size)
        parts = []
        while size > 0:
            part = os.pread(self.handle, min(size, _CHUNK), self.offset + offset)
            if not part:
                raise StorageError("the disk ends too early")
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return b"".join(parts)

    def write_at(self, offset: int, data: bytes) -> None:
        """Write all of ``data``."""
        self._check(offset, len(data))
        view = memoryview(data)
        while view:
            done = os.pwrite(self.handle, view, self.offset + offset)
            offset, view = offset + done, view[done:]

    def part(self, offset: int, size: int) -> Window:
        """Return a window onto a part of this one."""
        self._check(offset, size)
        return Window(self.handle, self.offset + offset, size)

    def _check(self, offset: int, size: int) -> None:
        if offset < 0 or size < 0 or offset + size > self.size:
            raise StorageError(f"{size} bytes at {offset} are outside of {self.size} bytes")


def device_size(handle: int) -> int:
    """Return the size of an open block device or regular file in bytes."""
    facts = os.fstat(handle)
    if stat.S_ISBLK(facts.st_mode):
        return int.from_bytes(fcntl.ioctl(handle, _BLKGETSIZE64, bytes(8)), sys.byteorder)
    return facts.st_size


def is_read_only(handle: int) -> bool:
    """Say whether the kernel lets nobody write to an open block device."""
    return any(fcntl.ioctl(handle, _BLKROGET, bytes(4)))


def forget_cache(handle: int) -> None:
    """Write back and drop what the kernel has cached, so that a read comes from the medium."""
    os.fsync(handle)
    if stat.S_ISBLK(os.fstat(handle).st_mode):
        with contextlib.suppress(OSError):
            fcntl.ioctl(handle, _BLKFLSBUF)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)


def reread_partitions(handle: int) -> None:
    """Tell the kernel of a new partition table; not everything has partitions."""
    with contextlib.suppress(OSError):
        fcntl.ioctl(handle, _BLKRRPART)


def read_uncached(path: Path, size: int) -> Iterator[memoryview]:
    """Yield the first ``size`` bytes in pieces, past the page cache where the kernel allows it."""
    flags = os.O_RDONLY | os.O_CLOEXEC
    try:
        handle = os.open(path, flags | os.O_DIRECT)
    except OSError:
        # Some file systems (tmpfs) have no direct reads; the cache was dropped before.
        handle = os.open(path, flags)
    buffer = mmap.mmap(-1, _CHUNK)
    try:
        done = 0
        while done < size:
            # A direct read is of whole blocks; beyond the end of a file it is short.
            got = os.preadv(handle, [buffer], done)
            if got <= 0:
                raise StorageError(f"{path} ends after {done} bytes")
            with memoryview(buffer) as view:
                yield view[: min(got, size - done)]
            done += got
            if done < size and done % _ALIGNMENT:
                raise StorageError(f"{path} was read in part only")
    finally:
        os.close(handle)


@dataclass(frozen=True, slots=True)
class Kernel:
    """Where the kernel tells about disks; tests give it other places."""

    sys: Path = Path("/sys")
    mountinfo: Path = Path("/proc/self/mountinfo")
    swaps: Path = Path("/proc/swaps")

    def check_free(self, path: Path, number: str) -> None:
        """Raise StorageError unless the block device ``number`` (``8:0``) is a free, whole disk."""
        disk = self.sys / "dev/block" / number
        if not disk.exists():
            raise StorageError(f"{path} is unknown to the kernel")
        if (disk / "partition").exists():
            whole = disk.resolve().parent.name
            raise StorageError(f"{path} is a partition", hint=f"give the whole disk: /dev/{whole}")
        devices = self._with_users(disk)
        for device, where in self._in_use():
            if device in devices:
                system = where in {"/", "/usr", "/boot", "/boot/efi", "/efi", "[swap]"}
                kind = "the system's own disk" if system else "in use"
                raise StorageError(
                    f"{path} is {kind}: {devices[device]} is mounted at {where}"
                    if where != "[swap]"
                    else f"{path} is {kind}: {devices[device]} is used as swap",
                    hint="choose another disk" if system else f"unmount it first: umount {where}",
                )

    def describe(self, number: str) -> str:
        """Return the maker's name of a disk, as far as known."""
        device = self.sys / "dev/block" / number / "device"
        words = []
        for name in ("vendor", "model", "name"):
            with contextlib.suppress(OSError):
                words.append((device / name).read_text(errors="replace").strip())
        return " ".join(words) or "disk of unknown make"

    def _with_users(self, disk: Path) -> dict[str, str]:
        """Return number and name of the disk, its partitions and all that is stacked on them."""
        found: dict[str, str] = {}
        todo = [disk.resolve()]
        while todo:
            place = todo.pop()
            try:
                number = (place / "dev").read_text().strip()
            except OSError:
                continue
            if number in found:
                continue
            found[number] = place.name
            todo += [child.parent for child in place.glob("*/partition")]
            todo += [holder.resolve() for holder in place.glob("holders/*")]
        return found

    def _in_use(self) -> Iterator[tuple[str, str]]:
        """Yield device number and mount point of everything mounted, and the swaps."""
        for line in self.mountinfo.read_text(errors="replace").splitlines():
            before, _, after = line.partition(" - ")
            fields, source = before.split(), after.split()
            if len(fields) < 5 or len(source) < 2:
                continue
            where = _unescape(fields[4])
            yield fields[2], where
            # btrfs and others mount under a number of their own, and name their device only here.
            if number := _number_of(_unescape(source[1])):
                yield number, where
        with contextlib.suppress(OSError):
            for line in self.swaps.read_text(errors="replace").splitlines()[1:]:
                if number := _number_of(_unescape(line.split(" ")[0].split("\t")[0])):
                    yield number, "[swap]"


def _number_of(source: str) -> str | None:
    if not source.startswith("/"):
        return None
    try:
        facts = Path(source).stat()
    except OSError:
        return None
    if stat.S_ISBLK(facts.st_mode):
        return device_number(facts)
    return None


def device_number(facts: os.stat_result) -> str:
    """Return a device's number as sysfs writes it: ``8:0``."""
    return f"{os.major(facts.st_rdev)}:{os.minor(facts.st_rdev)}"


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
