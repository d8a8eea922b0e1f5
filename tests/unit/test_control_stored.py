"""A write is answered for once it is on the disk, and not before."""

from __future__ import annotations

import asyncio
import sqlite3
from functools import partial
from pathlib import Path
from typing import cast

import pytest

from appliance.control.actions import LedgerChanged
from appliance.control.service import Control
from appliance.ledger import storage
from appliance.ledger.access import LedgerAccess
from appliance.ledger.gossip import Action, Changed
from appliance.ledger.storage import LedgerFile
from appliance.ledger.vault import Vault
from appliance.overlay.config import OverlayConfig
from appliance.store import Store
from tests.fakes.control_world import join, make_grant_token, make_network
from tests.fakes.ledger_access import world


class NoVault:
    """Nobody keeps secrets here."""

    def changed(self, *_: object, **__: object) -> None:
        """Hear of a change."""

    def next_timer(self) -> float:
        return float("inf")


@pytest.mark.parametrize("broken", [False, True])
def test_what_a_full_disk_did_not_take_is_not_called_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, broken: bool
) -> None:
    here = world()
    late: list[Action] = []
    access = LedgerAccess(here.gossip, lambda: 0.0, late.extend)
    identity = join(make_grant_token(make_network()), "n")
    control = Control(identity, cast("Store", None), OverlayConfig(), ledger=tmp_path / "ledger.db")
    if broken:

        def full(*_: object, **__: object) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        monkeypatch.setattr(storage.LedgerFile, "_write", full)
    done: list[str] = []
    access.when_stored(access.put("shared", "k", b"1"), lambda: done.append("stored"))
    changes = tuple(one.change for one in late if isinstance(one, Changed))

    async def perform() -> bool:
        file, _ = await control._on_disk(partial(LedgerFile.open, tmp_path / "ledger.db"))
        control._file, control._access, control._vault = file, access, cast("Vault", NoVault())
        await control._perform(LedgerChanged(changes, own=True, high_water=1, sequence=2))
        troubled = bool(file.problems())
        await control._on_disk(file.close)
        return troubled

    assert asyncio.run(perform()) is broken
    assert done == ([] if broken else ["stored"])
