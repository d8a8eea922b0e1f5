"""ADD, DEL and GC on a machine whose supervisor is killed between any two actions."""

from __future__ import annotations

import copy
import ipaddress
import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.cluster.conflist import PodNetwork, conflist_text
from appliance.cni import ipam, plan, steps
from appliance.cni.errors import CniError
from appliance.cni.ipam import PodRange
from appliance.cni.journal import Entry, JournalError, Phase, dump, load
from appliance.cni.plan import Forget, Write
from appliance.cni.spec import Attachment, read_request
from provisioning import codec
from tests.unit.cni_world import BOOT, RANGES, KilledError, World

POD, OTHER = Attachment("skerry", "aa11", "eth0"), Attachment("skerry", "bb22", "eth0")
ELSEWHERE = Attachment("dbnet", "aa11", "net1")
NETNS = "/run/netns/a"


def world() -> World:
    """A machine with one running pod beside the one that the test is about."""
    machine = World(namespaces={NETNS, "/run/netns/b", "/run/netns/c"})
    machine.add(OTHER, "/run/netns/b")
    return machine


def test_an_add_gives_the_container_all_it_needs() -> None:
    machine = world()
    entry = machine.add(POD, NETNS)
    inside = machine.inside[NETNS, "eth0"]
    assert inside.addresses == {"10.42.1.3/32", "fd42::3/128"}
    assert inside.routes == {
        ("10.42.1.1/32", ""),
        ("0.0.0.0/0", "10.42.1.1"),
        ("fd42::1/128", ""),
        ("::/0", "fd42::1"),
    }
    assert machine.bridges == {"skbr0": {"10.42.1.1/29", "fd42::1/64"}}
    assert machine.hosts[steps.host_name(POD)] == "skbr0"
    assert {"10.42.1.3", "fd42::3"} <= machine.held
    recorded = machine.entry(POD)
    assert recorded is not None
    assert (recorded.phase, recorded.begun) == (Phase.ADDED, len(entry.steps))


def test_each_step_is_written_down_before_it_is_done() -> None:
    machine = world()
    actions = plan.add(machine.wanted(POD, NETNS), None, machine.snapshot(), machine.state)
    begun = 0
    for before, action in itertools.pairwise(actions):
        if not isinstance(action, Write):
            assert isinstance(before, Write)
            begun += 1
            assert before.entry.begun == begun
            assert before.entry.steps[begun - 1] == action
            assert before.entry.phase is Phase.ADDING
    assert begun == 7
    # Nothing half made can send: the port opens after the addresses, routes and gate.
    kinds = [type(one) for one in actions]
    assert kinds.index(steps.Port) > max(
        kinds.index(one) for one in (steps.Addresses, steps.Routes, steps.Gate)
    )


def test_without_a_gate_there_is_none_and_only_the_routes_that_are_asked_for() -> None:
    bare = plan.Network("skbr0", 1380, RANGES[:1], ("10.0.0.0/8", "fd00::/8"))
    _, lease = ipam.allocate(ipam.empty(BOOT), bare.ranges, POD)
    entry = plan.entry_for(bare, POD, NETNS, lease)
    assert steps.Gate not in {type(one) for one in entry.steps}
    routes = (("10.42.1.1/32", ""), ("10.0.0.0/8", "10.42.1.1"))
    assert steps.Routes(NETNS, "eth0", routes) in entry.steps


def test_a_del_leaves_nothing_and_may_come_again() -> None:
    machine = world()
    clean = copy.deepcopy(machine.traces())
    machine.add(POD, NETNS)
    assert machine.traces() != clean
    for _ in range(3):
        machine.delete(POD)
        assert machine.traces() == clean


def test_a_del_without_namespace_or_record_leaves_nothing_either() -> None:
    machine = world()
    clean = copy.deepcopy(machine.traces())
    machine.add(POD, NETNS)
    machine.end_namespace(NETNS)
    machine.delete(POD)
    assert machine.traces() == clean
    machine.namespaces.add(NETNS)
    machine.add(POD, NETNS)
    del machine.records[POD]
    machine.delete(POD)
    assert machine.traces() == clean


def test_addresses_are_given_back_last() -> None:
    machine = world()
    machine.add(POD, NETNS)
    for entry in (machine.entry(POD), None):
        actions = plan.delete(POD, entry, machine.state.find(POD))
        assert isinstance(actions[0], Write)
        assert actions[0].entry.phase is Phase.REMOVING
        assert actions[-2:] == (steps.Release(POD), Forget(POD))


def lengths() -> tuple[int, int]:
    machine = world()
    entry = machine.wanted(POD, NETNS)
    adding = len(plan.add(entry, None, machine.snapshot(), machine.state))
    machine.add(POD, NETNS)
    return adding, len(plan.delete(POD, machine.entry(POD), None))


ADDING, REMOVING = lengths()


def test_there_is_a_kill_for_every_step() -> None:
    assert (ADDING, REMOVING) == (15, 6)


@pytest.mark.parametrize("killed", range(ADDING))
def test_a_killed_add_leaves_nothing_and_can_be_repeated(killed: int) -> None:
    machine = world()
    clean = copy.deepcopy(machine.traces())
    machine.fuse = killed
    with pytest.raises(KilledError):
        machine.add(POD, NETNS)
    machine.start()
    assert machine.traces() == clean
    assert machine.entries()[0].attachment == OTHER
    machine.delete(POD)
    assert machine.traces() == clean
    machine.add(POD, NETNS)
    assert machine.hosts[steps.host_name(POD)] == "skbr0"
    assert machine.state.find(POD) is not None


@pytest.mark.parametrize("killed", range(ADDING))
def test_a_del_instead_of_a_restart_takes_a_failed_add_back(killed: int) -> None:
    machine = world()
    clean = copy.deepcopy(machine.traces())
    machine.fuse = killed
    with pytest.raises(KilledError):
        machine.add(POD, NETNS)
    machine.fuse = None
    machine.delete(POD)
    assert machine.traces() == clean


@pytest.mark.parametrize("killed", range(REMOVING))
def test_a_killed_del_is_finished(killed: int) -> None:
    machine = world()
    clean = copy.deepcopy(machine.traces())
    machine.add(POD, NETNS)
    whole = copy.deepcopy(machine.traces())
    machine.fuse = killed
    with pytest.raises(KilledError):
        machine.delete(POD)
    machine.start()
    # Killed before the first record, it never was.
    assert machine.traces() == (clean if killed else whole)
    machine.delete(POD)
    assert machine.traces() == clean


@pytest.mark.parametrize("killed", range(0, ADDING, 3))
def test_a_reconciliation_may_be_killed_as_well(killed: int) -> None:
    for second in range(8):
        machine = world()
        clean = copy.deepcopy(machine.traces())
        machine.fuse = killed
        with pytest.raises(KilledError):
            machine.add(POD, NETNS)
        machine.state = ipam.load(machine.lease_record)
        machine.fuse = second
        try:
            machine.reconcile()
        except KilledError:
            machine.start()
        assert machine.traces() == clean


@pytest.mark.parametrize("killed", range(ADDING + REMOVING))
def test_an_add_over_another_one_that_is_killed(killed: int) -> None:
    machine = world()
    clean = copy.deepcopy(machine.traces())
    machine.add(POD, NETNS)
    before = machine.state.find(POD)
    machine.fuse = killed
    try:
        machine.add(POD, "/run/netns/c")
        assert machine.state.find(POD) == before
        assert list(machine.inside) == [("/run/netns/b", "eth0"), ("/run/netns/c", "eth0")]
    except KilledError:
        machine.start()
    machine.fuse = None
    machine.delete(POD)
    assert machine.traces() == clean


def test_a_repeated_add_does_nothing_or_what_is_missing() -> None:
    machine = world()
    machine.add(POD, NETNS)
    whole = copy.deepcopy(machine.traces())
    entry = machine.wanted(POD, NETNS)
    snapshot = machine.snapshot()
    assert plan.add(entry, machine.entry(POD), snapshot, machine.state) == ()
    machine.hosts[steps.host_name(POD)] = ""
    machine.add(POD, NETNS)
    assert machine.traces() == whole
    machine.end_namespace(NETNS)
    machine.namespaces.add(NETNS)
    machine.add(POD, NETNS)
    assert machine.traces() == whole


def test_what_a_whole_one_lacks_on_the_node_is_put_right() -> None:
    machine = world()
    machine.add(POD, NETNS)
    whole = copy.deepcopy(machine.traces())
    machine.bridges.clear()
    machine.hosts = dict.fromkeys(machine.hosts, "")
    machine.lease_record = ipam.dump(ipam.empty(BOOT))
    machine.start()
    assert machine.traces()[:4] == whole[:4]
    assert machine.bridges == {"skbr0": {"10.42.1.1/29", "fd42::1/64"}}
    # The lost record of leases does not let a running pod's address go to another.
    third = machine.add(Attachment("skerry", "cc33", "eth0"), "/run/netns/c")
    assert third.steps[4] == steps.Addresses(
        "/run/netns/c", "eth0", ("10.42.1.4/32", "fd42::4/128")
    )


def test_what_the_container_did_to_itself_stays() -> None:
    machine = world()
    machine.add(POD, NETNS)
    machine.inside[NETNS, "eth0"].routes.clear()
    machine.start()
    assert machine.inside[NETNS, "eth0"].routes == set()
    machine.inside.pop((NETNS, "eth0"))
    machine.hosts.pop(steps.host_name(POD))
    machine.start()
    assert POD in machine.records


def test_a_pod_whose_namespace_is_gone_is_removed_and_a_busy_one_left_alone() -> None:
    machine = world()
    clean = copy.deepcopy(machine.traces())
    machine.add(POD, NETNS)
    machine.end_namespace(NETNS)
    entries, snapshot = machine.entries(), machine.snapshot()
    assert plan.reconcile(entries, snapshot, machine.state, busy={POD}) == ()
    machine.start()
    assert machine.traces() == clean


def test_what_nobody_recorded_goes_unless_a_record_could_not_be_read() -> None:
    machine = world()
    clean = copy.deepcopy(machine.traces())
    machine.add(POD, NETNS)
    machine.hosts["skpfoo"] = "br-of-somebody"
    del machine.records[POD]
    left = plan.reconcile(machine.entries(), machine.snapshot(), machine.state, complete=False)
    assert left == ()
    machine.held.add("10.42.1.6")
    machine.start()
    assert machine.hosts.pop("skpfoo") == "br-of-somebody"
    assert machine.traces() == clean


def test_without_any_record_the_kernel_alone_tells_what_goes() -> None:
    machine = world()
    clean = copy.deepcopy(machine.traces())
    machine.add(POD, NETNS)
    del machine.records[POD]
    machine.state = ipam.release(machine.state, POD)
    machine.lease_record = ipam.dump(machine.state)
    machine.start()
    assert machine.traces() == clean


def test_a_gc_keeps_the_valid_the_busy_and_other_networks() -> None:
    machine = world()
    machine.add(POD, NETNS)
    machine.add(ELSEWHERE, NETNS)
    whole = copy.deepcopy(machine.traces())
    machine.gc({POD, OTHER})
    machine.gc({POD}, busy={OTHER})
    assert machine.traces() == whole
    machine.gc({POD})
    assert sorted(machine.records) == [ELSEWHERE, POD]
    del machine.records[POD]
    machine.gc(set())
    assert [one.attachment for one in machine.state.leases] == [ELSEWHERE]
    assert list(machine.hosts) == [steps.host_name(ELSEWHERE)]


POD_NUMBERS = st.integers(0, 5)
MOVES = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["add", "delete", "end", "lose"]), POD_NUMBERS),
        st.tuples(st.just("gc"), st.just(0)),
        st.tuples(st.just("kill"), st.integers(0, 25)),
    ),
    max_size=25,
)


@given(MOVES)
@settings(max_examples=30)
def test_any_sequence_ends_without_a_trace(moves: list[tuple[str, int]]) -> None:
    machine = World()
    pods = [Attachment("skerry", f"pod{number}", "eth0") for number in range(6)]
    for what, number in moves:
        netns = f"/run/netns/{number}"
        try:
            match what:
                case "add":
                    machine.namespaces.add(netns)
                    machine.add(pods[number], netns)
                case "delete":
                    machine.delete(pods[number])
                case "end":
                    machine.end_namespace(netns)
                case "lose":
                    machine.lease_record = ipam.dump(ipam.empty(BOOT))
                case "gc":
                    machine.gc(pods[:3])
                case _:
                    machine.fuse = number
        except KilledError:
            machine.start()
        except CniError:
            # Five addresses for six pods.
            assert len(machine.state.leases) == 5
        packed = [one for lease in machine.state.leases for one in lease.packed]
        assert len(set(packed)) == len(packed)
        inside = [one for link in machine.inside.values() for one in link.addresses]
        assert len(set(inside)) == len(inside)
    machine.start()
    machine.gc(())
    assert machine.traces() == ({}, {}, set(), [], (), ())


def test_our_own_configuration_is_taken_and_gives_the_same_network() -> None:
    networks = ("10.42.7.0/24", "fd42:0:0:af4:700::/80")
    given = PodNetwork(
        ranges=tuple(map(ipaddress.ip_network, networks)), mtu=1380, routes=(), direct=()
    )
    written = json.loads(conflist_text(given))
    config = written["plugins"][0] | {
        "name": written["name"],
        "cniVersion": written["cniVersions"][-1],
    }
    env = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "aa11",
        "CNI_IFNAME": "eth0",
        "CNI_NETNS": NETNS,
    }
    request = read_request(json.dumps({"env": env, "stdin": json.dumps(config)}).encode())
    ranges = tuple(map(PodRange.of, networks))
    assert [one.gateway for one in ranges] == [
        ipaddress.ip_address(one["gateway"]) for one in config["ranges"]
    ]
    assert request.attachment is not None
    _, lease = ipam.allocate(ipam.empty(BOOT), ranges, request.attachment)
    network = plan.Network(given.bridge, given.mtu, ranges)
    entry = plan.entry_for(network, request.attachment, request.netns, lease)
    gateways = ("10.42.7.1/24", "fd42::af4:700:0:0:1/80")
    assert entry.steps[1] == steps.Bridge("skerry-pods", 1380, "0a:73:0a:2a:07:01", gateways)


def test_names_fit_and_differ() -> None:
    names = {
        steps.host_name(Attachment(network, container, ifname))
        for network in ("a", "ab")
        for container in ("bc", "c" * 64)
        for ifname in ("eth0", "net1")
    }
    assert len(names) == 8
    assert all(len(name) == 15 and steps.is_host_name(name) for name in names)
    assert not any(map(steps.is_host_name, ("skp", "skpabc", "eth0", "skp" + "0" * 12)))


def test_records_come_back_and_those_of_another_boot_count_for_nothing() -> None:
    machine = world()
    machine.add(POD, NETNS)
    entry = machine.entry(POD)
    assert entry is not None
    gone = plan.delete(POD, None, machine.state.find(POD))[0]
    assert isinstance(gone, Write)
    for one in (entry, gone.entry):
        data = dump(one, BOOT)
        assert load(data, BOOT) == one
        assert load(data, "boot-2") is None
        for cut in range(len(data)):
            with pytest.raises(JournalError):
                load(data[:cut], BOOT)


@pytest.mark.parametrize(("form", "begun"), [(2, 0), (1, -1), (1, 2)])
def test_no_records(form: int, begun: int) -> None:
    entry = Entry(POD, NETNS, Phase.ADDING, (steps.Reserve(POD),), begun)
    with pytest.raises(JournalError):
        load(codec.encode((form, BOOT, entry)), BOOT)


@given(st.binary(max_size=200))
def test_any_record(data: bytes) -> None:
    with pytest.raises(JournalError):
        load(data, BOOT)
