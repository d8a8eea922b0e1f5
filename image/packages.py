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
# For images with Kubernetes: unpacked, not installed, with what they need besides (runc), so that
# the Debian root is the same in every image. Only the programs that image/kubernetes.py names
# are taken. What is not here is not needed: kube-proxy's nftables mode finds `nft` above and speaks
# netlink for the rest, and containerd forwards ports by itself.
_KUBERNETES = ("containerd",)
# Fetched and unpacked by the build, but not installed: the initrd's shell, the boot loader, and
# the one program of it that RAUC runs; busybox is a pod's image too.
_FETCHED = ("busybox-static", "grub-common")


@dataclass(frozen=True, slots=True)
class Request:
    """The packages asked for by name; dependencies come along, but for the fetched ones.

    ``kubernetes`` are for images with Kubernetes.
    """

    architecture: Architecture
    installed: tuple[str, ...]
    kubernetes: tuple[str, ...]
    fetched: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """What a lock has to carry to be a lock of this request."""
        parts = (*self.installed, "", *self.kubernetes, "", *self.fetched)
        text = "\n".join((SUITE, self.architecture.value, *parts))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def request(architecture: Architecture) -> Request:
    """Return what every board of an architecture is made of."""
    return Request(
        architecture,
        tuple(sorted((*_INSTALLED, architecture.kernel_package))),
        tuple(sorted(_KUBERNETES)),
        tuple(sorted((*_FETCHED, architecture.grub_package))),
    )
