"""Whole clusters, names, addresses that clash, and what people are shown of it."""

from __future__ import annotations

import ipaddress
import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.names import services as names
from appliance.services import daemon, handlers
from appliance.services import plan as planning
from appliance.services.daemon import Daemon, Places
from appliance.services.errors import ServiceError
from appliance.services.listing import rows, words
from appliance.services.observing import Observed
from appliance.services.offers import Offer, service_address
from appliance.services.plan import connections_of, plan
from appliance.services.wishes import Connection, Wishes, check_clusters, load, save
from provisioning.keys import id_text
from skerry.__main__ import build_parser
from skerry.errors import SkerryError
from tests.unit.services_world import HOME, NETWORK_ID, NOTHING, A, B, C, D, among, member, offer

FAR = Wishes(clusters=("far",))


def rivals() -> tuple[str, str]:
    """Return two names of one address."""
    taken: dict[str, str] = {}
    for number in range(2000):
        name = f"s{number}"
        first = taken.setdefault(str(service_address(NETWORK_ID, name)), name)
        if first != name:
            return first, name
    raise AssertionError


def test_all_that_a_cluster_offers_is_reached_at_its_own_members_as_it_comes_and_goes() -> None:
    said = [offer(C), offer(C, "web"), offer(B), offer(D, "other")]
    made = plan(FAR, HOME, said, (), NOTHING)
    assert [name for name, _ in made.names] == ["db", "web"]
    assert {way.targets for way in made.ways} == {(("10.10.0.3", 5432),)}
    assert [name for name, _ in plan(FAR, HOME, said[:1], (), NOTHING).names] == ["db"]
    # Which cluster a node is of is its grant's word, not its own.
    assert not plan(FAR, among(member(C)), said, (), NOTHING).ways
    # What is named has all of its backends.
    both = replace_connections(FAR, Connection("db"))
    assert {way.targets for way in plan(both, HOME, said, (), NOTHING).ways} == {
        (("10.10.0.2", 5432),),
        (("10.10.0.3", 5432),),
    }


def replace_connections(wishes: Wishes, *connections: Connection) -> Wishes:
    return Wishes(wishes.exposures, connections, wishes.clusters)


def test_nobody_floods_out_what_others_of_a_cluster_offer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "CLUSTER_SERVICES_MAX", 5)
    network = among(member(D, "far"))
    said = [*(offer(C, f"a{number:03}") for number in range(300)), offer(D, "x"), offer(D, "y")]
    connections, problems = connections_of(FAR, network, said)
    assert [one.name for one in connections] == ["a000", "x", "a001", "y", "a002"]
    assert [one.code for one in problems] == ["service-too-many"]


def test_of_two_names_with_one_address_the_one_that_was_named_is_reached() -> None:
    first, second = rivals()
    said = [offer(C, first), offer(C, second)]
    for wishes, reached in (
        (FAR, first),
        (replace_connections(FAR, Connection(second)), second),
        (replace_connections(Wishes(), Connection(second), Connection(first)), second),
    ):
        made = plan(wishes, HOME, said, (), NOTHING)
        assert [name for name, _ in made.names] == [reached]
        assert [one.code for one in made.problems] == ["service-address-clash"]
        assert len(made.ways) == 1


def test_clusters_are_kept_and_checked(tmp_path: Path) -> None:
    save(tmp_path, FAR)
    assert load(tmp_path) == FAR
    for wrong in (("Far",), ("a b",), tuple(f"c{number}" for number in range(17))):
        with pytest.raises(ServiceError):
            check_clusters(wrong)
    check_clusters(("", "far"))


# What people see


def test_the_list_says_what_is_wrong_with_each() -> None:
    said = [offer(B, healthy=False), offer(C), offer(bytes(16))]
    found = rows(Wishes((), (Connection("db"), Connection("none"))), HOME, said)
    assert [(one.name, one.connected) for one in found] == [("db", True), ("none", True)]
    assert [state for _, _, state in found[0].offers] == ["no answer", "up", "node down"]


@pytest.mark.parametrize(
    ("said", "where"),
    [
        ([offer(B), offer(C)], "n2"),
        ([offer(B, healthy=False), offer(C)], "n3 (spilled over)"),
        ([offer(C), offer(D)], "n3, n4"),
        ([offer(B, healthy=False)], "nobody"),
        ([], "nobody"),
    ],
)
def test_the_list_says_where_a_services_traffic_goes_now(said: list[Offer], where: str) -> None:
    (row,) = rows(Wishes((), (Connection("db"),)), HOME, said)
    assert words(row) == where
    # A machine outside of all clusters has nothing to spill over from.
    (row,) = rows(Wishes((), (Connection("db"),)), replace(HOME, own=D), said)
    assert "spilled" not in words(row)


def test_the_list_knows_what_whole_clusters_bring_and_what_is_not_connected() -> None:
    found = {one.name: one for one in rows(FAR, HOME, [offer(C), offer(B), offer(B, "web")])}
    assert (found["db"].connected, found["db"].now) == (True, ("n3",))
    assert (found["web"].connected, words(found["web"])) == (False, "-")


@pytest.mark.parametrize(
    "line",
    [
        "connect",
        "connect db --cluster far",
        "connect --cluster far --port 5",
        "rm",
        "rm db --cluster far",
        "rm --cluster far",
    ],
)
def test_a_command_that_names_nothing_or_too_much_is_refused(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers, "observe", lambda _: None)
    arguments = build_parser().parse_args(
        ["service", *line.split(), "--data-dir", str(tmp_path), "--run-dir", str(tmp_path)]
    )
    with pytest.raises(ServiceError) as caught:
        arguments.handler(arguments)
    assert caught.value.hint


def test_a_cluster_is_connected_once_and_given_up_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = tuple(offer(C, f"a{number}") for number in range(10))
    seen = Observed(HOME, "skerry0", True, said, frozenset())  # noqa: FBT003
    monkeypatch.setattr(handlers, "observe", lambda _: seen)

    def do(*line: str) -> None:
        options = ["--data-dir", str(tmp_path), "--run-dir", str(tmp_path)]
        arguments = build_parser().parse_args(["service", *line, *options])
        arguments.handler(arguments)

    save(tmp_path, Wishes((), (Connection("db"),)))
    for _ in range(2):
        do("connect", "--cluster", "far")
    assert load(tmp_path) == Wishes((), (Connection("db"),), ("far",))
    assert "a7 and 2 more" in capsys.readouterr().err
    do("ls")
    text = capsys.readouterr()
    assert "nobody keeps them so" in text.err
    assert text.out.count("n3:5432 up") == 10
    with pytest.raises(ServiceError, match="no member is of the cluster 'blue'"):
        do("connect", "--cluster", "blue")
    do("rm", "--cluster", "far")
    assert load(tmp_path) == Wishes((), (Connection("db"),))
    with pytest.raises(ServiceError, match="neither offers nor reaches the cluster 'far'"):
        do("rm", "--cluster", "far")


def places(folder: Path) -> Places:
    run_dir = folder / "run-services"
    run_dir.mkdir()
    return Places(folder, run_dir, folder / "nobody.sock", folder / "none")


def test_without_a_supervisor_the_daemon_says_so_once_and_the_list_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, Wishes((), (Connection("db"),)))
    where = places(tmp_path)
    one = Daemon(where)
    with caplog.at_level(logging.WARNING):
        one.turn()
        one.turn()
    assert (
        len([said for said in caplog.messages if "the supervisor does not run here" in said]) == 1
    )
    status = where.run_dir / daemon.STATUS
    assert "does not run here" in status.read_text()
    before = status.stat().st_mtime_ns
    os.utime(status, (0, 0))
    one.turn()
    assert status.stat().st_mtime_ns > before - 1
    line = ["service", "ls", "--data-dir", str(tmp_path), "--socket", str(where.socket)]
    arguments = build_parser().parse_args(line)
    with pytest.raises(SkerryError, match=r"does not run here.*stays as it is.*: db"):
        arguments.handler(arguments)


# Names


def test_names_are_told_and_believed_only_as_addresses_of_services(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    found = names.ServiceNames(run_dir)
    assert found() == {}
    beside = tmp_path / "run-services"
    beside.mkdir()
    names.publish(beside, [("db", "198.19.1.2")])
    assert found() == {"db": ipaddress.IPv4Address("198.19.1.2")}
    names.publish(beside, [])
    assert found() == {}
    (beside / names.FILE).write_bytes(b"x" * 100_000)
    assert found() == {}
    text = b"db 198.19.1.2\nweb 10.10.0.1\nA 198.19.1.3\nx\n\n\xff 198.19.1.4\ny 198.19.1.5 6\n"
    assert names.read(text) == {"db": ipaddress.IPv4Address("198.19.1.2")}


def test_pinned_nodes_are_ids() -> None:
    (one,) = connections_of(FAR, HOME, [offer(C)])[0]
    assert one.nodes == (id_text(C),)
    assert not connections_of(Wishes(clusters=("",)), HOME, [offer(D)])[0]
    assert {one.name for one in connections_of(Wishes(clusters=("",)), HOME, [offer(A)])[0]} == {
        "db"
    }
