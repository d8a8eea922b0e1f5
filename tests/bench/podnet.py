"""From pod to pod between two nodes: what each way of carrying pods costs.

Two real supervisors in namespaces; one TCP stream at a time and pings at rest. Side by side in one
run, in many short rounds that take turns, because absolute figures are this minute's:

- underlay: node to node past the overlay, a veth pair and a bridge
- host: node to node through the overlay
- native: pod to pod, the nodes' pod ranges in WireGuard's AllowedIPs; pods of the real CNI server
- flannel: pod to pod through the VXLAN of Flannel's daemon, over the overlay; pods made by hand,
  without our rules: in Flannel's favour

Goals are ratios of one round, the median of all: native to host, and Flannel below native.
``SKERRY_BENCH_ROUNDS`` (30) changes the run.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from skerry.console import note
from skerry.errors import SkerryError
from tests.bench.harness import Benchmark, Better, Figure
from tests.bench.process import percentile
from tests.netns.cni import CniLab
from tests.netns.cni_overlay import with_pods
from tests.netns.flannel import Flannel, check_mtu, overlay_of_two
from tests.netns.lab import Lab, LabError, Node, wait_until
from tests.netns.pods import Bridge
from tests.netns.stream import round_trips, throughput

ROUNDS = 30
STREAM_SECONDS = 0.6
PINGS = 60
NATIVE_GOAL = 0.97


@dataclass(slots=True)
class Way:
    """One way from a namespace to an address in another, and what was measured on it."""

    name: str
    sender: str
    receiver: str
    address: str
    rates: list[float] = field(default_factory=list)
    trips: list[float] = field(default_factory=list)


def run() -> Sequence[Figure]:
    """Measure all ways."""
    try:
        with Lab() as lab, CniLab() as cni:
            ways = build(cni, *overlay_of_two(lab))
            measure(ways, int(os.environ.get("SKERRY_BENCH_ROUNDS", ROUNDS)))
    except LabError as error:
        raise SkerryError(str(error)) from error
    return figures({way.name: way for way in ways})


def build(cni: CniLab, one: Node, two: Node) -> list[Way]:
    """Make the pods, and return every way from the first node to the second."""
    ways = [
        Way("underlay", one.namespace, two.namespace, two.address),
        Way("host", one.namespace, two.namespace, two.overlay_addresses()[0]),
    ]
    ways.append(native(cni, one, two))
    with Flannel((one, two)) as flannel:
        check_mtu(one)
        ways.append(by_hand("flannel", [flannel.bridge(at) for at in (one, two)]))
    # Nothing changes any more: the daemons do without the API, which would take processor time.
    return ways


def native(cni: CniLab, one: Node, two: Node) -> Way:
    """Return the way between a pod on each of two nodes, once it is open."""
    ends = []
    for node in (one, two):
        server, pod = with_pods(cni, node), cni.pod()
        said = server.call("ADD", pod)
        if said.status:
            raise LabError(f"no pod on {node.name}: {said.answer}")
        # It watches over running pods; what is measured is what it made.
        server.end()
        ends.append((pod, said.addresses[0]))
    (first, _), (second, address) = ends
    wait_until(lambda: first.reaches(address), 30, "native pods reach each other")
    return Way("native", first.namespace, second.namespace, address)


def by_hand(name: str, bridges: Sequence[Bridge]) -> Way:
    """Return the way between a pod on each of two nodes, once it is open."""
    first, second = (bridge.pod() for bridge in bridges)
    wait_until(lambda: first.reaches(second.address), 30, f"{name} pods reach each other")
    return Way(name, first.namespace, second.namespace, second.address)


def measure(ways: Sequence[Way], rounds: int) -> None:
    """Take turns; every second round goes through the ways backwards."""
    for way in ways:
        throughput(way.sender, way.receiver, way.address, 0.5)
    for number in range(rounds):
        for way in ways[:: 1 if number % 2 else -1]:
            rate = throughput(way.sender, way.receiver, way.address, STREAM_SECONDS)
            way.rates.append(rate)
            way.trips += round_trips(way.sender, way.address, PINGS)
        if (number + 1) % 5:
            continue
        said = ", ".join(f"{way.name} {statistics.median(way.rates) / 1e9:.2f}" for way in ways)
        note(f"    round {number + 1} of {rounds}, Gbit/s so far: {said}")


def figures(ways: dict[str, Way]) -> list[Figure]:
    """Return what was measured, the ratios last."""
    found = []
    for way in ways.values():
        rate = statistics.median(way.rates) / 1e9
        found += [
            Figure(f"{way.name}-throughput", round(rate, 3), "Gbit/s", better=Better.HIGHER),
            Figure(f"{way.name}-rtt-p50", round(statistics.median(way.trips), 3), "ms"),
            Figure(f"{way.name}-rtt-p99", round(percentile(way.trips, 99), 3), "ms"),
        ]
    native = ratio(ways["native"], ways["host"])
    flannel = ratio(ways["flannel"], ways["native"])
    return [
        *found,
        Figure("native-to-host", round(native, 3), "", NATIVE_GOAL, Better.HIGHER),
        Figure("flannel-to-host", round(ratio(ways["flannel"], ways["host"]), 3), ""),
        Figure("flannel-to-native", round(flannel, 3), "", NATIVE_GOAL),
    ]


def ratio(way: Way, other: Way) -> float:
    """Return the median of the rounds' ratios of throughput."""
    pairs = zip(way.rates, other.rates, strict=True)
    return statistics.median(one / two for one, two in pairs)


BENCHMARK = Benchmark("podnet", "pod to pod between two nodes: native, Flannel, host overlay", run)
