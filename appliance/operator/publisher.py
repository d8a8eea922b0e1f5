"""How the operator's machine reaches the network: through any node that answers.

A `Publisher` fetches all records that a node holds, and hands it entries that the root key signed.
It is not trusted with anything: what it fetched is verified here (`snapshot`), what it hands over
is signed already. It may lose, repeat, refuse or leave out; nothing worse.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from appliance.ledger.entry import ENTRY_MAX
from appliance.operator.errors import PublishError

# What one request may carry as JSON: the local API takes bodies of 64 KiB.
BATCH_BYTES = 60_000
DUMP_TIMEOUT_SECONDS = 120.0
_OVERHEAD = 4
SELF = "self"
SOCKET = Path("/run/skerry/api.sock")


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a node gave: its records, and what else it said of itself, if anything.

    ``now_ms`` is the network's time there (Unix milliseconds); ``states`` how it sees the members,
    by their ids as text; ``node_id`` its own id as text.
    """

    network_id: str
    records: tuple[bytes, ...]
    now_ms: int | None = None
    node_id: str | None = None
    states: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Result:
    """What the node did with one record. ``verdict`` is a `state.Verdict`'s value."""

    verdict: str
    reason: str = ""


class Publisher(Protocol):
    """A way to a node. Both methods raise PublishError if there is no way."""

    @property
    def where(self) -> str:
        """How a message calls it."""

    def fetch(self) -> Fetched:
        """Return all that the node holds."""

    def publish(self, records: Sequence[bytes]) -> tuple[Result, ...]:
        """Hand over one batch; return the results in its order, fewer if some got lost."""


def batches(records: Sequence[bytes], limit: int = BATCH_BYTES) -> Iterator[tuple[bytes, ...]]:
    """Split records, in order, so that each part fits into one request."""
    part: list[bytes] = []
    size = 0
    for one in records:
        length = (len(one) + 2) // 3 * 4 + _OVERHEAD
        if part and size + length > limit:
            yield tuple(part)
            part, size = [], 0
        part.append(one)
        size += length
    if part:
        yield tuple(part)


def request_of(records: Sequence[bytes]) -> dict[str, Any]:
    """Return what is sent to ``/v1/ledger-publish``."""
    return {"records": [base64.b64encode(one).decode() for one in records]}


def read_dump(document: Mapping[str, Any], where: str) -> Fetched:
    """Return what a node's dump (``/v1/ledger-dump``) holds, with ``nodes`` of ``/v1/nodes``.

    Raises PublishError.
    """
    network_id, texts = document.get("network_id"), document.get("records")
    if not isinstance(network_id, str) or not isinstance(texts, list):
        raise PublishError(f"{where} does not understand: its answer is no ledger", hint=_UPDATE)
    try:
        records = tuple(base64.b64decode(one, validate=True) for one in texts)
    except (TypeError, ValueError, binascii.Error) as error:
        raise PublishError(f"{where} answers with a damaged ledger", hint=_UPDATE) from error
    if any(len(one) > ENTRY_MAX for one in records):
        raise PublishError(f"{where} answers with an entry that is too large", hint=_UPDATE)
    now_ms, states = document.get("now_ms"), read_states(document)
    own = next((node for node, state in states.items() if state == SELF), None)
    node_id = document.get("node_id", own)
    return Fetched(
        network_id,
        records,
        now_ms if isinstance(now_ms, int) and not isinstance(now_ms, bool) else None,
        node_id if isinstance(node_id, str) else own,
        states,
    )


def read_results(document: Mapping[str, Any], where: str) -> tuple[Result, ...]:
    """Return the results of ``/v1/ledger-publish``. Raises PublishError."""
    rows = document.get("results")
    if not isinstance(rows, list) or not all(isinstance(one, dict) for one in rows):
        raise PublishError(f"{where} does not understand: its answer is no result", hint=_UPDATE)
    return tuple(Result(str(one.get("verdict")), str(one.get("reason") or "")) for one in rows)


def read_states(document: Mapping[str, Any]) -> dict[str, str]:
    """Return how a node sees the members (``/v1/nodes``), by id; what is odd is left out."""
    rows = document.get("nodes")
    found: dict[str, str] = {}
    for one in rows if isinstance(rows, list) else ():
        node, state = (one.get("node_id"), one.get("state")) if isinstance(one, dict) else (0, 0)
        if isinstance(node, str) and isinstance(state, str) and state.isprintable():
            found[node] = "refused" if one.get("refused") else state[:32]
    return found


_UPDATE = "its Skerry may be older than this one: ask another node, or update it"


class LocalPublisher:
    """Through the local API's socket of a node on this machine."""

    def __init__(self, path: Path = SOCKET) -> None:
        self.path = path

    @property
    def where(self) -> str:
        """How a message calls it."""
        return str(self.path)

    def fetch(self) -> Fetched:
        """Return all that the node holds."""
        return read_dump(self.document(), self.where)

    def document(self) -> dict[str, Any]:
        """Return what `read_dump` reads."""
        dump = self._call("GET", "/v1/ledger-dump")
        # Good to know, and not needed.
        with contextlib.suppress(PublishError):
            dump["nodes"] = self._call("GET", "/v1/nodes").get("nodes")
        return dump

    def publish(self, records: Sequence[bytes]) -> tuple[Result, ...]:
        """Hand over one batch."""
        return read_results(self.hand_over(request_of(records)), self.where)

    def hand_over(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the node answers to a request as `request_of` makes it."""
        return self._call("POST", "/v1/ledger-publish", json.dumps(request).encode())

    def _call(self, method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
        from appliance.api.client import ApiError, call

        try:
            return call(method, path, body, socket_path=self.path, timeout=DUMP_TIMEOUT_SECONDS)
        except ApiError as error:
            raise PublishError(str(error), hint=error.hint) from error
