"""Runs the test tiers and prints what each took: ``python -m tests.run all|fast|TIER...``.

A failing tier does not hide the ones after it; the exit status is that of the whole run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from skerry.console import format_elapsed, note, table

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("skerry", "appliance", "provisioning", "ota", "image", "qemu", "tests")


@dataclass(frozen=True, slots=True)
class Tier:
    """A named row of commands; all of them run, one after the other."""

    name: str
    what: str
    commands: tuple[tuple[str, ...], ...]


def _python(*words: str) -> tuple[str, ...]:
    return (sys.executable, "-m", *words)


def _pytest(folder: str, *words: str) -> tuple[str, ...]:
    return _python("pytest", folder, "-q", "-p", "no:cacheprovider", *words)


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
        "contract",
        "one real process; the programs that other tests only fake",
        (_pytest("tests/contract"),),
    ),
    Tier(
        "netns",
        "nodes as processes in network namespaces",
        (_pytest("tests/netns", "-m", "not scale", "--durations=10"),),
    ),
    Tier("scale", "32 nodes in network namespaces", (_pytest("tests/netns", "-m", "scale"),)),
    Tier(
        "images",
        "images of every board",
        (
            _python("skerry", "image", "build", "x86_64"),
            _python("skerry", "image", "build", "qemu-arm64"),
        ),
    ),
    Tier("vm", "machines in QEMU", (_pytest("tests/vm", "--durations=10"),)),
)
GROUPS = {
    # 32 nodes on two cores take their time: asked for by name.
    "all": tuple(tier.name for tier in TIERS if tier.name != "scale"),
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


def run(tier: Tier) -> bool:
    """Run every command of the tier; a failing one does not stop the rest."""
    good = True
    for command in tier.commands:
        status = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
        if status.returncode != 0:
            note(f"failed with status {status.returncode}; repeat it with: {' '.join(command)}")
            good = False
    return good


def main(names: list[str]) -> int:
    """Run the selected tiers, then print the time of each."""
    rows = []
    failed = []
    begun = time.monotonic()
    for tier in select(names):
        note(f"=== {tier.name}: {tier.what}")
        tier_begun = time.monotonic()
        if not run(tier):
            failed.append(tier.name)
        elapsed = format_elapsed(time.monotonic() - tier_begun)
        rows.append((tier.name, "FAILED" if tier.name in failed else "passed", elapsed))
        note(f"=== {tier.name}: {rows[-1][1]} in {elapsed}\n")
    rows.append(("together", "", format_elapsed(time.monotonic() - begun)))
    print(table(("tier", "result", "time"), rows), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
