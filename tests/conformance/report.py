"""What Kubernetes' tests say of themselves: a result for each, out of JUnit's file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

# What a failure says first is where it happened; the words come after it.
_WHY_MAX = 200
_PREFIX = "[It] "
_PASSED = "passed"


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one test. ``verdict``: passed, or another word of Ginkgo's."""

    name: str
    verdict: str
    seconds: float = 0.0
    why: str = ""

    @property
    def passed(self) -> bool:
        """Say whether it went well."""
        return self.verdict == _PASSED


def results(text: str) -> tuple[Result, ...]:
    """Return the results of all tests that were chosen, sorted by name."""
    found = []
    for case in ElementTree.fromstring(text).iter("testcase"):  # noqa: S314 - of a program of ours
        name, verdict = case.get("name", ""), case.get("status", "")
        # Also the suite's own steps are cases, and all tests that were not chosen.
        if name.startswith(_PREFIX) and verdict != "skipped":
            why = "" if verdict == _PASSED else _why(case)
            seconds = float(case.get("time", "0"))
            found.append(Result(name.removeprefix(_PREFIX), verdict, seconds, why))
    return tuple(sorted(found, key=lambda one: one.name))


def _why(case: ElementTree.Element) -> str:
    said = [*case.iter("failure"), *case.iter("error")]
    text = next((one.get("message") or one.text or "" for one in said), "")
    return re.sub(r"\s+", " ", text).strip()[:_WHY_MAX]


def missing(chosen: Sequence[Result], found: Sequence[Result]) -> tuple[str, ...]:
    """Return the names of those that were chosen and have no result."""
    return tuple(sorted({one.name for one in chosen} - {one.name for one in found}))


def unexpected(found: Sequence[Result], known: Mapping[str, str]) -> tuple[str, ...]:
    """Return what is not as expected: a line for each test.

    ``known`` maps the names of tests that fail here to the reason; if one passes, that is news too.
    """
    lines = []
    for one in found:
        if not one.passed and one.name not in known:
            lines.append(f"{one.verdict}: {one.name}: {one.why}")
        if one.passed and one.name in known:
            lines.append(f"passed, though it is in the list of those that fail: {one.name}")
    return tuple(lines)


def table(found: Sequence[Result], lost: Sequence[str], known: Mapping[str, str]) -> str:
    """Return the report: a line for each test, with the reason if it did not pass."""
    lines = []
    for one in found:
        why = known.get(one.name) or one.why
        tail = f"\n{'':17}{why}" if not one.passed else ""
        lines.append(f"{one.verdict:9}{one.seconds:6.1f}  {one.name}{tail}")
    lines += [f"no result        {name}" for name in lost]
    passed = sum(one.passed for one in found)
    seconds = sum(one.seconds for one in found)
    lines.append(f"{passed} of {len(found) + len(lost)} passed, {seconds:.0f} s")
    return "\n".join(lines) + "\n"
