"""One slot of an image: the sealed root file system, and the boot partition that opens it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from image import boards_files, disk, grub, initrd, kubernetes, layout, payload
from image.board import Board
from image.payload import Release
from image.tools import ToolsRoot
from skerry import console

COMPRESSION = "lz4hc,level=9"
SCRIPTS = Path(__file__).parent / "scripts"


@dataclass(frozen=True, slots=True)
class Sealed:
    """A finished slot, in the cache: root and boot partition, and what opens the root."""

    directory: Path
    release: Release
    verity: grub.Verity
    epoch: int
    go: tuple[tuple[str, str], ...] = ()

    @property
    def root(self) -> Path:
        """The root partition's content."""
        return self.directory / "root.img"

    @property
    def boot(self) -> Path:
        """The boot partition's content."""
        return self.directory / "boot.img"


@dataclass(frozen=True, slots=True)
class Slot:
    """What a slot is made of, and with.

    ``base``: the tar file of the Debian root; ``fetched``: what the build itself unpacked;
    ``keyring``: whose updates the node takes.
    """

    board: Board
    release: Release
    tools: ToolsRoot
    log: Path
    epoch: int
    base: Path
    fetched: Path
    wheels: Path
    keyring: str
    parts: kubernetes.Parts | None = None
    overlays: tuple[Path, ...] = ()

    def seal(self, work: Path) -> None:
        """Make it in the folder ``work``, an empty one."""
        tree, files = work / "tree", work / "files"
        with console.step(f"root file system of {self.board.name} {self.release.version}"):
            files.mkdir()
            payload.compose(
                files,
                board=self.board,
                release=self.release,
                wheels_directory=self.wheels,
                keyring=self.keyring,
                parts=self.parts,
                overlays=self.overlays,
            )
            self._script(
                "root.sh",
                BASE=self.base,
                FILES=files,
                TREE=tree,
                EDITENV=self.fetched / "grub-common/usr/bin/grub-editenv",
                STATUS=work / "status",
                KERNEL=work / "vmlinuz",
            )
        with console.step("sealed root (erofs, dm-verity)"):
            words = f"skerry verity salt {self.release.build_id}"
            salt = hashlib.sha256(words.encode()).hexdigest()
            said = self._script(
                "seal.sh",
                TREE=tree,
                OUTPUT=work / "root.img",
                EPOCH=self.epoch,
                UUID=layout.identifier("root file system"),
                SALT=salt,
                COMPRESSION=COMPRESSION,
            )
            blocks, root_hash = said.strip().splitlines()[-1].split()
            verity = grub.Verity(root_hash, salt, int(blocks))
        with console.step("boot partition (kernel, initrd)"):
            self._boot_image(work, tree, verity)
        for name in ("root.img.tree", "root.img.roothash", "initrd.cpio"):
            (work / name).unlink()
        remove(self.tools, tree)
        remove(self.tools, files)
        (work / "slot.json").write_text(
            json.dumps({"root_hash": root_hash, "salt": salt, "blocks": int(blocks)}) + "\n"
        )

    def _boot_image(self, work: Path, tree: Path, verity: grub.Verity) -> None:
        archive = initrd.build(
            tree,
            busybox=self.fetched / "busybox-static/usr/bin/busybox",
            extra_modules=self.board.kernel.initrd_modules,
        )
        raw = work / "initrd.cpio"
        raw.write_bytes(archive)
        packed = work / "initrd"
        self.tools.run(
            ["zstd", "-q", "-f", "-12", "-T1", str(raw), "-o", str(packed)], log=self.log
        )
        contents = {
            "vmlinuz": (work / "vmlinuz").read_bytes(),
            "initrd": packed.read_bytes(),
            "slot.cfg": grub.slot_configuration(self.board, self.release.version, verity).encode(),
        }
        contents |= boards_files.device_tree(self.board, tree)
        disk.fat_image(
            self.tools,
            work / "boot.img",
            size=disk.BOOT_IMAGE_SIZE,
            label="SKERRYBOOT",
            files=contents,
            epoch=self.epoch,
            fat=16,
        )

    def _script(self, name: str, **variables: object) -> str:
        environment = {key: str(value) for key, value in variables.items()}
        return self.tools.run(
            ["sh", "-eu", str(SCRIPTS / name)], log=self.log, environment=environment
        )


def read_verity(directory: Path) -> grub.Verity:
    """Return what opens the root of a finished slot."""
    return grub.Verity(**json.loads((directory / "slot.json").read_text()))


def remove(tools: ToolsRoot, path: Path) -> None:
    """Remove a folder with files of any owner, if it is there."""
    if path.exists():
        tools.run(["rm", "-rf", "--one-file-system", str(path)])
