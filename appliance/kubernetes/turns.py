"""One server at a time restarts its engine for a new configuration: who has the Lease may.

Two servers of three that restart at once are no majority: the API would be away, though nothing is
lost. Time alone does not keep them apart, since one may hear of a change later than another. So the
store decides: a Lease in it has one holder. Clocks of other machines are not believed: a Lease that
did not change for `LEASE_SECONDS` here is of somebody who is gone.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable

import msgspec

from appliance.kubernetes.draining import Asker
from appliance.kubernetes.errors import KubeApiError

log = logging.getLogger(__name__)

# As long as a restart takes on a slow machine, and then some.
LEASE_SECONDS = 180.0
_NAME = "skerry-restart"
_FOLDER = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases"
_GONE, _CONFLICT = 404, 409


class _Meta(msgspec.Struct, frozen=True, rename={"version": "resourceVersion"}):
    version: str = ""


class _Spec(msgspec.Struct, frozen=True, rename={"holder": "holderIdentity"}):
    holder: str | None = None


class _Lease(msgspec.Struct, frozen=True):
    metadata: _Meta = _Meta()
    spec: _Spec = _Spec()


class Turns:
    """A server's part in it; ``held``: it is this one's turn."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: tuple[str, float] | None = None
        # Of an earlier life of this process, perhaps.
        self._may_hold = True
        self.held = False

    async def work(self, api: Asker, name: str, *, wants: bool) -> None:
        """Take the turn if it is wanted and free, give it back if not. Raises KubeApiError."""
        if wants or self._may_hold:
            await asyncio.to_thread(self._work, api, name, wants)

    def _work(self, api: Asker, name: str, wants: bool) -> None:
        lease = _read(api)
        holder = None if lease is None else lease.spec.holder
        if wants:
            self.held = holder == name or (self._free(lease) and _write(api, lease, name))
            self._may_hold = self._may_hold or self.held
            return
        if holder == name and not _write(api, lease, ""):
            return
        self.held = self._may_hold = False

    def _free(self, lease: _Lease | None) -> bool:
        if lease is None or not lease.spec.holder:
            return True
        now = self._clock()
        if self._seen is None or self._seen[0] != lease.metadata.version:
            self._seen = (lease.metadata.version, now)
        return now - self._seen[1] >= LEASE_SECONDS


def _read(api: Asker) -> _Lease | None:
    try:
        return msgspec.json.decode(api.ask("GET", f"{_FOLDER}/{_NAME}"), type=_Lease)
    except KubeApiError as error:
        if error.status == _GONE:
            return None
        raise
    except (ValueError, RecursionError) as error:
        raise KubeApiError(f"the lease {_NAME} can't be read: {str(error)[:200]}") from error


def _write(api: Asker, before: _Lease | None, holder: str) -> bool:
    """Make somebody the holder; False if another was faster."""
    meta = {"name": _NAME, "namespace": "kube-system"}
    if before is not None:
        meta["resourceVersion"] = before.metadata.version
    body = json.dumps(
        {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": meta,
            "spec": {"holderIdentity": holder, "leaseDurationSeconds": int(LEASE_SECONDS)},
        }
    ).encode()
    method, path = ("POST", _FOLDER) if before is None else ("PUT", f"{_FOLDER}/{_NAME}")
    try:
        api.ask(method, path, body)
    except KubeApiError as error:
        if error.status in {_CONFLICT, _GONE}:
            return False
        raise
    log.info("the turn to restart: %s", holder or "free")
    return True
