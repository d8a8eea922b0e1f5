"""The operations on a machine that refuses things, and whose supervisor restarts."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import NamedTuple

import pytest

from appliance.cluster.conflist import PodNetwork
from appliance.cni import ipam, steps
from appliance.cni.errors import CniError, Code
from appliance.cni.journal import Entry
from appliance.cni.operations import Operations
from appliance.cni.provider import NoPods, Pods
from appliance.cni.results import Result
from appliance.cni.spec import Attachment, Command, Request
from appliance.cni.store import Store, StoreError
from skerry.errors import SkerryError
from tests.unit.cni_kernel import FakeKernel

POD, OTHER = Attachment("skerry", "aa11", "eth0"), Attachment("skerry", "bb22", "eth0")
NETNS = "/run/netns/a"
NETWORK = PodNetwork(
    ranges=tuple(map(ipaddress.ip_network, ("10.244.7.0/29", "fd42:0:0:af4:700::/80"))), mtu=1380
)


class Traces(NamedTuple):
    """All that there is of attachments."""

    hosts: dict[str, str]
    inside: dict[tuple[str, str], tuple[list[str], list[tuple[str, str]]]]
    held: set[str]
    leases: dict[Attachment, tuple[bytes, ...]]
    entries: dict[Attachment, Entry]


NOTHING = Traces({}, {}, set(), {}, {})


class Machine:
    """A node; `restart` is a new process on the same kernel and files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kernel = FakeKernel()
        self.kernel.world.namespaces |= {NETNS, "/run/netns/b"}
        self.pods: Pods | NoPods = Pods(NETWORK, "overlay0", gate=True)
        self.do = self.restart()

    def restart(self) -> Operations:
        store = Store(self.folder, "boot-1")
        self.do = Operations(self.kernel, store, lambda: self.pods, before=lambda _: None)
        self.do.open()
        self.do.reconcile()
        return self.do

    def traces(self) -> Traces:
        world = self.kernel.world
        state, entries, _ = Store(self.folder, "boot-1").load()
        links = {
            name: (sorted(one.addresses), sorted(one.routes)) for name, one in world.inside.items()
        }
        leases = {one.attachment: one.packed for one in state.leases}
        return Traces(dict(world.hosts), links, set(world.held), leases, entries)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    made.do.add(asked(attachment=OTHER, netns="/run/netns/b"), None)
    return made


def asked(
    command: Command = Command.ADD,
    *,
    attachment: Attachment | None = POD,
    netns: str = NETNS,
    previous: Result | None = None,
    valid: frozenset[Attachment] | None = None,
) -> Request:
    return Request(
        command=command,
        network="skerry",
        attachment=attachment,
        netns=netns,
        previous=previous,
        valid=valid,
    )


def test_an_add_a_check_and_a_del(machine: Machine) -> None:
    clean = machine.traces()
    result = machine.do.add(asked(), None)
    assert [one.address for one in result.ips] == ["10.244.7.3/32", "fd42::af4:700:0:0:3/128"]
    assert {"10.244.7.3", "fd42::af4:700:0:0:3"} <= machine.kernel.world.held
    machine.do.check(asked(Command.CHECK, previous=result), None)
    inside = machine.kernel.world.inside.pop((NETNS, "eth0"))
    with pytest.raises(CniError) as caught:
        machine.do.check(asked(Command.CHECK, previous=result), None)
    assert caught.value.code is Code.NOT_AS_EXPECTED
    machine.kernel.world.inside[NETNS, "eth0"] = inside
    for _ in range(2):
        machine.do.delete(asked(Command.DEL))
    assert machine.traces() == clean


@pytest.mark.parametrize(
    "refused",
    [steps.Bridge, steps.Gate, steps.Veth, steps.Addresses, steps.Routes, steps.Port],
)
def test_an_add_that_the_kernel_refuses_leaves_nothing(
    machine: Machine, refused: type[steps.Step]
) -> None:
    clean = machine.traces()
    machine.kernel.refuses = (refused,)
    with pytest.raises(SkerryError, match="not permitted"):
        machine.do.add(asked(), None)
    assert machine.traces() == clean
    machine.kernel.refuses = ()
    machine.do.add(asked(), None)
    assert POD in machine.traces().entries


@pytest.mark.parametrize("restarted", [False, True])
def test_what_could_not_be_taken_back_is_later_on(machine: Machine, restarted: bool) -> None:
    clean = machine.traces()
    machine.kernel.refuses = (steps.Port, steps.RemoveVeth)
    with pytest.raises(SkerryError, match="a Port"):
        machine.do.add(asked(), None)
    assert machine.traces() != clean
    with pytest.raises(SkerryError, match="a RemoveVeth"):
        machine.do.reconcile()
    machine.kernel.refuses = ()
    if restarted:
        machine.restart()
    else:
        machine.do.reconcile()
    assert machine.traces() == clean


def test_one_that_cannot_be_removed_does_not_hold_up_the_others(machine: Machine) -> None:
    machine.do.add(asked(), None)
    machine.kernel.stuck = steps.host_name(POD)
    with pytest.raises(SkerryError, match="a RemoveVeth"):
        machine.do.collect(asked(Command.GC, attachment=None, valid=frozenset()))
    assert set(machine.traces().entries) == set(machine.traces().leases) == {POD}
    # What all share is put right as well.
    machine.kernel.world.hosts["skp" + "a" * 12] = ""
    with pytest.raises(SkerryError, match="a RemoveVeth"):
        machine.do.reconcile()
    assert list(machine.kernel.world.hosts) == [steps.host_name(POD)]
    machine.kernel.stuck = ""
    machine.do.reconcile()
    assert machine.traces() == NOTHING


def test_a_del_that_fails_is_not_forgotten(machine: Machine) -> None:
    clean = machine.traces()
    machine.do.add(asked(), None)
    machine.kernel.refuses = (steps.Ungate,)
    with pytest.raises(SkerryError, match="a Ungate"):
        machine.do.delete(asked(Command.DEL))
    # The address is not given to another before it is out of the gate.
    assert POD in machine.traces().leases
    machine.kernel.refuses = ()
    machine.restart()
    assert machine.traces() == clean


def test_no_room_for_records_refuses_an_add_and_not_a_del(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = machine.traces()
    machine.do.add(asked(), None)

    def full(*_: object) -> None:
        raise StoreError("no space")

    monkeypatch.setattr(Store, "write", full)
    with pytest.raises(StoreError):
        machine.do.add(asked(attachment=Attachment("skerry", "cc33", "eth0")), None)
    machine.do.delete(asked(Command.DEL))
    monkeypatch.undo()
    assert machine.traces() == clean
    # The address that the refused one was to have is free again.
    for number in range(4):
        name = f"dd{number}"
        machine.kernel.world.namespaces.add(name)
        machine.do.add(asked(attachment=Attachment("skerry", name, "eth0"), netns=name), None)
    with pytest.raises(CniError) as caught:
        machine.do.add(asked(), None)
    assert caught.value.code is Code.NO_ADDRESS


def test_a_restart_keeps_who_runs_and_gives_nobody_the_same(machine: Machine) -> None:
    before = machine.traces()
    machine.restart()
    assert machine.traces() == before
    (machine.folder / "leases").unlink()
    machine.restart()
    result = machine.do.add(asked(), None)
    assert result.ips[0].address == "10.244.7.3/32"


def test_without_a_pod_range_pods_wait_and_those_there_are_can_go(machine: Machine) -> None:
    machine.pods = NoPods("the range is not claimed yet", "wait")
    machine.restart()
    with pytest.raises(CniError, match="not claimed") as caught:
        machine.do.add(asked(), None)
    assert caught.value.code is Code.TRY_AGAIN
    with pytest.raises(CniError) as caught:
        machine.do.status()
    assert (caught.value.code, caught.value.hint) == (Code.UNAVAILABLE, "wait")
    machine.do.delete(asked(Command.DEL, attachment=OTHER))
    assert machine.traces() == NOTHING


def test_status_asks_for_this_nodes_end_of_the_overlay(machine: Machine) -> None:
    with pytest.raises(CniError) as caught:
        machine.do.status()
    assert caught.value.code is Code.LIMITED
    machine.pods = Pods(NETWORK, "")
    machine.do.status()


def test_a_gc_and_one_that_does_not_say_what_is_valid(machine: Machine) -> None:
    clean = machine.traces()
    machine.do.add(asked(), None)
    machine.do.collect(asked(Command.GC, attachment=None))
    assert POD in machine.traces().entries
    machine.do.collect(asked(Command.GC, attachment=None, valid=frozenset({OTHER})))
    assert machine.traces() == clean


def test_after_a_spoilt_record_only_a_gc_removes_what_nobody_knows(machine: Machine) -> None:
    (record,) = (machine.folder / "records").iterdir()
    record.write_bytes(b"spoilt")
    (machine.folder / "leases").write_bytes(ipam.dump(ipam.empty("boot-1")))
    machine.restart()
    assert machine.kernel.world.hosts
    machine.do.collect(asked(Command.GC, attachment=None, valid=frozenset()))
    assert machine.traces() == NOTHING


def test_what_all_pods_share_is_there_before_the_first(machine: Machine) -> None:
    bridge, table = machine.kernel.prepared[0]
    assert bridge.gateways == ("10.244.7.1/29", "fd42::af4:700:0:0:1/80")
    assert "10.244.7.0/29" in table


def test_what_nobody_thought_of_is_taken_back_as_well(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = machine.traces()
    monkeypatch.setattr(machine.kernel, "snapshot_of", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        machine.do.add(asked(), None)
    assert machine.traces() == clean
