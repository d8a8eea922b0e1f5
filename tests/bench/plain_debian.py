"""A plain Debian disk as a cloud would boot it: what Skerry's boot is measured against.

Debian's cloud kernel and its own initramfs, systemd, cloud-init with an empty local seed,
networkd, an ssh server, ext4 root that is grown on first boot, GRUB by UEFI. Built in the cache.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from image.artifacts import cache_directory
from image.tools import ToolsRoot, locked, mirror_arguments
from skerry.console import step

PACKAGES = (
    "ca-certificates",
    "cloud-init",
    "cloud-guest-utils",
    "dbus",
    "initramfs-tools",
    "linux-image-cloud-amd64",
    "openssh-server",
    "systemd-resolved",
    "systemd-sysv",
    "udev",
)
_GRUB_CFG = """set timeout=0
search --no-floppy --label plainroot --set=root
linux /vmlinuz root=LABEL=plainroot ro console=tty0 console=ttyS0
initrd /initrd.img
boot
"""
_GRUB_MODULES = (
    "part_gpt",
    "fat",
    "ext2",
    "normal",
    "linux",
    "search",
    "search_label",
    "configfile",
)
_SEED = "mkdir -p $1/var/lib/cloud/seed/nocloud && cd $1/var/lib/cloud/seed/nocloud"
_HOOKS = (
    f"{_SEED} && echo 'instance-id: plain' >meta-data && echo '#cloud-config' >user-data",
    'printf "[Match]\\nName=e*\\n[Network]\\nDHCP=yes\\n" >$1/etc/systemd/network/80-dhcp.network',
    "systemctl --root=$1 enable systemd-networkd.service >/dev/null 2>&1",
    "echo 'LABEL=plainroot / ext4 errors=remount-ro 0 1' >$1/etc/fstab",
    "echo plain >$1/etc/hostname",
)
# The whole disk in one script: the tree never leaves the tools root's own namespace.
_ASSEMBLE = """
set -eu
work=$1 disk=$2
cd "$work"
mkdir -p tree && tar -xf root.tar -C tree
truncate -s 1800M root.ext4
mkfs.ext4 -q -L plainroot -d tree root.ext4
printf '%s' "$GRUB_CFG" >grub.cfg
grub-mkstandalone -O x86_64-efi -o BOOTX64.EFI --modules="$GRUB_MODULES" \\
    --locales= --themes= --fonts= boot/grub/grub.cfg=grub.cfg 2>/dev/null
truncate -s 64M esp.fat && mkfs.vfat -F 32 esp.fat >/dev/null
mmd -i esp.fat ::EFI ::EFI/BOOT && mcopy -i esp.fat BOOTX64.EFI ::EFI/BOOT/BOOTX64.EFI
rm -f disk.new && truncate -s 2G disk.new
printf 'label: gpt\\nstart=1MiB,size=64MiB,type=uefi\\nstart=65MiB,size=1800MiB,type=linux\\n' |
    sfdisk --quiet disk.new
dd if=esp.fat of=disk.new bs=1M seek=1 conv=notrunc,sparse status=none
dd if=root.ext4 of=disk.new bs=1M seek=65 conv=notrunc,sparse status=none
mv disk.new "$disk"
"""


def build() -> Path:
    """Return the disk image (raw, 2 GiB sparse), building it if the cache has none."""
    tools = ToolsRoot.ensure()
    inputs = repr((PACKAGES, _GRUB_CFG, _GRUB_MODULES, _HOOKS, _ASSEMBLE))
    digest = hashlib.sha256(inputs.encode()).hexdigest()[:12]
    disk = cache_directory() / "bench" / f"plain-debian-{digest}.img"
    with locked(disk.with_suffix(".lock"), waiting_for="the plain Debian disk"):
        if not disk.exists():
            with step("plain Debian disk for comparison"):
                _make(tools, disk)
    return disk


def _make(tools: ToolsRoot, disk: Path) -> None:
    work = disk.with_suffix(".work")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    hooks = [f"--customize-hook={hook}" for hook in _HOOKS]
    log = disk.with_suffix(".log")
    tools.run(
        [
            "mmdebstrap",
            "--variant=minbase",
            f"--include={','.join(PACKAGES)}",
            *hooks,
            "trixie",
            str(work / "root.tar"),
            *mirror_arguments(),
        ],
        log=log,
    )
    tools.run(
        ["/bin/sh", "-c", _ASSEMBLE, "sh", str(work), str(disk)],
        log=log,
        environment={"GRUB_CFG": _GRUB_CFG, "GRUB_MODULES": " ".join(_GRUB_MODULES)},
    )
    shutil.rmtree(work)
