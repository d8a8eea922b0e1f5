"""Where things are: the checkout, the cache, and what a build leaves for a board."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def cache_directory() -> Path:
    """Return the cache: ``$SKERRY_CACHE``, else ``~/.cache/skerry``. Never inside the checkout."""
    chosen = os.environ.get("SKERRY_CACHE")
    return Path(chosen).absolute() if chosen else Path.home() / ".cache" / "skerry"


@dataclass(frozen=True, slots=True)
class Artifacts:
    """The files that ``skerry image build`` and ``skerry bundle build`` leave in a directory."""

    directory: Path

    @classmethod
    def of(cls, board: str, output: Path | None = None) -> Artifacts:
        """Return the artifacts of a board: in ``build/BOARD`` of the checkout unless told else."""
        return cls(output.absolute() if output else REPOSITORY / "build" / board)

    @property
    def disk(self) -> Path:
        """The whole disk, sparse: what is flashed or booted."""
        return self.directory / "disk.img"

    @property
    def lock(self) -> Path:
        """Who writes them holds this; beside the folder, which has only what a build leaves."""
        return self.directory.with_name(f"{self.directory.name}.lock")

    @property
    def root(self) -> Path:
        """The root partition: erofs with its dm-verity hash tree behind it."""
        return self.directory / "root.img"

    @property
    def boot(self) -> Path:
        """The boot partition of a slot: FAT with kernel, initrd and the root's hash."""
        return self.directory / "boot.img"

    @property
    def bundle(self) -> Path:
        """The signed update of this build."""
        return self.directory / "update.raucb"

    @property
    def manifest(self) -> Path:
        """Versions, sizes and hashes of everything that was built."""
        return self.directory / "manifest.json"

    @property
    def sbom(self) -> Path:
        """The parts list, SPDX 2.3."""
        return self.directory / "sbom.spdx.json"
