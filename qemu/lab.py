"""The lab of ``make run``: machines on one LAN, up until somebody ends them.

What runs is kept in ``build/lab/lab.json``; only what stands there is ever ended.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from image.artifacts import REPOSITORY
from image.tools import ToolsRoot
from qemu.errors import LabError
from qemu.machine import Machine
from qemu.process import ProcessId
from qemu.spec import SOCKETS_HOME, Accelerator, LanNic, MachineSpec

LAB = REPOSITORY / "build" / "lab"
MOST_NODES = 5
CLUSTER_MEMORY_MIB = 2048
CLUSTER_DATA = 4 << 30
"""What the data partition of a node with Kubernetes gets; the file on the host is sparse."""
_HUB_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A machine that runs."""

    name: str
    process: ProcessId


@dataclass(frozen=True, slots=True)
class LabRecord:
    """What ``lab up`` started."""

    sockets: Path
    hub: ProcessId
    accelerator: str
    image: str
    nodes: tuple[NodeRecord, ...]

    def to_json(self) -> str:
        """Return the text of the state file."""
        nodes = [{"name": n.name, "process": n.process.to_json()} for n in self.nodes]
        return json.dumps(
            {
                "sockets": str(self.sockets),
                "hub": self.hub.to_json(),
                "accelerator": self.accelerator,
                "image": self.image,
                "nodes": nodes,
            },
            indent=2,
        )

    @classmethod
    def from_json(cls, text: str) -> LabRecord | None:
        """Return the record in a state file, or None if it is none."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            return None
        match data:
            case {
                "sockets": str(sockets),
                "hub": hub,
                "accelerator": str(accelerator),
                "image": str(image),
                "nodes": list(nodes),
            } if process := ProcessId.from_json(hub):
                found = tuple(record for node in nodes if (record := _node_of(node)))
                if len(found) == len(nodes):
                    return cls(Path(sockets), process, accelerator, image, found)
        return None


def _node_of(data: object) -> NodeRecord | None:
    match data:
        case {"name": str(name), "process": process} if known := ProcessId.from_json(process):
            return NodeRecord(name, known)
    return None


def load(directory: Path = LAB) -> LabRecord | None:
    """Return what was started and not ended, if anything."""
    try:
        return LabRecord.from_json((directory / "lab.json").read_text(errors="replace"))
    except OSError:
        return None


def store(record: LabRecord, directory: Path = LAB) -> None:
    """Keep what was started."""
    file = directory / "lab.json"
    aside = file.with_suffix(".new")
    aside.write_text(record.to_json() + "\n")
    aside.replace(file)


def start_hub(
    socket: Path, *, log: Path, words: Sequence[str] = (), owned: bool = False
) -> ProcessId:
    """Start a LAN as a process of its own and wait until it listens.

    ``words`` go to its command line. *Owned*, it ends with the thread that started it.
    """
    argv = [sys.executable, "-m", "qemu.hub", str(socket), *words]
    if owned:
        argv = ["setpriv", "--pdeathsig", "TERM", "--", *argv]
    with log.open("ab") as output:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd=REPOSITORY,
        )
    process = ProcessId.of(child.pid)
    deadline = time.monotonic() + _HUB_SECONDS
    while not socket.is_socket():
        if child.poll() is not None or time.monotonic() > deadline:
            raise LabError(f"the LAN did not start: {log.read_text(errors='replace')[-500:]}")
        time.sleep(0.02)
    child.returncode = 0  # it outlives us: Popen must not complain
    if process is None:
        raise LabError("the LAN ended at once", hint=f"log: {log}")
    return process


def machine_of(
    record: LabRecord, number: int, *, directory: Path = LAB, tools: ToolsRoot | None = None
) -> Machine:
    """Return a running machine by its number (from 1); raises :class:`LabError`."""
    if not 1 <= number <= len(record.nodes):
        raise LabError(
            f"there is no node {number}",
            hint=f"nodes: {', '.join(str(n + 1) for n in range(len(record.nodes)))}",
        )
    node = record.nodes[number - 1]
    machine = Machine(
        MachineSpec(node.name),
        directory / node.name,
        accelerator=Accelerator(record.accelerator, (), ""),
        tools=tools,
        owned=False,
        sockets=record.sockets / node.name,
    )
    machine.adopt(node.process, started=time.monotonic())
    machine.require_alive()
    return machine


def require(directory: Path = LAB) -> LabRecord:
    """Return the running lab; raises :class:`LabError` if there is none."""
    record = load(directory)
    if record is None or not any(node.process.alive() for node in record.nodes):
        raise LabError("no machines are up", hint="make run starts them")
    return record


def boot(
    image: Path,
    tokens: Sequence[bytes],
    accelerator: Accelerator,
    *,
    directory: Path = LAB,
    tools: ToolsRoot,
) -> tuple[LabRecord, list[Machine]]:
    """Start one machine per token from an image, on a LAN of their own, fit for Kubernetes."""
    sockets = Path(tempfile.mkdtemp(prefix="skerry-lab-", dir=SOCKETS_HOME))
    lan = sockets / "lan"
    hub = start_hub(lan, log=directory / "lan.log")
    record = LabRecord(sockets, hub, accelerator.name, str(image), ())
    store(record, directory)
    machines: list[Machine] = []
    for number, token in enumerate(tokens, start=1):
        name = f"node{number}"
        own = sockets / name
        own.mkdir()
        spec = MachineSpec(
            name,
            disk=image,
            disk_size=image.stat().st_size + CLUSTER_DATA,
            memory_mib=CLUSTER_MEMORY_MIB,
            nics=(LanNic(lan),),
            credentials={"skerry.token": token},
        )
        machine = Machine(
            spec,
            directory / name,
            accelerator=accelerator,
            tools=tools,
            owned=False,
            sockets=own,
        )
        machine.start()
        if machine.process is None:
            raise LabError(f"{name} ended at once", hint=f"log: {machine.paths.qemu_log}")
        machines.append(machine)
        nodes = (*record.nodes, NodeRecord(name, machine.process))
        record = LabRecord(sockets, hub, accelerator.name, str(image), nodes)
        store(record, directory)
    return record, machines


def end(record: LabRecord, *, directory: Path = LAB, graceful: float = 0.0) -> int:
    """End what a record names, and nothing else; returns how many machines were up.

    ``graceful``: seconds that the guests get to switch themselves off.
    """
    running = [node for node in record.nodes if node.process.alive()]
    if graceful:
        for number, node in enumerate(record.nodes, start=1):
            if node in running:
                _press_power_button(record, number, directory)
    deadline = time.monotonic() + graceful
    for node in running:
        if not node.process.wait(max(deadline - time.monotonic(), 0)):
            node.process.kill()
            node.process.wait(10)
    record.hub.kill(15)
    record.hub.wait(10)
    if record.sockets.name.startswith("skerry-lab-") and record.sockets.parent == SOCKETS_HOME:
        shutil.rmtree(record.sockets, ignore_errors=True)
    (directory / "lab.json").unlink(missing_ok=True)
    return len(running)


def _press_power_button(record: LabRecord, number: int, directory: Path) -> None:
    try:
        machine = machine_of(record, number, directory=directory)
        machine.qmp("system_powerdown")
        machine.release()
    except LabError:
        pass  # it is killed instead


def clean(directory: Path = LAB) -> None:
    """Remove the disks and logs of an earlier lab."""
    for path in directory.glob("node*"):
        shutil.rmtree(path)
    shutil.rmtree(directory / "network", ignore_errors=True)


def make_tokens(
    count: int, directory: Path = LAB, *, cluster: bool = False, settings: Sequence[str] = ()
) -> list[bytes]:
    """Make a network in ``directory/network`` and a token of it for each node.

    With ``cluster`` the nodes found one: a single node by its grant, more of them by majority.
    ``settings`` are further words of ``skerry network new``. They come from the commands that an
    operator uses: this package does not import provisioning.
    """
    network = directory / "network"
    expected = ["--expected-nodes", str(count)] if cluster and count > 1 else []
    _skerry("network", "new", "lab", "--dir", str(network), *expected, *settings)
    founder = ["--founder"] if cluster and count == 1 else []
    words = ["token", "new", "--network", str(network), "--expires", "30d", *founder]
    return [_skerry(*words).strip().encode()] * count


def _skerry(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "skerry", *words],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    if done.returncode:
        raise LabError(f"`skerry {' '.join(words[:2])}` failed: {done.stderr.strip()}")
    return done.stdout
