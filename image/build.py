"""Builds an image: base root, our files, sealed root, boot partition, disk; each stage cached.

A stage lies in the cache under the hash of everything that goes into it, appears there by a rename,
and is made by one process at a time. Without the cache the result is the same, only later.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from image import (
    boards_files,
    debs,
    disk,
    grub,
    kubernetes,
    layout,
    manifest,
    packages,
    payload,
    workloads,
)
from image.artifacts import REPOSITORY, Artifacts, cache_directory
from image.board import Board
from image.board import load as load_board
from image.errors import BuildError
from image.keys import SigningKeys
from image.lock import Decision, Package, Use
from image.payload import Release
from image.slot import COMPRESSION, SCRIPTS, Sealed, Slot, read_verity, remove
from image.source import BASE_EPOCH, source_commit, source_epoch
from image.tools import ToolsRoot, locked
from skerry import console

# Tools whose output ends up in an image: they belong to the inputs.
TOOLS = (
    "cryptsetup-bin",
    "dosfstools",
    "erofs-utils",
    "grub-common",
    "mmdebstrap",
    "mtools",
    "zstd",
)
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+~-]{0,63}")
_KEPT_ROOTS = 8
# Of this folder what makes an image; Go modules count by the programs that come out of them.
_SOURCES = (*sorted(Path(__file__).parent.glob("*.py")), Path(__file__).parent / "initrd", SCRIPTS)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to build."""

    board: str
    version: str
    keys: SigningKeys
    overlays: tuple[Path, ...] = ()
    output: Path | None = None
    fresh: bool = False
    kubernetes: bool = True


class Builder:
    """One build, stage by stage."""

    def __init__(self, wanted: Wanted) -> None:
        if not _VERSION.fullmatch(wanted.version):
            raise BuildError(
                f"the version {wanted.version!r} is not letters, digits and . + ~ -",
                hint="for example --version 1.2.0",
            )
        for overlay in wanted.overlays:
            if not overlay.is_dir():
                raise BuildError(f"--overlay {overlay}: there is no such directory")
        self.wanted = wanted
        self.board: Board = load_board(wanted.board)
        self.epoch = source_epoch()
        self.tools = ToolsRoot.ensure()
        self.log = cache_directory() / "logs" / f"{self.board.name}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.write_text("")
        self.decision = self._packages()

    @property
    def architecture(self) -> str:
        """Debian's name of the architecture."""
        return self.board.architecture.value

    def _packages(self) -> Decision:
        request = packages.request(self.board.architecture)
        with locked(
            cache_directory() / f"debs-{self.architecture}.lock", waiting_for="the package store"
        ):
            decision = debs.provide(
                self.tools, request, self.log, strict=os.environ.get("LOCK") == "strict"
            )
        for item in decision.drift[:10]:
            console.note(
                f"    WARNING: package drift: {item.name}: locked {item.locked or 'not at all'}, "
                f"using {item.used or 'none'}"
            )
        if decision.drift:
            console.note(
                f"    WARNING: {len(decision.drift)} packages differ from the lock, because the "
                "archive no longer has what it names.\n"
                "    LOCK=strict refuses this; `skerry image lock` makes the lock anew."
            )
        return decision

    def base(self) -> Path:
        """Return the tar file of the Debian root, from the cache or made now."""
        key = _key(
            self.architecture,
            [package.sha256 for package in self._of(Use.INSTALL)],
            (SCRIPTS / "base.sh").read_text(),
        )
        path = cache_directory() / f"base-{self.architecture}-{key}.tar"
        with locked(path.with_suffix(".lock"), waiting_for="the Debian root"):
            if path.exists():
                return path
            slow = "" if self.architecture == "amd64" else ", under emulation: some minutes"
            with console.step(f"Debian root, {len(self._of(Use.INSTALL))} packages{slow}"):
                aside = path.with_suffix(".new")
                debs.make_base(
                    self.tools,
                    self.board.architecture,
                    self._of(Use.INSTALL),
                    aside,
                    log=self.log,
                    epoch=BASE_EPOCH,
                )
                aside.rename(path)
        return path

    def fetched(self) -> Path:
        """Return a folder with what the build itself unpacks, one sub-folder a package."""
        return self._unpacked("fetched", Use.FETCH)

    def _unpacked(self, name: str, use: Use) -> Path:
        wanted = self._of(use)
        key = _key([package.sha256 for package in wanted])
        path = cache_directory() / f"{name}-{self.architecture}-{key}"
        with locked(path.with_suffix(".lock"), waiting_for=f"{name} packages"):
            if not path.is_dir():
                aside = path.with_suffix(".new")
                shutil.rmtree(aside, ignore_errors=True)
                aside.mkdir(parents=True)
                for package in wanted:
                    deb = debs.Store().path(package.sha256)
                    self.tools.run(
                        ["dpkg-deb", "-x", str(deb), str(aside / package.name)], log=self.log
                    )
                aside.rename(path)
        return path

    def _kubernetes(self, fetched: Path) -> kubernetes.Parts | None:
        if not self.wanted.kubernetes:
            return None
        version = next(
            item.version for item in self._of(Use.FETCH) if item.name == "busybox-static"
        )
        sources = workloads.Sources(
            self.board.architecture,
            fetched / "busybox-static/usr/bin/busybox",
            workloads.debian_upstream(version),
        )
        debian = self._unpacked("kubernetes", Use.KUBERNETES)
        return kubernetes.parts(self.board.architecture, debian, sources)

    def _of(self, use: Use) -> list[Package]:
        return [package for package in self.decision.packages if package.use is use]

    def sealed(self) -> Sealed:
        """Return the slot: from the cache when all inputs are the same, unless ``fresh``."""
        base, fetched = self.base(), self.fetched()
        parts = self._kubernetes(fetched)
        wheels = payload.wheels(self.board.architecture, self.log)
        commit = source_commit()
        inputs = [REPOSITORY / "rootfs_overlay", *(REPOSITORY / name for name in payload.SHIPPED)]
        inputs += [kubernetes.OVERLAY] if parts else []
        inputs += [*_SOURCES, *self.wanted.overlays]
        key = _key(
            base.name,
            fetched.name,
            wheels.name,
            parts.key if parts else None,
            payload.digest_tree(inputs),
            msg(self.board),
            self.wanted.version,
            self.wanted.keys.keyring.read_text(),
            str(self.epoch),
            commit,
            self.tools.versions(TOOLS),
            COMPRESSION,
        )
        release = Release(self.wanted.version, self.board.name, key, commit)
        path = cache_directory() / f"slot-{self.board.name}-{key}"
        with locked(path.with_suffix(".lock"), waiting_for="the same image"):
            if self.wanted.fresh or not (path / "slot.json").exists():
                aside = path.with_suffix(".new")
                remove(self.tools, aside)
                aside.mkdir(parents=True)
                Slot(
                    self.board,
                    release,
                    self.tools,
                    self.log,
                    self.epoch,
                    base,
                    fetched,
                    wheels,
                    self.wanted.keys.keyring.read_text(),
                    parts,
                    self.wanted.overlays,
                ).seal(aside)
                remove(self.tools, path)
                aside.rename(path)
            os.utime(path)
        self._prune_slots()
        modules = kubernetes.go_modules(parts, self.log) if parts else ()
        return Sealed(path, release, read_verity(path), self.epoch, modules)

    def _prune_slots(self) -> None:
        slots = [path for path in cache_directory().glob("slot-*") if path.is_dir()]
        for path in sorted(slots, key=lambda item: item.stat().st_mtime)[:-_KEPT_ROOTS]:
            if path.suffix != ".new":
                remove(self.tools, path)

    def disk(self, sealed: Sealed) -> Artifacts:
        """Write the disk image, the slot's images, the manifest and the parts list."""
        artifacts = Artifacts.of(self.board.name, self.wanted.output)
        artifacts.directory.mkdir(parents=True, exist_ok=True)
        with locked(artifacts.lock, waiting_for=f"an image in {artifacts.directory}"):
            self._write_disk(sealed, artifacts)
            self._write_down(sealed, artifacts)
        return artifacts

    def _write_disk(self, sealed: Sealed, artifacts: Artifacts) -> None:
        fetched = self.fetched()
        with console.step(f"disk image {artifacts.disk}"):
            esp, token = (artifacts.directory / name for name in ("esp.img", "token.img"))
            architecture = self.board.architecture
            program = artifacts.directory / architecture.removable_loader
            modules = (
                fetched / architecture.grub_package / "usr/lib/grub" / architecture.grub_target
            )
            disk.grub_program(self.tools, architecture, modules, program)
            files = {
                f"EFI/BOOT/{architecture.removable_loader}": program.read_bytes(),
                "grub/grub.cfg": grub.configuration().encode(),
                "grub/grubenv": grub.environment_block(grub.FRESH_ENVIRONMENT),
            }
            files |= boards_files.firmware(self.board, fetched)
            disk.fat_image(
                self.tools,
                esp,
                size=layout.partition("skerry-esp").size,
                label="SKERRYESP",
                files=files,
                epoch=self.epoch,
                fat=32,
            )
            disk.fat_image(
                self.tools,
                token,
                size=layout.partition("skerry-token").size,
                label="SKERRY",
                files={"README.txt": disk.LABEL_TEXT.replace("\n", "\r\n").encode()},
                epoch=self.epoch,
                fat=16,
            )
            for source, target in ((sealed.root, artifacts.root), (sealed.boot, artifacts.boot)):
                disk.replace(source, target)
            aside = artifacts.disk.with_suffix(".new")
            contents = {
                "skerry-esp": esp,
                "skerry-boot-a": sealed.boot,
                "skerry-root-a": sealed.root,
                "skerry-token": token,
            }
            disk.assemble(self.tools, aside, contents)
            aside.rename(artifacts.disk)
            for path in (esp, token, program):
                path.unlink()

    def _write_down(self, sealed: Sealed, artifacts: Artifacts) -> None:
        outputs = [
            manifest.Output.of(path) for path in (artifacts.disk, artifacts.root, artifacts.boot)
        ]
        release = sealed.release
        python = payload.pinned_packages((REPOSITORY / "requirements-node.lock").read_text())
        status = manifest.installed_packages((sealed.directory / "status").read_text())
        used = [
            package
            for package in self.decision.packages
            if package.use is Use.FETCH
            or package.name in status
            or (package.use is Use.KUBERNETES and self.wanted.kubernetes)
        ]
        written = manifest.manifest(
            release={
                "version": release.version,
                "board": release.board,
                "build_id": release.build_id,
                "commit": release.commit,
            },
            architecture=self.architecture,
            epoch=sealed.epoch,
            packages=used,
            drift=self.decision.drift,
            python=python,
            go=sealed.go,
            tools=self.tools.versions(TOOLS),
            verity={
                "root_hash": sealed.verity.root_hash,
                "salt": sealed.verity.salt,
                "blocks": sealed.verity.blocks,
            },
            outputs=outputs,
        )
        parts = manifest.sbom(
            name=f"skerry-{release.board}",
            version=release.version,
            build_id=release.build_id,
            architecture=self.architecture,
            epoch=sealed.epoch,
            packages=used,
            python=python,
            go=sealed.go,
        )
        artifacts.manifest.write_text(json.dumps(written, indent=2) + "\n")
        artifacts.sbom.write_text(json.dumps(parts, indent=2) + "\n")
        show_sizes(outputs, artifacts.directory)


def show_sizes(outputs: Iterable[manifest.Output], directory: Path) -> None:
    """Print what was made, how large it is, and what of it is not empty."""
    rows = [
        (
            str(directory / item.name),
            console.format_size(item.size),
            console.format_size(item.allocated),
            item.sha256[:16],
        )
        for item in outputs
    ]
    console.note(console.table(("file", "size", "on disk", "SHA-256"), rows))


def msg(board: Board) -> str:
    """Return a board's facts as text, for a hash."""
    return repr(board)


def _key(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:16]


def image(wanted: Wanted) -> Artifacts:
    """Build a board's disk image and everything that goes with it."""
    builder = Builder(wanted)
    return builder.disk(builder.sealed())
