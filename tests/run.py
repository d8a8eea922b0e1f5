"""Runs the test tiers and prints what each took: ``python -m tests.run all|fast|TIER...``.

A failing tier does not hide the ones after it; the exit status is that of the whole run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from skerry.console import format_elapsed, note, table

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("skerry", "appliance", "provisioning", "ota", "image", "qemu", "tests")

ASKED_FOR = ("scale", "long", "ha", "endurance", "conformance")
"""Markers of tests that take minutes each: `all` leaves them out, a tier of the name runs them."""


@dataclass(frozen=True, slots=True)
class Tier:
    """A named row of commands; all of them run, one after the other or side by side.

    ``early``: it begins with the first tier, in the background and at the lowest priority, and only
    what is left of it is waited for at its place. Side by side or early, what a command
    prints is shown when it has ended.
    """

    name: str
    what: str
    commands: tuple[tuple[str, ...], ...]
    side_by_side: bool = False
    early: bool = False


def _python(*words: str) -> tuple[str, ...]:
    return (sys.executable, "-m", *words)


def _pytest(*words: str) -> tuple[str, ...]:
    return _python("pytest", "-q", "-p", "no:cacheprovider", *words)


_USUAL = ("-m", f"not ({' or '.join(ASKED_FOR)})", "--durations=15")
_TOOLS = (sys.executable, "-c", "from image.tools import ToolsRoot; ToolsRoot.ensure()")
# Guests in both lanes at once: each lane alone leaves a third of two cores idle. The cluster has
# the machine to itself.
_FIRST_LANE = ("two_nodes", "disk", "bitflip")
_ALONE = ("cluster",)


def _vm(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/vm/test_{name}.py" for name in names)


TIERS = (
    Tier(
        "lint",
        "lint, format and strict types",
        (
            _python("ruff", "check", "--quiet", "."),
            _python("ruff", "format", "--quiet", "--check", "."),
            _python("mypy", "--no-error-summary"),
        ),
    ),
    Tier("unit", "sans-IO, no root, no sleeping", (_pytest("tests/unit"),)),
    Tier(
        "images",
        "images, and programs for tests; begun with the first tier",
        (
            _python("skerry", "image", "build", "x86_64"),
            _python("tests.programs"),
            # Kubernetes is compiled for one architecture here: minutes.
            _python("skerry", "image", "build", "qemu-arm64", "--without-kubernetes"),
        ),
        early=True,
    ),
    Tier("go", "our Go: format, vet, tests", (_pytest("tests/golang"),)),
    Tier(
        "contract",
        "one real process; the programs that other tests only fake",
        (_pytest("tests/contract", *_USUAL),),
    ),
    Tier("netns", "nodes as processes in network namespaces", (_pytest("tests/netns", *_USUAL),)),
    Tier(
        "vm",
        "machines in QEMU, two lanes",
        (
            _pytest(*_vm(*_FIRST_LANE), *_USUAL),
            _pytest(
                "tests/vm", *(f"--ignore={file}" for file in _vm(*_FIRST_LANE, *_ALONE)), *_USUAL
            ),
        ),
        side_by_side=True,
    ),
    Tier("cluster", "Kubernetes on two machines in QEMU", (_pytest(*_vm(*_ALONE), *_USUAL),)),
    Tier("scale", "32 nodes in network namespaces", (_pytest("tests/netns", "-m", "scale"),)),
    Tier("long", "stories in QEMU of which CI runs a part", (_pytest("tests/vm", "-m", "long"),)),
    Tier("ha", "three servers, one of them killed", (_pytest("tests", "-m", "ha"),)),
    Tier("endurance", "churn of pods", (_pytest("tests", "-m", "endurance"),)),
    Tier(
        "conformance",
        "the network part of Kubernetes' own end-to-end tests",
        (_pytest("tests", "-m", "conformance"),),
    ),
)
GROUPS = {
    "all": tuple(tier.name for tier in TIERS if tier.name not in ASKED_FOR),
    "fast": ("lint", "unit"),
}


def select(names: list[str]) -> list[Tier]:
    """Return the tiers of these names and groups, in the order of :data:`TIERS`."""
    wanted = {name for word in names for name in GROUPS.get(word, (word,))}
    unknown = wanted - {tier.name for tier in TIERS}
    if unknown or not wanted:
        known = ", ".join([*GROUPS, *(tier.name for tier in TIERS)])
        sys.exit(
            f"tests.run: unknown tier {', '.join(sorted(unknown)) or '(none)'}; known: {known}"
        )
    return [tier for tier in TIERS if tier.name in wanted]


class Command:
    """A command of a tier in a thread of its own; :meth:`wait` shows what it printed."""

    def __init__(self, *rows: tuple[str, ...], priority: tuple[str, ...] = ()) -> None:
        self._rows = rows
        self._priority = priority
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - as long as we
        self._good = True
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        for row in self._rows:
            self._good &= _status((*self._priority, *row), self._output.fileno())

    def wait(self) -> bool:
        """Wait for the end, copy the output to ours; says whether it went well."""
        self._thread.join()
        self._output.seek(0)
        sys.stdout.buffer.write(self._output.read())
        sys.stdout.flush()
        self._output.close()
        return self._good


def _status(command: tuple[str, ...], output: int | None = None) -> bool:
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
    )
    if done.returncode == 0:
        return True
    words = f"failed with status {done.returncode}; repeat it with: {' '.join(command)}"
    if output is None:
        note(words)
    else:
        os.write(output, f"{words}\n".encode())
    return False


def run(tier: Tier) -> bool:
    """Run every command of the tier; a failing one does not stop the rest."""
    if tier.side_by_side:
        begun = [Command(command) for command in tier.commands]
        results = [command.wait() for command in begun]
    else:
        results = [_status(command) for command in tier.commands]
    return all(results)


def begin_early(tiers: list[Tier]) -> dict[str, Command]:
    """Begin in the background what may be, if anything comes before it."""
    early = [tier for tier in tiers[1:] if tier.early]
    # First what other tiers need as well, so that none waits for a process of low priority.
    if not early or not _status(_TOOLS):
        return {}
    return {tier.name: Command(*tier.commands, priority=("nice", "-n", "19")) for tier in early}


def main(names: list[str]) -> int:
    """Run the selected tiers, then print the time of each."""
    rows = []
    failed = []
    begun = time.monotonic()
    tiers = select(names)
    early = begin_early(tiers)
    for tier in tiers:
        note(f"=== {tier.name}: {tier.what}")
        tier_begun = time.monotonic()
        good = early[tier.name].wait() if tier.name in early else run(tier)
        if not good:
            failed.append(tier.name)
        elapsed = format_elapsed(time.monotonic() - tier_begun)
        rows.append((tier.name, "FAILED" if tier.name in failed else "passed", elapsed))
        note(f"=== {tier.name}: {rows[-1][1]} in {elapsed}\n")
    rows.append(("together", "", format_elapsed(time.monotonic() - begun)))
    print(table(("tier", "result", "time"), rows), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
