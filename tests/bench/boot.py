"""Power-on to a finished boot in QEMU: Skerry beside a plain Debian, in one run on equal machines.

*Complete*: systemd has no job left (``systemctl is-system-running --wait``), so on both sides all
that belongs to the boot has started; Skerry's includes ``ready``, its health check and the settled
update slot, Debian's includes cloud-init. *Ready*: the supervisor's own word. Nothing polls inside
the guests. Under emulation the figures say how two boots compare, not how fast a real machine is.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from image.artifacts import Artifacts
from image.tools import ToolsRoot
from qemu.accel import choose
from qemu.images import kernel_of
from qemu.lab import make_tokens
from qemu.machine import Machine
from qemu.spec import Accelerator, Arch, MachineSpec, UserNic
from skerry.console import note
from skerry.errors import SkerryError
from tests.bench import plain_debian
from tests.bench.harness import Benchmark, Figure

BOOT_SECONDS = 900.0


@dataclass(frozen=True, slots=True)
class Boot:
    """Seconds since power-on; ``ready`` only where a supervisor says so."""

    userspace: float
    complete: float
    ready: float | None


def run() -> Sequence[Figure]:
    """Boot both in turn, ``$SKERRY_BENCH_RUNS`` times (3), and compare the medians."""
    tools = ToolsRoot.ensure()
    skerry = Artifacts.of("x86_64").disk
    if not skerry.exists():
        raise SkerryError(f"{skerry} is missing", hint="build it: make image")
    plain = plain_debian.build()
    with tempfile.TemporaryDirectory(prefix="skerry-bench-") as scratch:
        kernel = kernel_of(Artifacts.of("x86_64"), tools, Path(scratch) / "vmlinuz")
        accelerator = choose(Arch.X86_64, kernel=kernel, tools=tools)
        (token,) = make_tokens(1, Path(scratch) / "network")
    rounds = int(os.environ.get("SKERRY_BENCH_RUNS", "3"))
    ours: list[Boot] = []
    theirs: list[Boot] = []
    for number in range(1, rounds + 1):
        ours.append(boot(f"skerry-{number}", skerry, accelerator, tools, token=token))
        theirs.append(boot(f"plain-{number}", plain, accelerator, tools))
    complete = median(one.complete for one in ours)
    plain_complete = median(one.complete for one in theirs)
    ready = median(one.ready for one in ours if one.ready is not None)
    return (
        Figure("boot-ready", round(ready, 2), "s"),
        Figure("boot-complete", round(complete, 2), "s"),
        Figure("boot-userspace", round(median(one.userspace for one in ours), 2), "s"),
        Figure("plain-debian-complete", round(plain_complete, 2), "s"),
        Figure("plain-debian-userspace", round(median(one.userspace for one in theirs), 2), "s"),
        Figure("ready-ratio", round(ready / plain_complete, 3), "of plain Debian", goal=1.0),
        Figure("complete-ratio", round(complete / plain_complete, 3), "of plain Debian", goal=1.0),
    )


def boot(
    name: str,
    disk: Path,
    accelerator: Accelerator,
    tools: ToolsRoot,
    *,
    token: bytes | None = None,
) -> Boot:
    """Boot a fresh overlay of the disk once; with a token, also ask the supervisor."""
    spec = MachineSpec(
        name=name,
        disk=disk,
        disk_size=4 << 30,
        memory_mib=1024,
        nics=(UserNic(),),
        credentials={"skerry.token": token} if token else {},
    )
    with (
        tempfile.TemporaryDirectory(prefix="skerry-bench-") as directory,
        Machine(spec, Path(directory), accelerator=accelerator, tools=tools) as machine,
    ):
        machine.start()
        machine.wait_agent(timeout=BOOT_SECONDS)
        userspace = machine.elapsed()
        # `degraded` (a failed unit) is an end of the boot too, and is said.
        state = machine.run(["systemctl", "is-system-running", "--wait"], timeout=BOOT_SECONDS)
        complete = machine.elapsed()
        ready = None
        if token:
            status = machine.run(["skerry", "status", "--json"], timeout=120, check=True)
            document = json.loads(status.stdout)
            if document["state"] != "ready":
                raise SkerryError(f"the node is {document['state']}: {document['reasons']}")
            ready = machine.elapsed() - float(document["state_since_s"])
        told = f", ready {ready:.1f} s" if ready is not None else ""
        note(f"    {name}: {state.stdout.strip()} after {complete:.1f} s{told}")
        return Boot(userspace, complete, ready)


BENCHMARK = Benchmark("boot", "power-on to ready, beside a plain Debian", run)
