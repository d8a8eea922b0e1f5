"""A LAN of network namespaces with real supervisors in it.

Recipe::

    with Lab() as lab:
        network = Network("home")
        one, two = lab.node(), lab.node()
        one.start(network.token())
        two.start(network.token())
        wait_until(lambda: one.sees(two) and two.sees(one), 20, "they meet")

`Lab.crowd` makes many at a time, `Lab.cut` parts the LAN in two and `Lab.heal` joins it again,
`Lab.lan` adds a LAN that only a `Lab.router` leads to. Everything has a name of its own, and is
taken away again whatever happens: processes by the namespaces they run in, namespaces, sockets,
folders.
"""

from __future__ import annotations

import itertools
import os
import re
import secrets
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from appliance.api.client import ApiError, call
from image import wireguard_go
from image.artifacts import cache_directory
from provisioning.keys import public_key
from provisioning.network import NetworkInfo
from provisioning.settings import Settings
from provisioning.token import Token, make_token

ROOT = Path(__file__).resolve().parents[2]
SOCKETS = Path("/var/run/wireguard")
PORT = 51820
# All namespaces share the kernel's neighbour table; every node of 32 has all others in it.
NEIGHBOURS = Path("/proc/sys/net/ipv4/neigh/default")
NEIGHBOURS_MAX = 16384
_MASK = "24"
_NOT_FOR_SUPERVISORS = frozenset(
    {"JOURNAL_STREAM", "NOTIFY_SOCKET", "CREDENTIALS_DIRECTORY", "PYTHONDONTWRITEBYTECODE"}
)


class LabError(AssertionError):
    """The lab can't be built, or a condition did not come true."""


def wait_until(
    condition: Callable[[], object], seconds: float, what: str, *, every: float = 0.05
) -> None:
    """Look at a condition until it holds; fail after the deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"not within {seconds} s: {what}")
        time.sleep(every)


def run(*command: str, check: bool = True) -> str:
    """Run a command and return what it printed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if check and done.returncode != 0:
        raise LabError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def feed(text: str, *command: str) -> None:
    """Run a command that reads the text."""
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode != 0:
        raise LabError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")


class Network:
    """A network of nodes with its root key."""

    def __init__(
        self,
        name: str = "lagoon",
        *,
        seed: bytes | None = None,
        settings: Settings | None = None,
    ) -> None:
        self.root_seed = secrets.token_bytes(32)
        self.info = NetworkInfo(
            name,
            public_key(self.root_seed),
            seed or secrets.token_bytes(32),
            settings=settings or Settings(),
        )

    def token(self, *, now: float | None = None, expires: int | None = None) -> Token:
        """Return a new token."""
        issued = now if now is not None else time.time()
        return make_token(self.info, self.root_seed, now=issued, expires=expires)


@dataclass(frozen=True, slots=True)
class Lan:
    """A bridge in the switch's namespace, and the first three numbers of its addresses."""

    bridge: str
    prefix: str

    @property
    def router(self) -> str:
        """Where a router of this LAN is, if it has one."""
        return f"{self.prefix}.1"


class Node:
    """A namespace on the LAN, and a supervisor in it."""

    def __init__(self, lab: Lab, number: int, lan: Lan) -> None:
        self.lab = lab
        self.number = number
        self.lan = lan
        self.name = f"node{number}"
        self.namespace = f"{lab.tag}n{number}"
        self.interface = f"{lab.tag}{number}"
        self.port = f"{lab.tag}p{number}"
        self.address = f"{lan.prefix}.{10 + number}"
        self.folder = lab.folder / f"node{number}"
        self.state_dir = self.folder / "state"
        self.run_dir = self.folder / "run"
        self.log = self.folder / "log"
        self.clock = self.folder / "clock"
        self.process: subprocess.Popen[bytes] | None = None
        for folder in (self.state_dir, self.run_dir):
            folder.mkdir(parents=True, mode=0o700)
        run("ip", "netns", "add", self.namespace)
        self.lab.plug(self.namespace, self.port, "eth0", lan, self.address)

    def ip(self, *words: str) -> str:
        """Run ``ip`` in the namespace."""
        return run("ip", "-n", self.namespace, *words)

    def command(self, *words: str) -> list[str]:
        """Return the command that runs in the namespace."""
        return ["ip", "netns", "exec", self.namespace, *words]

    def move_to(self, address: str) -> None:
        """Change the underlay address."""
        # The old one first: it would take a second address of the same prefix along.
        self.ip("addr", "del", f"{self.address}/{_MASK}", "dev", "eth0")
        self.ip("addr", "add", f"{address}/{_MASK}", "brd", "+", "dev", "eth0")
        self.address = address

    # The supervisor

    def start(
        self,
        token: Token | None = None,
        *,
        name: str | None = None,
        clock: float | None = None,
        profile: Path | None = None,
        names_port: int | None = None,
    ) -> None:
        """Start a supervisor; with a token, it is offered that one.

        ``names_port``: where it answers about names, if it shall.
        ``clock``: seconds that its clock is ahead, to be changed by `set_clock` later on.
        ``profile``: the file for cProfile's figures, written when the supervisor stops.
        """
        words = [sys.executable, "-m"]
        if clock is None and profile is None:
            words += ["skerry"]
        else:
            words += ["tests.netns.launcher"]
            if clock is not None:
                self.set_clock(clock)
                words += ["--clock", str(self.clock)]
            if profile is not None:
                words += ["--profile", str(profile)]
            words += ["--"]
        words += ["supervisor", "run"]
        words += ["--state-dir", str(self.state_dir), "--run-dir", str(self.run_dir)]
        words += ["--interface", self.interface, "--wireguard", "userspace"]
        words += ["--wireguard-go", str(self.lab.wireguard_go), "--listen-port", str(PORT)]
        words += ["--name", name or self.name]
        if names_port is not None:
            words += ["--names-port", str(names_port)]
        if token is not None:
            path = self.folder / "token"
            path.write_text(token.text())
            path.chmod(0o600)
            words += ["--token-file", str(path)]
        self._spawn(words)

    def set_clock(self, ahead: float) -> None:
        """Set how many seconds the clock of a supervisor with one of its own is ahead."""
        with self.clock.open("r+b" if self.clock.exists() else "wb") as file:
            file.write(struct.pack("d", ahead))

    def give(self, token: Token) -> None:
        """Hand a running supervisor its token, and wait until it is a node."""
        self.api("POST", "/v1/token", token.text().encode())

    def api(
        self, method: str, path: str, body: bytes | None = None, *, timeout: float = 15
    ) -> dict[str, Any]:
        """Call the local API. Raises ApiError."""
        return call(method, path, body, socket_path=self.run_dir / "api.sock", timeout=timeout)

    def start_module(self, module: str, *words: str) -> None:
        """Start a Python module in the supervisor's place."""
        self._spawn([sys.executable, "-m", module, *words])

    def _spawn(self, words: Sequence[str]) -> None:
        environment = {
            name: value for name, value in os.environ.items() if name not in _NOT_FOR_SUPERVISORS
        }
        environment |= {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
        # As in an image, nothing is compiled at a start; the checkout stays clean.
        environment["PYTHONPYCACHEPREFIX"] = str(cache_directory() / "bytecode")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(*words),
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    def kill(self) -> None:
        """SIGKILL the supervisor."""
        self._end(signal.SIGKILL)

    def power_off(self) -> None:
        """End everything in the namespace at once, as a machine that lost its power."""
        for pid in run("ip", "netns", "pids", self.namespace).split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        if self.process is not None:
            self.process.wait(20)
            self.process = None
        wait_until(lambda: not self.wireguard_pids(), 10, "its processes are gone")

    def stop(self) -> None:
        """Ask the supervisor to stop, and wait until it has."""
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(20)
        self.process = None

    # What is seen

    def status(self) -> dict[str, Any]:
        """Return the status document; empty while nobody answers."""
        try:
            return self.api("GET", "/v1/status")
        except ApiError:
            return {}

    def peers(self) -> list[dict[str, Any]]:
        """Return the members in the status document."""
        overlay = self.status().get("overlay") or {}
        return list(overlay.get("peers", ()))

    def sees(self, *others: Node) -> bool:
        """Say whether these are members and answer in the tunnel."""
        up = {peer["node_id"] for peer in self.peers() if peer["up"]}
        return bool(up) and {other.node_id() for other in others} <= up

    def node_id(self) -> str:
        """Return the node's id; empty while it has none."""
        return str(self.status().get("node_id") or "")

    def overlay_addresses(self) -> list[str]:
        """Return the node's addresses in the overlay, IPv4 first."""
        return list((self.status().get("overlay") or {}).get("addresses", ()))

    def said(self, pattern: str) -> bool:
        """Say whether a line of the log matches."""
        return re.search(pattern, self.log_text()) is not None

    def log_text(self) -> str:
        """Return the supervisor's log."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def ping(self, address: str, *words: str) -> str:
        """Ping an address once (or as the words say); return what it printed."""
        return run(*self.command("ping", "-n", "-c", "1", "-W", "2", *words, address), check=False)

    def reaches(self, address: str) -> bool:
        """Say whether a ping came back."""
        return " 0% packet loss" in self.ping(address)

    def wireguard_pids(self) -> list[int]:
        """Return the processes of userspace WireGuard in the namespace."""
        found = []
        for pid in run("ip", "netns", "pids", self.namespace).split():
            try:
                name = Path(f"/proc/{pid}/comm").read_text().strip()
            except OSError:
                continue
            if name == "wireguard-go":
                found.append(int(pid))
        return found


def _leave(number: int, _: object) -> None:
    raise SystemExit(128 + number)


class Lab:
    """One LAN: a namespace with a bridge, and nodes around it."""

    def __init__(self) -> None:
        if os.geteuid() != 0:
            raise LabError("the netns tests need root: network namespaces are theirs to make")
        self.wireguard_go = wireguard_go.ensure()
        self.tag = "k" + secrets.token_hex(3)
        self.switch = f"{self.tag}lan"
        self.folder = Path(tempfile.mkdtemp(prefix="skerry-lab-"))
        self.nodes: list[Node] = []
        self.home = Lan("lan", "192.168.77")
        self._routers: list[str] = []
        self._others: list[str] = []
        self._programs: list[subprocess.Popen[bytes]] = []
        self._numbers = itertools.count(1)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            # Also who is told to end, by a time limit say, cleans up first.
            signal.signal(signal.SIGTERM, _leave)
        try:
            if int((NEIGHBOURS / "gc_thresh3").read_text()) < NEIGHBOURS_MAX:
                for name in ("gc_thresh3", "gc_thresh2"):
                    (NEIGHBOURS / name).write_text(str(NEIGHBOURS_MAX))
            run("ip", "netns", "add", self.switch)
            for bridge in ("lan", "apart"):
                self._bridge(bridge)
        except BaseException:
            self.close()
            raise
        return self

    def _bridge(self, name: str) -> None:
        words = ("ip", "-n", self.switch, "link")
        run(*words, "add", name, "type", "bridge", "mcast_snooping", "0")
        run(*words, "set", name, "up")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            for node in self.nodes:
                sys.stderr.write(f"--- log of node {node.number}\n{node.log_text()[-6000:]}\n")
        self.close()

    def node(self, lan: Lan | None = None) -> Node:
        """Add a node to the LAN."""
        node = Node(self, next(self._numbers), lan or self.home)
        self.nodes.append(node)
        return node

    def namespace(self, name: str) -> None:
        """Add a namespace, for a pod say, that goes when the lab goes."""
        run("ip", "netns", "add", name)
        self._others.append(name)

    def program(self, node: Node, name: str, *words: str) -> subprocess.Popen[bytes]:
        """Start a program on a node, with a log of its name; it ends with the lab."""
        with (node.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                node.command(*words), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._programs.append(process)
        return process

    def crowd(self, count: int) -> list[Node]:
        """Add many nodes to the LAN."""
        with ThreadPoolExecutor(4) as workers:
            return list(workers.map(lambda _: self.node(), range(count)))

    # The network between them

    def plug(self, namespace: str, port: str, interface: str, lan: Lan, address: str) -> None:
        """Connect a namespace to a LAN under an address."""
        run(
            *("ip", "-n", self.switch, "link", "add", port, "type", "veth"),
            *("peer", "name", interface, "netns", namespace),
        )
        run("ip", "-n", self.switch, "link", "set", port, "master", lan.bridge, "up")
        for words in (
            ("link", "set", "lo", "up"),
            ("addr", "add", f"{address}/{_MASK}", "brd", "+", "dev", interface),
            ("link", "set", interface, "up"),
        ):
            run("ip", "-n", namespace, *words)

    def cut(self, nodes: Iterable[Node]) -> None:
        """Take these nodes away from the others; among themselves they stay connected."""
        self._move((node.port for node in nodes), "apart")

    def heal(self) -> None:
        """Undo what `cut` did."""
        self._move((node.port for node in self.nodes if node.lan == self.home), "lan")

    def _move(self, ports: Iterable[str], bridge: str) -> None:
        lines = "".join(f"link set {port} master {bridge}\n" for port in ports)
        feed(lines, "ip", "-n", self.switch, "-batch", "-")

    def lan(self, prefix: str) -> Lan:
        """Add a LAN (``10.1.2``) that nothing leads to but a `router`."""
        made = Lan(f"lan{prefix.replace('.', '-')}"[:15], prefix)
        self._bridge(made.bridge)
        return made

    def router(self, lans: Sequence[Lan], *, hidden: Collection[Lan] = ()) -> None:
        """Route between LANs; nodes of the ``hidden`` ones go out under the router's address."""
        namespace = f"{self.tag}r{len(self._routers)}"
        run("ip", "netns", "add", namespace)
        self._routers.append(namespace)
        for number, lan in enumerate(lans):
            port = f"{namespace}p{number}"
            self.plug(namespace, port, f"eth{number}", lan, lan.router)
        inside = run(
            *("ip", "netns", "exec", namespace, "sh", "-c"),
            "echo 1 > /proc/sys/net/ipv4/ip_forward",
        )
        assert not inside
        rules = "".join(
            f"ip saddr {lan.prefix}.0/24 ip daddr != {lan.prefix}.0/24 masquerade\n"
            for lan in hidden
        )
        # From outside nothing gets in that was not asked for.
        doors = "".join(
            f"ip daddr {lan.prefix}.0/24 ct state new ip saddr != {lan.prefix}.0/24 drop\n"
            for lan in hidden
        )
        feed(
            "table ip lab {\n"
            f"chain out {{ type nat hook postrouting priority srcnat;\n{rules}}}\n"
            f"chain through {{ type filter hook forward priority filter;\n{doors}}}\n"
            "}\n",
            *("ip", "netns", "exec", namespace, "nft", "-f", "-"),
        )
        for node in self.nodes:
            if node.lan in lans:
                node.ip("route", "replace", "default", "via", node.lan.router)

    def close(self) -> None:
        """Take everything away."""
        namespaces = [*self._others, self.switch, *self._routers]
        namespaces += [node.namespace for node in self.nodes]
        for namespace in namespaces:
            for pid in run("ip", "netns", "pids", namespace, check=False).split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        for process in (*self._programs, *(node.process for node in self.nodes)):
            if process is not None:
                process.wait(10)
        for namespace in namespaces:
            run("ip", "netns", "del", namespace, check=False)
        for leftover in SOCKETS.glob(f"{self.tag}*.sock"):
            leftover.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)
