"""Runs the commands of a build: output to a log; a failure shows its end and how to repeat it."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from image.errors import BuildError

_TAIL_LINES = 15


def run(
    argv: Sequence[str],
    *,
    log: Path | None = None,
    on_line: Callable[[str], None] | None = None,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    hint: str | None = None,
) -> str:
    """Run a command to its end and return what it printed (both streams, in order).

    ``environment`` is added to ours, ``log`` appended to; ``on_line`` sees each line as it comes.
    Raises :class:`BuildError` with the last lines, the log's place and the command when it fails.
    """
    lines: list[str] = []
    with subprocess.Popen(
        list(argv),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **(environment or {})},
        cwd=cwd,
        text=True,
        errors="replace",
    ) as child:
        assert child.stdout is not None  # noqa: S101 - PIPE was asked for
        try:
            for line in child.stdout:
                lines.append(line)
                if on_line:
                    on_line(line.rstrip("\n"))
        except BaseException:
            child.terminate()
            raise
    output = "".join(lines)
    if log:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            file.write(f"$ {shlex.join(argv)}\n{output}")
    if child.returncode:
        tail = "".join(f"    {line}" for line in lines[-_TAIL_LINES:]).rstrip()
        where = f" (log: {log})" if log else ""
        raise BuildError(
            f"{Path(argv[0]).name} ended with status {child.returncode}{where}\n{tail}",
            hint=hint or f"to see it again: {shlex.join(argv)}",
        )
    return output
