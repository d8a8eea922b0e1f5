"""Makes the files that a machine needs before it is switched on."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

from image.tools import ToolsRoot
from qemu import agent
from qemu.errors import MachineError
from qemu.spec import (
    DiskMode,
    MachinePaths,
    MachineSpec,
    credential_file,
    firmware_variables_template,
)


def with_agent(spec: MachineSpec) -> MachineSpec:
    """Return the spec with the lab agent's credentials, unless it wants none."""
    if not spec.agent:
        return spec
    return replace(spec, credentials={**agent.credentials(), **spec.credentials})


def binds(spec: MachineSpec, paths: MachinePaths) -> list[Path]:
    """Return the directories that QEMU has to see."""
    files = [spec.disk, spec.kernel, spec.initrd]
    return [paths.directory, *(file.absolute().parent for file in files if file)]


def prepare(spec: MachineSpec, paths: MachinePaths, tools: ToolsRoot) -> None:
    """Make disk and UEFI variables where missing, and the credentials anew."""
    template = firmware_variables_template(spec.firmware)
    if template and not paths.firmware_variables.exists():
        shutil.copyfile(tools.file(template), paths.firmware_variables)
    _write_credentials(spec, paths)
    if spec.disk is not None:
        _make_disk(spec, spec.disk.absolute(), paths, tools)


def _make_disk(spec: MachineSpec, image: Path, paths: MachinePaths, tools: ToolsRoot) -> None:
    if not image.exists():
        raise MachineError(f"machine {spec.name}: there is no image {image}")
    if spec.disk_mode is DiskMode.OVERLAY:
        if paths.disk_overlay.exists():
            return
        base = _pin(image, paths.directory / "base.img")
        argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", "raw"]
        size = [str(spec.disk_size)] if spec.disk_size else []
        tools.run([*argv, str(paths.disk_overlay), *size], binds=binds(spec, paths))
    elif not paths.disk_copy.exists():
        argv = ["cp", "--sparse=always", str(image), str(paths.disk_copy)]
        tools.run(argv, binds=binds(spec, paths))
        if spec.disk_size:
            os.truncate(paths.disk_copy, spec.disk_size)


def _pin(image: Path, link: Path) -> Path:
    """Return a name for this very image that stays when the next build replaces the file."""
    link.unlink(missing_ok=True)
    try:
        link.hardlink_to(image)
    except OSError:
        return image  # another file system: the image must then stay as it is
    return link


def _write_credentials(spec: MachineSpec, paths: MachinePaths) -> None:
    directory = paths.directory / "credentials"
    directory.mkdir(mode=0o700, exist_ok=True)
    for name, value in spec.credentials.items():
        path = paths.credential(name)
        path.unlink(missing_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(credential_file(spec, name, value))
