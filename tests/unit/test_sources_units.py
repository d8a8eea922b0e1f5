"""The units that carry tokens from media and erase them: they run what exists, and little else."""

from __future__ import annotations

import re
import shlex
from collections import defaultdict
from pathlib import Path

import pytest

from provisioning.identity import FIRST, SECOND
from provisioning.media import OWN_PARTITION
from provisioning.sources.inbox import kind_of
from skerry.__main__ import build_parser

OVERLAY = Path(__file__).resolve().parents[2] / "rootfs_overlay" / "usr" / "lib"
UNITS = OVERLAY / "systemd" / "system"
RULES = OVERLAY / "udev" / "rules.d" / "90-skerry-token.rules"
MEDIA, WIPE, WATCH = (
    "skerry-token-media@.service",
    "skerry-token-wipe.service",
    "skerry-token-wipe.path",
)
IDENTITY = "/data/skerry/identity"


def options(unit: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for line in (UNITS / unit).read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found[name].append(value)
    return found


@pytest.mark.parametrize("unit", [MEDIA, WIPE])
def test_the_unit_runs_a_command_that_we_have(unit: str) -> None:
    (command,) = options(unit)["ExecStart"]
    program, *words = shlex.split(command.replace("%i", "sda1"))
    assert program == "/usr/bin/skerry"
    parsed = build_parser().parse_args(words)
    assert parsed.device in {Path("/dev/sda1"), OWN_PARTITION}


def test_a_node_with_an_identity_reads_nobodys_media() -> None:
    assert options(MEDIA)["ConditionPathExists"] == [f"!{IDENTITY}/{FIRST}"]


def test_the_token_is_erased_only_once_both_copies_of_the_identity_are_there() -> None:
    conditions = options(WIPE)["ConditionPathExists"]
    assert {f"{IDENTITY}/{FIRST}", f"{IDENTITY}/{SECOND}", str(OWN_PARTITION)} == set(conditions)
    assert options(WATCH)["PathExists"] == [f"{IDENTITY}/{FIRST}"]
    wanted = UNITS / "paths.target.wants" / WATCH
    assert wanted.is_symlink()
    assert wanted.resolve() == UNITS / WATCH


def test_udev_starts_the_unit_for_labelled_file_systems_only() -> None:
    (rule,) = [line for line in RULES.read_text().splitlines() if line and not line.startswith("#")]
    started = re.search(r'SYSTEMD_WANTS}\+="([^"]+)"', rule)
    assert started is not None
    assert started[1].replace("%k", "") == MEDIA
    labels = re.search(r'ID_FS_LABEL}=="([^"]+)"', rule)
    assert labels is not None
    assert {label.upper() for label in labels[1].split("|")} == {"SKERRY", "CIDATA"}


@pytest.mark.parametrize("unit", [MEDIA, WIPE])
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("ProtectSystem", "strict"),
        ("InaccessiblePaths", "-/data"),
        ("PrivateNetwork", "yes"),
        ("NoNewPrivileges", "yes"),
        ("DevicePolicy", "closed"),
        ("MemoryDenyWriteExecute", "yes"),
    ],
)
def test_the_unit_can_do_little(unit: str, option: str, value: str) -> None:
    assert options(unit)[option] == [value]


def test_only_the_eraser_may_write_to_disks_and_it_may_not_mount() -> None:
    assert options(MEDIA)["DeviceAllow"] == ["block-* r"]
    assert "CAP_SYS_ADMIN" not in options(WIPE)["CapabilityBoundingSet"][0]


def test_the_names_in_the_inbox_are_those_that_the_sources_read() -> None:
    assert kind_of("disk-nvme0n1p6.token") == "disk"
