"""Host name, systemd-resolved's settings, and the object that the supervisor holds."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import stat
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.names import hostname, link, service
from appliance.names.hostname import HostNameError, apply_wanted, take_wanted, want_host_name
from appliance.names.link import publish_ranges, read_ranges, resolvectl_calls
from appliance.names.ranges import HOST, NamesError, Ranges
from appliance.names.service import Names, NameTable
from appliance.names.zone import NodeName
from provisioning.errors import ProvisioningError
from provisioning.files import FileError, read_small
from skerry.errors import SkerryError
from tests.unit.test_supervisor_units import UNITS, settings

RANGES = Ranges(ipaddress.IPv4Network("10.10.0.0/16"), ipaddress.IPv6Network("fd12:3456:789a::/48"))
NODE = NodeName(bytes(16), "attic", ipaddress.IPv4Address("10.10.0.2"), None)


# The host name


def test_a_wish_is_taken_once(tmp_path: Path) -> None:
    want_host_name(tmp_path, "kitchen")
    wish = tmp_path / "hostname"
    # Root without any privilege over other users' files has to be able to read it.
    assert stat.S_IMODE(wish.stat().st_mode) == 0o644
    given: list[str] = []
    before, name = apply_wanted(tmp_path, given.append)
    assert (before, name, given) == (os.uname().nodename, "kitchen", ["kitchen"])
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_the_machine_has_is_not_set_again(tmp_path: Path) -> None:
    (tmp_path / "hostname").write_text("kitchen\n")
    given: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: "kitchen")
        assert apply_wanted(tmp_path, given.append) == ("kitchen", "kitchen")
    assert given == []


def test_a_wish_during_the_run_is_left_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    want_host_name(tmp_path, "first")

    def interrupted(path: Path, limit: int) -> bytes:
        want_host_name(tmp_path, "second")
        return read_small(path, limit)

    monkeypatch.setattr("appliance.names.hostname.read_small", interrupted)
    assert take_wanted(tmp_path) == "first"
    monkeypatch.undo()
    assert take_wanted(tmp_path) == "second"


@pytest.mark.parametrize("name", ["localhost", "", "UPPER", "a.b", "a b", "-a", "x" * 64, "a\n"])
def test_what_is_no_host_name_is_not_wished_for(tmp_path: Path, name: str) -> None:
    with pytest.raises((HostNameError, ProvisioningError)):
        want_host_name(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


@given(st.one_of(st.binary(max_size=200), st.text(max_size=70).map(str.encode)))
def test_root_sets_nothing_but_a_label(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    directory = tmp_path_factory.mktemp("run")
    (directory / "hostname").write_bytes(data)
    given: list[str] = []
    try:
        apply_wanted(directory, given.append)
    except SkerryError:
        assert given == []
    else:
        assert data.removesuffix(b"\n").decode() == given[0]
        assert hostname.is_host_name(given[0])
    assert list(directory.iterdir()) == []


def test_root_follows_no_link(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("kitchen\n")
    (tmp_path / "hostname").symlink_to(secret)
    with pytest.raises(FileError):
        take_wanted(tmp_path)
    assert secret.exists()


def test_a_directory_in_the_place_of_the_wish_is_an_error_not_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "hostname").mkdir()
    with pytest.raises((SkerryError, OSError)):
        take_wanted(tmp_path)


# systemd-resolved


def test_ranges_go_through_the_file(tmp_path: Path) -> None:
    publish_ranges(tmp_path, RANGES)
    assert stat.S_IMODE((tmp_path / "names-ranges").stat().st_mode) == 0o644
    assert read_ranges(tmp_path) == RANGES


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10.10.0.0/16\n",
        "10.10.0.0/16\n::/0\n",
        "10.10.0.0/16\nfd00::/8\n",
        "10.10.0.0/16\n2001:db8::/48\n",
        "10.10.0.1/16\nfd12:3456:789a::/48\n",
        "0.0.0.0/0\nfd12:3456:789a::/48\n~.\n",
        "~.\n~.\n",
    ],
)
def test_root_takes_nothing_but_two_ranges(tmp_path: Path, text: str) -> None:
    (tmp_path / "names-ranges").write_text(text)
    with pytest.raises(NamesError):
        read_ranges(tmp_path)


@given(st.binary(max_size=300))
def test_no_content_of_the_file_ends_in_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    directory = tmp_path_factory.mktemp("run")
    (directory / "names-ranges").write_bytes(data)
    with pytest.raises(SkerryError):
        read_ranges(directory)


def test_only_what_is_ours_is_asked_of_us() -> None:
    calls = {call[1]: call[3:] for call in resolvectl_calls("skerry0", RANGES)}
    assert calls["domain"] == (
        "~skerry.internal",
        "~10.10.in-addr.arpa",
        "~a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa",
    )
    assert calls["dns"] == (f"{HOST}:5335",)
    assert calls["default-route"] == ("no",)
    assert calls["dnssec"] == ("no",)


@pytest.mark.parametrize("host_range", ["8.8.8.0/24", "11.0.0.0/8", "0.0.0.0/0"])
def test_addresses_that_are_somebody_elses_are_not_drawn_to_us(host_range: str) -> None:
    ranges = Ranges(ipaddress.IPv4Network(host_range), RANGES.ipv6)
    (domain,) = [call for call in resolvectl_calls("skerry0", ranges) if call[1] == "domain"]
    assert domain[3:] == ("~skerry.internal", "~a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa")


def fake_run(failures: int, calls: list[Sequence[str]]) -> object:
    def run(call: Sequence[str], **_: object) -> subprocess.CompletedProcess[str]:
        calls.append(call)
        failed = len(calls) <= failures
        return subprocess.CompletedProcess(call, int(failed), "", "Link 5 not known.")

    return run


def test_a_link_that_is_not_known_yet_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_ranges(tmp_path, RANGES)
    calls: list[Sequence[str]] = []
    monkeypatch.setattr(subprocess, "run", fake_run(3, calls))
    monkeypatch.setattr(time, "sleep", lambda _: None)
    link.configure("skerry0", tmp_path)
    assert [call[1] for call in calls] == [
        *["default-route"] * 4,
        *("dnssec", "dnsovertls", "domain", "dns"),
    ]


def test_who_never_takes_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_ranges(tmp_path, RANGES)
    calls: list[Sequence[str]] = []
    monkeypatch.setattr(subprocess, "run", fake_run(1000, calls))
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with pytest.raises(NamesError, match="Link 5 not known") as caught:
        link.configure("skerry0", tmp_path)
    assert "default-route" in str(caught.value)
    assert len(calls) == link._ATTEMPTS


# The table


def test_the_table_is_made_anew_only_for_news() -> None:
    now, members, looks = [0.0], [NODE], [0]

    def look() -> list[NodeName]:
        looks[0] += 1
        return members

    table = NameTable(look, RANGES, clock=lambda: now[0])
    first = table()
    assert (table(), looks[0]) == (first, 1)
    now[0] = service.FRESH_SECONDS
    assert table() is first
    assert looks[0] == 2
    members.append(NodeName(b"\1" * 16, "cellar", ipaddress.IPv4Address("10.10.0.3"), None))
    assert table() is first
    now[0] += service.FRESH_SECONDS
    news = table()
    assert news is not None
    assert len(news.hosts) == 4


def test_before_anything_is_known_there_is_no_zone_and_later_the_last_one_stays() -> None:
    now, members = [0.0], [None, [NODE], None]
    table = NameTable(lambda: members.pop(0), RANGES, clock=lambda: now[0])
    assert table() is None
    known = table()
    assert known is not None
    now[0] = service.FRESH_SECONDS
    assert (table(), members) == (known, [])


def test_services_are_news_too_but_no_zone_without_members() -> None:
    now, services = [0.0], {"db": ipaddress.IPv4Address("198.19.1.2")}
    members: list[list[NodeName] | None] = [None]
    table = NameTable(lambda: members[0], RANGES, lambda: dict(services), clock=lambda: now[0])
    assert table() is None
    members[0] = [NODE]
    first = table()
    assert first is not None
    assert len(first.services) == 1
    members[0] = None
    services.clear()
    now[0] = service.FRESH_SECONDS
    second = table()
    assert second is not None
    assert (second.hosts, dict(second.services)) == (first.hosts, {})


def test_trouble_with_the_port_is_a_problem_until_it_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "RETRY_SECONDS", 0.01)

    async def scenario() -> None:
        first = Names(tmp_path, RANGES, lambda: [NODE], port=0)
        await first.start()
        second = Names(tmp_path, RANGES, lambda: [NODE], port=first.address[1])
        await second.start()
        (problem,) = second.problems()
        assert problem.code == "names"
        assert str(first.address[1]) in problem.message
        assert problem.hint
        await first.stop()
        async with asyncio.timeout(30):
            while second.problems():  # noqa: ASYNC110 - it offers nothing to wait for
                await asyncio.sleep(0.01)
        await second.stop()

    asyncio.run(scenario())


def test_a_machine_is_called_once_and_anew_when_the_name_changes(tmp_path: Path) -> None:
    names = Names(tmp_path, RANGES, list)
    names.call_machine("one")
    (tmp_path / "hostname").unlink()
    names.call_machine("one")
    assert not (tmp_path / "hostname").exists()
    names.call_machine("two")
    assert (tmp_path / "hostname").read_text() == "two\n"


def test_a_name_that_no_machine_can_have_leaves_it_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Names(tmp_path, RANGES, list).call_machine("localhost")
    assert not (tmp_path / "hostname").exists()
    assert "keeps its host name" in caplog.text


# The units


def test_only_the_call_that_names_the_machine_is_left_of_its_power() -> None:
    unit = settings("skerry-hostname.service")["Service"]
    assert unit["CapabilityBoundingSet"] == "CAP_SYS_ADMIN"
    assert unit["SystemCallFilter"].splitlines()[-1] == "sethostname"
    assert "~@privileged" in unit["SystemCallFilter"]
    assert "ProtectHostname" not in unit
    assert unit["PrivateNetwork"] == "yes"


def test_whoever_asks_systemd_resolved_has_no_power_at_all() -> None:
    unit = settings("skerry-names.service")["Service"]
    assert unit["CapabilityBoundingSet"] == ""
    assert "ReadWritePaths" not in unit


@pytest.mark.parametrize(
    "pulled_in",
    [
        "sys-subsystem-net-devices-skerry0.device.wants/skerry-names.service",
        "systemd-resolved.service.wants/skerry-names.service",
        "paths.target.wants/skerry-names.path",
        "paths.target.wants/skerry-hostname.path",
    ],
)
def test_they_are_pulled_in(pulled_in: str) -> None:
    assert (UNITS / pulled_in).resolve() == UNITS / Path(pulled_in).name


@pytest.mark.parametrize("unit", ["skerry-names.service", "skerry-hostname.service"])
def test_each_trigger_can_start_it_again(unit: str) -> None:
    assert "RemainAfterExit" not in settings(unit)["Service"]
    assert int(settings(unit)["Unit"]["StartLimitBurst"]) > 10


def test_the_files_that_root_waits_for_are_those_that_the_supervisor_writes() -> None:
    for unit, key, name in (
        ("skerry-names.path", "PathChanged", link.FILE_NAME),
        ("skerry-hostname.path", "PathExists", hostname.FILE_NAME),
    ):
        assert settings(unit)["Path"][key] == f"/run/skerry/{name}"
    condition = settings("skerry-names.service")["Unit"]["ConditionPathExists"]
    assert condition.splitlines()[0] == f"/run/skerry/{link.FILE_NAME}"


def test_no_network_names_the_machine_or_draws_names_to_itself() -> None:
    text = (UNITS.parent / "network/20-uplink.network").read_text()
    assert text.count("UseHostname=no") == 2
    assert text.count("UseDomains=no") == 2
