"""NetworkPolicy on real packets: a real API server, our enforcer, the CNI server's gate, pods.

Which policy means what is tested in `image/engine/internal/netpol`; here it is whether the kernel
does it, and whether a pod is ever open before its policies are there.
"""

from __future__ import annotations

import itertools
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing

import pytest

from image.golang import Program, build
from tests.netns.cni import CniLab, CniNode, Pod
from tests.netns.kube_api import KubeApi
from tests.netns.lab import wait_until
from tests.netns.pinger import inside

# The engine may have to be built first.
pytestmark = [pytest.mark.netns, pytest.mark.timeout(600)]
ENFORCER = Program("engine", "./cmd/skerry-netpol", "skerry-netpol")
NODE = "lagoon"
HTTP, ADMIN = 8080, 9000
DENY_ALL: Mapping[str, object] = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
DENY_IN: Mapping[str, object] = {"podSelector": {}, "policyTypes": ["Ingress"]}
# No answer within this time is no answer: all is on one machine.
SILENCE = 0.4
# An answer may take its time on a busy machine.
PATIENCE = 5.0


class KubePod:
    """A pod of both worlds: a container that the CNI server connected, and an object."""

    def __init__(self, world: World, space: str, name: str, app: str) -> None:
        self.world, self.space, self.name, self.app = world, space, name, app
        self.box: Pod = world.lab.pod()
        self.addresses: list[str] = []
        self._doors: list[socket.socket] = []

    def listen(self, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
        """Be reachable at both ports and families; the last socket is returned."""
        for port in (HTTP, ADMIN):
            with inside(self.box.namespace):
                door = socket.socket(socket.AF_INET6, kind)
            door.bind(("::", port))
            if kind is socket.SOCK_STREAM:
                # Nobody accepts: they all have to find room.
                door.listen(4096)
            self._doors.append(door)
        return self._doors[-1]

    def connect(self) -> None:
        """Have the CNI server give it its addresses."""
        said = self.world.node.call("ADD", self.box)
        assert said.status == 0, said
        self.addresses = said.addresses

    def make(self) -> None:
        """Make the object."""
        labels = {"app": self.app}
        self.world.api.pod(self.space, self.name, NODE, labels=labels, ports={"http": HTTP})

    def tell(self) -> None:
        """Say in the object that it runs."""
        self.world.api.runs(self.space, self.name, self.addresses)

    def opens(self, address: str, port: int = HTTP) -> bool:
        """Say whether a connection comes about."""
        return _opens(self.box.namespace, address, port)

    def reaches(self, other: KubePod, port: int = HTTP) -> bool:
        """Say whether connections come about with both families."""
        return all(self.opens(address, port) for address in other.addresses)

    def cut_from(self, other: KubePod, port: int = HTTP) -> bool:
        """Say whether a connection comes about with neither family."""
        return not any(
            _opens(self.box.namespace, address, port, SILENCE) for address in other.addresses
        )

    def close(self) -> None:
        for door in self._doors:
            door.close()


def _opens(namespace: str, address: str, port: int, seconds: float = PATIENCE) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with inside(namespace):
        one = socket.socket(family)
    with closing(one):
        one.settimeout(seconds)
        try:
            one.connect((address, port))
        except TimeoutError:
            return False
        return True


class World:
    """One node with everything."""

    def __init__(self, lab: CniLab) -> None:
        self.lab = lab
        self.node: CniNode = lab.node(gate=True)
        self.api = KubeApi(self.node.namespace)
        self.pods: list[KubePod] = []
        self._numbers = itertools.count(1)
        self._enforcer: subprocess.Popen[bytes] | None = None
        self._log = self.node.folder / "netpol.log"
        self.api.node(NODE)
        for name in ("shop", "bank"):
            self.api.space(name, {"name": name})

    def enforce(self) -> None:
        """Start the enforcer."""
        words = (str(build(ENFORCER, "amd64")), "--kubeconfig", str(self.api.kubeconfig))
        with self._log.open("ab") as log:
            self._enforcer = subprocess.Popen(
                self.node.command(*words, "--node-name", NODE), stdout=log, stderr=log
            )

    def crash(self) -> None:
        """SIGKILL it."""
        assert self._enforcer is not None
        self._enforcer.send_signal(signal.SIGKILL)
        self._enforcer.wait(10)
        self._enforcer = None

    def container(self, space: str, app: str) -> KubePod:
        """Add a pod that is no more than a container that listens."""
        pod = KubePod(self, space, f"{app}{next(self._numbers)}", app)
        self.pods.append(pod)
        pod.listen()
        pod.connect()
        return pod

    def pod(self, space: str, app: str) -> KubePod:
        """Add a pod and wait until it is let out of the gate."""
        pod = self.container(space, app)
        pod.make()
        pod.tell()
        wait_until(lambda: not self.held(pod), 60, f"{pod.name} is let out")
        return pod

    def held(self, pod: KubePod) -> bool:
        """Say whether a pod is held back at the gate."""
        return any(
            one in self.node.nft("list", "table", "inet", "skerry-pods") for one in pod.addresses
        )

    def close(self) -> None:
        if self._enforcer is not None:
            self.crash()
        for pod in self.pods:
            pod.close()
        self.api.close()


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with CniLab() as lab:
        made = World(lab)
        try:
            made.enforce()
            yield made
        finally:
            made.close()


@pytest.fixture(autouse=True)
def no_policies(world: World) -> Iterator[None]:
    """Every test begins without policies, and says so to the enforcer by a change."""
    yield
    for space in ("shop", "bank"):
        world.api.no_policies(space)


@pytest.fixture(scope="module")
def web(world: World) -> KubePod:
    return world.pod("shop", "web")


@pytest.fixture(scope="module")
def client(world: World) -> KubePod:
    return world.pod("shop", "client")


@pytest.fixture(scope="module")
def teller(world: World) -> KubePod:
    return world.pod("bank", "teller")


def opens(sender: KubePod, to: KubePod, port: int = HTTP) -> None:
    """Wait until one pod reaches another."""
    wait_until(lambda: not sender.cut_from(to, port), 60, f"{sender.name} reaches {to.name}:{port}")
    wait_until(lambda: sender.reaches(to, port), 60, f"{sender.name} reaches {to.name}:{port}")


def closes(sender: KubePod, to: KubePod, port: int = HTTP) -> None:
    """Wait until one pod does not reach another any more."""
    what = f"{sender.name} does not reach {to.name}:{port} any more"
    wait_until(lambda: sender.cut_from(to, port), 60, what)


def test_a_container_that_nobody_knows_is_closed_but_for_its_node(
    world: World, client: KubePod
) -> None:
    stranger = world.container("shop", "web")
    assert world.held(stranger)
    assert client.cut_from(stranger)
    assert stranger.cut_from(client)
    assert all(_opens(world.node.namespace, one, HTTP) for one in stranger.addresses)
    stranger.make()
    stranger.tell()
    opens(client, stranger)
    assert stranger.reaches(client)


def test_denied_then_let_in_by_selectors_and_ports(
    world: World, web: KubePod, client: KubePod, teller: KubePod
) -> None:
    opens(teller, web)
    world.api.policy("shop", "deny", DENY_IN)
    closes(teller, web)
    assert client.cut_from(web)
    assert web.reaches(teller)
    assert all(_opens(world.node.namespace, one, HTTP) for one in web.addresses)
    among = {
        "from": [{"podSelector": {"matchLabels": {"app": "client"}}}],
        "ports": [{"port": "http"}],
    }
    world.api.policy(
        "shop", "clients", {"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [among]}
    )
    opens(client, web)
    assert client.cut_from(web, ADMIN)
    assert teller.cut_from(web)
    bank = {"from": [{"namespaceSelector": {"matchLabels": {"name": "bank"}}}]}
    world.api.policy("shop", "bank", {"podSelector": {}, "ingress": [bank]})
    opens(teller, web, ADMIN)
    world.api.no_policies("shop")
    opens(client, web, ADMIN)


def test_ranges_with_exceptions(
    world: World, web: KubePod, client: KubePod, teller: KubePod
) -> None:
    blocks = [
        {"ipBlock": {"cidr": "10.244.0.0/16", "except": [f"{teller.addresses[0]}/32"]}},
        {"ipBlock": {"cidr": "::/0", "except": [f"{teller.addresses[1]}/128"]}},
    ]
    world.api.policy("shop", "blocks", {"podSelector": {}, "ingress": [{"from": blocks}]})
    closes(teller, web)
    assert client.reaches(web)


def test_egress_by_name_of_the_port_and_never_to_the_own_node(
    world: World, web: KubePod, client: KubePod, teller: KubePod
) -> None:
    gateway = "10.244.7.1"
    with inside(world.node.namespace):
        door = socket.create_server((gateway, 10250))
    with closing(door):
        assert client.opens(gateway, 10250)
        out = {
            "to": [{"podSelector": {"matchLabels": {"app": "web"}}}],
            "ports": [{"port": "http"}],
        }
        spec = {"podSelector": {"matchLabels": {"app": "client"}}, "policyTypes": ["Egress"]}
        world.api.policy("shop", "out", spec | {"egress": [out]})
        closes(client, teller)
        assert client.reaches(web)
        assert client.cut_from(web, ADMIN)
        assert not _opens(client.box.namespace, gateway, 10250, SILENCE)
        assert web.opens(gateway, 10250)


def test_connections_live_on_and_new_pods_wait_while_the_enforcer_is_dead(
    world: World, web: KubePod, client: KubePod, teller: KubePod
) -> None:
    world.api.policy(
        "shop",
        "clients",
        {
            "podSelector": {},
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "client"}}}]}],
        },
    )
    closes(teller, web)
    with inside(client.box.namespace):
        line = socket.create_connection((web.addresses[0], HTTP), PATIENCE)
    with closing(line):
        world.crash()
        late = world.container("shop", "web")
        late.make()
        late.tell()
        line.sendall(b"still there?")
        assert teller.cut_from(web)
        assert client.reaches(web)
        time.sleep(1)
        assert client.cut_from(late)
        world.enforce()
        opens(client, late)
        assert teller.cut_from(late)
        assert teller.cut_from(web)
        line.sendall(b"yes")


def test_no_packet_passes_before_the_policy_that_denies_it(world: World, teller: KubePod) -> None:
    """Packets rain upon new pods from when they have an address until long after their release."""
    world.api.policy("shop", "deny", DENY_ALL)
    closes(teller, world.pod("shop", "first"))
    targets: list[str] = []
    ended = threading.Event()
    with inside(teller.box.namespace):
        rain = {
            "4": socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
            "6": socket.socket(socket.AF_INET6, socket.SOCK_DGRAM),
        }

    def pour() -> None:
        while not ended.is_set():
            for address in tuple(targets):
                rain["6" if ":" in address else "4"].sendto(b"drop", (address, ADMIN))
            time.sleep(0.001)

    thread = threading.Thread(target=pour)
    thread.start()
    try:
        ears: list[socket.socket] = []
        for space in (*["shop"] * 6, "bank"):
            pod = KubePod(world, space, f"rained{len(ears)}", "rained")
            world.pods.append(pod)
            ears.append(pod.listen(socket.SOCK_DGRAM))
            last = int(targets[-2].rpartition(".")[2]) if targets else 0
            pod.connect()
            assert int(pod.addresses[0].rpartition(".")[2]) > last
            targets += pod.addresses
            pod.make()
            pod.tell()
        wait_until(
            lambda: not any(world.held(one) for one in world.pods[-7:]), 60, "all are let out"
        )
        # Where nothing denies it, it gets through.
        wait_until(lambda: _heard(ears[-1]), 60, "the rain falls")
        time.sleep(1)
    finally:
        ended.set()
        thread.join()
        for one in rain.values():
            one.close()
    assert not any(_heard(one) for one in ears[:-1])


def _heard(ear: socket.socket) -> bool:
    ear.settimeout(0)
    try:
        return bool(ear.recv(16))
    except BlockingIOError:
        return False


def test_removing_it_leaves_no_rule_and_lets_nobody_out(world: World) -> None:
    stranger = world.container("shop", "web")
    world.crash()
    subprocess.run(world.node.command(str(build(ENFORCER, "amd64")), "--remove"), check=True)
    assert "skerry-policy" not in world.node.nft("list", "tables")
    assert world.held(stranger)
    world.enforce()
