"""A node's network without a supervisor around it, for what a supervisor has no option for.

``python -m tests.netns.runner STATE_DIR INTERFACE WIREGUARD_GO SLOT_SECONDS``: runs until it is
ended and writes its members to STATE_DIR/peers as they come up.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path

import uvloop

from appliance.control.service import Control
from appliance.overlay.config import OverlayConfig
from appliance.store import Store
from provisioning.identity import IdentityStore


async def run(state_dir: Path, interface: str, wireguard_go: Path, slot_seconds: int) -> None:
    identity = IdentityStore(state_dir / "identity").load()
    assert identity is not None
    config = OverlayConfig(
        interface=interface,
        wireguard="userspace",
        wireguard_go=wireguard_go,
        slot_seconds=slot_seconds,
    )
    store = Store.open(state_dir / "state.db")
    control = Control(identity, store, config, ledger=state_dir / "ledger.db")
    await control.start()
    while True:
        names = [peer.name for peer in control.snapshot().peers if peer.up]
        (state_dir / "peers").write_text("\n".join(names))
        await asyncio.sleep(0.1)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])))
