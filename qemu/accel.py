"""KVM where it works, else TCG.

That /dev/kvm exists says little: on some hosts (nested virtualisation) an ordinary kernel hangs
under it. So a tiny guest has to boot first; what it showed holds until the host reboots.
"""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from image.artifacts import cache_directory
from image.tools import ToolsRoot
from qemu.process import boot_id
from qemu.spec import SOCKETS_HOME, Accelerator, Arch
from skerry import console

PROBE_SECONDS = 10.0
"""A guest under a working KVM says its word in about a second, also on a busy host."""
_WORD = b"skerry-probe-guest-is-up"
_INIT = b"#!/bin/busybox sh\necho skerry-probe-guest-is-up\n/bin/busybox poweroff -f\n"


def tcg(arch: Arch) -> Accelerator:
    """Return QEMU's own translation, which works everywhere, about 20 times slower than KVM."""
    # "max" would make arm64 guests compute pointer authentication in software; a Pi 4 has an A72.
    cpu = "max" if arch is Arch.X86_64 else "cortex-a72"
    return Accelerator("tcg", ("-accel", "tcg,thread=multi,tb-size=512"), cpu)


def kvm() -> Accelerator:
    """Return the host's own virtualisation."""
    return Accelerator("kvm", ("-accel", "kvm"), "host")


def newc(files: dict[str, tuple[int, bytes]]) -> bytes:
    """Return a cpio archive ("newc", as the kernel's initramfs documentation has it).

    ``files``: path -> (mode with its type bits, contents); a directory stands before what is in it.
    """
    archive = bytearray()
    entries = [*files.items(), ("TRAILER!!!", (0, b""))]
    for inode, (name, (mode, data)) in enumerate(entries, start=1):
        path = name.encode() + b"\0"
        numbers = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
        archive += b"070701" + b"".join(b"%08X" % number for number in numbers) + path
        archive += b"\0" * (-len(archive) % 4) + data
        archive += b"\0" * (-len(archive) % 4)
    return bytes(archive)


def wants_probe(arch: Arch) -> bool:
    """Say whether KVM could be had at all: the host's own processor, and /dev/kvm for us."""
    chosen = os.environ.get("SKERRY_ACCEL", "")
    usable = os.access("/dev/kvm", os.R_OK | os.W_OK)
    return arch == platform.machine() and usable and chosen != "tcg"


def choose(arch: Arch, *, kernel: Path, tools: ToolsRoot) -> Accelerator:
    """Return KVM if a probe guest with this kernel boots under it (asked once per boot), else TCG.

    ``SKERRY_ACCEL=tcg`` or ``kvm`` decides without a probe.
    """
    if not wants_probe(arch):
        return tcg(arch)
    if os.environ.get("SKERRY_ACCEL") == "kvm":
        return kvm()
    cache = cache_directory() / f"kvm-{boot_id()}"
    if not cache.exists():
        begun = time.monotonic()
        works = probe(kernel, tools)
        took = console.format_elapsed(time.monotonic() - begun)
        console.note(f"    probe guest under KVM: {'boots' if works else 'does not boot'} ({took})")
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.write_text("works\n" if works else "fails\n")
    return kvm() if cache.read_text().strip() == "works" else tcg(arch)


def probe(kernel: Path, tools: ToolsRoot, *, accelerator: Accelerator | None = None) -> bool:
    """Boot a kernel with a one-line init; says whether its word arrives. Always ends the guest."""
    used = accelerator or kvm()
    with TemporaryDirectory(prefix="skerry-probe-", dir=SOCKETS_HOME) as name:
        directory = Path(name)
        initrd = directory / "initrd"
        busybox = tools.file("/usr/bin/busybox").read_bytes()
        initrd.write_bytes(
            newc(
                {
                    "bin": (0o040755, b""),
                    "dev": (0o040755, b""),
                    "bin/busybox": (0o100755, busybox),
                    "init": (0o100755, _INIT),
                }
            )
        )
        argv = [
            f"qemu-system-{platform.machine()}",
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-m", "256"),
            *("-machine", "q35" if platform.machine() == "x86_64" else "virt"),
            *used.arguments,
            *("-cpu", used.cpu, "-kernel", str(kernel), "-initrd", str(initrd)),
            *("-append", "console=ttyS0 console=ttyAMA0 quiet panic=-1"),
            *("-serial", "stdio"),
        ]
        return _says_word(tools.command(argv))


def _says_word(argv: list[str]) -> bool:
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as child:
        assert child.stdout is not None  # noqa: S101 - PIPE was asked for
        os.set_blocking(child.stdout.fileno(), False)
        said = b""
        deadline = time.monotonic() + PROBE_SECONDS
        try:
            while _WORD not in said and time.monotonic() < deadline:
                chunk = child.stdout.read()
                if chunk == b"":
                    break  # QEMU has ended
                said += chunk or b""
                time.sleep(0.02)
        finally:
            child.kill()
    return _WORD in said
