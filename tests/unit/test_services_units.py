"""The services' unit: starts when something is wanted, and can do little else."""

from __future__ import annotations

import shlex

import pytest

from appliance.config import RUN_DIR
from appliance.kubernetes.exposing import FILE
from appliance.kubernetes.places import Places
from skerry.__main__ import build_parser
from tests.unit.test_supervisor_units import UNITS, settings

SERVICE, WATCH = "skerry-services.service", "skerry-services.path"


def test_it_starts_when_something_is_wanted_and_runs_what_exists() -> None:
    wanted = build_parser().parse_args(["service", "ls"]).data_dir / "services.json"
    places = (wanted, Places().run_dir / FILE)
    assert settings(WATCH)["Path"]["PathExists"] == "\n".join(map(str, places))
    conditions = settings(SERVICE)["Unit"]["ConditionPathExists"]
    assert conditions == "\n".join(f"|{one}" for one in places)
    program, *words = shlex.split(settings(SERVICE)["Service"]["ExecStart"])
    assert program == "/usr/bin/skerry"
    assert str(build_parser().parse_args(words).run_dir) == "/run/skerry-services"
    link = UNITS / "paths.target.wants" / WATCH
    assert link.is_symlink()
    assert link.resolve() == UNITS / WATCH


def test_the_supervisor_reads_names_where_the_daemon_writes_them() -> None:
    beside = RUN_DIR.with_name(f"{RUN_DIR.name}-services")
    assert beside == build_parser().parse_args(["service", "run"]).run_dir
    assert settings(SERVICE)["Service"]["RuntimeDirectory"] == beside.name
    assert settings(SERVICE)["Service"]["RuntimeDirectoryMode"] == "0755"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("CapabilityBoundingSet", "CAP_NET_ADMIN"),
        ("NoNewPrivileges", "yes"),
        ("ProtectSystem", "strict"),
        ("InaccessiblePaths", "-/data/skerry -/data/kubernetes"),
        ("RestrictAddressFamilies", "AF_UNIX AF_INET AF_NETLINK"),
        ("SupplementaryGroups", "skerry"),
        # Its mark that forwarding is on for its sake alone has to outlive it.
        ("RuntimeDirectoryPreserve", "yes"),
    ],
)
def test_it_can_do_little_else(option: str, value: str) -> None:
    assert settings(SERVICE)["Service"][option] == value
