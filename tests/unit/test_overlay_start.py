"""The overlay's edge begins: what happens while the tunnel is still being made."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from appliance.overlay import events, links
from appliance.overlay import service as service_module
from appliance.overlay.brain import make_core
from appliance.overlay.clock import Now
from appliance.overlay.config import OverlayConfig
from appliance.overlay.service import Overlay
from appliance.store import Store
from tests.unit.overlay_world import make_identity


class Noting:
    """A brain that notes what it is told."""

    def __init__(self, core: object) -> None:
        self.core = core
        self.told: list[str] = []
        self.again = asyncio.Event()

    def start(self, *_: object) -> list[events.Action]:
        self.told.append("start")
        return []

    def handle(self, event: events.Event, _now: Now) -> list[events.Action]:
        self.told.append(type(event).__name__)
        self.again.set()
        return []

    def next_timer(self) -> None:
        return None


class Silent:
    """A socket that nobody speaks to."""

    def __init__(self, *_: object) -> None:
        """Take whatever it would need."""

    def listen(self, *_: object) -> None:
        """Hear nothing."""

    def close(self, *_: object) -> None:
        """Nothing is open."""


class Unheard:
    """No mDNS."""

    def __init__(self, *_: object, **__: object) -> None:
        """Take whatever it would need."""

    async def close(self) -> None:
        """Nothing is open."""


def test_addresses_that_appear_while_the_tunnel_is_made_are_told_after_the_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its addresses would go to the ledger before the node itself is in there, and fail."""
    kernel, here = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    here.settimeout(0)
    monkeypatch.setattr(links, "open_monitor", lambda: here)
    monkeypatch.setattr(links, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(service_module, "open_raw", Silent)
    monkeypatch.setattr(service_module, "Mdns", Unheard)

    async def open_tunnel(_: Overlay) -> dict[bytes, object]:
        kernel.send(b"an address came")
        for _turn in range(20):
            await asyncio.sleep(0)
        return {}

    async def look(overlay: Overlay) -> None:
        overlay._feed(events.LocalAddresses(("192.0.2.1",)))

    monkeypatch.setattr(Overlay, "_open_tunnel", open_tunnel)
    monkeypatch.setattr(Overlay, "_open_inside", lambda _: None)
    monkeypatch.setattr(Overlay, "_look_at_uplinks", look)

    async def life() -> list[str]:
        store = Store.open(tmp_path / "state.db")
        brain = Noting(make_core(make_identity(), OverlayConfig(), {}))
        overlay = Overlay(make_identity(), store, OverlayConfig(), brain=brain)  # type: ignore[arg-type]
        await overlay.start()
        await brain.again.wait()
        await overlay.stop()
        store.close()
        return brain.told

    with kernel:
        assert asyncio.run(life())[:2] == ["start", "LocalAddresses"]
