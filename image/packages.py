"""Which Debian packages an image is made of. A change here needs `skerry image lock`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from image.board import Architecture
from image.tools import SUITE

_INSTALLED = (
    "ca-certificates",
    "dbus",
    "dmsetup",
    "dosfstools",
    "e2fsprogs",
    "fdisk",
    "iproute2",
    "kmod",
    "nftables",
    "python3",
    "rauc",
    "rauc-service",
    "systemd",
    "systemd-resolved",
    "systemd-sysv",
    "systemd-timesyncd",
    "tzdata",
    "udev",
    "util-linux",
    "wireguard-tools",
)
# Fetched and unpacked by the build, but not installed: the initrd's shell, the boot loader, and
# the one program of it that RAUC runs.
_FETCHED = ("busybox-static", "grub-common")


@dataclass(frozen=True, slots=True)
class Request:
    """The packages asked for by name; their dependencies come with the installed ones."""

    architecture: Architecture
    installed: tuple[str, ...]
    fetched: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """What a lock has to carry to be a lock of this request."""
        text = "\n".join((SUITE, self.architecture.value, *self.installed, "", *self.fetched))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def request(architecture: Architecture) -> Request:
    """Return what every board of an architecture is made of."""
    return Request(
        architecture,
        tuple(sorted((*_INSTALLED, architecture.kernel_package))),
        tuple(sorted((*_FETCHED, architecture.grub_package))),
    )
