"""What people see: steps with elapsed time, progress bars, tables.

All of it writes to *stderr* (:func:`table` returns text), so a command's output can be piped.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

_BAR_WIDTH = 32
_REDRAW_SECONDS = 0.1


def note(message: str, *, stream: TextIO | None = None) -> None:
    """Print one line for a person."""
    print(message, file=stream or sys.stderr, flush=True)


def format_elapsed(seconds: float) -> str:
    """Return seconds as ``4.2s`` or ``3m07s``."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02d}s"


def format_size(size: float) -> str:
    """Return a number of bytes in binary units: ``275.9 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024 or unit == "GiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")


@contextmanager
def step(title: str) -> Iterator[None]:
    """Announce a step, then say how long it took or that it failed."""
    begun = time.monotonic()
    note(f"==> {title}")
    try:
        yield
    except BaseException:
        note(f"    {title}: failed after {format_elapsed(time.monotonic() - begun)}")
        raise
    note(f"    {title}: done in {format_elapsed(time.monotonic() - begun)}")


class Progress:
    """A progress bar with elapsed time; on anything but a terminal, a line every tenth."""

    def __init__(self, title: str, total: int, *, stream: TextIO | None = None) -> None:
        self._title = title
        self._total = max(total, 1)
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._begun = time.monotonic()
        self._drawn_at = float("-inf")
        self._tenths = -1

    def update(self, done: int) -> None:
        """Show that ``done`` bytes of the total are there."""
        now = time.monotonic()
        share = min(done / self._total, 1.0)
        if self._terminal:
            if now - self._drawn_at < _REDRAW_SECONDS and share < 1:
                return
            self._drawn_at = now
            filled = round(share * _BAR_WIDTH)
            bar = "#" * filled + "." * (_BAR_WIDTH - filled)
            self._stream.write(f"\r{self._title} [{bar}] {self._figures(share, done, now)} ")
        elif (tenths := int(share * 10)) > self._tenths:
            self._tenths = tenths
            self._stream.write(f"{self._title}: {self._figures(share, done, now)}\n")
        self._stream.flush()

    def finish(self) -> None:
        """End the line."""
        if self._terminal:
            self._stream.write("\n")
            self._stream.flush()

    def _figures(self, share: float, done: int, now: float) -> str:
        elapsed = format_elapsed(now - self._begun)
        rate = format_size(done / max(now - self._begun, 0.001))
        sizes = f"{format_size(done)} of {format_size(self._total)}"
        return f"{share:4.0%} {sizes}, {elapsed}, {rate}/s"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return the rows as aligned columns under the header, without a trailing newline."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
