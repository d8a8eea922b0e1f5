"""GRUB's environment block, read only: boot order, boot counters. RAUC is the one who writes it.

Format: GRUB manual, "Environment block": 1024 bytes, a signature line, ``KEY=VALUE`` lines with
backslash escapes, padded with ``#``.
"""

from __future__ import annotations

from dataclasses import dataclass

_SIGNATURE = b"# GRUB Environment Block\n"
_LONGEST = 64 * 1024


@dataclass(frozen=True, slots=True)
class SlotCounter:
    """What the boot loader knows of a slot: may it be booted, and how often it was tried."""

    ok: bool
    tries: int


@dataclass(frozen=True, slots=True)
class BootChoice:
    """The boot loader's state: boot names in the order of preference, and a counter for each."""

    order: tuple[str, ...]
    counters: dict[str, SlotCounter]

    @property
    def first(self) -> str | None:
        """The boot name that was activated last."""
        return self.order[0] if self.order else None

    def tries(self, bootname: str) -> int | None:
        """Boots of the slot since it was last marked; None if the block does not say."""
        counter = self.counters.get(bootname)
        return counter.tries if counter else None


def parse(block: bytes) -> BootChoice | None:
    """Return what the block says, or None if it is not an environment block."""
    if not block.startswith(_SIGNATURE) or len(block) > _LONGEST:
        return None
    variables = dict(_variables(block[len(_SIGNATURE) :]))
    order = tuple(variables.get("ORDER", "").split())
    counters = {}
    for name in order:
        ok = variables.get(f"{name}_OK", "")
        tries = variables.get(f"{name}_TRY", "0")
        counters[name] = SlotCounter(ok == "1", _small_number(tries))
    return BootChoice(order, counters)


def _variables(body: bytes) -> list[tuple[str, str]]:
    found = []
    for line in body.decode("utf-8", "replace").split("\n"):
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.append((name, value.replace("\\\\", "\\")))
    return found


def _small_number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 4 else 0
