"""The overlay's edge, as far as it can be tried without sockets: what a defect costs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from appliance.overlay import events
from appliance.overlay import service as service_module
from appliance.overlay.brain import make_core
from appliance.overlay.clock import Now
from appliance.overlay.config import OverlayConfig
from appliance.overlay.service import Overlay
from appliance.store import Store
from tests.unit.overlay_world import make_identity


class Faulty:
    """A brain that breaks on its first event and is always due."""

    def __init__(self) -> None:
        self.ticks = 0
        self.again = asyncio.Event()

    def handle(self, _event: events.Event, _now: Now) -> list[events.Action]:
        self.ticks += 1
        if self.ticks == 1:
            raise ZeroDivisionError
        self.again.set()
        return []

    def next_timer(self) -> float | None:
        return 0.0 if self.ticks < 2 else None


def test_a_defect_costs_one_event_and_no_spinning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    identity, brain = make_identity(), Faulty()
    monkeypatch.setattr(service_module, "DEFECT_SECONDS", 0.05)

    async def life() -> float:
        store = Store.open(tmp_path / "state.db")
        core = make_core(identity, OverlayConfig(), {})
        overlay = Overlay(identity, store, OverlayConfig(), brain=core)  # type: ignore[arg-type]
        overlay._brain = brain  # type: ignore[assignment]
        loop = asyncio.get_running_loop()
        begun = loop.time()
        overlay._feed(events.Tick())
        async with asyncio.timeout(30):
            await brain.again.wait()
        store.close()
        return loop.time() - begun

    took = asyncio.run(life())
    assert brain.ticks == 2, "it goes on"
    assert took >= 0.05, "after a while"
    assert "a defect while handling Tick" in caplog.text
