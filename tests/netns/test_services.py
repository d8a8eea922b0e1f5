"""Services between real nodes: exposed, reached over the overlay, failing over, spilling over."""

from __future__ import annotations

import ipaddress
import socket
import sys

import pytest

from appliance.names.ranges import HOST
from appliance.services.offers import service_address
from tests.fakes.dns import query, read
from tests.netns.lab import ROOT, Lab, Network, Node, run, wait_until
from tests.netns.ledger import together
from tests.netns.pinger import inside
from tests.netns.services import PORT, Machine, end, machines, token

NAMES = 5335
PROTOCOLS = ("tcp", "udp")
pytestmark = [pytest.mark.netns, pytest.mark.timeout(300)]


def test_services_are_reached_fail_over_and_spill_over() -> None:
    with Lab() as lab:
        network = Network("home")
        one, two, far, outside = lab.crowd(4)
        one.start(token(network))
        two.start(token(network))
        far.start(token(network, cluster="far"))
        outside.start(token(network, "none"))
        together([one, two, far, outside])
        with machines(one, two, far, outside) as (first, second, third, stranger):
            address = str(service_address(network.info.network_id, "who"))
            processes = {}
            for machine, word in ((first, "first"), (second, "second"), (third, "third")):
                processes[word] = machine.serve(word)
                for protocol in PROTOCOLS:
                    probe = ("--probe",) if protocol == "udp" else ()
                    machine.do("expose", "who", "--port", str(PORT), "--protocol", protocol, *probe)
            for machine in (first, stranger):
                machine.do("connect", "who")

            for protocol in PROTOCOLS:
                # A member outside of all clusters has everybody's backends; a cluster its own.
                stranger.until(address, protocol, {"first", "second", "third"}, 60)
                first.until(address, protocol, {"first", "second"}, 60)
            # A backend dies: it is left out.
            end(processes["second"])
            for protocol in PROTOCOLS:
                first.until(address, protocol, {"first"}, 60)
            wait_until(lambda: ("node2", PORT, "no answer") in offers(stranger), 20, "all hear it")
            # The last of the cluster dies: over to the other cluster.
            end(processes["first"])
            for protocol in PROTOCOLS:
                first.until(address, protocol, {"third"}, 60)
            # The daemon is killed: what was set up goes on.
            end(first.daemon)
            assert first.ask(address) == "third"
            # A whole node goes, and nobody is left.
            far.power_off()
            stranger.until(address, "tcp", {"nobody"}, 60)
            first.serve("again")
            first.run_daemon()
            stranger.until(address, "tcp", {"again"}, 60)
            stranger.do("rm", "who")
            stranger.until(address, "tcp", {"nobody"}, 60)


def test_all_services_of_a_cluster_are_reached_and_have_names() -> None:
    """As they come and go; a killed daemon leaves what is there."""
    with Lab() as lab:
        network = Network("home")
        user, far, other = lab.crowd(3)
        user.start(token(network), names_port=NAMES)
        far.start(token(network, "none", "agent", cluster="far"))
        other.start(token(network))
        together([user, far, other])
        with machines(user, far, other) as (client, server, stranger):
            server.serve("far", PORT)
            stranger.serve("stranger", PORT)
            for machine in (server, stranger):
                for protocol in PROTOCOLS:
                    words = ("--port", str(PORT), "--protocol", protocol)
                    machine.do("expose", "who", *words)
            client.do("connect", "--cluster", "far")
            wait_until(lambda: named(user, "who"), 30, "its name is there")
            address = named(user, "who")
            assert address == str(service_address(network.info.network_id, "who"))
            # The other cluster's members offer it, so nobody else's does.
            for protocol in PROTOCOLS:
                client.until(address, protocol, {"far"}, 60)
            for row in client.listed()["services"]:
                assert (row["now"], row["spilled"]) == ([far.name], False)
            for protocol in PROTOCOLS:
                assert pod_hears(lab, user, address, protocol) == "far"
            assert named(user, "later") == ""
            server.do("expose", "later", "--port", str(PORT))
            wait_until(lambda: named(user, "later"), 30, "what came later is there")
            server.do("rm", "later")
            wait_until(lambda: not named(user, "later"), 30, "what went is gone")
            end(client.daemon)
            assert named(user, "who") == address
            assert client.ask(address) == "far"
            client.run_daemon()
            client.do("rm", "--cluster", "far")
            wait_until(lambda: not named(user, "who"), 30, "all of it is gone")


def offers(machine: Machine) -> set[tuple[object, ...]]:
    """Return the offers of TCP that a machine knows of, with what is said of each."""
    rows = machine.listed()["services"]
    return {tuple(one) for row in rows if row["protocol"] == "tcp" for one in row["offers"]}


def pod_hears(lab: Lab, node: Node, address: str, protocol: str) -> str:
    """Return who answers a pod of a node, which it has from then on."""
    pod = f"{lab.tag}{protocol}pod"
    if "skerry-pods" not in node.ip("link"):
        node.ip("link", "add", "skerry-pods", "type", "bridge")
        node.ip("addr", "add", "10.244.77.1/24", "dev", "skerry-pods")
        node.ip("link", "set", "skerry-pods", "up")
        run(*node.command("sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"))
    lab.namespace(pod)
    node.ip("link", "add", protocol, "type", "veth", "peer", "name", "eth0", "netns", pod)
    node.ip("link", "set", protocol, "master", "skerry-pods", "up")
    for words in (
        ("addr", "add", "10.244.77.2/24", "dev", "eth0"),
        ("link", "set", "eth0", "up"),
        ("route", "add", "default", "via", "10.244.77.1"),
    ):
        run("ip", "-n", pod, *words)
    ask = (sys.executable, "-m", "tests.netns.asking", protocol, address, str(PORT))
    said = run("ip", "netns", "exec", pod, "env", f"PYTHONPATH={ROOT}", *ask).strip()
    node.ip("link", "del", protocol)
    return said


def connects(channel: socket.socket, node: Node) -> bool:
    """Say whether the node's server took the connection."""
    return channel.connect_ex((node.overlay_addresses()[0], PORT)) == 0


def named(node: Node, name: str) -> str:
    """Return what a node's own resolver says of a service; empty: there is no such name."""
    with inside(node.namespace), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
        channel.settimeout(5)
        channel.sendto(query(f"{name}.svc.skerry.internal"), (HOST, NAMES))
        said = read(channel.recv(2000))
    return str(ipaddress.IPv4Address(said.answers[0].data)) if said.answers else ""


def test_a_node_offers_what_is_behind_it_and_nobody_else_gets_through() -> None:
    with Lab() as lab:
        network = Network("home")
        gate, user, printer = lab.crowd(3)
        gate.start(token(network, "none"))
        user.start(token(network, "none"))
        together([gate, user])
        with machines(gate, user, printer) as (inner, outer, behind):
            end(behind.daemon)
            behind.serve("printer", 9100)
            inner.do("expose", "printer", "--port", "631", "--to", f"{printer.address}:9100")
            outer.do("connect", "printer", "--port", "6310", "--from", gate.name)
            address = str(service_address(network.info.network_id, "printer"))
            wait_until(lambda: outer.ask(address, port=6310) == "printer", 30, "it prints")
            # An answer that comes to the exposed port, since the node asked from it, is let in.
            outer.serve("user", PORT)
            with inside(gate.namespace), socket.socket() as channel:
                channel.settimeout(10)
                channel.bind((gate.overlay_addresses()[0], 631))
                wait_until(lambda: connects(channel, outer.node), 30, "the gate asks")
                assert channel.recv(100) == b"user"
            # The exposed port is there for members only, the service's address for its node.
            assert behind.ask(gate.address, port=631) == "nobody"
            run_ = behind.node.ip
            run_("route", "add", address, "via", user.address)
            assert behind.ask(address, port=6310) == "nobody"
