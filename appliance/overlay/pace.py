"""How fast a node greets: few at a time, and no question again before its answer could be there.

When many nodes start at once, or on a slow machine, answers wait in queues. Who repeats by a fixed
clock then, or greets everybody at once, makes the queues longer, until nothing gets through.
"""

from __future__ import annotations

from dataclasses import dataclass

# Greetings that may be without an answer; one that had its time counts no more.
WINDOW = 6
FIRST_REPEAT = 0.4
FIRST_REPEAT_MAX = 5.0
REPEATS = 4
_LONGEST = 10.0
_GAIN = 0.25


@dataclass(slots=True)
class Pace:
    """Learns how long answers take; times are seconds."""

    answer: float = 0.1

    def answered(self, took: float) -> None:
        """Take note of an answer, counted from the first time that was asked."""
        self.answer += (min(max(took, 0.0), _LONGEST) - self.answer) * _GAIN

    def wait(self, sent: int) -> float:
        """Return how long to wait after a question was sent for the ``sent``-th time."""
        first = min(max(FIRST_REPEAT, 4 * self.answer), FIRST_REPEAT_MAX)
        return min(first * float(1 << (sent - 1)), _LONGEST)

    def young(self, age: float) -> bool:
        """Say whether a question that was first asked ``age`` ago may well be answered yet."""
        return age < 2 * self.wait(1)
