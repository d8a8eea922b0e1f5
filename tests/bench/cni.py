"""What a container waits for its network: ours beside the CNI project's own plugins.

Each call is a process started with an environment and a configuration, as containerd does it;
ours and the reference take turns, on one node and with containers of their own. The reference is
``bridge`` with ``host-local``: both families, gateway, masquerade by nftables, on a tmpfs as well.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from appliance.cni import namespaces
from skerry.errors import SkerryError
from tests.bench.harness import Benchmark, Better, Figure
from tests.bench.process import percentile
from tests.netns.cni import PROGRAMS, REFERENCE, CniLab, CniNode, Pod

ROUNDS = 60
WARM_UP = 5
_REFERENCE_RANGES = ("10.245.7.0/24", "fd43:0:0:af4:700::/80")


def run() -> Sequence[Figure]:
    """Attach and detach containers; raises SkerryError if a call fails."""
    with CniLab(PROGRAMS | REFERENCE) as lab:
        node = lab.node()
        opened = namespaces.open_namespace(f"/run/netns/{node.namespace}")
        try:
            return namespaces.inside(opened, partial(_measure, lab, node))
        finally:
            os.close(opened)


def _measure(lab: CniLab, node: CniNode) -> Sequence[Figure]:
    ours: tuple[str, Mapping[str, object]] = ("skerry-cni", node.plugin)
    reference = ("bridge", _reference(node))
    took: dict[tuple[str, str], list[float]] = {}
    pods = {name: lab.pod() for name in ("skerry-cni", "bridge")}
    for number in range(WARM_UP + ROUNDS):
        for name, config in (ours, reference):
            for verb in ("ADD", "DEL"):
                spent = _timed(partial(_call, lab, node, name, config, verb, pods[name]))
                if number >= WARM_UP:
                    took.setdefault((name, verb), []).append(spent)
    figures = []
    for name, what in (("skerry-cni", "Skerry"), ("bridge", "bridge + host-local")):
        for verb in ("ADD", "DEL"):
            goal = 30.0 if (name, verb) == ("skerry-cni", "ADD") else None
            values = took[name, verb]
            figures.append(Figure(f"{what}: {verb} p50", percentile(values, 50), "ms", goal))
            figures.append(Figure(f"{what}: {verb} p99", percentile(values, 99), "ms"))
    for verb in ("ADD", "DEL"):
        middle = [percentile(took[name, verb], 50) for name in ("bridge", "skerry-cni")]
        figures.append(
            Figure(f"{verb}: times as fast", middle[0] / middle[1], "x", None, Better.HIGHER)
        )
    figures.append(Figure("the shim's own time, p50", _own_time(lab), "ms", 5.0))
    return figures


def _own_time(lab: CniLab) -> float:
    """Return what the shim takes beyond a program that does nothing."""
    config = {"cniVersion": "1.0.0"}
    took: dict[str, list[float]] = {}
    for _ in range(2 * ROUNDS):
        for program in (str(lab.programs / "skerry-cni"), "/bin/true"):
            spent = _timed(partial(_execute, program, {"CNI_COMMAND": "VERSION"}, config))
            took.setdefault(program, []).append(spent)
    shim, nothing = (percentile(values, 50) for values in took.values())
    return shim - nothing


def _reference(node: CniNode) -> Mapping[str, object]:
    ranges = [[{"subnet": one}] for one in _REFERENCE_RANGES]
    routes = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    return {
        "type": "bridge",
        "bridge": "reference0",
        "isGateway": True,
        "ipMasq": True,
        "ipMasqBackend": "nftables",
        "hairpinMode": True,
        "mtu": 1380,
        "ipam": {
            "type": "host-local",
            "dataDir": str(node.folder / "host-local"),
            "ranges": ranges,
            "routes": routes,
        },
    }


def _call(
    lab: CniLab, node: CniNode, name: str, config: Mapping[str, object], verb: str, pod: Pod
) -> None:
    whole = {"cniVersion": "1.0.0", "name": name, **config}
    environment = node.environment(verb, pod) | {"PATH": os.environ["PATH"]}
    _execute(str(lab.programs / name), environment, whole)


def _execute(program: str, environment: Mapping[str, str], config: Mapping[str, object]) -> None:
    done = subprocess.run(
        [program],
        env=environment,
        input=json.dumps(config).encode(),
        capture_output=True,
        timeout=60,
        check=False,
    )
    if done.returncode != 0:
        said = done.stdout.decode(errors="replace")[:400]
        raise SkerryError(f"{Path(program).name} {environment.get('CNI_COMMAND', '')}: {said}")


def _timed(work: Callable[[], None]) -> float:
    """Return how many milliseconds it took."""
    begun = time.perf_counter()
    work()
    return (time.perf_counter() - begun) * 1000


BENCHMARK = Benchmark("cni", "a container's network: ADD and DEL, ours and the reference", run)
