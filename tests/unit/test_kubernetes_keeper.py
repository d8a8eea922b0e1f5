"""What is done about the engine, from what there is."""

from __future__ import annotations

import itertools
from dataclasses import replace

import msgspec
import pytest

from appliance.cluster.cluster_entries import Entries, Plan, Role
from appliance.cluster.model import Decision
from appliance.cluster.model import Kind as Decided
from appliance.kubernetes import keeper
from appliance.kubernetes.keeper import (
    Attempts,
    Machine,
    PlaceManifest,
    RemoveConfig,
    RemoveConflist,
    Restart,
    SetAside,
    Start,
    Step,
    Stop,
    Unit,
    UnitFacts,
    Wanted,
    WriteConfig,
    WriteConflist,
)
from appliance.kubernetes.part import Kind, Part, part_of, stay_with, turn_of, was_removed
from appliance.kubernetes.places import AGENT_UNIT, PODS_SLICE, SERVER_UNIT

SERVER = Part(Kind.SERVER, "it founds", founds=True)
AGENT = Part(Kind.AGENT, "it works", join="10.10.0.1")
CONFIG = 'token: "secret"\n'
OFF, ON = UnitFacts(Unit.INACTIVE), UnitFacts(Unit.ACTIVE)


def do(
    wanted: Wanted, machine: Machine, attempts: Attempts | None = None, now: float = 1000.0
) -> tuple[Step, ...]:
    return keeper.steps(wanted, machine, attempts or Attempts(), now)


def running(unit: str = SERVER_UNIT, config: str = CONFIG) -> Machine:
    server, agent = (ON, OFF) if unit == SERVER_UNIT else (OFF, ON)
    return Machine(server, agent, config, keeper.digest(unit, config), b"{}")


def test_from_nothing_to_a_server_in_one_turn_and_then_rest() -> None:
    wanted = Wanted(SERVER, CONFIG, b"{}", manifests={"skerry-coredns.yaml": "text"})
    digest = keeper.digest(SERVER_UNIT, CONFIG)
    assert do(wanted, Machine(OFF, OFF)) == (
        WriteConflist(b"{}"),
        PlaceManifest("skerry-coredns.yaml", "text"),
        WriteConfig(CONFIG),
        Start(SERVER_UNIT, digest),
    )
    there = replace(running(), manifests={"skerry-coredns.yaml": "text"})
    assert do(wanted, there) == ()


def test_nothing_is_known_so_nothing_is_touched() -> None:
    waiting = Wanted(Part(Kind.WAIT, "?"), conflist_known=False)
    for machine in (running(), running(AGENT_UNIT), Machine(OFF, OFF)):
        assert do(waiting, machine) == ()


def test_without_a_token_what_runs_goes_on_and_nothing_starts() -> None:
    wanted = Wanted(AGENT, None, b"{}")
    assert do(wanted, running(AGENT_UNIT)) == ()
    assert do(wanted, Machine(OFF, OFF, conflist=b"{}")) == ()


def test_another_configuration_restarts_once_and_not_in_a_row() -> None:
    wanted = Wanted(SERVER, "other: true\n", b"{}")
    right = keeper.digest(SERVER_UNIT, "other: true\n")
    assert do(wanted, running()) == (WriteConfig("other: true\n"), Restart(SERVER_UNIT, right))
    soon = Attempts(0, 995.0)
    assert do(wanted, running(), soon) == (WriteConfig("other: true\n"),)
    # Killed between writing and restarting: the digest still tells.
    half = replace(running(), config="other: true\n")
    assert do(wanted, half) == (Restart(SERVER_UNIT, right),)


def test_an_agent_becomes_a_server_one_engine_at_a_time() -> None:
    wanted = Wanted(SERVER, CONFIG, b"{}")
    assert do(wanted, running(AGENT_UNIT)) == (Stop(AGENT_UNIT),)
    leaving = replace(running(AGENT_UNIT), agent=UnitFacts(Unit.DEACTIVATING))
    assert do(wanted, leaving) == ()
    assert do(wanted, replace(leaving, agent=OFF)) == (
        Start(SERVER_UNIT, keeper.digest(SERVER_UNIT, CONFIG)),
    )


def test_who_is_out_stops_and_keeps_no_token() -> None:
    wanted = Wanted(Part(Kind.NONE, "revoked"))
    assert do(wanted, running()) == (RemoveConflist(), Stop(SERVER_UNIT), RemoveConfig())
    assert do(wanted, Machine(OFF, OFF)) == ()
    # The pods go when nobody would start them again.
    assert do(wanted, Machine(OFF, OFF, pods=Unit.ACTIVE)) == (Stop(PODS_SLICE),)


def test_a_replaced_server_sets_its_state_aside_and_joins_anew() -> None:
    anew = Wanted(Part(Kind.SERVER, "taken in anew", join="10.10.0.1", reset=True), CONFIG, b"{}")
    there = replace(running(), has_data=True)
    assert do(anew, there) == (Stop(SERVER_UNIT),)
    assert do(anew, replace(there, server=OFF)) == (SetAside(),)
    assert Start(SERVER_UNIT, keeper.digest(SERVER_UNIT, CONFIG)) in do(
        anew, replace(there, server=OFF, has_data=False)
    )


def test_nobody_changes_the_server_it_joined_through_without_need() -> None:
    assert stay_with(None, ()) is None
    assert stay_with(None, ("10.10.0.1", "10.10.0.2")) == "10.10.0.1"
    assert stay_with("10.10.0.2", ("10.10.0.1", "10.10.0.2")) == "10.10.0.2"
    assert stay_with("10.10.0.9", ("10.10.0.1",)) == "10.10.0.1"
    # Its own state is enough for a server; that no other is known for a moment restarts nothing.
    assert stay_with("10.10.0.9", ()) == "10.10.0.9"


def test_a_server_that_is_in_does_not_restart_because_another_is_gone() -> None:
    server = Decision(Decided.SERVER, "it serves", join=("10.10.0.2",))
    assert part_of(server, "10.10.0.1").join == "10.10.0.2"
    assert part_of(server, "10.10.0.1", inside=True).join == "10.10.0.1"
    assert part_of(server, None, inside=True).join == "10.10.0.2"
    anew = replace(server, reset=True)
    assert part_of(anew, "10.10.0.1", inside=True).join == "10.10.0.2"


def test_servers_take_turns_at_a_restart_and_the_leader_is_the_last() -> None:
    one, two, three, cluster = (bytes([number]) * 16 for number in (1, 2, 3, 0))
    roles = {node: Role(1, cluster, "server", begun=True) for node in (one, two, three)}
    old = Plan(1, cluster, 3, (one, two, three), None)
    said = Entries(roles=roles, plans={one: replace_plan(old, 4), three: old})
    turns = {node: turn_of(said, node, leads=node == one) for node in (one, two, three)}
    assert turns == {one: 2, two: 0, three: 1}
    # A new leader has not said anything yet: it goes with the last all the same.
    assert turn_of(said, three, leads=True) == 1
    assert turn_of(Entries(), one, leads=True) == 0

    wanted = Wanted(SERVER, "other: true\n", b"{}", turn=1)
    due = Restart(SERVER_UNIT, keeper.digest(SERVER_UNIT, "other: true\n"))
    attempts = Attempts()
    for now in (1000.0, 1000.0 + keeper.TURN_SECONDS - 1):
        attempts = attempts.looked(wanted, running(), now)
        # An engine that ends by itself before its turn starts with the new one: it is written.
        assert do(wanted, running(), attempts, now) == (WriteConfig("other: true\n"),)
    assert due in do(wanted, running(), attempts, 1000.0 + keeper.TURN_SECONDS)
    elsewhere = replace(wanted, may=False)
    assert due not in do(elsewhere, running(), attempts, 1000.0 + keeper.TURN_SECONDS)
    settled = replace(running(), applied=due.digest)
    assert attempts.looked(wanted, settled, 2000.0).outdated is None


def replace_plan(plan: Plan, term: int) -> Plan:
    return msgspec.structs.replace(plan, term=term)


def test_only_a_plan_that_does_without_it_takes_a_server_out() -> None:
    own, other, cluster = bytes([1]) * 16, bytes([2]) * 16, bytes(16)
    server = Role(1, cluster, "server", begun=True)

    def removed(role: Role, *servers: bytes, joining: bytes | None = None) -> bool:
        plan = Plan(1, cluster, 4, tuple(sorted(servers)), joining)
        return was_removed(Entries(roles={own: role}, plans={other: plan}), own)

    assert removed(server, other)
    assert not removed(server, own, other)
    assert not removed(server, other, joining=own)
    assert not removed(Role(1, cluster, "agent", begun=False), other)
    assert not was_removed(Entries(roles={own: server}), own)


def test_a_refused_range_takes_the_cni_configuration_away() -> None:
    assert do(Wanted(SERVER, CONFIG, None), running()) == (RemoveConflist(),)
    assert do(Wanted(SERVER, CONFIG, None, conflist_known=False), running()) == ()


def test_a_failing_engine_is_tried_less_and_less_often() -> None:
    wanted = Wanted(SERVER, CONFIG, b"{}")
    failed = replace(running(), server=UnitFacts(Unit.FAILED, "exit-code"))
    attempts, now, starts = Attempts(), 0.0, []
    for _ in range(300):
        if any(isinstance(one, Start) for one in do(wanted, failed, attempts, now)):
            starts.append(now)
            attempts = attempts.again(now)
        now += 1.0
    gaps = [after - before for before, after in itertools.pairwise(starts)]
    assert gaps[:4] == list(keeper.PAUSES[:4])
    assert set(gaps[4:]) == {keeper.PAUSES[-1]}
    problem = keeper.engine_problem(wanted, failed, attempts)
    assert problem is not None
    assert problem.code == "engine-failing"
    assert "journalctl -u skerry-engine-server" in problem.hint


def test_what_systemd_tries_again_is_left_to_it() -> None:
    wanted = Wanted(SERVER, CONFIG, b"{}")
    retrying = replace(running(), server=UnitFacts(Unit.RETRYING, "exit-code", 7))
    assert do(wanted, retrying) == ()
    assert keeper.engine_problem(wanted, retrying, Attempts(1)) is not None


@pytest.mark.parametrize("part", [SERVER, AGENT])
def test_an_image_without_kubernetes_says_so(part: Part) -> None:
    missing = UnitFacts(Unit.MISSING)
    machine = Machine(missing, missing)
    wanted = Wanted(part, CONFIG, b"{}")
    assert do(wanted, machine) == (WriteConflist(b"{}"),)
    problem = keeper.engine_problem(wanted, machine, Attempts())
    assert problem is not None
    assert problem.code == "engine-missing"


def test_nothing_that_is_shown_holds_the_token() -> None:
    wanted = Wanted(SERVER, CONFIG, b"{}")
    shown = repr((wanted, running(), WriteConfig(CONFIG), do(wanted, Machine(OFF, OFF))))
    assert "secret" not in shown
