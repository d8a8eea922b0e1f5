"""Machines for the engine: each a set of namespaces with the tools root's containerd in it.

Recipe::

    with World(program) as world:
        server = world.machine("one")
        server.containerd()
        server.engine("server", "--token", SECRET)
        wait_until(lambda: server.get("nodes"), 60, "the API server")

A machine has a network, mounts and processes of its own, over the tools root as its read-only
system. They share a bridge in a namespace that leads nowhere. All that a machine did is gone with
its first process.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from image.tools import ToolsRoot

CGROUPS = Path("/sys/fs/cgroup")
DATA = Path("/data/kubernetes")
_CONTAINERD = """version = 2
disabled_plugins = ["io.containerd.nri.v1.nri"]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "skerry.local/pause:1"
  restrict_oom_score_adj = true
  disable_apparmor = true
  enable_unprivileged_ports = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "@SNAPSHOTTER@"
"""
# Every pod of these tests uses its machine's network: the runtime only has to find a configuration.
_NETWORK = '{"cniVersion":"1.0.0","name":"none","plugins":[{"type":"loopback"}]}'

# Arguments: TOOLS SCRATCH. Becomes the machine's first process, which reaps and waits to be killed.
_MACHINE = r"""
set -eu
tools=$1 scratch=$2
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$scratch/upper"
mkdir "$scratch/upper/u" "$scratch/upper/w"
root=$scratch/root upper=$scratch/upper
mount -t overlay -o "lowerdir=$tools,upperdir=$upper/u,workdir=$upper/w" overlay "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t sysfs sysfs "$root/sys"
mount --rbind /sys/fs/cgroup "$root/sys/fs/cgroup"
for place in /run /tmp /var/lib /var/log /data; do
    mkdir -p "$root$place"
    mount -t tmpfs -o mode=755 tmpfs "$root$place"
done
mkdir -p "$root/data/shared" "$root/old" "$root/var/lib/containerd"
mount --bind "$scratch/shared" "$root/data/shared"
cd "$root"
pivot_root . old
umount -l /old
mount --make-rshared /
: >/etc/resolv.conf
trap 'exit 0' TERM
touch /data/shared/up
while :; do sleep 1000 & wait $!; done
"""

# Arguments: URL BEARER. The server is not verified here: what it answers is what is looked at.
_ASK = """
import ssl, sys, urllib.error, urllib.request
headers = {"Authorization": "Bearer " + sys.argv[2]} if sys.argv[2] else {}
request = urllib.request.Request(sys.argv[1], headers=headers)
try:
    answer = urllib.request.urlopen(request, context=ssl._create_unverified_context(), timeout=20)
except urllib.error.HTTPError as error:
    answer = error
print(answer.status)
print(answer.read().decode(), end="")
"""


class WorldError(AssertionError):
    """Something did not come about in time; the end of the log is in it."""


def wait_until(look: Callable[[], object], seconds: float, what: str) -> None:
    """Return when ``look`` finds something true."""
    deadline = time.monotonic() + seconds
    while not look():
        if time.monotonic() > deadline:
            raise WorldError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.2)


@dataclass(slots=True)
class Machine:
    """A machine; `World.machine` makes it."""

    name: str
    namespace: str
    address: str
    scratch: Path
    world: World
    holder: subprocess.Popen[bytes]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    snapshotter: str = ""

    @property
    def shared(self) -> Path:
        """A folder that both sides see: in the machine it is /data/shared."""
        return self.scratch / "shared"

    @property
    def log(self) -> Path:
        """What the engine says."""
        return self.scratch / "engine.log"

    def enter(self, words: Sequence[str]) -> list[str]:
        """Return the argv that runs a command inside."""
        target = str(self.first_process())
        environment = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"]
        flags = ["--mount", "--net", "--pid", "--ipc", "--uts", "--root", "--wd"]
        return ["nsenter", "--target", target, *flags, *environment, *words]

    def first_process(self) -> int:
        """Return the pid, seen from outside, of the machine's first process: unshare's child."""
        children = Path(f"/proc/{self.holder.pid}/task/{self.holder.pid}/children")
        return int(children.read_text().split()[0])

    def run(self, *words: str, check: bool = True, seconds: float = 60) -> str:
        """Run a command inside and return what it printed."""
        done = subprocess.run(
            self.enter(words), capture_output=True, text=True, check=False, timeout=seconds
        )
        if check and done.returncode:
            raise WorldError(f"{' '.join(words)}: {done.stderr.strip()[-800:]}")
        return done.stdout if check else done.stdout + done.stderr

    def spawn(self, words: Sequence[str], log: Path, **variables: str) -> subprocess.Popen[bytes]:
        """Start a command inside."""
        argv = ["env", *(f"{name}={value}" for name, value in variables.items()), *words]
        with log.open("ab") as stream:
            process = subprocess.Popen(
                self.enter(argv), stdin=subprocess.DEVNULL, stdout=stream, stderr=stream
            )
        self.processes.append(process)
        return process

    def containerd(self, *, networks: Path | None = None, snapshotter: str = "native") -> None:
        """Start the container runtime and give it the pause image.

        ``networks`` is the folder where somebody else writes the CNI configuration.
        """
        self.snapshotter = snapshotter
        text = _CONTAINERD.replace("@SNAPSHOTTER@", snapshotter)
        if networks is None:
            self.run("mkdir", "-p", "/etc/cni/net.d")
            self.run("sh", "-c", f"echo '{_NETWORK}' >/etc/cni/net.d/10-none.conflist")
        else:
            text += f'  [plugins."io.containerd.grpc.v1.cri".cni]\n    conf_dir = "{networks}"\n'
        (self.shared / "containerd.toml").write_text(text)
        log = self.scratch / "containerd.log"
        self.spawn(["containerd", "--config", "/data/shared/containerd.toml"], log)
        there = ("ctr", "version")
        wait_until(lambda: "Server:" in self.run(*there, check=False), 20, "containerd answers")
        self.bring(self.world.pause)

    def bring(self, archive: Path) -> None:
        """Give the container runtime an image."""
        copy = shutil.copyfile(archive, self.shared / archive.name)
        words = ("images", "import", "--local", "--snapshotter", self.snapshotter)
        self.run("ctr", "-n", "k8s.io", *words, f"/data/shared/{copy.name}", seconds=120)
        copy.unlink()

    def engine(self, role: str, *options: str, **variables: str) -> subprocess.Popen[bytes]:
        """Start the engine with what every machine of these tests needs."""
        words = ["/engine", role, "--data-dir", str(DATA), "--node-name", self.name]
        words += ["--node-ip", self.address]
        words += ["--container-runtime-endpoint", "unix:///run/containerd/containerd.sock"]
        words += ["--kubelet-arg", f"cgroup-root=/{self.namespace}"]
        if role == "server":
            words += ["--flannel-backend", "none"]
        return self.spawn([*words, *options], self.log, **variables)

    def stop(self, process: subprocess.Popen[bytes], *, hard: bool = False) -> int:
        """End a process that `spawn` started; return its status."""
        # nsenter has become the command itself; its pid outside is the child's of nsenter's fork.
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        target = int(children[0]) if children else process.pid
        os.kill(target, signal.SIGKILL if hard else signal.SIGTERM)
        return process.wait(60)

    def kubectl(self, *words: str, check: bool = True) -> str:
        """Run kubectl as the administrator of this server."""
        return self.run("/engine", "kubectl", *words, check=check)

    def https(self, path: str, *, bearer: str = "") -> tuple[int, str]:
        """Ask this server's API without the administrator's credentials: status and text."""
        words = ["nsenter", f"--net=/run/netns/{self.namespace}", sys.executable, "-c", _ASK]
        done = subprocess.run(
            [*words, f"https://{self.address}:6443{path}", bearer],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
        status, _, text = done.stdout.partition("\n")
        return int(status), text

    def get(self, *words: str) -> dict[str, Any]:
        """Return what ``kubectl get`` finds; empty if there is nothing (yet)."""
        with suppress(WorldError, ValueError):
            found: dict[str, Any] = json.loads(self.kubectl("get", *words, "-o", "json"))
            return found
        return {}

    def tail(self) -> str:
        """Return the end of what the engine said."""
        with suppress(OSError):
            return self.log.read_text(errors="replace")[-3000:]
        return ""

    def close(self) -> None:
        """End every process of the machine."""
        with suppress(OSError, IndexError):
            os.kill(self.first_process(), signal.SIGKILL)
        self.holder.kill()
        self.holder.wait(10)
        for process in self.processes:
            process.wait(10)


class World:
    """Machines on a bridge of their own."""

    def __init__(self, engine: Path, pause: Path) -> None:
        """Take the engine's program and the archive of the pause image."""
        self.engine_program = engine
        self.pause = pause
        self._tools = ToolsRoot.ensure()
        self._mark = f"se{secrets.token_hex(3)}"
        self._folder = Path(tempfile.mkdtemp(prefix="skerry-engine-"))
        self._machines: list[Machine] = []
        self._bridge = f"{self._mark}-lan"
        _ip("netns", "add", self._bridge)
        _ip("-n", self._bridge, "link", "add", "lan", "type", "bridge")
        _ip("-n", self._bridge, "link", "set", "lan", "up")

    def machine(self, name: str) -> Machine:
        """Make a machine with an address on the bridge."""
        number = len(self._machines) + 1
        namespace = f"{self._mark}-{number}"
        address = f"10.99.0.{number}"
        _ip("netns", "add", namespace)
        _ip("-n", namespace, "link", "set", "lo", "up")
        link = ("link", "add", "eth0", "type", "veth", "peer", "name", f"to{number}")
        _ip("-n", namespace, *link, "netns", self._bridge)
        _ip("-n", self._bridge, "link", "set", f"to{number}", "master", "lan", "up")
        _ip("-n", namespace, "addr", "add", f"{address}/24", "dev", "eth0")
        _ip("-n", namespace, "link", "set", "eth0", "up")
        _ip("-n", namespace, "route", "add", "default", "via", "10.99.0.254")
        return self.enclose(name, namespace, address)

    def enclose(self, name: str, namespace: str, address: str) -> Machine:
        """Make a machine in a network namespace that is there."""
        for controller in CGROUPS.iterdir():
            if controller.is_dir():
                (controller / namespace).mkdir(exist_ok=True)
        scratch = self._folder / name
        for folder in ("upper", "root", "shared"):
            (scratch / folder).mkdir(parents=True)
        words = ["nsenter", f"--net=/run/netns/{namespace}", "unshare"]
        words += [
            "--mount",
            "--pid",
            "--ipc",
            "--uts",
            "--fork",
            "sh",
            "-c",
            _MACHINE,
            "sh",
            str(self._tools.path),
            str(scratch),
        ]
        with (scratch / "machine.log").open("wb") as log:
            holder = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        machine = Machine(name, namespace, address, scratch, self, holder)
        self._machines.append(machine)
        try:
            wait_until((scratch / "shared" / "up").exists, 10, f"the machine {name}")
        except WorldError as error:
            raise WorldError(f"{error}: {(scratch / 'machine.log').read_text()}") from None
        shutil.copyfile(self.engine_program, scratch / "shared" / "engine")
        (scratch / "shared" / "engine").chmod(0o755)
        machine.run("ln", "-s", "/data/shared/engine", "/engine")
        machine.run("ln", "-s", "/data/shared/engine", "/usr/local/bin/kubectl")
        return machine

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        for machine in self._machines:
            machine.close()
        for name in (*(machine.namespace for machine in self._machines), self._bridge):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        for controller in CGROUPS.iterdir():
            for machine in self._machines:
                _remove_group(controller / machine.namespace)
        shutil.rmtree(self._folder, ignore_errors=True)


def _remove_group(group: Path) -> None:
    """Remove a control group and those in it; they are empty by now, or soon."""
    for _attempt in range(20):
        for path, _folders, _files in os.walk(group, topdown=False):
            with suppress(OSError):
                Path(path).rmdir()
        if not group.exists():
            return
        time.sleep(0.1)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
