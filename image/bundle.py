"""Makes signed update bundles in RAUC's ``verity`` format."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from image import manifest
from image.artifacts import Artifacts, cache_directory
from image.board import Board
from image.build import Builder, Wanted, show_sizes
from image.slot import Sealed
from skerry import console

ROOT_IMAGE, BOOT_IMAGE = "root.img", "boot.img"


def rauc_manifest(board: Board, sealed: Sealed) -> str:
    """Return the bundle's manifest: what it is for, and which image goes into which slot class.

    ``block-hash-index`` lets a node fetch only the 4 KiB blocks that it does not have yet.
    """
    release = sealed.release
    lines = [
        "[update]",
        f"compatible={board.rauc_compatible}",
        f"version={release.version}",
        f"description=Skerry {release.version} for {board.name}",
        f"build={release.build_id}",
        "",
        "[bundle]",
        "format=verity",
        "",
        "[image.boot]",
        f"filename={BOOT_IMAGE}",
        "",
        "[image.rootfs]",
        f"filename={ROOT_IMAGE}",
        "adaptive=block-hash-index",
    ]
    return "\n".join(lines) + "\n"


def build(wanted: Wanted, *, output: Path | None) -> Path:
    """Build the update bundle of a board; returns its path."""
    builder = Builder(wanted)
    sealed = builder.sealed()
    target = (output or Artifacts.of(wanted.board).bundle).absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    with console.step(f"update bundle {target}"):
        work = cache_directory() / f"bundle-{os.getpid()}"
        shutil.rmtree(work, ignore_errors=True)
        content = work / "content"
        content.mkdir(parents=True)
        try:
            os.link(sealed.root, content / ROOT_IMAGE)
            os.link(sealed.boot, content / BOOT_IMAGE)
            (content / "manifest.raucm").write_text(rauc_manifest(builder.board, sealed))
            made = work / "update.raucb"
            builder.tools.run(
                [
                    "rauc",
                    "bundle",
                    f"--cert={wanted.keys.certificate}",
                    f"--key={wanted.keys.key}",
                    str(content),
                    str(made),
                ],
                log=builder.log,
                binds=[wanted.keys.certificate.parent, wanted.keys.key.parent],
            )
            # The output may be on another file system than the cache.
            aside = target.with_suffix(".new")
            shutil.copyfile(made, aside)
            aside.rename(target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    made_output = manifest.Output.of(target)
    description = {
        "version": sealed.release.version,
        "board": wanted.board,
        "build_id": sealed.release.build_id,
        "sha256": made_output.sha256,
        "size": made_output.size,
    }
    target.with_suffix(".json").write_text(json.dumps(description, indent=2) + "\n")
    show_sizes([made_output], target.parent)
    return target
