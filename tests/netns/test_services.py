"""Services between real nodes: exposed, reached over the overlay, failing over, spilling over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from appliance.services.offers import service_address
from provisioning.clusters import CLUSTER_LABEL
from provisioning.token import Token, make_token
from tests.netns.lab import ROOT, Lab, Network, Node, wait_until
from tests.netns.ledger import together

pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]
PORT = 7070


def token(network: Network, *roles: str, cluster: str = "") -> Token:
    labels = {CLUSTER_LABEL: cluster} if cluster else {}
    return make_token(
        network.info,
        network.root_seed,
        now=time.time(),
        roles=frozenset(roles or ("auto",)),
        labels=labels,
    )


class Machine:
    """A node of the lab with the services' daemon, and what runs on it."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.children: list[subprocess.Popen[bytes]] = []
        self.environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "SKERRY_SOCKET": str(node.run_dir / "api.sock"),
            "SKERRY_SERVICES_DATA": str(node.folder / "services"),
            "SKERRY_SERVICES_RUN": str(node.folder / "services-run"),
        }
        self.daemon = self.start("-m", "skerry", "service", "run")

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        with (self.node.folder / "services.log").open("ab") as log:
            child = subprocess.Popen(
                self.node.command(sys.executable, *words),
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.children.append(child)
        return child

    def do(self, *words: str) -> str:
        done = subprocess.run(
            self.node.command(sys.executable, "-m", "skerry", "service", *words),
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def serve(self, word: str, port: int = PORT) -> subprocess.Popen[bytes]:
        return self.start("-m", "tests.netns.answering", str(port), word)

    def ask(self, address: str, protocol: str = "tcp", port: int = PORT) -> str:
        done = subprocess.run(
            self.node.command(
                sys.executable, "-m", "tests.netns.asking", protocol, address, str(port)
            ),
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        return done.stdout.strip()

    def until(self, address: str, protocol: str, expected: set[str], seconds: float) -> None:
        """Wait until a dozen questions are answered by exactly these."""
        wanted = ",".join(sorted(expected))
        said = [""]

        def look() -> bool:
            said[0] = self.ask(address, protocol)
            return said[0] == wanted

        try:
            wait_until(look, seconds, f"{protocol} is answered by {wanted}", every=0.2)
        except AssertionError as error:
            raise AssertionError(f"{error}; but by {said[0]}: {self.listed()}") from error

    def listed(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.do("ls", "--json"))
        return found

    def log(self) -> str:
        return (self.node.folder / "services.log").read_text()


@contextmanager
def machines(*nodes: Node) -> Iterator[list[Machine]]:
    """Give services' daemons to nodes, and end what they started."""
    made: list[Machine] = []
    try:
        made.extend(map(Machine, nodes))
        yield made
    except BaseException:
        for machine in made:
            print(f"--- services of {machine.node.name}\n{machine.log()}")
        raise
    finally:
        for machine in made:
            for child in machine.children:
                end(child)


def end(child: subprocess.Popen[bytes]) -> None:
    child.send_signal(signal.SIGKILL)
    child.wait(10)


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
                for protocol in ("tcp", "udp"):
                    probe = ("--probe",) if protocol == "udp" else ()
                    machine.do("expose", "who", "--port", str(PORT), "--protocol", protocol, *probe)
            for machine in (first, stranger):
                machine.do("connect", "who")

            for protocol in ("tcp", "udp"):
                # A member outside of all clusters has everybody's backends; a cluster its own.
                stranger.until(address, protocol, {"first", "second", "third"}, 40)
                first.until(address, protocol, {"first", "second"}, 20)
            # A backend dies: it is left out.
            end(processes["second"])
            for protocol in ("tcp", "udp"):
                first.until(address, protocol, {"first"}, 20)
            states = {
                tuple(offer)
                for row in stranger.listed()["services"]
                for offer in row["offers"]
                if row["protocol"] == "tcp"
            }
            assert ("node2", PORT, "no answer") in states
            # The last of the cluster dies: over to the other cluster.
            end(processes["first"])
            for protocol in ("tcp", "udp"):
                first.until(address, protocol, {"third"}, 20)
            # The daemon is killed: what was set up goes on.
            end(first.daemon)
            assert first.ask(address) == "third"
            # A whole node goes, and nobody is left.
            far.power_off()
            stranger.until(address, "tcp", {"nobody"}, 60)
            first.serve("again")
            first.start("-m", "skerry", "service", "run")
            stranger.until(address, "tcp", {"again"}, 30)
            stranger.do("rm", "who")
            stranger.until(address, "tcp", {"nobody"}, 20)


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
            # The exposed port is there for members only, the service's address for its node.
            assert behind.ask(gate.address, port=631) == "nobody"
            run_ = behind.node.ip
            run_("route", "add", address, "via", user.address)
            assert behind.ask(address, port=6310) == "nobody"
