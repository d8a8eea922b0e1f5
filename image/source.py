"""The checkout that is built: its time and its commit."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress

from image.artifacts import REPOSITORY
from image.errors import BuildError

# The times inside the base root; the final root carries the build's own epoch throughout.
BASE_EPOCH = 1754697600  # trixie's release day


def source_epoch() -> int:
    """Return the build's time in Unix seconds.

    ``$SOURCE_DATE_EPOCH``, else the time of the last commit: the same commit so has the same time
    everywhere. Outside a git checkout it is that of the base.
    """
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    if given:
        if not given.isdigit():
            raise BuildError(f"SOURCE_DATE_EPOCH is {given!r}, not a number of seconds")
        return int(given)
    text = _git("log", "-1", "--format=%ct")
    return int(text) if text.isdigit() else BASE_EPOCH


def source_commit() -> str:
    """Return the checkout's commit, ``-dirty`` when tracked files differ, or ``unknown``."""
    commit = _git("rev-parse", "HEAD")
    if not commit:
        return "unknown"
    return f"{commit}-dirty" if _git("status", "--porcelain", "--untracked-files=no") else commit


def _git(*words: str) -> str:
    with suppress(OSError):
        done = subprocess.run(
            ["git", "-C", str(REPOSITORY), *words], capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else ""
    return ""
