"""Runs the system's programs (nft, ip) and tells people what went wrong. Blocking; at the edge."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence

from skerry.errors import SkerryError

SECONDS = 20.0
_PACKAGES = {"nft": "nftables", "ip": "iproute2"}
_SAID_MAX = 400


class ProgramError(SkerryError):
    """A program is not there, or does not end."""


class RefusedError(ProgramError):
    """The program ran, and failed."""


def run(
    program: str, words: Sequence[str], text: str = "", *, doing: str, seconds: float = SECONDS
) -> bytes:
    """Return what a program prints when it is given ``text``.

    ``doing`` is for people: "laying the rules of pods". Raises ProgramError, and of it RefusedError
    if the program did not do it.
    """
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    found = shutil.which(program, path=path)
    if found is None:
        package = _PACKAGES.get(program, program)
        raise ProgramError(f"{doing}: there is no {program} here", hint=f"install {package}")
    try:
        done = subprocess.run(
            [found, *words], input=text.encode(), capture_output=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ProgramError(f"{doing}: {program} did not end within {seconds:g} s") from error
    except OSError as error:
        raise ProgramError(f"{doing}: {program} can't be run: {error.strerror}") from error
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip() or f"status {done.returncode}"
        raise RefusedError(
            f"{doing}: {program} says: {said[:_SAID_MAX]}",
            hint="run it as root" if os.geteuid() else None,
        )
    return done.stdout
