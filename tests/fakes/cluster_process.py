"""The real cluster agent as a process with a pretended systemd: ``FOLDER API_SOCKET``.

``calls`` in FOLDER gets a line per start, restart and stop; units run from then on, also for the
agent that comes after a kill.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from appliance.kubernetes.keeper import Unit, UnitFacts
from appliance.kubernetes.launch import run
from appliance.kubernetes.places import IMAGES_UNIT, Places


class FileUnits:
    """Units that are lines in a file."""

    def __init__(self, folder: Path) -> None:
        self._states = folder / "units.json"
        self._calls = folder / "calls"

    def _load(self) -> dict[str, str]:
        return dict(json.loads(self._states.read_text())) if self._states.exists() else {}

    def _set(self, verb: str, unit: str, state: Unit) -> None:
        self._states.write_text(json.dumps(self._load() | {unit: state.value}))
        with self._calls.open("a") as calls:
            calls.write(f"{verb} {unit}\n")

    async def facts(self, *units: str) -> tuple[UnitFacts, ...]:
        states = self._load()
        return tuple(UnitFacts(Unit(states.get(unit, Unit.INACTIVE.value))) for unit in units)

    async def start(self, unit: str) -> None:
        if unit == IMAGES_UNIT:
            return
        self._set("start", unit, Unit.ACTIVE)

    async def restart(self, unit: str) -> None:
        self._set("restart", unit, Unit.ACTIVE)

    async def stop(self, unit: str) -> None:
        self._set("stop", unit, Unit.INACTIVE)

    async def close(self) -> None:
        """Nothing is open."""


def places_in(folder: Path, socket: Path) -> Places:
    """Return places that are all in one folder."""
    return Places(
        socket=socket,
        # Beside the supervisor's, where that one looks.
        run_dir=socket.parent.with_name(f"{socket.parent.name}-cluster"),
        data_dir=folder / "data",
        manifests=folder / "manifests",
        conflist=folder / "cni/10-skerry.conflist",
        kubeconfig=folder / "k3s.yaml",
        cni_dir=folder / "cni-run",
    )


if __name__ == "__main__":
    where = Path(sys.argv[1])
    sys.exit(run(places_in(where, Path(sys.argv[2])), units=FileUnits(where)))
