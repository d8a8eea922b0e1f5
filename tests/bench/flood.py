"""A node under fire: 50,000 datagrams a second at its port, and what that does to it.

First nothing, then noise from a stranger (``noise``), a member's good handshakes over and over
(``hellos``), noise in the name of many hosts (``many``) and in that of a member (``member``). The
while, the victim's API is asked, values go through the ledger from and to it, and the tunnel is
pinged. All of it shares this machine's cores, the sender too.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from appliance.overlay.endpoint import Endpoint
from provisioning.identity import new_identity, read_identity, write_identity
from skerry.console import note
from skerry.errors import SkerryError
from tests.bench.harness import Benchmark, Figure
from tests.bench.process import cpu_seconds, percentile
from tests.netns.flooder import noise, write_pool
from tests.netns.hostile import hellos
from tests.netns.lab import PORT, ROOT, Lab, LabError, Network, Node
from tests.netns.ledger import Watchers, put, together
from tests.netns.pinger import Pinger, Stream

RATE = 50_000
SECONDS = 12.0
HELLOS = 2048
GOAL_API = 0.25
GOAL_LEDGER = 1.0
WAIT_SECONDS = 20.0


def run() -> Sequence[Figure]:
    """Measure a quiet time and each flood."""
    figures: list[Figure] = []
    try:
        with Lab() as lab:
            network = Network("flood")
            nodes, stranger = lab.crowd(3), lab.node()
            for node in nodes:
                node.start(network.token())
            together(nodes)
            figures += under(nodes, "quiet", None)
            pool = stranger.folder / "noise"
            write_pool(pool, noise())
            figures += under(nodes, "noise", flooding(stranger, nodes[0], pool))
            time.sleep(2)
            together(nodes)
            # A member whose identity somebody stole: all of it is good, and repeated.
            identity = new_identity(network.token(), name="mallory", now=time.time())
            target = Endpoint(nodes[0].address, PORT)
            pool = stranger.folder / "hellos"
            write_pool(pool, hellos(read_identity(write_identity(identity)), target, HELLOS))
            figures += under(nodes, "hellos", flooding(stranger, nodes[0], pool))
            time.sleep(2)
            together(nodes)
            # Noise in the name of strangers that change all the time, and in that of a member.
            pool = stranger.folder / "noise"
            figures += under(nodes, "many", flooding(stranger, nodes[0], pool, "many"))
            time.sleep(2)
            together(nodes)
            figures += under(nodes, "member", flooding(stranger, nodes[0], pool, nodes[1].address))
            time.sleep(2)
            together(nodes)
    except LabError as error:
        raise SkerryError(str(error)) from error
    return figures


def flooding(source: Node, target: Node, pool: Path, *disguise: str) -> subprocess.Popen[str]:
    """Start a flood."""
    words = [sys.executable, "-m", "tests.netns.flooder"]
    words += [target.address, str(PORT), str(RATE), str(SECONDS), str(pool), *disguise]
    return subprocess.Popen(source.command(*words), cwd=ROOT, stdout=subprocess.PIPE, text=True)


def under(nodes: Sequence[Node], name: str, flood: subprocess.Popen[str] | None) -> list[Figure]:
    """Measure the first node while a flood goes on."""
    victim, friend, _ = nodes
    assert victim.process is not None
    time.sleep(1.0)
    api: list[float] = []
    out: list[float] = []
    back: list[float] = []
    with Pinger([friend.namespace]) as pinger, Watchers(nodes, "shared") as watchers:
        path = pinger.add(friend.namespace, victim.overlay_addresses()[0])
        watchers.settle()
        cpu, begun, turn = cpu_seconds(victim.process.pid), time.monotonic(), 0
        with Stream(pinger):
            while time.monotonic() - begun < SECONDS - 3:
                turn += 1
                asked = time.monotonic()
                victim.status()
                api.append(time.monotonic() - asked)
                writer, times = (victim, out) if turn % 2 else (friend, back)
                word, written = f"{name}-{turn:04}-end", time.monotonic()
                put(writer, "shared", "flood", word.encode())
                seen = watchers.until(word, WAIT_SECONDS)
                if len(seen) < len(nodes):
                    raise LabError(f"{name}: {word} reached only {sorted(seen)}")
                times.append(max(seen.values()) - written)
                time.sleep(0.1)
        took = time.monotonic() - begun
        cpu = (cpu_seconds(victim.process.pid) - cpu) / took
        lost = (path.sent - path.got) / path.sent * 100
    figures = []
    if flood is not None:
        said, _ = flood.communicate(timeout=60)
        sent = json.loads(said)
        rate = sent["sent"] / sent["seconds"]
        note(f"    {name}: {sent['sent']:,} datagrams sent, {rate:,.0f}/s")
        figures.append(Figure(f"{name}-rate", round(rate), "packets/s"))
    return [
        *figures,
        Figure(f"{name}-api-p50", round(statistics.median(api) * 1000, 1), "ms"),
        Figure(f"{name}-api-max", round(max(api) * 1000, 1), "ms", GOAL_API * 1000),
        Figure(f"{name}-from-victim-p50", round(percentile(out, 50), 3), "s"),
        Figure(f"{name}-from-victim-max", round(max(out), 3), "s", GOAL_LEDGER),
        Figure(f"{name}-to-victim-p50", round(percentile(back, 50), 3), "s"),
        Figure(f"{name}-to-victim-max", round(max(back), 3), "s", GOAL_LEDGER),
        Figure(f"{name}-ping-lost", round(lost, 2), "%"),
        Figure(f"{name}-victim-cpu", round(cpu * 100, 1), "% of a core"),
    ]


BENCHMARK = Benchmark("flood", "a node at whose port 50,000 datagrams a second arrive", run)
