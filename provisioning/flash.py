"""Writing a disk image to a disk or a file, and making that copy one of its kind.

In this order, so that an interrupted run leaves a disk that does not boot at all rather than one
that boots half: the image but for its first MiB, then that MiB, then all of it read back from the
medium and compared, then fresh ids, the partition table's backup at the disk's end, and the token
in the SKERRY partition, and those read back too.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import stat
import subprocess
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from provisioning import gpt
from provisioning.errors import ProvisioningError
from provisioning.fat import FatVolume
from provisioning.sources.directory import FLASHED_NAME
from provisioning.storage import (
    Kernel,
    Window,
    device_number,
    device_size,
    forget_cache,
    is_read_only,
    read_uncached,
    reread_partitions,
)
from provisioning.token import Token
from skerry.console import Progress, format_size, note

_PARTITION, _LABEL = "skerry-token", "SKERRY"
_HEAD = 1 << 20
_CHUNK = 4 << 20
# The data partition begins here on first boot: what an earlier system left must not be found.
_WIPE_BEHIND = 8 << 20


class FlashError(ProvisioningError):
    """An image that is none, a target that may not be written, or a write that went wrong."""


class Stream(Protocol):
    """What an image is read from."""

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes; none at the end."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is written to. ``size`` in bytes; None for a file that is made as large as needed."""

    path: Path
    is_device: bool
    size: int | None
    description: str


def examine_target(path: Path, *, size: int | None = None, kernel: Kernel | None = None) -> Target:
    """Return the target if it may be written: a free whole disk, or a file (to be replaced)."""
    try:
        facts = path.stat()
    except FileNotFoundError:
        if path.parent.is_dir():
            return Target(path, is_device=False, size=size, description="new file")
        raise FlashError(f"there is no directory {path.parent}") from None
    except OSError as error:
        raise FlashError(f"{path} cannot be looked at: {error.strerror}") from error
    if stat.S_ISREG(facts.st_mode):
        return Target(path, is_device=False, size=size, description="file that will be replaced")
    if not stat.S_ISBLK(facts.st_mode):
        raise FlashError(f"{path} is neither a disk nor a file", hint="see lsblk for the disks")
    if size is not None:
        raise FlashError(f"--size is for files; {path} is a disk")
    number = device_number(facts)
    system = kernel or Kernel()
    system.check_free(path, number)
    handle = _open_device(path, os.O_RDONLY)
    try:
        whole, read_only = device_size(handle), is_read_only(handle)
    finally:
        os.close(handle)
    if read_only:
        raise FlashError(f"{path} is write-protected", hint="check the switch on the card")
    words = f"{system.describe(number)}, {format_size(whole)}"
    return Target(path, is_device=True, size=whole, description=words)


@contextmanager
def open_image(path: Path) -> Iterator[Stream]:
    """Open an image for reading; .gz, .xz and .zst are unpacked on the way, told by content."""
    try:
        # A pipe might never say anything, and could not be read twice.
        if not (path.is_file() or path.is_block_device()) and path.exists():
            raise FlashError(f"{path} is no file", hint="give the disk.img of `skerry image build`")
        with path.open("rb") as probe:
            magic = probe.read(6)
    except OSError as error:
        raise FlashError(f"{path} cannot be read: {error.strerror}") from error
    if magic.startswith(b"\x1f\x8b"):
        with gzip.open(path, "rb") as unpacked:
            yield unpacked
    elif magic.startswith(b"\xfd7zXZ\0"):
        with lzma.open(path, "rb") as unpacked:
            yield unpacked
    elif magic.startswith(b"\x28\xb5\x2f\xfd"):
        with _unpack_zstd(path) as stream:
            yield stream
    else:
        with path.open("rb") as file:
            yield file


@contextmanager
def _unpack_zstd(path: Path) -> Iterator[Stream]:
    try:
        process = subprocess.Popen(
            ["zstd", "-dcq", "--", str(path)], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError as error:
        raise FlashError(
            f"{path} is packed with zstd, which is not installed here",
            hint="install zstd, or unpack the image elsewhere",
        ) from error
    with process:
        if process.stdout is None:
            raise FlashError("zstd has no output")
        try:
            yield process.stdout
        finally:
            process.terminate()


def image_size(head: bytes, path: Path) -> int:
    """Return the whole size that an image's partition table tells; FlashError if it is no image."""
    try:
        table = gpt.read_disk(lambda offset, size: _slice(head, offset, size))
    except gpt.GptError as error:
        raise FlashError(
            f"{path} is no disk image: {error}", hint="give the disk.img of `skerry image build`"
        ) from error
    return table.sectors * gpt.SECTOR


def examine_image(path: Path) -> int:
    """Return the size of the disk that an image holds, or raise FlashError if it is none."""
    with _readable(path), open_image(path) as source:
        return image_size(_read_exactly(source, _HEAD, path), path)


def check_room(target: Target, size: int) -> None:
    """Raise FlashError if an image of this size is too large for the target."""
    if target.size is not None and size > target.size:
        raise FlashError(
            f"{target.path} is too small: it has {format_size(target.size)}, the image "
            f"{format_size(size)}"
        )


@contextmanager
def _readable(image: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        raise FlashError(
            f"{image} cannot be unpacked: {error}", hint="it is damaged: fetch it again"
        ) from error


def flash(image: Path, target: Target, token: Token | None) -> None:
    """Write the image, make it this disk's own, put the token on it, and verify all of that."""
    if target.path.exists() and image.exists() and target.path.samefile(image):
        raise FlashError("image and target are the same file")
    try:
        with open_image(image) as source:
            head = _read_exactly(source, _HEAD, image)
            size = image_size(head, image)
            check_room(target, size)
            room = target.size if target.size is not None else size
            handle = _open_for_writing(target, room)
            try:
                digest = _copy(source, head, Window(handle, 0, room), size, image)
                _wipe_behind(Window(handle, 0, room), size)
                forget_cache(handle)
                _verify(target.path, size, digest)
                personalise(Window(handle, 0, room), token)
                forget_cache(handle)
                _verify_personal(target.path, room, token)
                reread_partitions(handle)
            finally:
                os.close(handle)
    except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise FlashError(
            f"writing {image} to {target.path} failed: {reason}",
            hint="the target is not usable now; try again, or try another medium",
        ) from error


def personalise(disk: Window, token: Token | None) -> None:
    """Give a written disk ids of its own, fit its table to its size, and put the token on it."""
    image_table = gpt.read_disk(disk.read_at)
    table = gpt.fitted(gpt.with_fresh_ids(image_table), disk.size // gpt.SECTOR)
    if table.sectors > image_table.sectors:
        old_backup, _ = gpt.writes(image_table)[:2]
        disk.write_at(old_backup[0], bytes(image_table.sectors * gpt.SECTOR - old_backup[0]))
    for offset, data in gpt.writes(table):
        disk.write_at(offset, data)
    if token is not None:
        _token_volume(disk, table).write(FLASHED_NAME, token.text().encode() + b"\n")


def _token_volume(disk: Window, table: gpt.Table) -> FatVolume:
    partition = table.named(_PARTITION)
    if partition is None:
        raise FlashError(
            f"the image has no {_PARTITION!r} partition to hold a token",
            hint="flash an image that `skerry image build` made",
        )
    volume = FatVolume(disk.part(partition.offset, partition.size))
    if volume.label() not in {_LABEL, None}:
        raise FlashError(f"the {_PARTITION!r} partition is not labelled {_LABEL}")
    return volume


def _open_device(path: Path, flags: int) -> int:
    try:
        # O_EXCL on a disk: the kernel refuses while anything uses it.
        return os.open(path, flags | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        hint = "are you root?" if isinstance(error, PermissionError) else "is it in use?"
        raise FlashError(f"{path} cannot be opened: {error.strerror}", hint=hint) from error


def _open_for_writing(target: Target, size: int) -> int:
    if target.is_device:
        return _open_device(target.path, os.O_RDWR)
    # The image on it will hold a token: nobody else may read it.
    handle = os.open(target.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    os.fchmod(handle, 0o600)
    os.ftruncate(handle, size)
    return handle


def _copy(source: Stream, head: bytes, disk: Window, size: int, image: Path) -> bytes:
    """Write the image's ``size`` bytes, its head last; return their SHA-256."""
    regular = stat.S_ISREG(os.fstat(disk.handle).st_mode)
    digest = hashlib.sha256(head)
    disk.write_at(0, bytes(len(head)))
    progress = Progress("writing", size)
    done = len(head)
    while done < size:
        chunk = source.read(min(_CHUNK, size - done))
        if not chunk:
            raise FlashError(
                f"{image} is cut short: it has {done} of {size} bytes", hint="fetch it again"
            )
        digest.update(chunk)
        # A fresh file already reads as zeros there: leave a hole.
        if not regular or chunk.count(0) != len(chunk):
            disk.write_at(done, chunk)
        done += len(chunk)
        progress.update(done)
    disk.write_at(0, head)
    os.fsync(disk.handle)
    progress.finish()
    return digest.digest()


def _wipe_behind(disk: Window, size: int) -> None:
    """Zero what follows the image on a larger disk, and the disk's end: old data, old tables."""
    count = min(_WIPE_BEHIND, disk.size - size)
    disk.write_at(size, bytes(count))
    disk.write_at(disk.size - count, bytes(count))


def _verify(path: Path, size: int, expected: bytes) -> None:
    digest, done = hashlib.sha256(), 0
    progress = Progress("verifying", size)
    for piece in read_uncached(path, size):
        digest.update(piece)
        done += len(piece)
        progress.update(done)
    progress.finish()
    if digest.digest() != expected:
        raise FlashError(
            f"{path} does not hold what was written to it", hint="the medium is bad: use another"
        )


def _verify_personal(path: Path, size: int, token: Token | None) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        disk = Window(handle, 0, size)
        table = gpt.read_disk(disk.read_at, backup=True)
        if token is None:
            return
        text = _token_volume(disk, table).read(FLASHED_NAME, 16 * 1024) or b""
        if Token.parse(text) != token:
            raise FlashError("another token than written was read back")
        note(f"the token of network {token.network.name} is on it")
    except ProvisioningError as error:
        raise FlashError(
            f"{path} does not hold what was written to it: {error}",
            hint="the medium is bad: use another",
        ) from error
    finally:
        os.close(handle)


def _read_exactly(source: Stream, size: int, image: Path) -> bytes:
    parts, left = [], size
    while left and (part := source.read(left)):
        parts.append(part)
        left -= len(part)
    if left:
        raise FlashError(f"{image} is no disk image: it is only {size - left} bytes long")
    return b"".join(parts)


def _slice(data: bytes, offset: int, size: int) -> bytes:
    if offset + size > len(data):
        raise gpt.GptError("its partition table lies outside of its beginning")
    return data[offset : offset + size]
