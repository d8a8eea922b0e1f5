"""What Kubernetes' tests say of themselves is read whole, and what is not as expected is told."""

from __future__ import annotations

from tests.conformance import report
from tests.conformance.report import Result

JUNIT = """<?xml version="1.0" encoding="UTF-8"?>
<testsuites tests="6"><testsuite name="Kubernetes e2e suite">
<testcase name="[SynchronizedBeforeSuite]" status="passed" time="0.2"></testcase>
<testcase name="[It] [sig-network] b works" status="passed" time="1.5"></testcase>
<testcase name="[It] [sig-network] a fails" status="failed" time="120.25">
<failure message="no answer&#xA;  from b" type="failed">[FAILED] long</failure></testcase>
<testcase name="[It] [sig-network] c ends" status="interrupted" time="9">
<error message="" type="interrupted">[INTERRUPTED] by the clock</error></testcase>
<testcase name="[It] [sig-apps] not chosen" status="skipped" time="0"><skipped/></testcase>
</testsuite></testsuites>
"""
A, B, C = "[sig-network] a fails", "[sig-network] b works", "[sig-network] c ends"


def test_only_chosen_tests_have_a_result_and_a_reason_if_they_failed() -> None:
    assert report.results(JUNIT) == (
        Result(A, "failed", 120.25, "no answer from b"),
        Result(B, "passed", 1.5),
        Result(C, "interrupted", 9.0, "[INTERRUPTED] by the clock"),
    )


def test_a_failure_is_expected_only_with_a_reason_and_its_end_is_news() -> None:
    found = report.results(JUNIT)
    assert [line.partition(":")[0] for line in report.unexpected(found, {})] == [
        "failed",
        "interrupted",
    ]
    assert report.unexpected(found, {A: "no such kernel", C: "no such clock"}) == ()
    (line,) = report.unexpected(found, {A: "", B: "it cannot", C: ""})
    assert line.startswith("passed")
    assert B in line


def test_a_test_that_was_not_reached_is_missed_and_listed() -> None:
    chosen = (*report.results(JUNIT), Result("d", "passed"))
    found = report.results(JUNIT)
    assert report.missing(chosen, found) == ("d",)
    text = report.table(found, ("d",), {A: "no such kernel"})
    assert "no result        d\n" in text
    assert "no such kernel" in text
    assert "no answer" not in text
    assert text.endswith("1 of 4 passed, 131 s\n")
