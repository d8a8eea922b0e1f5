"""Makes the initrd: busybox, a few programs with their libraries, the modules, our ``init``."""

from __future__ import annotations

import lzma
import re
from collections import deque
from collections.abc import Iterable
from pathlib import Path

from image import elf
from image.cpio import Entry, archive
from image.errors import BuildError

# In the order in which they are tried. crc32c_generic comes first of all: libcrc32c, which erofs
# and ext4 need, asks for it by a name that no dependency table knows.
MODULES = (
    "crc32c_generic",
    "crc32c_intel",
    "crc32c_cryptoapi",
    "sha256_generic",
    "sha256_ssse3",
    "sha2_ce",
    "virtio_blk",
    "virtio_scsi",
    "sd_mod",
    "ahci",
    "xhci_pci",
    "ehci_pci",
    "usb_storage",
    "uas",
    "mmc_block",
    "sdhci_acpi",
    "erofs",
    "dm_verity",
    "overlay",
    "ext4",
    "vfat",
    "nls_ascii",
    "nls_cp437",
    "nls_iso8859_1",
    "efivarfs",
    "qemu_fw_cfg",
)
PROGRAMS = (
    "/usr/sbin/dmsetup",
    "/usr/sbin/e2fsck",
    "/usr/sbin/findfs",
    "/usr/sbin/mke2fs",
    "/usr/sbin/resize2fs",
    "/usr/sbin/sfdisk",
)
_LIBRARY_PLACES = ("usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "usr/lib", "usr/lib64")
_SOURCE = Path(__file__).parent / "init"


def normal(module: str) -> str:
    """Return a module's name as the kernel spells it."""
    return module.replace("-", "_")


def order(wanted: Iterable[str], dependencies: str) -> list[str]:
    """Return the files of the modules, what they need first (``dependencies``: modules.dep).

    A module that is not there is built into this kernel, or not made for it, and is left out.
    """
    needs: dict[str, list[str]] = {}
    files: dict[str, str] = {}
    for line in dependencies.splitlines():
        file, _, rest = line.partition(":")
        needs[file] = rest.split()
        files[normal(re.sub(r"\.ko(\.\w+)?$", "", file.rsplit("/", 1)[-1]))] = file
    found: dict[str, None] = {}
    for module in wanted:
        file = files.get(normal(module), "")
        if file:
            # modules.dep lists all of them, the nearest first: the reverse is an order to load in.
            found.update(dict.fromkeys([*reversed(needs[file]), file]))
    return list(found)


def libraries(root: Path, programs: Iterable[str]) -> dict[str, Path]:
    """Return every file that the programs need to run, by its path in the initrd."""
    found: dict[str, Path] = {}
    queue = deque(program.lstrip("/") for program in programs)
    while queue:
        name = queue.popleft()
        if name in found:
            continue
        path = _inside(root, name)
        found[name] = path
        need = elf.needs(path.read_bytes(), name=name)
        if need.interpreter:
            # The loader is found by this very path, whatever links lead to it in the root.
            found[need.interpreter.lstrip("/")] = _inside(root, need.interpreter)
        for library in need.libraries:
            queue.append(_find_library(root, library))
    return found


def _find_library(root: Path, library: str) -> str:
    for place in _LIBRARY_PLACES:
        if (root / place / library).exists():
            return f"{place}/{library}"
    raise BuildError(f"the root has no library {library}, which the initrd needs")


def _inside(root: Path, name: str) -> Path:
    """Return the file behind links that are meant inside the root."""
    path = root
    for part in Path(name.lstrip("/")).parts:
        path /= part
        if path.is_symlink():
            target = path.readlink()
            path = root / str(target).lstrip("/") if target.is_absolute() else path.parent / target
    if not path.exists():
        raise BuildError(f"the root has no {name}, which the initrd needs")
    return path


def build(root: Path, *, busybox: Path, extra_modules: Iterable[str]) -> bytes:
    """Return the cpio archive, not yet compressed, for the kernel in ``root``."""
    entries: dict[str, Entry] = {
        name: Entry.directory() for name in ("proc", "sys", "dev", "run", "sysroot", "data")
    }
    # sh is there before `busybox --install` runs, because it runs it.
    entries["bin/busybox"] = Entry.file(busybox.read_bytes(), executable=True)
    entries["bin/sh"] = Entry.link("busybox")
    entries["init"] = Entry.file(_SOURCE.read_bytes(), executable=True)
    for name, path in libraries(root, PROGRAMS).items():
        entries[name] = Entry.file(path.read_bytes(), executable=True)
    entries["usr/sbin/mkfs.ext4"] = Entry.link("mke2fs")
    entries["etc/mke2fs.conf"] = Entry.file((root / "etc/mke2fs.conf").read_bytes())
    entries["etc/mtab"] = Entry.link("/proc/self/mounts")
    modules = _kernel_modules(root)
    names = order((*MODULES, *extra_modules), (modules / "modules.dep").read_text())
    listed = []
    for file in names:
        data = (modules / file).read_bytes()
        if file.endswith(".xz"):
            data = lzma.decompress(data)
        short = re.sub(r"\.ko.*$", ".ko", file.rsplit("/", 1)[-1])
        entries[f"modules/{short}"] = Entry.file(data)
        listed.append(short)
    entries["modules/order"] = Entry.file("".join(f"{name}\n" for name in listed).encode())
    return archive(entries)


def _kernel_modules(root: Path) -> Path:
    kernels = sorted((root / "usr/lib/modules").iterdir())
    if len(kernels) != 1:
        raise BuildError(f"the root has {len(kernels)} kernels, not one: {kernels}")
    return kernels[0]
