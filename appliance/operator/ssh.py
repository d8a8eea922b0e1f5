"""Through ssh: ``skerry ledger fetch`` and ``publish`` on a node, by standard streams.

The operator's own ssh program does it, with its keys, known hosts and questions; nothing but these
two commands runs there.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence
from typing import Any

from appliance.operator.errors import PublishError
from appliance.operator.publisher import Fetched, Result, read_dump, read_results, request_of

TIMEOUT_SECONDS = 300.0
_TARGET = re.compile(
    r"ssh://((?:[A-Za-z0-9._][A-Za-z0-9._-]*@)?"
    r"(?:[A-Za-z0-9][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9]+)?\]))(?::([0-9]{1,5}))?/?",
    re.ASCII,
)
_FETCH = ("skerry", "ledger", "fetch")
_PUBLISH = ("skerry", "ledger", "publish", "-")


class SshPublisher:
    """Through ssh to a node. ``program`` is what ssh is here, with options of one's own."""

    def __init__(
        self, target: str, port: int | None = None, *, program: Sequence[str] = ("ssh",)
    ) -> None:
        self._target = target
        options = ["-o", "ConnectTimeout=15", *(["-p", str(port)] if port else [])]
        host = target.replace("[", "").replace("]", "")
        self._command = [*program, *options, "--", host]

    @classmethod
    def to(cls, via: str) -> SshPublisher:
        """Return the way to ``ssh://[USER@]HOST[:PORT]``. Raises PublishError."""
        match = _TARGET.fullmatch(via)
        port = int(match[2]) if match and match[2] else None
        if match is None or (port is not None and not 0 < port < 65536):
            raise PublishError(
                f"{via[:80]!r} names no host", hint="write ssh://USER@HOST, or ssh://HOST:PORT"
            )
        return cls(match[1], port)

    @property
    def where(self) -> str:
        """How a message calls it."""
        return f"ssh://{self._target}"

    def fetch(self) -> Fetched:
        """Return all that the node holds."""
        return read_dump(self._run(_FETCH), self.where)

    def publish(self, records: Sequence[bytes]) -> tuple[Result, ...]:
        """Hand over one batch."""
        document = self._run(_PUBLISH, json.dumps(request_of(records)).encode())
        return read_results(document, self.where)

    def _run(self, words: Sequence[str], given: bytes = b"") -> dict[str, Any]:
        try:
            # Its stderr stays the terminal's: that is where ssh asks and explains.
            done = subprocess.run(
                [*self._command, *words],
                input=given,
                stdout=subprocess.PIPE,
                timeout=TIMEOUT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise PublishError(
                f"{self.where} did not answer within {TIMEOUT_SECONDS:.0f} s",
                hint="try another node",
            ) from error
        except OSError as error:
            raise PublishError(
                f"{self._command[0]} cannot be run: {error.strerror}", hint="install an ssh client"
            ) from error
        if done.returncode:
            raise PublishError(
                f"`{' '.join(words)}` on {self.where} failed (status {done.returncode})",
                hint="what it said stands above; the user there has to be in the group skerry",
            )
        try:
            document = json.loads(done.stdout)
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            raise PublishError(
                f"`{' '.join(words)}` on {self.where} did not answer with JSON",
                hint="a login script there may print something: it has to be silent",
            )
        return document
