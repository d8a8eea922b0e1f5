"""Root's part in finding tokens: copies one from a medium into the supervisor's inbox.

Run by ``skerry-token-media@DEVICE.service``, which udev starts for a file system labelled SKERRY or
CIDATA as long as the node has no identity. FAT is read by our own reader; anything else is
mounted read-only in the service's own mount namespace, and unmounted before this returns.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from provisioning.errors import ProvisioningError
from provisioning.fat import FatVolume
from provisioning.sources import inbox
from provisioning.sources.directory import FLASHED_NAME, token_on
from provisioning.sources.nocloud import FILES as SEED_FILES
from provisioning.storage import Window, device_size
from provisioning.token import TEXT_LIMIT

OWN_PARTITION = Path("/run/skerry/disk/token")
_FILE_SYSTEMS = "vfat,iso9660,exfat,ext4"
_MOUNT_SECONDS = 30


class MediaError(ProvisioningError):
    """A medium that cannot be read."""


def import_media(device: Path, inbox_directory: Path, *, own: Path = OWN_PARTITION) -> Path | None:
    """Copy the token on a block device's file system into the inbox; None if there is none.

    The inbox file's name says the source: ``disk`` for our own boot medium's partition, ``usb``
    for another medium, ``nocloud`` for a seed. Whether the token is good is the supervisor's
    business, so that it can tell people.
    """
    if not device.is_block_device():
        raise MediaError(f"{device} is not a block device")
    found = _in_fat(device)
    if found is None:
        with _mounted(device) as root:
            found = token_on(root)
    if found is None:
        return None
    file_name, content = found
    kind = _kind(device, own, file_name)
    try:
        return inbox.put(inbox_directory, f"{kind}-{device.name}{inbox.SUFFIX}", content)
    except OSError as error:
        raise MediaError(
            f"the token of {device} cannot be put into {inbox_directory}: {error.strerror}"
        ) from error


def wipe_media(device: Path) -> bool:
    """Erase the token on our own boot medium's SKERRY partition; False if there is none.

    Run as root once the node has its identity: who steals the medium must not find a way to make
    more nodes. A person's own stick is never written to.
    """
    if not device.is_block_device():
        raise MediaError(f"{device} is not a block device")
    try:
        handle = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        try:
            volume = FatVolume(Window(handle, 0, device_size(handle)))
            erased = volume.erase(FLASHED_NAME)
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise MediaError(
            f"the token on {device} cannot be erased: {error.strerror}",
            hint="whoever gets at this disk can read the token: let it expire",
        ) from error
    return erased


def _kind(device: Path, own: Path, file_name: str) -> str:
    if own.exists() and own.resolve() == device.resolve():
        return inbox.DISK
    return inbox.NOCLOUD if file_name in SEED_FILES else inbox.USB


def _in_fat(device: Path) -> tuple[str, bytes] | None:
    """Return name and content of ``token.txt`` on a FAT file system, read without mounting it.

    None for anything else: a mount may know more (other file systems, long names).
    """
    handle = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        volume = FatVolume(Window(handle, 0, device_size(handle)))
        content = volume.read(FLASHED_NAME, TEXT_LIMIT)
    except (ProvisioningError, OSError):
        return None
    finally:
        os.close(handle)
    return None if content is None else (FLASHED_NAME, content)


@contextmanager
def _mounted(device: Path) -> Iterator[Path]:
    base = os.environ.get("RUNTIME_DIRECTORY")
    with tempfile.TemporaryDirectory(prefix="skerry-media-", dir=base) as target:
        options = "ro,nosuid,nodev,noexec,nosymfollow"
        _run("mount", "-t", _FILE_SYSTEMS, "-o", options, "--", str(device), target)
        try:
            yield Path(target)
        finally:
            _run("umount", "--", target)


def _run(*command: str) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_MOUNT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MediaError(f"{command[0]} failed: {error}") from error
    if done.returncode:
        reason = done.stderr.strip().splitlines()
        raise MediaError(f"{' '.join(command)}: {reason[0] if reason else done.returncode}")
