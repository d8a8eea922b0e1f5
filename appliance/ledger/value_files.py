"""``@FILE`` in a command: a value that a file holds."""

from __future__ import annotations

from pathlib import Path

from skerry.errors import UsageError


def read_value_file(path: Path, limit: int, *, more: str = "") -> bytes:
    """Return what the file holds. Raises UsageError; ``more`` ends its hint."""
    from provisioning.files import FileError, read_small

    try:
        return read_small(path.resolve(), limit)
    except (OSError, ValueError, FileError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(
            f"{str(path)[:200]!r} cannot be read as a value: {reason}",
            hint=f"@FILE is a file of at most {limit} bytes{more}",
        ) from error
