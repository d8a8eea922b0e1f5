"""Machines for the tests: built once, owned, always ended; what they said is kept on failure."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from image.artifacts import REPOSITORY, Artifacts
from image.tools import ToolsRoot
from qemu import accel, demo, images, lab, workload
from qemu.errors import LabError
from qemu.machine import Machine
from qemu.spec import Accelerator, Arch, LanNic, MachineSpec
from qemu.watch import NodeWatch, follow, peers_up
from qemu.workload import Target
from tests.vm.clusters import Cluster, Documents
from tests.vm.remote import OperatorMachine, operator_machine

BOOT_SECONDS = 600.0
"""A contended boot under TCG takes 40-90 s; the deadline says only that it hangs."""

TEST_LOGS = REPOSITORY / "build" / "test-logs"
MachineFactory = Callable[[MachineSpec], Machine]
MachineMaker = Callable[[MachineSpec], Machine]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vm)
            if not item.get_closest_marker("timeout"):
                item.add_marker(pytest.mark.timeout(1800))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:  # noqa: ANN401
    report = yield
    if report.failed and (module := item.getparent(pytest.Module)):
        module.stash[FAILED] = True
    return report


FAILED = pytest.StashKey[bool]()


@pytest.fixture(scope="session")
def tools() -> ToolsRoot:
    return ToolsRoot.ensure()


@pytest.fixture(scope="session")
def x86_image() -> Artifacts:
    """The x86-64 image; the build knows by its cache that it has nothing to do."""
    return images.ensure("x86_64")


@pytest.fixture(scope="session")
def arm_image() -> Artifacts:
    """Without Kubernetes, which would have to be compiled once more."""
    return images.ensure("qemu-arm64", kubernetes=False)


@pytest.fixture(scope="session")
def accelerator(
    x86_image: Artifacts, tools: ToolsRoot, tmp_path_factory: pytest.TempPathFactory
) -> Accelerator:
    """How x86-64 guests run here."""
    if not accel.wants_probe(Arch.X86_64):
        return accel.tcg(Arch.X86_64)
    kernel = images.kernel_of(x86_image, tools, tmp_path_factory.mktemp("probe") / "vmlinuz")
    return accel.choose(Arch.X86_64, kernel=kernel, tools=tools)


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A token of a network that only this module knows."""
    return lab.make_tokens(1, tmp_path_factory.mktemp("network"))[0]


@pytest.fixture(scope="module")
def lan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A LAN: the socket that :class:`LanNic` takes."""
    directory = tmp_path_factory.mktemp("lan")
    process = lab.start_hub(directory / "lan", log=directory / "lan.log", owned=True)
    yield directory / "lan"
    process.kill(15)
    assert process.wait(10)


@pytest.fixture(scope="module")
def make_machine(
    request: pytest.FixtureRequest,
    tools: ToolsRoot,
    accelerator: Accelerator,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[MachineMaker]:
    """Return a function that makes a machine, which is off; all end with the module."""
    machines: list[Machine] = []
    module = request.node.name.removesuffix(".py").rpartition("/")[2]

    def make(spec: MachineSpec) -> Machine:
        used = accelerator if spec.arch is Arch.X86_64 else accel.tcg(spec.arch)
        directory = tmp_path_factory.mktemp(f"{module}-{spec.name}")
        machines.append(Machine(spec, directory, accelerator=used, tools=tools))
        return machines[-1]

    yield make
    failed = request.node.stash.get(FAILED, False)
    for machine in machines:
        try:
            if failed:
                keep_logs(machine, TEST_LOGS / module / machine.spec.name)
        finally:
            machine.close()
            # Only the disk is large; pytest keeps the directories of three runs.
            for disk in (machine.paths.disk_overlay, machine.paths.disk_copy):
                disk.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def start_machine(make_machine: MachineMaker) -> MachineFactory:
    """Return a function that makes a machine and switches it on."""

    def start(spec: MachineSpec) -> Machine:
        machine = make_machine(spec)
        machine.start()
        return machine

    return start


# For modules with a fixture `cluster`, which calls `assembled`.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the operator has: the network's directory."""
    return tmp_path_factory.mktemp("operator")


@pytest.fixture(scope="module")
def operator(folder: Path, cluster: Cluster) -> Iterator[OperatorMachine]:
    guests = {machine.spec.name: machine for machine in cluster.machines}
    with operator_machine(folder, guests) as made:
        yield made


@pytest.fixture(scope="module")
def founded(cluster: Cluster) -> Documents:
    """What is seen of the cluster once it is Ready."""
    return cluster.wait_ready()


@pytest.fixture(scope="module")
def server(cluster: Cluster, founded: Documents) -> Machine:
    """The machine that is the server, as long as there is one."""
    return cluster.machines[cluster.index_of_server(founded)]


@pytest.fixture(scope="module")
def pods(cluster: Cluster, server: Machine) -> list[Target]:
    """A pod on each node, with a Service each."""
    workload.create(server, cluster.names, workload.image_name(server))
    return cluster.targets(cluster.wait_pods())


def assembled(machines: Iterable[Machine]) -> Cluster:
    """Wait until machines that were switched on see each other; return them as a cluster."""
    nodes = list(machines)
    wait_ready(nodes, peers=len(nodes) - 1)
    return Cluster(tuple(nodes), tuple(str(demo.node_status(one)["name"]) for one in nodes))


def keep_logs(machine: Machine, target: Path) -> None:
    """Copy what a machine said, and its journal if it still talks, to where a person looks."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for log in (machine.paths.serial_log, machine.paths.qemu_log):
        if log.exists():
            shutil.copyfile(log, target / log.name)
    try:
        for name, argv in {
            "journal": ["journalctl", "--no-pager", "-o", "short-monotonic"],
            "units": ["systemctl", "--no-pager", "--failed", "--full"],
            "status": ["skerry", "status", "--json"],
        }.items():
            machine.wait_agent(timeout=5)
            result = machine.run(argv, timeout=60)
            (target / f"{name}.txt").write_text(result.stdout + result.stderr)
    except LabError as error:
        (target / "journal.txt").write_text(f"no journal: {error}\n")


def node_spec(name: str, image: Artifacts, lan: Path, token: bytes | None) -> MachineSpec:
    """Return the spec of an x86-64 node as `make run` has it."""
    return MachineSpec(
        name,
        disk=image.disk,
        disk_size=image.disk.stat().st_size + (1 << 30),
        nics=(LanNic(lan),),
        credentials={"skerry.token": token} if token else {},
    )


def cluster_spec(name: str, image: Artifacts, lan: Path, token: bytes) -> MachineSpec:
    """Return the spec of a node that has room for Kubernetes."""
    spec = node_spec(name, image, lan, token)
    size = image.disk.stat().st_size + lab.CLUSTER_DATA
    return replace(spec, memory_mib=lab.CLUSTER_MEMORY_MIB, disk_size=size)


def wait_ready(machines: list[Machine], *, peers: int, timeout: float = BOOT_SECONDS) -> None:
    """Wait until every node is ready with so many peers up."""

    def done(statuses: list[dict[str, Any]]) -> bool:
        return all(one.get("state") == "ready" and len(peers_up(one)) >= peers for one in statuses)

    watches = [NodeWatch(machine) for machine in machines]
    follow(watches, done, timeout=timeout, say=lambda _node, _words: None)


def overlay_ipv4(status: dict[str, Any]) -> str:
    """Return a node's IPv4 overlay address."""
    for address in status["overlay"]["addresses"]:
        if re.fullmatch(r"[0-9.]+(/\d+)?", address):
            return str(address).partition("/")[0]
    raise AssertionError(f"no IPv4 address in {status['overlay']}")
