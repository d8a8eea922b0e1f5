"""What the ``skerry lab`` commands do; apart from the parsers since it imports a lot."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from image.artifacts import Artifacts
from image.tools import ToolsRoot, locked
from qemu import cluster, demo, images, lab
from qemu import shell as guest_shell
from qemu.errors import LabError
from qemu.machine import Machine
from qemu.spec import Accelerator, Arch
from qemu.watch import NodeWatch, follow, peers_up
from skerry import console
from skerry.errors import UsageError


def up(arguments: argparse.Namespace) -> int:
    """Boot the lab, or show the one that is up."""
    if not 1 <= arguments.nodes <= lab.MOST_NODES:
        raise UsageError(f"--nodes {arguments.nodes}: 1 to {lab.MOST_NODES} machines")
    lab.LAB.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    with locked(lab.LAB / "lab.lock", waiting_for="the lab"):
        tools = _tools()
        record, machines = _running(arguments, tools) or _fresh(arguments, tools)
        _wait_ready(machines, arguments.timeout)
        result: dict[str, Any] = demo.show(machines)
        if arguments.cluster:
            names = [str(one["name"]) for one in result["nodes"].values()]
            result |= cluster.show(machines, names, arguments.timeout)
    for machine in machines:
        machine.release()
    console.note("")
    console.note(
        f"{len(machines)} machines are up ({record.accelerator}), after "
        f"{console.format_elapsed(time.monotonic() - begun)}."
    )
    console.note("make shell NODE=1   make logs NODE=1   make stop")
    if arguments.cluster:
        console.note(f"In the shell of {result['server']}: kubectl get pods -A -o wide")
    if arguments.json:
        print(json.dumps(result | {"accelerator": record.accelerator}, indent=2))
    return 0


def down(arguments: argparse.Namespace) -> int:
    """End the lab."""
    record = lab.load()
    if record is None:
        console.note("no machines are up")
        return 0
    with console.step("ending the machines"):
        count = lab.end(record, graceful=arguments.graceful)
    console.note(f"{count} machines ended; their disks and logs are in {lab.LAB}")
    return 0


def status(arguments: argparse.Namespace) -> int:
    """Print the table of the nodes that are up."""
    record = lab.require()
    statuses: dict[str, dict[str, Any]] = {}
    for number, node in enumerate(record.nodes, start=1):
        try:
            machine = lab.machine_of(record, number)
            machine.wait_agent(timeout=10)
            statuses[node.name] = demo.node_status(machine)
            machine.release()
        except LabError as error:
            if not arguments.json:
                console.note(f"{node.name}: {error}")
            statuses[node.name] = {"state": "unreachable"}
    if arguments.json:
        print(json.dumps({"accelerator": record.accelerator, "nodes": statuses}, indent=2))
    else:
        print(console.table(demo.HEADER, demo.rows(statuses)))
    return 0


def shell(arguments: argparse.Namespace) -> int:
    """Open a root shell in a machine."""
    machine = lab.machine_of(lab.require(), arguments.node)
    try:
        return guest_shell.interact(machine)
    finally:
        machine.release()


def logs(arguments: argparse.Namespace) -> int:
    """Print a machine's journal."""
    argv = ["journalctl", "--no-pager", "--output=short-precise"]
    argv += ["--follow"] if arguments.follow else []
    argv += [f"--unit={arguments.unit}"] if arguments.unit else []
    argv += [f"--lines={arguments.lines}"] if arguments.lines is not None else []
    argv += [f"--boot={arguments.boot}"] if arguments.boot is not None else []
    machine = lab.machine_of(lab.require(), arguments.node)
    try:
        return guest_shell.stream(machine, argv)
    finally:
        machine.release()


def _tools() -> ToolsRoot:
    with console.step("tools"):
        return ToolsRoot.ensure()


def _running(
    arguments: argparse.Namespace, tools: ToolsRoot
) -> tuple[lab.LabRecord, list[Machine]] | None:
    """Return the lab that is up already, if all of it is; end what is left of a broken one."""
    record = lab.load()
    if record is None:
        return None
    alive = [node for node in record.nodes if node.process.alive()]
    if len(alive) == len(record.nodes) == arguments.nodes and record.hub.alive():
        console.note(f"{len(alive)} machines are up already (make stop ends them): using them")
        numbers = range(1, len(alive) + 1)
        return record, [lab.machine_of(record, number, tools=tools) for number in numbers]
    if alive:
        raise LabError(
            f"{len(alive)} of {len(record.nodes)} machines of another lab are still up",
            hint="end them first: make stop",
        )
    lab.end(record)
    return None


def _fresh(arguments: argparse.Namespace, tools: ToolsRoot) -> tuple[lab.LabRecord, list[Machine]]:
    lab.clean()
    if arguments.image:
        image = arguments.image.absolute()
        if not image.is_file():
            raise UsageError(f"there is no image {arguments.image}")
        artifacts = Artifacts.of("x86_64", image.parent)
    else:
        with console.step("image for x86_64"):
            artifacts = images.ensure("x86_64")
        image = artifacts.disk
    with console.step("accelerator"):
        accelerator = _accelerator(artifacts, tools)
    with console.step("a network and its token"):
        tokens = lab.make_tokens(arguments.nodes, cluster=arguments.cluster)
    with console.step(f"switching {arguments.nodes} machines on ({accelerator.name})"):
        return lab.boot(image, tokens, accelerator, tools=tools)


def _accelerator(artifacts: Artifacts, tools: ToolsRoot) -> Accelerator:
    from qemu import accel

    if not accel.wants_probe(Arch.X86_64) or not artifacts.boot.exists():
        return accel.tcg(Arch.X86_64)
    kernel = images.kernel_of(artifacts, tools, lab.LAB / "vmlinuz")
    return accel.choose(Arch.X86_64, kernel=kernel, tools=tools)


def _wait_ready(machines: list[Machine], timeout: float) -> None:
    begun = time.monotonic()

    def say(node: str, words: str) -> None:
        elapsed = console.format_elapsed(time.monotonic() - begun)
        console.note(f"    {elapsed:>6}  {node}: {words}")

    def done(statuses: list[dict[str, Any]]) -> bool:
        others = len(machines) - 1
        return all(
            status.get("state") == "ready" and len(peers_up(status)) >= others
            for status in statuses
        )

    with console.step(f"waiting for {len(machines)} nodes to boot and find each other"):
        follow([NodeWatch(machine) for machine in machines], done, timeout=timeout, say=say)
