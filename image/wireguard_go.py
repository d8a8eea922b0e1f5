"""Builds the userspace WireGuard that serves test hosts without the kernel module.

The version is pinned, with hashes, by `image/wireguard_go/go.mod` and `go.sum`. Prints the path of
the program::

    python -m image.wireguard_go
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path

from image.golang import Program, build
from skerry.console import note

PROGRAM = Program("wireguard_go", "golang.zx2c4.com/wireguard", "wireguard-go")
_GO_NAMES = {"x86_64": "amd64", "aarch64": "arm64"}


def ensure() -> Path:
    """Return the program's path; it is built if it is not there yet. Raises BuildError."""
    return build(PROGRAM, _GO_NAMES.get(platform.machine(), platform.machine()))


if __name__ == "__main__":
    note("the userspace WireGuard for test hosts")
    sys.stdout.write(f"{ensure()}\n")
