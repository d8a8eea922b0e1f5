"""The units that set the clock: root, once per boot, and able to do nothing else."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from skerry.__main__ import build_parser
from tests.unit.test_supervisor_units import OVERLAY, UNITS, settings

SERVICE, WATCH = "skerry-clock.service", "skerry-clock.path"
REQUEST = "/run/skerry/time"


def test_it_waits_for_what_the_supervisor_leaves_and_runs_what_exists() -> None:
    assert settings(WATCH)["Path"] == {"PathExists": REQUEST}
    program, *words = shlex.split(settings(SERVICE)["Service"]["ExecStart"])
    assert program == "/usr/bin/skerry"
    assert build_parser().parse_args(words).request == Path(REQUEST)
    link = UNITS / "paths.target.wants" / WATCH
    assert link.is_symlink()
    assert link.resolve() == UNITS / WATCH


def test_it_runs_once_per_boot_at_most() -> None:
    service = settings(SERVICE)["Service"]
    # Active for good: the path unit, which finds its file again and again, starts it no more.
    assert (service["Type"], service["RemainAfterExit"]) == ("oneshot", "yes")
    assert "Restart" not in service


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("CapabilityBoundingSet", "CAP_SYS_TIME"),
        ("AmbientCapabilities", ""),
        ("NoNewPrivileges", "yes"),
        ("ProtectSystem", "strict"),
        ("InaccessiblePaths", "-/data"),
        ("PrivateNetwork", "yes"),
        ("PrivateDevices", "yes"),
        ("RestrictAddressFamilies", "none"),
        ("MemoryDenyWriteExecute", "yes"),
        ("SystemCallFilter", "@system-service\n~@privileged @resources\n@clock"),
    ],
)
def test_it_can_do_nothing_else(option: str, value: str) -> None:
    service = settings(SERVICE)["Service"]
    assert service[option] == value
    assert "ProtectClock" not in service


def test_the_supervisor_itself_cannot_set_the_clock_but_may_leave_the_file() -> None:
    service = settings("skerry.service")["Service"]
    assert service["ProtectClock"] == "yes"
    assert "CAP_SYS_TIME" not in service["CapabilityBoundingSet"]
    assert "-/run/skerry" in service["ReadWritePaths"].split()


def test_the_time_is_asked_for_from_time_servers_too() -> None:
    preset = (OVERLAY / "usr/lib/systemd/system-preset/00-skerry.preset").read_text()
    assert "enable systemd-timesyncd.service" in preset.splitlines()
