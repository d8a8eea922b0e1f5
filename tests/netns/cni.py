"""Nodes with a CNI server, and containers that are no more than their namespaces.

Recipe::

    with CniLab() as lab:
        node = lab.node(ranges=("10.244.7.0/24",))
        pod = lab.pod()
        node.tool("add", pod)
        assert pod.reaches("10.244.7.1")

Calls go through the real shim: `CniNode.tool` by way of cnitool and the whole chain of plugins,
`CniNode.call` straight. Records are kept on a tmpfs, as on a node.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from appliance.cni import ipam
from image.golang import Program, build
from tests.netns.cni_server import READY
from tests.netns.lab import ROOT, LabError, run, wait_until

SHARED_MEMORY = Path("/dev/shm")
RANGES = ("10.244.7.0/24", "fd42:0:0:af4:700::/80")
DIRECT = ("10.244.0.0/16", "fd42::/48")
MIRROR = Path(__file__).with_name("cni_mirror.py")
_PLUGINS = "github.com/containernetworking/plugins/plugins"
PROGRAMS = {
    "skerry-cni": "./cmd/skerry-cni",
    "cnitool": "github.com/containernetworking/cni/cnitool",
    "portmap": f"{_PLUGINS}/meta/portmap",
    "bandwidth": f"{_PLUGINS}/meta/bandwidth",
    "loopback": f"{_PLUGINS}/main/loopback",
}
# What ours is measured against.
REFERENCE = {"bridge": f"{_PLUGINS}/main/bridge", "host-local": f"{_PLUGINS}/ipam/host-local"}


def install(folder: Path, programs: Mapping[str, str]) -> None:
    """Put programs of the CNI module into a folder; they are built if the cache has none."""
    folder.mkdir(exist_ok=True)
    for name, package in programs.items():
        (folder / name).symlink_to(build(Program("cni", package, name), "amd64"))


@contextmanager
def mirror(prefix: Sequence[str], port: int) -> Iterator[None]:
    """Have a mirror listen where the prefix of a command leads."""
    process = subprocess.Popen(
        [*prefix, sys.executable, str(MIRROR), str(port)], stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"listening\n"
        yield
    finally:
        process.kill()
        process.communicate()


def ask(prefix: Sequence[str], address: str, port: int, *, seconds: float = 3) -> str:
    """Return what a mirror says; empty if none answers."""
    words = (sys.executable, str(MIRROR), str(port), address, str(seconds))
    return run(*prefix, *words, check=False).strip()


@dataclass(frozen=True, slots=True)
class Said:
    """What a plugin answered."""

    status: int
    answer: dict[str, Any]

    @property
    def code(self) -> int:
        """The code of the error, 0 if there is none."""
        return int(self.answer.get("code", 0))

    @property
    def addresses(self) -> list[str]:
        """The addresses that an ADD gave, without their prefixes."""
        return [one["address"].partition("/")[0] for one in self.answer.get("ips", ())]


class Pod:
    """A container: a network namespace and an id."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.path = f"/run/netns/{namespace}"
        # As cnitool makes it of the path.
        self.id = "cnitool-" + hashlib.sha512(self.path.encode()).hexdigest()[:20]
        run("ip", "netns", "add", namespace)
        run("ip", "-n", namespace, "link", "set", "lo", "up")

    def command(self, *words: str) -> list[str]:
        """Return the command that runs in the container."""
        return ["ip", "netns", "exec", self.namespace, *words]

    def ping(self, address: str, *words: str) -> str:
        """Ping an address once (or as the words say); return what it printed."""
        return run(*self.command("ping", "-n", "-c", "1", "-W", "2", *words, address), check=False)

    def reaches(self, address: str) -> bool:
        """Say whether a ping came back."""
        return " 0% packet loss" in self.ping(address)

    def is_cut_off(self, address: str) -> bool:
        """Say whether a ping is not answered soon."""
        return " 0% packet loss" not in self.ping(address, "-W", "0.4")

    @contextmanager
    def mirror(self, port: int) -> Iterator[None]:
        """Listen in the container, and tell who asks where it comes from."""
        with mirror(self.command(), port):
            yield

    def ask(self, address: str, port: int) -> str:
        """Return what a mirror says; empty if none answers."""
        return ask(self.command(), address, port)

    def is_refused(self, address: str, port: int) -> bool:
        """Say whether no mirror answers soon."""
        return not ask(self.command(), address, port, seconds=0.5)

    def remove(self) -> None:
        """End the namespace, as a runtime does when the container is gone."""
        run("ip", "netns", "del", self.namespace, check=False)


class CniNode:
    """A node: a namespace, a CNI server in it, and the shim beside the other plugins."""

    def __init__(self, lab: CniLab, namespace: str) -> None:
        self.lab = lab
        self.namespace = namespace
        self.folder = Path(tempfile.mkdtemp(prefix="skerry-cni-", dir=SHARED_MEMORY))
        self.run_dir = self.folder / "run"
        self.config_dir = self.folder / "net.d"
        self.log = self.folder / "log"
        # cnitool keeps what it made in one place for the whole machine.
        self.network = namespace
        self.process: subprocess.Popen[bytes] | None = None
        self.run_dir.mkdir()
        self.config_dir.mkdir()
        self.configure()

    def command(self, *words: str) -> list[str]:
        """Return the command that runs on the node."""
        return ["ip", "netns", "exec", self.namespace, *words]

    # The server

    def offer(self, **pods: object) -> None:
        """Say how pods are connected from now on."""
        (self.run_dir / "pods.json").write_text(json.dumps(pods))

    def start(self, *, fuse: int | None = None) -> None:
        """Start the server; with a fuse it kills itself after so many actions."""
        self.arm(fuse)
        (self.run_dir / READY).unlink(missing_ok=True)
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(sys.executable, "-m", "tests.netns.cni_server", str(self.run_dir)),
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
            )
        if fuse is None:
            self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until the server takes calls."""
        wait_until((self.run_dir / READY).exists, 30, "the CNI server is ready")

    def arm(self, fuse: int | None) -> None:
        """Have the server kill itself after so many actions."""
        file = self.run_dir / "fuse"
        if fuse is None:
            file.unlink(missing_ok=True)
        else:
            file.write_text(str(fuse))

    def died(self) -> bool:
        """Say whether the server has killed itself; it is reaped then."""
        assert self.process is not None
        if not (self.run_dir / "fuse").exists():
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
        if self.process.poll() is None:
            return False
        assert self.process.returncode == -signal.SIGKILL, self.log.read_text()
        self.process = None
        return True

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End the server, if there is one."""
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(20)
            self.process = None

    # Calls

    @property
    def plugin(self) -> dict[str, Any]:
        """Our part of the configuration."""
        return {"type": "skerry-cni", "socket": str(self.run_dir / "cni.sock")}

    def configure(self, version: str = "1.1.0") -> None:
        """Write the configuration: ours and the chained plugins."""
        plugins = [
            self.plugin,
            {
                "type": "portmap",
                "backend": "nftables",
                "snat": True,
                "capabilities": {"portMappings": True},
            },
            {"type": "bandwidth", "capabilities": {"bandwidth": True}},
        ]
        whole = {"cniVersion": version, "name": self.network, "plugins": plugins}
        (self.config_dir / "10-skerry.conflist").write_text(json.dumps(whole))

    def tool(
        self, verb: str, pod: Pod, *, capabilities: object = None, ifname: str = "eth0"
    ) -> Said:
        """Have cnitool do something with the whole chain."""
        environment = os.environ | {
            "NETCONFPATH": str(self.config_dir),
            "CNI_PATH": str(self.lab.programs),
            "CNI_IFNAME": ifname,
        }
        if capabilities is not None:
            environment["CAP_ARGS"] = json.dumps(capabilities)
        done = subprocess.run(
            self.command(str(self.lab.programs / "cnitool"), verb, self.network, pod.path),
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        text = done.stdout if done.stdout.startswith("{") else ""
        return Said(done.returncode, json.loads(text) if text else {"said": done.stderr})

    def environment(self, command: str, pod: Pod | None, **more: str) -> dict[str, str]:
        """Return what a runtime sets for the shim."""
        found = {"CNI_COMMAND": command, "CNI_PATH": str(self.lab.programs)}
        if pod is not None:
            found |= {"CNI_CONTAINERID": pod.id, "CNI_NETNS": pod.path, "CNI_IFNAME": "eth0"}
        return found | more

    def call(
        self,
        command: str,
        pod: Pod | None = None,
        config: Mapping[str, object] | None = None,
        **more: str,
    ) -> Said:
        """Run the shim as a runtime does. ``more`` are variables besides the usual ones."""
        words = {"cniVersion": "1.1.0", "name": self.network} | self.plugin | dict(config or {})
        done = subprocess.run(
            [str(self.lab.programs / "skerry-cni")],
            env=self.environment(command, pod, **more),
            input=json.dumps(words).encode(),
            capture_output=True,
            timeout=60,
            check=False,
        )
        return Said(done.returncode, json.loads(done.stdout) if done.stdout else {})

    # What is seen

    def ip(self, *words: str) -> str:
        """Run ``ip`` on the node."""
        return run("ip", "-n", self.namespace, *words)

    def nft(self, *words: str) -> str:
        """Run ``nft`` on the node."""
        return run(*self.command("nft", *words))

    def neighbours(self) -> dict[str, str]:
        """Return whose address is whose, of those pods that the node was told of."""
        said = self.ip("-j", "neigh", "show", "nud", "permanent")
        return {one["dst"]: one["lladdr"] for one in json.loads(said or "[]")}

    def traces(self) -> dict[str, object]:
        """Return all that is there of containers: links, rules, records, leases; not the bridge."""
        links = [one["ifname"] for one in json.loads(self.ip("-j", "link"))]
        records = sorted(one.name for one in (self.run_dir / "records").iterdir())
        leases = self.run_dir / "leases"
        return {
            "links": sorted(one for one in links if one.startswith(("skp", "bwp"))),
            "rules": self.nft("list", "ruleset"),
            "neighbours": sorted(self.neighbours()),
            "records": records,
            "leases": ipam.load(leases.read_bytes()).leases if leases.exists() else (),
        }

    def close(self) -> None:
        """Take everything away."""
        self.end(signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)


class CniLab:
    """Nodes and pods; all of them are taken away again whatever happens."""

    def __init__(self, programs: Mapping[str, str] = PROGRAMS) -> None:
        if os.geteuid() != 0:
            raise LabError("the netns tests need root: network namespaces are theirs to make")
        self.tag = "c" + secrets.token_hex(3)
        self.folder = Path(tempfile.mkdtemp(prefix="skerry-cni-lab-"))
        self.programs = self.folder / "bin"
        install(self.programs, programs)
        self.nodes: list[CniNode] = []
        self.pods: list[Pod] = []
        self._own: list[str] = []
        self._numbers = itertools.count(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            for node in self.nodes:
                said = node.log.read_text()[-6000:] if node.log.exists() else ""
                sys.stderr.write(f"--- log of {node.namespace}\n{said}\n")
        self.close()

    def node(
        self,
        namespace: str | None = None,
        *,
        ranges: Sequence[str] = RANGES,
        start: bool = True,
        **pods: object,
    ) -> CniNode:
        """Add a node, in a namespace of its own if none is given, and start its server."""
        if namespace is None:
            namespace = f"{self.tag}n{next(self._numbers)}"
            run("ip", "netns", "add", namespace)
            self._own.append(namespace)
            run("ip", "-n", namespace, "link", "set", "lo", "up")
        node = CniNode(self, namespace)
        self.nodes.append(node)
        node.offer(**{"ranges": ranges, "direct": DIRECT} | pods)
        if start:
            node.start()
        return node

    def pod(self) -> Pod:
        """Add a container without network."""
        pod = Pod(f"{self.tag}p{next(self._numbers)}")
        self.pods.append(pod)
        return pod

    def close(self) -> None:
        """Take everything away."""
        for node in self.nodes:
            node.close()
        for pod in self.pods:
            pod.remove()
        for namespace in self._own:
            run("ip", "netns", "del", namespace, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)
