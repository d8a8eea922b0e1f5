"""For clusters that do not run our image: overlay and pod networking as a container and a manifest.

The image is a small Debian root (the packages of our lock), our Python and its wheels, the CNI
programs and the userspace WireGuard. `skerry image oci` leaves the archive and a DaemonSet.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from image import debs, kubernetes, oci, packages, payload
from image.artifacts import cache_directory
from image.board import Architecture
from image.errors import BuildError
from image.golang import build
from image.lock import Package, Use
from image.oci import Directory, Entry, File, Image, Link
from image.source import BASE_EPOCH
from image.tools import ToolsRoot, locked
from image.wireguard_go import PROGRAM as WIREGUARD_GO
from skerry import console

# What of Debian it takes; the rest of the lock is a machine's.
DEBIAN = ("ca-certificates", "nftables", "python3", "wireguard-tools")
_HERE = Path(__file__).parent
MANIFEST = _HERE / "foreign" / "skerry.yaml"
INSTALLER = _HERE / "foreign" / "install-cni"
WIREGUARD = _HERE / "foreign" / "userspace-wireguard"
_NAME = re.compile(
    r"[a-z0-9][a-z0-9.-]*(:[0-9]+)?(/[a-z0-9._-]+)+:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
)


@dataclass(frozen=True, slots=True)
class Made:
    """The archive and the manifest that names its image."""

    archive: Path
    manifest: Path


def make(architecture: Architecture, name: str, directory: Path) -> Made:
    """Write archive and manifest into a directory. Raises BuildError."""
    if not _NAME.fullmatch(name):
        raise BuildError(
            f"{name!r} is no whole name of an image", hint="for example registry.example/skerry:1.0"
        )
    log = cache_directory() / "logs" / f"oci-{architecture.value}.log"
    tools = ToolsRoot.ensure()
    with locked(
        cache_directory() / f"debs-{architecture.value}.lock", waiting_for="the package store"
    ):
        decision = debs.provide(
            tools,
            packages.request(architecture),
            log,
            strict=os.environ.get("LOCK") == "strict",
        )
    base = _base(tools, architecture, decision.packages, log)
    wheels = payload.wheels(architecture, log)
    directory.mkdir(parents=True, exist_ok=True)
    made = Made(directory / f"skerry-{architecture.value}.tar", directory / "skerry.yaml")
    with console.step(f"container image {name} for {architecture.value}"):
        with tempfile.TemporaryDirectory(dir=cache_directory()) as scratch:
            tree = Path(scratch) / "tree"
            payload.lay_program(tree, wheels)
            for program in (*kubernetes.CNI, WIREGUARD_GO):
                folder = "usr/lib/skerry/bin" if program is WIREGUARD_GO else "usr/lib/cni"
                _copy(build(program, architecture.value), tree / folder / program.name)
            for script in (INSTALLER, WIREGUARD):
                _copy(script, tree / "usr/lib/skerry/bin" / script.name)
            image = Image(
                (name,), architecture.value, entries(tree), ("/usr/bin/skerry",), below=(base,)
            )
            oci.write(image, made.archive)
        made.manifest.write_text(manifest(name))
    return made


def manifest(name: str) -> str:
    """Return the DaemonSet that runs the image of this name."""
    return MANIFEST.read_text().replace("@IMAGE@", name)


def entries(tree: Path) -> dict[str, Entry]:
    """Return what lies in a tree, for an image: programs 0755, other files 0644."""
    found: dict[str, Entry] = {}
    for path in sorted(tree.rglob("*")):
        place = f"/{path.relative_to(tree)}"
        if path.is_symlink():
            found[place] = Link(str(path.readlink()))
        elif path.is_dir():
            found[place] = Directory()
        else:
            found[place] = File(path, 0o755 if os.access(path, os.X_OK) else 0o644)
    return found


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o755)


def _base(
    tools: ToolsRoot, architecture: Architecture, lock: tuple[Package, ...], log: Path
) -> Path:
    installed = [package for package in lock if package.use is Use.INSTALL]
    script = (_HERE / "scripts" / "base.sh").read_text()
    key = oci.digest(repr((DEBIAN, [item.sha256 for item in installed], script)).encode())[:16]
    path = cache_directory() / f"small-{architecture.value}-{key}.tar"
    with locked(path.with_suffix(".lock"), waiting_for="the small Debian root"):
        if not path.exists():
            with console.step(f"small Debian root for {architecture.value}"):
                aside = path.with_suffix(".new")
                debs.make_base(
                    tools, architecture, installed, aside, log=log, epoch=BASE_EPOCH, only=DEBIAN
                )
                aside.rename(path)
    return path
