"""Builds the userspace WireGuard that serves test hosts without the kernel module.

The version is pinned, with hashes, by `image/wireguard_go/go.mod` and `go.sum`. The result is kept
in the cache under the hash of its inputs. Prints the path of the program::

    python -m image.wireguard_go
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from image.artifacts import cache_directory
from skerry.console import note, step
from skerry.errors import SkerryError

SOURCE = Path(__file__).resolve().parent / "wireguard_go"
PACKAGE = "golang.zx2c4.com/wireguard"
# The `go` line of go.mod.
GO_NEEDED = (1, 23)
_BUILD = ("build", "-trimpath", "-buildvcs=false", "-mod=readonly", "-ldflags=-s -w -buildid=")


def input_hash() -> str:
    """Return the name under which the result is kept."""
    digest = hashlib.sha256(repr((_BUILD, platform.machine())).encode())
    for name in ("go.mod", "go.sum"):
        digest.update((SOURCE / name).read_bytes())
    return digest.hexdigest()[:16]


def kept_in() -> Path:
    """Return the folder of this tool in the cache."""
    return cache_directory() / "wireguard-go"


def ensure() -> Path:
    """Return the program's path; it is built if it is not there yet. Raises SkerryError."""
    kept = kept_in() / input_hash() / "wireguard-go"
    if kept.exists():
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    with (kept.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            with step(f"building wireguard-go into {kept.parent}"):
                _build(kept)
    return kept


def _build(kept: Path) -> None:
    with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
        made = Path(folder) / "wireguard-go"
        home = kept_in() / "go"
        settings = {
            "CGO_ENABLED": "0",
            "GOCACHE": str(home / "build"),
            "GOFLAGS": "-modcacherw",
            "GOMODCACHE": str(home / "mod"),
            "GOTOOLCHAIN": "local",
            "GOWORK": "off",
        }
        command = ["env", *(f"{name}={value}" for name, value in settings.items())]
        command += [*_go(), *_BUILD, "-o", str(made), PACKAGE]
        done = subprocess.run(command, cwd=SOURCE, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SkerryError(
                f"wireguard-go could not be built: {done.stderr.strip()[-800:]}",
                hint="the Go module proxy must be reachable the first time",
            )
        made.chmod(0o755)
        made.replace(kept)


def _go() -> Sequence[str]:
    """Return the words that run a Go which is new enough: the host's, else the tools root's."""
    found = shutil.which("go")
    if found and _version(found) >= GO_NEEDED:
        return (found,)
    from image.tools import ToolsRoot

    return ToolsRoot.ensure().command(["go"], cwd=SOURCE)


def _version(program: str) -> tuple[int, ...]:
    done = subprocess.run(
        [program, "env", "GOVERSION"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"GOTOOLCHAIN": "local"},
    )
    numbers = done.stdout.strip().removeprefix("go").split(".")[:2]
    return tuple(int(one) for one in numbers if one.isdigit())


if __name__ == "__main__":
    note("the userspace WireGuard for test hosts")
    sys.stdout.write(f"{ensure()}\n")
