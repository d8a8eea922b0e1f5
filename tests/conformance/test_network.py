"""Kubernetes' own end-to-end tests of networking, those that every cluster has to pass.

They run against a cluster of two machines made of namespaces (`cluster`). The report goes to
build/conformance: the log, JUnit's file, and `network.txt` with one line for each test. What ran
last, what did not, and why: docs/conformance.md.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from skerry.console import note
from tests.conformance.cluster import Cluster

pytestmark = [pytest.mark.conformance, pytest.mark.timeout(3 * 3600)]
FOCUS = os.environ.get("SKERRY_CONFORMANCE_FOCUS", r"\[sig-network\].*\[Conformance\]")
SECONDS = 2 * 3600.0
# Nothing of theirs is skipped but what disturbs everything else.
SKIP = r"\[Disruptive\]"
# Tests that fail here, and why: docs/conformance.md has the words.
KNOWN: frozenset[str] = frozenset()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as made:
        made.prepare_tests()
        yield made


def results(report: Path) -> dict[str, str]:
    """Return test -> passed, failed or skipped, of all that were chosen."""
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):  # noqa: S314 - as above
        name = re.sub(r"^\[It\] ", "", case.get("name", ""))
        status = case.get("status", "")
        if not name.startswith("[") or status == "skipped":
            continue
        found[name] = status
    return found


def test_the_network_part_of_conformance(cluster: Cluster) -> None:
    status, place = cluster.run_tests(FOCUS, SKIP, SECONDS)
    folder = Path(place)
    found = results(next(folder.glob("junit*.xml")))
    lines = [f"{verdict:8} {name}" for name, verdict in sorted(found.items())]
    (folder / "network.txt").write_text("\n".join(lines) + "\n")
    failed = {name for name, verdict in found.items() if verdict != "passed"}
    note(f"{len(found)} tests, {len(failed)} failed: {folder / 'network.txt'}")
    assert found
    assert not failed - KNOWN
    assert status == 0 or failed
