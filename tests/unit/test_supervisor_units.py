"""The units' text; how the image's systemd judges them: tests/contract/test_supervisor_units.py."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

OVERLAY = Path(__file__).resolve().parents[2] / "rootfs_overlay"
UNITS = OVERLAY / "usr/lib/systemd/system"


def settings(unit: str) -> dict[str, dict[str, str]]:
    """Return a unit's settings by section; a key that is given again adds a line."""
    sections: dict[str, dict[str, str]] = {}
    section: dict[str, str] = {}
    for line in (UNITS / unit).read_text().splitlines():
        if line.startswith("["):
            section = sections.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            section[key] = f"{section[key]}\n{value}" if key in section else value
    return sections


@pytest.mark.parametrize("unit", ["skerry.service", "skerry-health.service"])
def test_both_run_as_the_user_and_see_little(unit: str) -> None:
    service = settings(unit)["Service"]
    assert (service["User"], service["Group"]) == ("skerry", "skerry")
    for name, value in {
        "NoNewPrivileges": "yes",
        "ProtectSystem": "strict",
        "ProtectHome": "yes",
        "PrivateDevices": "yes",
        "ProtectKernelModules": "yes",
        "ProtectKernelTunables": "yes",
        "RestrictNamespaces": "yes",
        "MemoryDenyWriteExecute": "yes",
        "SystemCallArchitectures": "native",
    }.items():
        assert service[name] == value, name
    assert "~@privileged" in service["SystemCallFilter"]


def test_the_supervisor_may_do_what_it_has_to() -> None:
    unit = settings("skerry.service")
    service = unit["Service"]
    assert service["Type"] == "notify"
    assert service["CapabilityBoundingSet"] == service["AmbientCapabilities"]
    assert service["CapabilityBoundingSet"].split() == ["CAP_NET_ADMIN", "CAP_NET_RAW"]
    families = set(service["RestrictAddressFamilies"].split())
    assert families == {"AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK"}
    writable = service["ReadWritePaths"].split()
    assert {"-/data/skerry", "-/run/skerry"} <= set(writable)
    assert service["ImportCredential"] == "skerry.*"
    # The tunnel must survive us, and /run/skerry is not ours to remove.
    assert service["KillMode"] == "process"
    assert "RuntimeDirectory" not in service
    # It comes back, always, and a hung one is killed.
    assert (service["Restart"], unit["Unit"]["StartLimitIntervalSec"]) == ("always", "0")
    assert service["WatchdogSec"] == "60s"


def test_health_decides_what_boot_complete_means() -> None:
    unit = settings("skerry-health.service")
    assert unit["Unit"]["Before"] == "boot-complete.target"
    assert unit["Unit"]["OnFailure"] == "skerry-trial-failed.service"
    assert "skerry.service" in unit["Unit"]["After"].split()
    wait = re.fullmatch(r"/usr/bin/skerry health --wait (\d+)", unit["Service"]["ExecStart"])
    assert wait
    assert unit["Service"]["TimeoutStartSec"] == "5min"
    assert int(wait[1]) < 5 * 60


@pytest.mark.parametrize(
    "link",
    [
        "multi-user.target.wants/skerry.service",
        "boot-complete.target.requires/skerry-health.service",
    ],
)
def test_the_units_are_pulled_in(link: str) -> None:
    assert (UNITS / link).is_symlink()
    assert (UNITS / link).resolve() == UNITS / Path(link).name
    assert (UNITS / link).exists()


def test_every_file_that_the_unit_may_write_is_made_for_its_user() -> None:
    lines = [
        line.split()
        for line in (OVERLAY / "usr/lib/tmpfiles.d/skerry.conf").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    made = {line[1]: (line[0], line[2], line[3], line[4]) for line in lines}
    writable = settings("skerry.service")["Service"]["ReadWritePaths"].split()
    assert {path.removeprefix("-") for path in writable} <= set(made)
    # The supervisor must not be able to rename disk/, which root trusts.
    assert made["/run/skerry"] == ("d", "1775", "root", "skerry")
    assert made["/run/skerry/inbox"] == ("d", "0700", "skerry", "skerry")
    assert made["/data/skerry"] == ("d", "0700", "skerry", "skerry")


def test_the_user_has_a_fixed_number() -> None:
    lines = (OVERLAY / "usr/lib/sysusers.d/skerry.conf").read_text().splitlines()
    (numbers,) = [line.split()[2] for line in lines if line.startswith("u skerry ")]
    assert 100 <= int(numbers.partition(":")[0]) < 999
