"""x86-64: `make run`'s two nodes; one is revoked and is out, a third comes by a rotated token."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from image.artifacts import Artifacts
from qemu import demo, lab
from qemu.errors import LabError
from qemu.machine import Machine
from qemu.watch import peers_up
from tests.vm.conftest import MachineFactory, node_spec, overlay_ipv4, wait_ready
from tests.vm.remote import OperatorMachine, operator_machine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("operator")


@pytest.fixture(scope="module")
def guests() -> dict[str, Machine]:
    return {}


@pytest.fixture(scope="module")
def nodes(
    start_machine: MachineFactory,
    x86_image: Artifacts,
    lan: Path,
    folder: Path,
    guests: dict[str, Machine],
) -> tuple[Machine, Machine]:
    token = lab.make_tokens(1, folder)[0]
    for name in ("node1", "node2"):
        guests[name] = start_machine(node_spec(name, x86_image, lan, token))
    wait_ready(list(guests.values()), peers=1)
    return guests["node1"], guests["node2"]


@pytest.fixture(scope="module")
def operator(
    folder: Path, nodes: tuple[Machine, Machine], guests: dict[str, Machine]
) -> Iterator[OperatorMachine]:
    assert nodes
    with operator_machine(folder, guests) as made:
        yield made


def soon(condition: Callable[[], bool], seconds: float, what: str) -> float:
    """Wait until a condition holds; return the seconds that took."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() < begun + seconds, f"not within {seconds} s: {what}"
        time.sleep(1)
    return time.monotonic() - begun


def value(machine: Machine, key: str) -> str:
    """Return what a node's ledger has under a key of the bucket shared; empty: nothing."""
    shown = machine.run(["skerry", "ledger", "get", "shared", key])
    return shown.stdout.strip() if shown.exit_status == 0 else ""


def put(machine: Machine, key: str, text: str) -> None:
    machine.run(["skerry", "ledger", "put", "shared", key, text], check=True)


def names_up(machine: Machine) -> set[str]:
    return {str(peer["name"]) for peer in peers_up(demo.node_status(machine))}


def test_one_is_revoked_and_is_out_and_a_third_joins_by_a_rotated_token(
    nodes: tuple[Machine, Machine],
    operator: OperatorMachine,
    guests: dict[str, Machine],
    start_machine: MachineFactory,
    x86_image: Artifacts,
    lan: Path,
) -> None:
    stays, goes = nodes
    out = str(demo.node_status(goes)["name"])
    there = overlay_ipv4(demo.node_status(goes))
    put(stays, "before", "hello")
    soon(lambda: value(goes, "before") == "hello", 60, "what one writes the other reads")

    members = operator.skerry("node", "ls", "--via", "ssh://node1")
    assert {one["name"] for one in members["nodes"]} == {
        str(demo.node_status(one)["name"]) for one in nodes
    }

    operator.skerry("revoke", "node", out, "--reason", "stolen", "--via", "ssh://node1")
    took = soon(lambda: out not in names_up(stays), 60, "the revoked one is no peer any more")
    print(f"revoked and gone from the peer table within {took:.0f} s (TCG)")
    # The kernel's own word for "no peer has this address".
    with pytest.raises(LabError, match="Required key not available"):
        demo.end_ping(demo.begin_ping(stays, there, count=1, interval=1), timeout=120)
    put(stays, "after", "a secret plan")

    rotated = operator.skerry("token", "rotate", "--via", "ssh://node1")
    token = str(rotated["token"]).encode()
    guests["node3"] = third = start_machine(node_spec("node3", x86_image, lan, token))
    wait_ready([third], peers=1)
    soon(lambda: value(third, "after") == "a secret plan", 120, "the third has the ledger")
    assert names_up(third) == {str(demo.node_status(stays)["name"])}
    ping = demo.end_ping(
        demo.begin_ping(third, overlay_ipv4(demo.node_status(stays)), count=3, interval=1),
        timeout=120,
    )
    assert ping.received == 3

    assert value(goes, "after") == ""
    assert names_up(goes) == set()
    told = demo.node_status(goes)
    assert told["state"] == "degraded"
    assert {reason["code"] for reason in told["reasons"]} & {"revoked", "not-let-in"}
