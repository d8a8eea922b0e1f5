"""What a machine is: typed facts, and the QEMU command line that follows from them.

Pure: :func:`qemu_arguments` touches no file. Everything that QEMU reads or writes for one machine
lies in :class:`MachinePaths`.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from qemu.errors import MachineError

AGENT_CHANNELS = 4
"""Ports of the lab agent: as many clients (a shell, a journal, a test) may talk at once."""

SOCKETS_HOME = Path("/tmp")  # noqa: S108 - each machine or lab makes a 0700 directory in it
"""Where sockets lie: their paths must be short, and visible inside the tools root."""

_SMBIOS_PREFIX = "io.systemd.credential.binary:"
_FW_CFG_PREFIX = "opt/io.systemd.credentials/"
# FW_CFG_MAX_FILE_PATH in QEMU is 56 with the terminating zero.
_FW_CFG_LONGEST = 55


class Arch(StrEnum):
    """The processor of a machine, as QEMU's binaries name it."""

    X86_64 = "x86_64"
    AARCH64 = "aarch64"


class Firmware(StrEnum):
    """What starts the boot loader."""

    OVMF = "ovmf"
    AAVMF = "aavmf"
    U_BOOT = "u-boot"
    NONE = "none"
    """The kernel is loaded by QEMU itself (``kernel``)."""


class DiskMode(StrEnum):
    """How a machine uses an image, which itself is never written."""

    OVERLAY = "overlay"
    """A qcow2 file with the image behind it: made at once, holds only what the guest wrote."""
    COPY = "copy"
    """A raw sparse copy, for tests that change bytes from outside."""


@dataclass(frozen=True, slots=True)
class LanNic:
    """A network card plugged into a :mod:`qemu.hub`."""

    hub: Path


@dataclass(frozen=True, slots=True)
class UserNic:
    """A network card behind QEMU's own NAT; ``restrict`` lets the guest reach nothing outside.

    ``forwards`` are ``(host port on 127.0.0.1, guest port)`` for TCP, ``udp_forwards`` ``(host
    address, host port, guest port)``. ``network`` (10.0.3.0/24): what the guest's side has instead
    of 10.0.2.0/24.
    """

    restrict: bool = True
    forwards: tuple[tuple[int, int], ...] = ()
    udp_forwards: tuple[tuple[str, int, int], ...] = ()
    network: str = ""


Nic = LanNic | UserNic


@dataclass(frozen=True, slots=True)
class Accelerator:
    """How QEMU runs the guest's instructions."""

    name: str
    arguments: tuple[str, ...]
    cpu: str


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """Everything that makes one machine differ from another.

    ``credentials`` reach the guest's systemd by SMBIOS (UEFI) or fw_cfg (U-Boot); they are kept out
    of the process list and of ``repr``. ``disk_size`` (bytes) lets the disk be larger than its
    image. ``clock`` is what the hardware clock says at power-on (``1970-01-01T00:00:00``).
    ``namespace``: the file of a network namespace that QEMU runs in; its NAT leads nowhere else.
    """

    name: str
    arch: Arch = Arch.X86_64
    firmware: Firmware = Firmware.OVMF
    disk: Path | None = None
    disk_mode: DiskMode = DiskMode.OVERLAY
    disk_size: int | None = None
    memory_mib: int = 1024
    cpus: int = 2
    nics: tuple[Nic, ...] = ()
    credentials: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    agent: bool = True
    kernel: Path | None = None
    initrd: Path | None = None
    command_line: str = ""
    clock: str = "utc"
    namespace: Path | None = None
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.name or not self.name.replace("-", "").isalnum():
            raise MachineError(f"machine name {self.name!r}: letters, digits and dashes only")
        if (self.firmware is Firmware.NONE) != (self.kernel is not None):
            raise MachineError(f"machine {self.name}: a kernel goes with Firmware.NONE, only")
        if self.firmware is Firmware.OVMF and self.arch is not Arch.X86_64:
            raise MachineError(f"machine {self.name}: OVMF is for x86_64, not {self.arch}")
        if self.firmware in (Firmware.AAVMF, Firmware.U_BOOT) and self.arch is not Arch.AARCH64:
            raise MachineError(f"machine {self.name}: {self.firmware} is for aarch64")


@dataclass(frozen=True, slots=True)
class MachinePaths:
    """The files of one machine; sockets lie apart since their paths may have 107 bytes only."""

    directory: Path
    sockets: Path

    @property
    def serial_log(self) -> Path:
        """Everything the guest wrote to its serial console, over all power cycles."""
        return self.directory / "serial.log"

    @property
    def qemu_log(self) -> Path:
        """What QEMU itself printed."""
        return self.directory / "qemu.log"

    @property
    def disk_overlay(self) -> Path:
        """The disk of :attr:`DiskMode.OVERLAY`."""
        return self.directory / "disk.qcow2"

    @property
    def disk_copy(self) -> Path:
        """The disk of :attr:`DiskMode.COPY`."""
        return self.directory / "disk.img"

    @property
    def firmware_variables(self) -> Path:
        """The machine's own copy of the UEFI variables."""
        return self.directory / "variables.fd"

    @property
    def qmp(self) -> Path:
        """QEMU's control socket."""
        return self.sockets / "qmp"

    @property
    def serial(self) -> Path:
        """The serial console: what is written here is typed there."""
        return self.sockets / "serial"

    def agent(self, channel: int) -> Path:
        """One port of the lab agent."""
        return self.sockets / f"agent{channel}"

    def credential(self, name: str) -> Path:
        """Return the file that carries a credential to QEMU."""
        return self.directory / "credentials" / name


# Inside the tools root; code, and the variables it starts from (none for U-Boot).
_FIRMWARE_FILES: Mapping[Firmware, tuple[str, str | None]] = {
    Firmware.OVMF: ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    Firmware.AAVMF: (
        "/usr/share/AAVMF/AAVMF_CODE.no-secboot.fd",
        "/usr/share/AAVMF/AAVMF_VARS.fd",
    ),
    Firmware.U_BOOT: ("/usr/lib/u-boot/qemu_arm64/u-boot.bin", None),
}


def firmware_variables_template(firmware: Firmware) -> str | None:
    """Return the path inside the tools root of the variables a new machine starts from."""
    return _FIRMWARE_FILES[firmware][1] if firmware in _FIRMWARE_FILES else None


def mac_address(machine: str, index: int) -> str:
    """Return a locally administered address that differs by machine and card."""
    digest = hashlib.sha256(f"{machine}/{index}".encode()).digest()
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in digest[:3])


def credential_file(spec: MachineSpec, name: str, value: bytes) -> bytes:
    """Return the bytes of a credential's file: an SMBIOS string, or the value for fw_cfg."""
    if spec.firmware is not Firmware.U_BOOT:
        return f"{_SMBIOS_PREFIX}{name}=".encode() + b64encode(value)
    return value


def _credential_arguments(spec: MachineSpec, paths: MachinePaths) -> list[str]:
    arguments: list[str] = []
    for name in sorted(spec.credentials):
        file = _quote(paths.credential(name))
        if spec.firmware is not Firmware.U_BOOT:
            arguments += ["-smbios", f"type=11,path={file}"]
            continue
        full = _FW_CFG_PREFIX + name
        if len(full) > _FW_CFG_LONGEST:
            raise MachineError(
                f"machine {spec.name}: credential {name!r} is too long for fw_cfg "
                f"({len(full)} of {_FW_CFG_LONGEST} characters with its prefix)"
            )
        arguments += ["-fw_cfg", f"name={full},file={file}"]
    return arguments


def _quote(path: Path) -> str:
    """Return a path for a comma-separated QEMU option."""
    return str(path).replace(",", ",,")


def _firmware_arguments(spec: MachineSpec, paths: MachinePaths) -> list[str]:
    if spec.kernel is not None:
        arguments = ["-kernel", str(spec.kernel), "-append", spec.command_line]
        return [*arguments, "-initrd", str(spec.initrd)] if spec.initrd else arguments
    code, variables = _FIRMWARE_FILES[spec.firmware]
    if variables is None:
        return ["-bios", code]
    return [
        "-drive",
        f"if=pflash,unit=0,format=raw,readonly=on,file={code}",
        "-drive",
        f"if=pflash,unit=1,format=raw,file={_quote(paths.firmware_variables)}",
    ]


def _disk_arguments(spec: MachineSpec, paths: MachinePaths) -> list[str]:
    if spec.disk is None:
        return []
    if spec.disk_mode is DiskMode.OVERLAY:
        file, kind = paths.disk_overlay, "qcow2"
    else:
        file, kind = paths.disk_copy, "raw"
    return [
        "-drive",
        f"if=none,id=disk,format={kind},discard=unmap,file={_quote(file)}",
        "-device",
        "virtio-blk-pci,drive=disk,bootindex=0",
    ]


def _nic_arguments(spec: MachineSpec) -> list[str]:
    arguments: list[str] = []
    for index, nic in enumerate(spec.nics):
        if isinstance(nic, LanNic):
            # A stream has flow control and reconnects; datagram sockets would drop bursts.
            backend = f"stream,id=net{index},server=off,reconnect-ms=500"
            backend += f",addr.type=unix,addr.path={_quote(nic.hub)}"
        else:
            backend = f"user,id=net{index},restrict={'on' if nic.restrict else 'off'}"
            for host, guest in nic.forwards:
                backend += f",hostfwd=tcp:127.0.0.1:{host}-:{guest}"
            for address, host, guest in nic.udp_forwards:
                backend += f",hostfwd=udp:{address}:{host}-:{guest}"
            backend += f",net={nic.network}" if nic.network else ""
        mac = mac_address(spec.name, index)
        arguments += [
            "-netdev",
            backend,
            "-device",
            f"virtio-net-pci,netdev=net{index},mac={mac},romfile=",
        ]
    return arguments


def _socket(name: str, path: Path, rest: str = "") -> list[str]:
    # With nobody connected QEMU throws away what the guest writes (a log file still gets it), so
    # an unread console cannot stop the guest's poweroff.
    return ["-chardev", f"socket,id={name},path={_quote(path)},server=on,wait=off{rest}"]


def _agent_arguments(spec: MachineSpec, paths: MachinePaths) -> list[str]:
    if not spec.agent:
        return []
    arguments = ["-device", "virtio-serial-pci,id=ports"]
    for channel in range(AGENT_CHANNELS):
        arguments += _socket(f"agent{channel}", paths.agent(channel))
        arguments += [
            "-device",
            f"virtserialport,bus=ports.0,nr={channel + 1},chardev=agent{channel},"
            f"name=skerry.lab.{channel}",
        ]
    return arguments


def qemu_arguments(
    spec: MachineSpec, paths: MachinePaths, accelerator: Accelerator, *, display: bool = False
) -> list[str]:
    """Return the whole QEMU command line of a machine, program included."""
    if spec.arch is Arch.X86_64:
        # The TCO watchdog of the chip set may reset the machine; older types strap that off.
        board = ["-machine", "q35,vmport=off", "-global", "ICH9-LPC.noreboot=off"]
    else:
        board = ["-machine", "virt,gic-version=3"]
    log = f",logfile={_quote(paths.serial_log)},logappend=on"
    return [
        f"qemu-system-{spec.arch}",
        "-name",
        f"skerry-{spec.name}",
        "-nodefaults",
        "-no-user-config",
        *([] if display else ["-display", "none"]),
        *board,
        *accelerator.arguments,
        "-cpu",
        accelerator.cpu,
        "-smp",
        str(spec.cpus),
        "-m",
        str(spec.memory_mib),
        "-rtc",
        f"base={spec.clock}",
        # A panic is reported as an event and then takes its course in the guest.
        "-action",
        "panic=none,watchdog=reset",
        *_socket("qmp", paths.qmp),
        "-mon",
        "chardev=qmp,mode=control",
        *_socket("serial", paths.serial, log),
        "-serial",
        "chardev:serial",
        *_firmware_arguments(spec, paths),
        *_disk_arguments(spec, paths),
        *_nic_arguments(spec),
        *_agent_arguments(spec, paths),
        *_credential_arguments(spec, paths),
        "-device",
        "virtio-rng-pci",
        "-device",
        "i6300esb",
        "-device",
        "pvpanic-pci",
        "-device",
        "qemu-xhci,id=usb",
        *spec.extra,
    ]
