"""The ledger of lab nodes, as programs see it: through the local API."""

from __future__ import annotations

import base64
import selectors
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

from appliance.api.client import ApiError
from appliance.ledger.entry import Entry, read_entry
from tests.netns.lab import Node, wait_until


def put(node: Node, bucket: str, key: str, value: bytes, *, lease: int | None = None) -> None:
    """Write a value as the node. Raises ApiError."""
    end = "" if lease is None else f"?lease={lease}"
    node.api("PUT", f"/v1/ledger/{bucket}/{key}{end}", value)


def delete(node: Node, bucket: str, key: str) -> None:
    """Take a value away as the node. Raises ApiError."""
    node.api("DELETE", f"/v1/ledger/{bucket}/{key}")


def get(node: Node, bucket: str, key: str) -> str | None:
    """Return the value of a key; None if there is none, or nobody to ask."""
    try:
        return str(node.api("GET", f"/v1/ledger/{bucket}/{key}")["value"])
    except ApiError:
        return None


def values(node: Node, bucket: str, prefix: str = "") -> Mapping[str, str]:
    """Return what is in a bucket; empty while nobody answers."""
    try:
        found = node.api("GET", f"/v1/ledger/{bucket}?prefix={prefix}")
    except ApiError:
        return {}
    return {str(one["key"]): str(one["value"]) for one in found["entries"]}


def entries(node: Node) -> Sequence[Entry]:
    """Return all entries that the node holds. Raises ApiError."""
    dump = node.api("GET", "/v1/ledger-dump")
    return [read_entry(base64.b64decode(one)) for one in dump["records"]]


def alike(nodes: Iterable[Node], bucket: str, expected: Mapping[str, str], seconds: float) -> None:
    """Wait until all nodes have exactly this in a bucket; one message says who lacks what."""
    waiting = list(nodes)

    def look() -> bool:
        waiting[:] = [node for node in waiting if values(node, bucket) != expected]
        return not waiting

    try:
        wait_until(look, seconds, f"{bucket} is the same everywhere", every=0.1)
    except AssertionError as error:
        lacks = {
            node.name: sorted(expected.items() ^ values(node, bucket).items())[:4]
            for node in waiting
        }
        raise AssertionError(f"{error}: {lacks}") from error


class Watchers:
    """Follows ``?watch=1`` of a bucket on many nodes at a time, in this process."""

    def __init__(self, nodes: Iterable[Node], bucket: str) -> None:
        self._selector = selectors.DefaultSelector()
        self._said: dict[str, bytearray] = {}
        for node in nodes:
            channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            channel.connect(str(node.run_dir / "api.sock"))
            request = f"GET /v1/ledger/{bucket}?watch=1 HTTP/1.1\r\nHost: localhost\r\n\r\n"
            channel.sendall(request.encode())
            channel.settimeout(0)
            self._said[node.name] = bytearray()
            self._selector.register(channel, selectors.EVENT_READ, node.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self._selector.close()

    def said(self, name: str) -> str:
        """Return all that a node has said so far."""
        return self._said[name].decode(errors="replace")

    def settle(self, quiet: float = 0.5) -> None:
        """Take in what is said of the present until nothing has come for a while."""
        while self._take(quiet):
            pass

    def _take(self, seconds: float) -> list[str]:
        """Wait until somebody says something; return who did."""
        names = []
        for key, _ in self._selector.select(seconds):
            channel, name = key.fileobj, str(key.data)
            assert isinstance(channel, socket.socket)
            data = channel.recv(65536)
            if data:
                self._said[name] += data
                names.append(name)
            else:
                self._selector.unregister(channel)
                channel.close()
        return names

    def until(self, word: str, seconds: float) -> dict[str, float]:
        """Return when (monotonic) each node said the word for the first time from now on.

        Those that did not within the time are left out.
        """
        found: dict[str, float] = {}
        starts = {name: max(len(said) - len(word), 0) for name, said in self._said.items()}
        deadline = time.monotonic() + seconds
        while len(found) < len(self._said) and (left := deadline - time.monotonic()) > 0:
            for name in self._take(left):
                if name not in found and word.encode() in self._said[name][starts[name] :]:
                    found[name] = time.monotonic()
        return found


def peers_up(node: Node) -> set[str]:
    """Return the names of the members that answer."""
    return {str(one["name"]) for one in node.peers() if one["up"]}


def together(nodes: Sequence[Node], seconds: float = 40) -> None:
    """Wait until each of these sees all the others answer."""
    names = {node.name for node in nodes}

    def look() -> bool:
        return all(names - {node.name} <= peers_up(node) for node in nodes)

    try:
        wait_until(look, seconds, "all see all", every=0.1)
    except AssertionError as error:
        missing = {node.name: sorted(names - {node.name} - peers_up(node)) for node in nodes}
        raise AssertionError(f"{error}: {missing}") from error


def reasons(node: Node) -> str:
    """Return what the status document complains of, as one text."""
    document: Mapping[str, Any] = node.status()
    return " | ".join(f"{one['code']}: {one['message']}" for one in document.get("reasons", ()))
