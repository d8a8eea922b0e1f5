"""What a CNI server meets that is not a well-behaved runtime on a healthy machine."""

from __future__ import annotations

import json
import os
import secrets
import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from appliance.cni import namespaces
from tests.netns.cni import CniLab, CniNode, Said, ask
from tests.netns.lab import run, wait_until

pytestmark = pytest.mark.netns

NOBODY = 65534
GATES = {4: ("pending_v4", "10.244.7.1"), 6: ("pending_v6", "fd42::af4:700:0:0:1")}


def socket_of(node: CniNode) -> Path:
    return node.run_dir / "cni.sock"


def sent(node: CniNode, data: bytes, *, shut: bool = False) -> bytes:
    """Return what comes back for some bytes; nothing if the connection is closed."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(15)
        connection.connect(str(socket_of(node)))
        # Who is turned away may find the door shut before a word is said.
        with suppress(BrokenPipeError):
            connection.sendall(data)
        if shut:
            connection.shutdown(socket.SHUT_WR)
        found = b""
        while part := connection.recv(65536):
            found += part
        return found


def fill(file: Path) -> None:
    with suppress(OSError), file.open("wb", buffering=0) as opened:
        while opened.write(bytes(4096)):
            pass
    assert file.stat().st_size > 8192


def test_only_root_may_call(node: CniNode) -> None:
    for path, mode in ((node.run_dir, 0o700), (socket_of(node), 0o600)):
        assert path.stat().st_mode & 0o777 == mode
    # Even where the file system would let somebody in.
    opened = (node.folder, node.run_dir, socket_of(node))
    try:
        for path in opened:
            path.chmod(0o777)
        os.seteuid(NOBODY)
        try:
            assert sent(node, b"") == b""
        finally:
            os.seteuid(0)
        assert f"of user {NOBODY} may not make CNI calls" in node.log.read_text()
    finally:
        for path, mode in zip(opened, (0o700, 0o700, 0o600), strict=True):
            path.chmod(mode)


def test_garbage_is_answered_or_dropped_and_harms_nobody(node: CniNode) -> None:
    framed = struct.pack(">I", 300) + secrets.token_bytes(300)
    for data, code in (
        (framed, 6),
        (struct.pack(">I", 2) + b"{}", 6),
        (struct.pack(">I", 0), 6),
        (struct.pack(">I", 1 << 30), 5),
        (b"GET / HTTP/1.1\r\n\r\n", 5),
        (secrets.token_bytes(3), None),
        (framed[:100], None),
        (b"", None),
    ):
        said = sent(node, data, shut=code is None)
        if code is None:
            assert said == b""
        else:
            assert json.loads(said[5:])["code"] == code
    assert node.call("STATUS").status == 0


def test_descriptors_that_are_sent_along_are_closed_again(node: CniNode) -> None:
    assert node.process is not None
    pids = run("ip", "netns", "pids", node.namespace).split()
    folder = Path(f"/proc/{pids[0]}/fd")
    assert node.call("STATUS").status == 0
    before = len(list(folder.iterdir())) + 1  # Who calls is gone before its connection is.
    with Path(os.devnull).open() as file:
        for _ in range(20):
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(socket_of(node)))
                body = struct.pack(">I", 2) + b"{}"
                socket.send_fds(connection, [body], [file.fileno()] * 20)
                assert connection.recv(1024)
    # Nor can one be a container's namespace that is none.
    pod = node.lab.pod()
    asked = {"env": node.environment("ADD", pod), "stdin": '{"cniVersion":"1.1.0","name":"x"}'}
    body = json.dumps(asked).encode()
    with socket.socket(socket.AF_UNIX) as connection, Path("/proc/self/ns/uts").open() as file:
        connection.connect(str(socket_of(node)))
        socket.send_fds(connection, [struct.pack(">I", len(body)) + body], [file.fileno()])
        assert json.loads(connection.recv(4096)[5:])["code"] == 4
    assert node.call("STATUS").status == 0
    wait_until(lambda: len(list(folder.iterdir())) <= before, 10, "all are closed")


def test_many_at_a_time_all_get_their_own(node: CniNode) -> None:
    pods = [node.lab.pod() for _ in range(16)]
    with ThreadPoolExecutor(16) as callers:
        said = list(callers.map(lambda pod: node.call("ADD", pod), pods))
        addresses = [one for each in said for one in each.addresses]
        assert len(set(addresses)) == 32
        # Two of the same container, and of others, in both directions.
        both = list(callers.map(lambda pod: node.call("DEL", pod), [*pods, *pods]))
        assert {one.status for one in both} == {0}


def test_one_container_is_worked_on_by_one_call_at_a_time(node: CniNode) -> None:
    pod = node.lab.pod()
    found: list[Said] = []
    calls = [
        threading.Thread(target=lambda verb=verb: found.append(node.call(verb, pod)))
        for verb in ("ADD", "DEL", "ADD", "DEL", "ADD")
    ]
    for one in calls:
        one.start()
    for one in calls:
        one.join()
    assert {one.status for one in found} == {0}
    assert node.call("DEL", pod).status == 0


def test_a_full_disk_refuses_an_add_and_lets_a_del_through(cni_lab: CniLab) -> None:
    node = cni_lab.node(start=False)
    pods = json.loads((node.run_dir / "pods.json").read_text())
    run("mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", str(node.run_dir))
    try:
        node.offer(**pods)
        node.start()
        kept, other = cni_lab.pod(), cni_lab.pod()
        assert node.call("ADD", kept).status == 0
        before = node.traces()
        filler = node.run_dir / "filler"
        fill(filler)
        said = node.call("ADD", other)
        assert said.code == 5
        assert "No space left" in said.answer["msg"]
        assert node.traces() == before
        assert kept.reaches("10.244.7.1")
        # It can't write the addresses down as free, so it says so; but the link goes.
        assert node.call("DEL", kept).code == 5
        assert kept.is_cut_off("10.244.7.1")
        filler.unlink()
        assert node.call("DEL", kept).status == 0
        found = node.traces()
        assert not any(found[one] for one in ("links", "neighbours", "records", "leases"))
        assert node.call("ADD", other).status == 0
    finally:
        node.close()
        run("umount", str(node.run_dir))
        node.close()


def test_a_new_pod_waits_at_the_gate_until_its_policies_are_there(cni_lab: CniLab) -> None:
    node = cni_lab.node(gate=True)
    one, two = cni_lab.pod(), cni_lab.pod()
    addresses = [node.call("ADD", pod).addresses for pod in (one, two)]
    for family, (name, gateway) in GATES.items():
        # To the node itself, kubelet say, there is a way; to nobody else.
        assert one.reaches(gateway)
        mine, other = (each[0 if family == 4 else 1] for each in addresses)
        assert one.is_cut_off(other)
        node.nft("delete", "element", "inet", "skerry-pods", name, f"{{ {mine} }}")
        assert one.is_cut_off(other)
        node.nft("delete", "element", "inet", "skerry-pods", name, f"{{ {other} }}")
        assert one.reaches(other)
        assert two.reaches(mine)
    # Who was let through is not stopped again; who comes new is.
    node.end()
    node.start()
    assert one.reaches(addresses[1][0])
    third = cni_lab.pod()
    (address, _) = node.call("ADD", third).addresses
    assert one.is_cut_off(address)
    for pod in (one, two, third):
        assert node.call("DEL", pod).status == 0
    assert "elements" not in node.nft("list", "table", "inet", "skerry-pods")


@pytest.mark.parametrize("filtered", ["0", "1"])
def test_pods_of_a_node_reach_each_other_only_past_its_filter(
    cni_lab: CniLab, filtered: str
) -> None:
    node = cni_lab.node()
    setting = "/proc/sys/net/bridge/bridge-nf-call-iptables"
    run(*node.command("sh", "-c", f"echo {filtered} > {setting}"))
    one, two = cni_lab.pod(), cni_lab.pod()
    (_, (other, _)) = (node.call("ADD", pod).addresses for pod in (one, two))
    ports = json.loads(node.ip("-d", "-j", "link", "show", "type", "veth"))
    isolated = {port["linkinfo"]["info_slave_data"]["isolated"] for port in ports}
    assert isolated == {filtered == "0"}
    # A Service, to another pod of this node and to itself.
    service = "10.96.0.10"
    node.nft(
        "table ip service {\nchain to {\ntype nat hook prerouting priority dstnat\n"
        f"ip daddr {service} tcp dport 80 dnat to {other}:80\n}}\n}}"
    )
    with two.mirror(80):
        assert one.ask(other, 80)
        assert one.ask(service, 80)
        node.nft(
            "table inet blocked {\nchain f {\ntype filter hook forward priority 0\n"
            f"ip daddr {other} tcp dport 80 drop\n}}\n}}"
        )
        assert one.is_refused(other, 80)
        assert one.is_refused(service, 80)
        # Nor by pretending that the other one is a neighbour.
        run("ip", "-n", one.namespace, "route", "add", f"{other}/32", "dev", "eth0")
        mac = json.loads(run("ip", "-n", two.namespace, "-j", "link", "show", "eth0"))
        words = ("lladdr", mac[0]["address"], "dev", "eth0", "nud", "permanent")
        run("ip", "-n", one.namespace, "neigh", "add", other, *words)
        assert one.is_refused(other, 80)
    node.close()


def test_a_pod_cannot_pass_for_another(cni_lab: CniLab) -> None:
    node = cni_lab.node()
    thief, victim, third = cni_lab.pod(), cni_lab.pod(), cni_lab.pod()
    ((_, _), (address, address6), _) = (
        node.call("ADD", pod).addresses for pod in (thief, victim, third)
    )
    known = node.neighbours()
    assert known[address] == known[address6]
    assert len(set(known.values())) == 3
    # "I have its address", and frames as if they were its own.
    mine = bytes.fromhex("0a730af40702")
    theirs = bytes.fromhex(known[address].replace(":", ""))
    everybody, gateway = b"\xff" * 6, socket.inet_aton("10.244.7.1")
    arp = struct.pack(">HHBBH", 1, 0x0800, 6, 4, 2)
    claim = arp + mine + socket.inet_aton(address) + everybody + gateway
    frames = [
        everybody + mine + b"\x08\x06" + claim,
        everybody + theirs + b"\x08\x06" + arp + theirs + gateway + theirs + gateway,
    ]
    opened = namespaces.open_namespace(thief.path)
    try:
        namespaces.inside(opened, lambda: send_frames(frames))
    finally:
        os.close(opened)
    assert node.neighbours() == known
    with victim.mirror(80):
        for one in (address, address6):
            assert third.ask(one, 80)
            assert ask(node.command(), one, 80)
    node.close()


def send_frames(frames: list[bytes]) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind(("eth0", 0))
        for _ in range(3):
            for frame in frames:
                wire.send(frame)


def setting(node: CniNode, path: str) -> str:
    return run(*node.command("cat", f"/proc/sys/net/{path}")).strip()


def test_a_node_that_forwards_keeps_the_addresses_that_routers_gave_it(cni_lab: CniLab) -> None:
    node = cni_lab.node(start=False)
    node.ip("link", "add", "up0", "type", "veth", "peer", "name", "up1")
    run(*node.command("sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/up1/accept_ra"))
    node.start()
    assert [setting(node, f"ipv6/conf/{one}/accept_ra") for one in ("up0", "up1")] == ["2", "0"]
    assert setting(node, "ipv6/conf/all/forwarding") == "1"
    assert setting(node, "ipv4/ip_forward") == "1"
    # Pods are told no ways by anybody, and tell none.
    for path in ("ipv6/conf/skerry-pods/accept_ra", "ipv4/conf/skerry-pods/send_redirects"):
        assert setting(node, path) == "0"
    node.close()


def test_what_somebody_took_away_comes_back(cni_lab: CniLab) -> None:
    node = cni_lab.node()
    one, two = cni_lab.pod(), cni_lab.pod()
    ((other, other6), _) = (node.call("ADD", pod).addresses for pod in (two, one))
    node.ip("link", "del", "skerry-pods")
    node.nft("flush", "ruleset")
    assert one.is_cut_off(other)
    # The next container brings back what all share; the next look the rest.
    third = cni_lab.pod()
    assert node.call("ADD", third).status == 0
    assert "masquerade" in node.nft("list", "table", "inet", "skerry-pods")
    node.end()
    node.start()
    for address in (other, other6):
        assert one.reaches(address)
        assert third.reaches(address)
    node.close()


def test_somebody_elses_interface_under_the_bridges_name_is_left_alone(cni_lab: CniLab) -> None:
    node = cni_lab.node(start=False)
    node.ip("link", "add", "skerry-pods", "type", "veth", "peer", "name", "other")
    node.start()
    said = node.call("ADD", cni_lab.pod())
    assert said.code == 102
    assert "of kind veth" in said.answer["msg"]
    node.ip("link", "del", "skerry-pods")
    pod = cni_lab.pod()
    assert node.call("ADD", pod).status == 0
    assert pod.reaches("10.244.7.1")
    node.close()
