"""From the facts of a machine to QEMU's command line."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemu.accel import newc, tcg
from qemu.errors import MachineError
from qemu.prepare import with_agent
from qemu.spec import (
    AGENT_CHANNELS,
    Arch,
    DiskMode,
    Firmware,
    LanNic,
    MachinePaths,
    MachineSpec,
    UserNic,
    credential_file,
    mac_address,
    qemu_arguments,
)

PATHS = MachinePaths(Path("/d/node1"), Path("/tmp/s"))
X86 = MachineSpec("node1", disk=Path("/images/disk.img"))
ARM = replace(X86, arch=Arch.AARCH64, firmware=Firmware.U_BOOT)


def line(spec: MachineSpec) -> str:
    return " ".join(qemu_arguments(spec, PATHS, tcg(spec.arch)))


def test_a_pc_has_uefi_its_own_variables_watchdog_and_random_numbers() -> None:
    said = line(X86)
    assert said.startswith("qemu-system-x86_64 ")
    assert "-machine q35" in said
    assert "readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd" in said
    assert "unit=1,format=raw,file=/d/node1/variables.fd" in said
    for device in ("i6300esb", "virtio-rng-pci", "pvpanic-pci"):
        assert f"-device {device}" in said


def test_arm_boots_through_u_boot_or_uefi() -> None:
    assert "-bios /usr/lib/u-boot/qemu_arm64/u-boot.bin" in line(ARM)
    assert "AAVMF_CODE" in line(replace(ARM, firmware=Firmware.AAVMF))
    assert "-machine virt" in line(ARM)


def test_an_image_is_never_opened_for_writing() -> None:
    for mode in DiskMode:
        assert "/images/disk.img" not in line(replace(X86, disk_mode=mode))
    assert "format=qcow2" in line(X86)
    assert "format=raw,discard=unmap,file=/d/node1/disk.img" in line(
        replace(X86, disk_mode=DiskMode.COPY)
    )


def test_the_console_goes_to_a_log_and_nobody_has_to_read_it() -> None:
    said = line(X86)
    assert "path=/tmp/s/serial,server=on,wait=off,logfile=/d/node1/serial.log" in said
    assert "-serial chardev:serial" in said


def test_there_is_no_network_card_unless_asked_for() -> None:
    assert "-netdev" not in line(X86)
    said = line(replace(X86, nics=(LanNic(Path("/tmp/s/lan")), UserNic(forwards=((2222, 22),)))))
    assert "stream,id=net0,server=off" in said
    assert "addr.path=/tmp/s/lan" in said
    assert "user,id=net1,restrict=on,hostfwd=tcp:127.0.0.1:2222-:22" in said
    assert said.count("virtio-net-pci") == 2


def test_the_nat_takes_datagrams_at_an_address_and_has_a_network_of_its_own() -> None:
    nic = UserNic(
        restrict=False, udp_forwards=(("192.0.2.1", 51820, 51820),), network="10.9.0.0/24"
    )
    assert "user,id=net0,restrict=off,hostfwd=udp:192.0.2.1:51820-:51820,net=10.9.0.0/24" in line(
        replace(X86, nics=(nic,))
    )


def test_secrets_are_in_files_not_in_the_process_list() -> None:
    spec = replace(X86, credentials={"skerry.token": b"SECRET"})
    assert "SECRET" not in line(spec)
    assert base64.b64encode(b"SECRET").decode() not in line(spec)
    assert "SECRET" not in repr(spec)
    assert "-smbios type=11,path=/d/node1/credentials/skerry.token" in line(spec)


def test_smbios_carries_any_bytes_as_systemd_reads_them() -> None:
    data = credential_file(X86, "a.b", b"\n,=\xff")
    assert data == b"io.systemd.credential.binary:a.b=" + base64.b64encode(b"\n,=\xff")


def test_u_boot_machines_get_credentials_by_fw_cfg() -> None:
    spec = replace(ARM, credentials={"skerry.token": b"T"})
    assert "name=opt/io.systemd.credentials/skerry.token,file=/d/node1/credentials" in line(spec)
    assert credential_file(spec, "skerry.token", b"T") == b"T"
    long = replace(ARM, credentials={"x" * 29: b""})
    with pytest.raises(MachineError, match="too long for fw_cfg"):
        line(long)


def test_the_agent_brings_its_channels_and_its_credentials() -> None:
    spec = with_agent(X86)
    assert "lab.agent" in spec.credentials
    assert line(spec).count("virtserialport") == AGENT_CHANNELS
    without = replace(X86, agent=False)
    assert with_agent(without) == without
    assert "virtserialport" not in line(without)


def test_commas_in_paths_do_not_end_an_option() -> None:
    paths = MachinePaths(Path("/d,x"), Path("/tmp/s"))
    said = " ".join(qemu_arguments(X86, paths, tcg(Arch.X86_64)))
    assert "file=/d,,x/disk.qcow2" in said
    assert not re.search(r"/d,(?!,)x", said.replace(",,", ";"))


@pytest.mark.parametrize("name", ["", "a b", "a,b", "../a", "-"])
def test_names_that_would_break_paths_or_options(name: str) -> None:
    with pytest.raises(MachineError, match="machine name"):
        MachineSpec(name)


def test_firmware_and_processor_must_fit() -> None:
    with pytest.raises(MachineError, match="OVMF"):
        MachineSpec("a", arch=Arch.AARCH64)
    with pytest.raises(MachineError, match="aarch64"):
        MachineSpec("a", firmware=Firmware.U_BOOT)
    with pytest.raises(MachineError, match="kernel"):
        MachineSpec("a", firmware=Firmware.NONE)


def test_network_cards_differ_and_stay_the_same() -> None:
    addresses = {mac_address(name, card) for name in ("node1", "node2") for card in (0, 1)}
    assert len(addresses) == 4
    assert all(re.fullmatch(r"52:54:00(:[0-9a-f]{2}){3}", one) for one in addresses)
    assert mac_address("node1", 0) == mac_address("node1", 0)


@given(st.dictionaries(st.from_regex(r"\A[a-z]{1,9}\Z"), st.binary(max_size=40), max_size=4))
def test_an_archive_holds_what_was_put_in(files: dict[str, bytes]) -> None:
    """Read back by the format's own rules (the kernel's initramfs buffer format document)."""
    archive = newc({name: (0o100644, data) for name, data in files.items()})
    assert len(archive) % 4 == 0
    position, found = 0, {}
    while True:
        assert archive[position : position + 6] == b"070701"
        numbers = [
            int(archive[position + 6 + 8 * n : position + 14 + 8 * n], 16) for n in range(13)
        ]
        start = position + 110
        name = archive[start : start + numbers[11] - 1].decode()
        if name == "TRAILER!!!":
            break
        data = -(-(start + numbers[11]) // 4) * 4
        found[name] = archive[data : data + numbers[6]]
        position = -(-(data + numbers[6]) // 4) * 4
    assert found == files
