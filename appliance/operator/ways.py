"""Which way to the network: what ``--via`` means, or the node on this machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from appliance.operator.errors import PublishError
from appliance.operator.publisher import SOCKET, LocalPublisher, Publisher
from appliance.operator.ssh import SshPublisher
from provisioning.network import NetworkInfo

WAYS = "--via HOST (a node's address), --via ssh://USER@HOST, or --via SOCKET"


def node_here(socket: Path | None = None) -> Path | None:
    """Return the socket of the node on this machine, if one runs (or ran) here."""
    path = socket or Path(os.environ.get("SKERRY_SOCKET", str(SOCKET)))
    return path if path.exists() else None


def choose(
    via: str | None,
    network: NetworkInfo,
    *,
    socket: Path | None = None,
    visit: Callable[[str], Publisher] | None = None,
) -> Publisher:
    """Return the way that ``--via`` means, or the node on this machine. Raises PublishError.

    ``visit`` makes a `Publisher` for HOST[:PORT]: it needs the root key.
    """
    if via is None:
        path = node_here(socket)
        if path is not None:
            return LocalPublisher(path)
        raise PublishError(
            f"no node of network {network.name} runs on this machine, and none was named",
            hint=f"say which to go through: {WAYS}",
        )
    if via.startswith("ssh://"):
        return SshPublisher.to(via)
    if "://" in via or (visit is None and "/" not in via):
        raise PublishError(f"{via!r} is no way to a node", hint=f"say {WAYS}")
    if "/" in via:
        return LocalPublisher(Path(via))
    assert visit is not None  # noqa: S101 - else it was no way
    return visit(via)
