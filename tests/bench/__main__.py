"""``python -m tests.bench all|NAME``: measure, print a table, write ``build/bench/NAME.json``."""

from __future__ import annotations

import os
import sys
import time

from skerry.console import format_elapsed, note
from skerry.errors import SkerryError
from tests.bench import boot, cni, flood, footprint, formation, gossip, idle, ledger, podnet
from tests.bench.harness import ROOT, Benchmark, draw, machine, write

BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        boot.BENCHMARK,
        footprint.BENCHMARK,
        formation.BENCHMARK,
        gossip.BENCHMARK,
        idle.BENCHMARK,
        ledger.BENCHMARK,
        flood.BENCHMARK,
        cni.BENCHMARK,
        podnet.BENCHMARK,
    )
}


def select(words: list[str]) -> list[Benchmark]:
    """Return the benchmarks that the words name, each once, in the order of the table."""
    unknown = set(words) - set(BENCHMARKS) - {"all"}
    if unknown or not words:
        known = ", ".join(["all", *BENCHMARKS])
        named = ", ".join(sorted(unknown)) or "(none)"
        raise SkerryError(f"no benchmark {named}", hint=f"known: {known}")
    return [one for name, one in BENCHMARKS.items() if name in words or "all" in words]


def main(words: list[str]) -> int:
    """Run the benchmarks; one that fails does not stop the others. 1 if any failed."""
    try:
        chosen = select(words)
    except SkerryError as error:
        note(f"tests.bench: {error}\n  {error.hint}")
        return 2
    failed = False
    for benchmark in chosen:
        begun = time.monotonic()
        load = os.getloadavg()[0]
        note(f"=== {benchmark.name}: {benchmark.what}")
        try:
            figures = benchmark.run()
        except SkerryError as error:
            note(f"{benchmark.name} failed: {error}" + (f"\n  {error.hint}" if error.hint else ""))
            failed = True
            continue
        path = write(benchmark.name, figures)
        print(draw(figures), flush=True)
        took = format_elapsed(time.monotonic() - begun)
        note(
            f"{machine()}, load {load:.1f} at the start, took {took}; "
            f"{path.relative_to(ROOT)}; to repeat it: make bench-{benchmark.name}"
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
