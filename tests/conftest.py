"""For all tests: hypothesis never judges by the clock, since the machine may be busy."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("skerry", deadline=None)
settings.load_profile("skerry")
