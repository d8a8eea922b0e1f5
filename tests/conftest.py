"""For all tests: hypothesis never judges by the clock, since the machine may be busy.

A change is judged by the same examples every time, so that it is not blamed for what a lucky draw
finds elsewhere; `make fuzz` draws new ones, and more of them.
"""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("skerry", deadline=None, derandomize=True)
settings.register_profile("fuzz", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("SKERRY_HYPOTHESIS", "skerry"))
