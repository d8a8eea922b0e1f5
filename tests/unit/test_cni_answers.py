"""Results of ADD, what CHECK finds, and STATUS."""

from __future__ import annotations

import json

import msgspec
import pytest

from appliance.cni import ipam, steps
from appliance.cni.answers import check, check_status, result_of
from appliance.cni.errors import CniError, Code
from appliance.cni.results import Interface, Result, Route, read_result, render_result
from appliance.cni.spec import Attachment
from tests.unit.cni_world import BOOT, RANGES, World

POD, NETNS = Attachment("skerry", "aa11", "eth0"), "/run/netns/a"
HOST = steps.host_name(POD)


def made() -> tuple[World, Result]:
    machine = World(namespaces={NETNS})
    entry = machine.add(POD, NETNS)
    return machine, result_of(entry, machine.snapshot())


def checked(machine: World, result: Result) -> None:
    check(POD, NETNS, result, machine.entry(POD), machine.snapshot(), machine.state)


def found(machine: World, result: Result) -> str:
    with pytest.raises(CniError) as caught:
        checked(machine, result)
    assert caught.value.code is Code.NOT_AS_EXPECTED
    return caught.value.details


def test_a_result_tells_what_was_made() -> None:
    machine, result = made()
    shown = json.loads(render_result(result, "1.1.0"))
    assert [one["name"] for one in shown["interfaces"]] == ["skbr0", HOST, "eth0"]
    assert shown["interfaces"][2]["sandbox"] == NETNS
    assert shown["interfaces"][2]["mtu"] == 1380
    assert shown["interfaces"][2]["mac"] == f"mac in {NETNS}"
    assert shown["ips"] == [
        {"address": "10.42.1.2/32", "gateway": "10.42.1.1", "interface": 2},
        {"address": "fd42::2/128", "gateway": "fd42::1", "interface": 2},
    ]
    assert shown["routes"] == [
        {"dst": "10.42.1.1/32"},
        {"dst": "fd42::1/128"},
        {"dst": "0.0.0.0/0", "gw": "10.42.1.1"},
        {"dst": "::/0", "gw": "fd42::1"},
    ]
    # A repeated ADD tells the same.
    assert result_of(machine.add(POD, NETNS), machine.snapshot()) == result


@pytest.mark.parametrize("version", ["1.1.0", "1.0.0", "0.4.0"])
def test_what_an_add_told_passes_the_check(version: str) -> None:
    machine, result = made()
    checked(machine, read_result(render_result(result, version)))


def test_an_unknown_container_needs_no_clean_up() -> None:
    machine, result = made()
    machine.delete(POD)
    with pytest.raises(CniError) as caught:
        checked(machine, result)
    assert caught.value.code is Code.UNKNOWN_CONTAINER


def test_every_difference_is_found() -> None:
    machine, result = made()
    inside = machine.inside[NETNS, "eth0"]
    machine.hosts[HOST] = "other"
    assert f"{HOST} is not an open port of skbr0" in found(machine, result)
    machine.rules = False
    assert "packet filter rules" in found(machine, result)
    machine.bridges["skbr0"].discard("fd42::1/64")
    assert "bridge skbr0" in found(machine, result)
    machine.state = ipam.empty(BOOT)
    assert "not reserved" in found(machine, result)
    inside.addresses.discard("fd42::2/128")
    assert "lacks the address fd42::2/128" in found(machine, result)
    inside.routes.discard(("::/0", "fd42::1"))
    assert "lacks the route to ::/0" in found(machine, result)
    inside.up = False
    assert "eth0 is down" in found(machine, result)
    del machine.hosts[HOST]
    del machine.inside[NETNS, "eth0"]
    details = found(machine, result)
    assert f"no eth0 in {NETNS}" in details
    assert f"{HOST} on the node is missing" in details
    # All of them at once.
    assert details.count(";") == 5


def test_what_a_chained_plugin_changed_is_compared_with_what_it_told() -> None:
    machine, result = made()
    inside = machine.inside[NETNS, "eth0"]
    inside.routes.add(("10.9.0.0/16", "10.42.1.1"))
    inside.routes.discard(("::/0", "fd42::1"))
    tuned = msgspec.structs.replace(
        result, routes=(Route("0.0.0.0/0", "10.42.1.1"), Route("10.9.0.0/16"))
    )
    checked(machine, tuned)
    other = [*result.interfaces[:2], Interface("eth0", "02:00:00:00:00:99", 0, NETNS)]
    changed = msgspec.structs.replace(tuned, interfaces=tuple(other))
    assert "hardware address" in found(machine, changed)
    assert "no eth0 in a sandbox" in found(machine, Result())


def test_status_does_not_ask_for_peers() -> None:
    check_status(RANGES, ipam.empty(BOOT), overlay=True)


def test_status_says_what_is_missing() -> None:
    state = ipam.empty(BOOT)
    codes = []
    for number in range(5):
        state, _ = ipam.allocate(state, RANGES, Attachment("skerry", f"p{number}", "eth0"))
    for ranges, leases, overlay in (
        ((), ipam.empty(BOOT), True),
        (RANGES, ipam.empty(BOOT), False),
        (RANGES, state, True),
    ):
        with pytest.raises(CniError) as caught:
            check_status(ranges, leases, overlay=overlay)
        codes.append(caught.value.code)
    assert codes == [Code.UNAVAILABLE, Code.LIMITED, Code.UNAVAILABLE]
