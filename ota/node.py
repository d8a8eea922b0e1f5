"""Where things are on the node, and what was booted. Reads files; every reader survives damage."""

from __future__ import annotations

import configparser
import json
from dataclasses import dataclass
from pathlib import Path

from ota import grubenv
from ota.trial import Boot

_LONGEST_FILE = 256 * 1024
_DEFAULT_GRUBENV = Path("/efi/grub/grubenv")


@dataclass(frozen=True, slots=True)
class NodeFiles:
    """The paths that an update depends on; tests put them elsewhere."""

    updates: Path = Path("/data/update")
    command_line: Path = Path("/proc/cmdline")
    boot_id: Path = Path("/proc/sys/kernel/random/boot_id")
    release: Path = Path("/usr/lib/skerry/release.json")
    rauc_config: Path = Path("/etc/rauc/system.conf")


def read_boot(files: NodeFiles) -> Boot:
    """Return what runs; a fact that cannot be read is empty (slot: None)."""
    release = _read_release(files.release)
    return Boot(
        slot=slot_of(_read(files.command_line).decode("utf-8", "replace")),
        boot_id=_read(files.boot_id).decode("ascii", "replace").strip(),
        version=release.get("version", ""),
        build_id=release.get("build_id", ""),
    )


def slot_of(command_line: str) -> str | None:
    """Return the boot name that the boot loader passed as ``rauc.slot=``; the last one counts."""
    names = [
        word.removeprefix("rauc.slot=")
        for word in command_line.split()
        if word.startswith("rauc.slot=")
    ]
    return names[-1] if names and names[-1].isalnum() else None


def read_boot_choice(files: NodeFiles) -> grubenv.BootChoice | None:
    """Return the boot loader's state, or None where it cannot be read."""
    return grubenv.parse(_read(grubenv_path(files)))


def grubenv_path(files: NodeFiles) -> Path:
    """Return where RAUC's configuration says that GRUB's environment is."""
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        parser.read_string(_read(files.rauc_config).decode("utf-8", "replace"))
        return Path(parser.get("system", "grubenv", fallback=str(_DEFAULT_GRUBENV)))
    except configparser.Error:
        return _DEFAULT_GRUBENV


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_LONGEST_FILE)
    except OSError:
        return b""


def _read_release(path: Path) -> dict[str, str]:
    try:
        document = json.loads(_read(path) or b"{}")
    except ValueError:
        return {}
    if not isinstance(document, dict):
        return {}
    return {key: value for key, value in document.items() if isinstance(value, str)}
