"""Kubernetes' own end-to-end tests of networking, those that every cluster has to pass.

They run against a cluster of two whole nodes made of namespaces (`cluster`). The report goes to
build/conformance: the log, JUnit's file, and `network.txt` with one line for each test. What ran
last, what did not, and why: docs/conformance.md.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from image.artifacts import REPOSITORY
from skerry.console import note
from tests.conformance import report
from tests.conformance.cluster import Cluster

pytestmark = [
    pytest.mark.conformance,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and containers need root"),
    pytest.mark.timeout(3 * 3600),
]
FOCUS = os.environ.get("SKERRY_CONFORMANCE_FOCUS", r"\[sig-network\].*\[Conformance\]")
# Nothing of theirs is skipped but what disturbs everything else.
SKIP = r"\[Disruptive\]"
SECONDS = float(os.environ.get("SKERRY_CONFORMANCE_SECONDS", "7200"))
# Tests that cannot pass here, and why: docs/conformance.md has them too.
KNOWN: dict[str, str] = {}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster.made() as made:
        made.prepare_tests()
        yield made


def test_the_network_part_of_conformance(cluster: Cluster) -> None:
    chosen = report.results(cluster.run_tests(FOCUS, SKIP, 120, dry=True).read_text())
    assert chosen, f"no test is called {FOCUS}"
    note(f"{len(chosen)} tests")
    junit = cluster.run_tests(FOCUS, SKIP, SECONDS)
    folder = REPOSITORY / "build" / "conformance"
    shutil.copyfile(junit, folder / junit.name)
    found = report.results(junit.read_text())
    lost = report.missing(chosen, found)
    text = report.table(found, lost, KNOWN)
    (folder / "network.txt").write_text(text)
    note(f"{text}{folder / 'network.txt'}")
    assert not lost, f"without a result: {', '.join(lost)}"
    assert not report.unexpected(found, KNOWN)
