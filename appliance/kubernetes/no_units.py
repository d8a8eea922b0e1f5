"""A node whose Kubernetes is none of ours: there are no units to start or stop."""

from __future__ import annotations

from appliance.kubernetes.errors import UnitError
from appliance.kubernetes.keeper import Unit, UnitFacts


class NoUnits:
    """Stands for the service manager where the engine is somebody else's."""

    async def facts(self, *units: str) -> tuple[UnitFacts, ...]:
        """Return that there is none of them."""
        return tuple(UnitFacts(Unit.MISSING) for _ in units)

    async def start(self, unit: str) -> None:
        """Refuse."""
        raise UnitError(
            f"{unit} is not started: this agent runs with --pods-only",
            hint="give this node a token of the role none",
        )

    async def restart(self, unit: str) -> None:
        """Refuse."""
        await self.start(unit)

    async def stop(self, unit: str) -> None:
        """There is nothing to stop."""

    async def close(self) -> None:
        """There is nothing to give back."""
