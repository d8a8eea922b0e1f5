"""x86-64: what an immutable node and an overlay promise, on the same two machines.

The tests do not depend on each other's order: each that disturbs a node waits until it is back.
Only the last one ends the pair: one is revoked, and a third that waited for a token comes.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from image.artifacts import Artifacts
from image.tools import ToolsRoot
from qemu import demo, lab
from qemu.errors import LabError
from qemu.machine import Machine
from qemu.watch import peers_up
from tests.vm.conftest import (
    BOOT_SECONDS,
    MachineFactory,
    node_spec,
    overlay_ipv4,
    wait_ready,
)
from tests.vm.remote import OperatorMachine, operator_machine

CAP_NET_ADMIN, CAP_NET_RAW = 1 << 12, 1 << 13


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the operator has: the network's directory."""
    return tmp_path_factory.mktemp("operator")


@pytest.fixture(scope="module")
def guests(
    start_machine: MachineFactory, x86_image: Artifacts, lan: Path, folder: Path
) -> dict[str, Machine]:
    """Two nodes that are ready, and a third machine without a token that boots meanwhile."""
    token = lab.make_tokens(1, folder)[0]
    machines = {
        name: start_machine(node_spec(name, x86_image, lan, token)) for name in ("node1", "node2")
    }
    wait_ready(list(machines.values()), peers=1)
    machines["node3"] = start_machine(node_spec("node3", x86_image, lan, None))
    return machines


@pytest.fixture(scope="module")
def nodes(guests: dict[str, Machine]) -> tuple[Machine, Machine]:
    return guests["node1"], guests["node2"]


@pytest.fixture(params=[0, 1], ids=["node1", "node2"])
def node(nodes: tuple[Machine, Machine], request: pytest.FixtureRequest) -> Machine:
    return nodes[request.param]


@pytest.fixture
def node1(nodes: tuple[Machine, Machine]) -> Machine:
    return nodes[0]


def supervisor_pid(machine: Machine) -> int:
    shown = machine.run(["systemctl", "show", "-P", "MainPID", "skerry.service"]).check()
    return int(shown.stdout)


def test_each_is_ready_with_the_other_as_a_peer(node: Machine, nodes: tuple[Machine, ...]) -> None:
    other = nodes[1] if node is nodes[0] else nodes[0]
    status = demo.node_status(node)
    assert status["state"] == "ready"
    assert status["release"]["slot"] == "A"
    (peer,) = peers_up(status)
    assert peer["name"] == demo.node_status(other)["name"]
    assert peer["path"] == "lan"
    assert peer["rtt_ms"] > 0
    assert status["overlay"]["mode"] == "kernel"


def test_they_talk_through_the_tunnel(nodes: tuple[Machine, Machine]) -> None:
    here, there = nodes
    address = overlay_ipv4(demo.node_status(there))
    ping = demo.end_ping(demo.begin_ping(here, address, count=3, interval=1), timeout=120)
    assert (ping.sent, ping.received) == (3, 3)
    before = tunnel_bytes(here)
    answer = demo.fetch(here, demo.serve_page(there, address))
    assert (answer.status, answer.size > 0) == (200, True)
    assert "Hello from" in answer.text
    assert tunnel_bytes(here) > before


def tunnel_bytes(machine: Machine) -> int:
    shown = machine.run("cat /sys/class/net/skerry0/statistics/rx_bytes", check=True)
    return int(shown.stdout)


def test_the_table_of_make_run(nodes: tuple[Machine, Machine]) -> None:
    rows = demo.rows({machine.spec.name: demo.node_status(machine) for machine in nodes})
    assert [row[1:3] for row in rows] == [["ready", "A"]] * 2
    assert all(re.fullmatch(r"[\d.]+ ms", row[-1]) for row in rows)


def test_no_unit_failed(node: Machine) -> None:
    running = node.run(["systemctl", "is-system-running", "--wait"], timeout=BOOT_SECONDS)
    failed = node.run(["systemctl", "--failed", "--plain", "--no-legend"]).stdout
    assert (running.stdout.strip(), failed.strip()) == ("running", "")


def test_no_ordering_cycle_and_no_taint(node: Machine) -> None:
    journal = node.run(["journalctl", "--boot", "--no-pager", "--output=cat"], check=True).stdout
    assert "Reached target" in journal
    assert "ordering cycle" not in journal
    assert node.run("cat /proc/sys/kernel/tainted").stdout.strip() == "0"


def test_the_root_is_read_only_and_verified(node1: Machine) -> None:
    root = node1.run(["findmnt", "--json", "-o", "SOURCE,FSTYPE,OPTIONS", "/"], check=True).stdout
    (mount,) = json.loads(root)["filesystems"]
    assert mount["fstype"] == "erofs"
    assert "ro" in mount["options"].split(",")
    script = 'cat "/sys/class/block/$(basename "$(readlink -f "$1")")/dm/name"'
    name = node1.run(["/bin/sh", "-c", script, "sh", mount["source"]], check=True).stdout
    assert name.strip() == "skerry-root"
    table = node1.run(["dmsetup", "table", "skerry-root"], check=True).stdout
    assert " verity 1 " in table
    # "V": every block that was read so far was what the root hash says.
    assert node1.run(["dmsetup", "status", "skerry-root"], check=True).stdout.split()[-1] == "V"


@pytest.mark.parametrize(
    "command",
    [
        "touch /usr/written",
        "touch /written",
        "mount -o remount,rw / && touch /usr/written",
        'dd if=/dev/zero of="$(findmnt -no SOURCE /)" bs=4096 count=1 conv=notrunc',
    ],
)
def test_nothing_writes_to_the_root(node1: Machine, command: str) -> None:
    result = node1.run(command)
    assert result.exit_status != 0
    assert re.search("read-only|write-protected|not permitted", result.stderr, re.IGNORECASE)


def test_the_supervisor_has_a_user_and_two_capabilities(node1: Machine) -> None:
    shown = node1.run(["cat", f"/proc/{supervisor_pid(node1)}/status"], check=True).stdout
    facts = dict(line.split(":", 1) for line in shown.splitlines() if ":" in line)
    user = node1.run(["id", "-u", "skerry"], check=True).stdout.strip()
    assert facts["Uid"].split() == [user] * 4
    assert user != "0"
    assert int(facts["CapEff"], 16) & ~(CAP_NET_ADMIN | CAP_NET_RAW) == 0
    assert int(facts["CapBnd"], 16) & ~(CAP_NET_ADMIN | CAP_NET_RAW) == 0
    assert facts["NoNewPrivs"].strip() == "1"
    assert facts["Seccomp"].strip() == "2"


def test_the_supervisor_is_sandboxed(node1: Machine) -> None:
    shown = node1.run(["systemd-analyze", "--no-pager", "security", "skerry.service"], check=True)
    exposure = re.search(r"Overall exposure level for skerry.service: ([\d.]+)", shown.stdout)
    assert exposure is not None
    assert float(exposure[1]) <= 4.0


def test_the_hardware_watchdog_is_on(node1: Machine) -> None:
    shown = node1.run(["systemctl", "show", "-P", "RuntimeWatchdogUSec"], check=True).stdout
    assert shown.strip() not in ("", "0", "infinity")
    states = node1.run("cat /sys/class/watchdog/*/state", check=True).stdout.split()
    assert "active" in states


def test_a_killed_supervisor_drops_no_packet(nodes: tuple[Machine, Machine]) -> None:
    here, there = nodes
    address = overlay_ipv4(demo.node_status(there))
    ping = demo.begin_ping(here, address, count=100, interval=0.2)
    before = [supervisor_pid(machine) for machine in nodes]
    for machine, pid in zip(nodes, before, strict=True):
        machine.run(f"kill -KILL {pid}", check=True)
    result = demo.end_ping(ping, timeout=300)
    assert (result.sent, result.lost) == (100, [])
    wait_ready(list(nodes), peers=1)
    after = [supervisor_pid(machine) for machine in nodes]
    assert all(pid and pid not in before for pid in after)


LOOK_UP = """
import json, socket, sys, time
begun = time.monotonic()
try:
    if sys.argv[1][0].isdigit():
        found = [socket.getnameinfo((sys.argv[1], 0), socket.NI_NAMEREQD)[0]]
    else:
        answers = socket.getaddrinfo(sys.argv[1], 80, type=socket.SOCK_STREAM)
        found = sorted(one[4][0] for one in answers)
except OSError as error:
    found = [error.strerror]
print(json.dumps([found, time.monotonic() - begun]))
"""


def look_up(machine: Machine, name: str) -> tuple[list[str], float]:
    """Return what a program on the machine finds under a name or address, and in how long."""
    shown = machine.run(["python3", "-c", LOOK_UP, name], check=True, timeout=120)
    found, seconds = json.loads(shown.stdout)
    return found, seconds


def full_name(machine: Machine) -> str:
    return f"{demo.node_status(machine)['name']}.skerry.internal"


@pytest.fixture
def dead_dns(node1: Machine) -> Iterator[Machine]:
    """A node whose uplink's name server, which is to be asked about everything, never answers."""
    node1.run(
        "ip link add dead0 type dummy && ip address add 192.0.2.1/24 dev dead0 && "
        "ip link set dead0 up && resolvectl dns dead0 192.0.2.9 && resolvectl domain dead0 '~.' && "
        "resolvectl default-route dead0 yes && resolvectl flush-caches",
        check=True,
    )
    yield node1
    node1.run("ip link delete dead0", check=True)


def test_members_have_names_while_dns_is_down(
    dead_dns: Machine, nodes: tuple[Machine, Machine]
) -> None:
    there = demo.node_status(nodes[1])
    found, seconds = look_up(dead_dns, f"{there['name']}.skerry.internal")
    assert found == sorted(there["overlay"]["addresses"])
    assert seconds < 5
    # Its own server, and no other, was asked: the other one keeps its askers waiting.
    assert look_up(dead_dns, "nobody.skerry.internal")[1] < 5
    back, seconds = look_up(dead_dns, overlay_ipv4(there))
    assert back == [f"{there['name']}.skerry.internal"]
    assert seconds < 5


def test_names_are_found_without_any_other_server(nodes: tuple[Machine, Machine]) -> None:
    for here, there in (nodes, nodes[::-1]):
        found, _ = look_up(here, full_name(there))
        assert found == sorted(demo.node_status(there)["overlay"]["addresses"])
        own, _ = look_up(here, full_name(here))
        assert own == sorted(demo.node_status(here)["overlay"]["addresses"])


def test_the_machine_is_called_as_the_node(node: Machine) -> None:
    name = demo.node_status(node)["name"]
    node.wait_for(f'[ "$(hostname)" = {name} ]', timeout=60)
    mine, _ = look_up(node, name)
    assert overlay_ipv4(demo.node_status(node)) in mine


@pytest.mark.parametrize(
    "disturb",
    [
        pytest.param("systemctl restart systemd-resolved", marks=pytest.mark.long),
        "systemctl kill --signal=KILL systemd-resolved",
        "ip link delete skerry0",
    ],
)
def test_systemd_resolved_is_told_again(nodes: tuple[Machine, Machine], disturb: str) -> None:
    here, there = nodes
    here.run("rm -f /run/systemd/resolve/netif/*", check=True)  # what it would remember by itself
    here.run(disturb, check=True)
    here.wait_for("resolvectl domain skerry0 | grep -q '~skerry.internal'", timeout=120)
    here.wait_for(f"getent hosts {full_name(there)}", timeout=120)
    wait_ready(list(nodes), peers=1)


def test_the_identity_is_for_the_supervisor_alone(node1: Machine) -> None:
    shown = node1.run("stat -c '%a %U %n' /data/skerry /data/skerry/identity/*", check=True).stdout
    assert shown.splitlines() == [
        "700 skerry /data/skerry",
        "600 skerry /data/skerry/identity/identity.bak",
        "600 skerry /data/skerry/identity/identity.bin",
    ]


def test_a_reboot_keeps_identity_and_address(nodes: tuple[Machine, Machine]) -> None:
    here = nodes[0]
    before = demo.node_status(here)
    here.reboot(timeout=BOOT_SECONDS)
    wait_ready(list(nodes), peers=1)
    after = demo.node_status(here)
    for kept in ("node_id", "name", "network_id"):
        assert after[kept] == before[kept]
    assert after["overlay"]["addresses"] == before["overlay"]["addresses"]


@pytest.fixture(scope="module")
def operator(folder: Path, guests: dict[str, Machine]) -> Iterator[OperatorMachine]:
    with operator_machine(folder, guests) as made:
        yield made


def stick(folder: Path, token: str, tools: ToolsRoot) -> Path:
    """Return a USB stick: FAT, labelled SKERRY, with the token."""
    file, text = folder / "stick.img", folder / "token.txt"
    text.write_text(token + "\n")
    tools.run(["mkfs.vfat", "-C", "-n", "SKERRY", str(file), "4096"], binds=[folder])
    tools.run(["mcopy", "-i", str(file), str(text), "::token.txt"], binds=[folder])
    return file


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


def test_one_is_revoked_and_is_out_and_a_waiting_third_joins_by_a_rotated_token(
    guests: dict[str, Machine], operator: OperatorMachine, tools: ToolsRoot, tmp_path: Path
) -> None:
    stays, goes, waiting = guests.values()
    waiting.serial.wait_for("[Ww]aiting for a token", timeout=BOOT_SECONDS)
    boot = waiting.wait_agent(timeout=BOOT_SECONDS)
    assert demo.node_status(waiting)["state"] == "unprovisioned"

    out = str(demo.node_status(goes)["name"])
    there = overlay_ipv4(demo.node_status(goes))
    put(stays, "before", "hello")
    soon(lambda: value(goes, "before") == "hello", 60, "what one writes the other reads")

    members = operator.skerry("node", "ls", "--via", "ssh://node1")
    assert {one["name"] for one in members["nodes"]} == {
        str(demo.node_status(one)["name"]) for one in (stays, goes)
    }

    operator.skerry("revoke", "node", out, "--reason", "stolen", "--via", "ssh://node1")
    took = soon(lambda: out not in names_up(stays), 60, "the revoked one is no peer any more")
    print(f"revoked and gone from the peer table within {took:.0f} s (TCG)")
    # The kernel's own word for "no peer has this address".
    with pytest.raises(LabError, match="Required key not available"):
        demo.end_ping(demo.begin_ping(stays, there, count=1, interval=1), timeout=120)
    put(stays, "after", "a secret plan")

    rotated = operator.skerry("token", "rotate", "--via", "ssh://node1")
    # It takes a token at any time, without a restart.
    waiting.attach_file_as_disk(stick(tmp_path, str(rotated["token"]), tools))
    wait_ready([waiting], peers=1)
    assert waiting.wait_agent() == boot
    assert waiting.run(["systemctl", "--failed", "--plain", "--no-legend"]).stdout.strip() == ""
    soon(lambda: value(waiting, "after") == "a secret plan", 120, "the third has the ledger")
    assert names_up(waiting) == {str(demo.node_status(stays)["name"])}
    ping = demo.end_ping(
        demo.begin_ping(waiting, overlay_ipv4(demo.node_status(stays)), count=3, interval=1),
        timeout=120,
    )
    assert ping.received == 3

    assert value(goes, "after") == ""
    assert names_up(goes) == set()
    told = demo.node_status(goes)
    assert told["state"] == "degraded"
    assert {reason["code"] for reason in told["reasons"]} & {"revoked", "not-let-in"}
