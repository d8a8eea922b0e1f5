"""What updates need of an installer, as types: :class:`ota.rauc.Rauc` is the real one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class Mark(StrEnum):
    """What can be said of a slot."""

    GOOD = "good"
    BAD = "bad"
    ACTIVE = "active"


@dataclass(frozen=True, slots=True)
class Slot:
    """A slot as RAUC sees it; ``bootname`` ("A", "B") only where the boot loader knows the slot.

    ``state`` is booted, active or inactive; ``boot_status`` good or bad by the boot counters (a
    slot on trial counts as bad); version and build are those of the bundle installed last.
    """

    name: str
    slot_class: str
    bootname: str
    device: str
    parent: str
    state: str
    boot_status: str
    version: str
    build_id: str
    installed_at: str


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an operation is: percent of the whole, and what is being done."""

    percent: int
    message: str
    depth: int


@dataclass(frozen=True, slots=True)
class BundleInfo:
    """A bundle whose signature RAUC has checked."""

    compatible: str
    version: str
    build_id: str
    description: str
    manifest_hash: str


class Installer(Protocol):
    """The part of :class:`ota.rauc.Rauc` that updates use; promises are documented there."""

    async def slots(self) -> tuple[Slot, ...]:
        """Return every slot."""

    async def operation(self) -> str:
        """Return ``idle`` or what is under way."""

    async def compatible(self) -> str:
        """Return which bundles this system takes."""

    async def inspect(self, bundle: str) -> BundleInfo:
        """Check a bundle and return what it says of itself."""

    async def mark(self, mark: Mark, slot: str) -> str:
        """Mark a slot."""

    async def install(
        self, bundle: str, *, on_progress: Callable[[Progress], None] | None = None
    ) -> None:
        """Write a bundle into the other slot, without activating it."""
