"""What is wrong with a node, in words for its owner."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    ``code`` is stable and for machines (``disk-full``); ``message`` says what is wrong, with the
    value and the place; ``hint`` is the way out.
    """

    code: str
    message: str
    hint: str
