"""Tells the services' daemon what Kubernetes wants to have exposed, and where the pods are.

On a server whose API answers. The file is replaced only when it changed; without an API it stays as
it is, since pods go on without one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol
from urllib.parse import quote

import msgspec

from appliance.kubernetes import files
from appliance.kubernetes.errors import KubernetesError
from appliance.kubernetes.kubeapi import KubeApi
from appliance.kubernetes.kubeconfig import FILE_MAX, Kubeconfig, read_kubeconfig
from appliance.kubernetes.places import Places
from appliance.problem import Problem
from appliance.services import wishes
from appliance.services.annotations import desired_from, pods_of
from appliance.services.errors import ServiceError
from appliance.services.wishes import KUBERNETES, Exposure, read_kubernetes

log = logging.getLogger(__name__)

FILE = "services.json"
_SERVICES = "/api/v1/services"
_SLICES = "/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices?labelSelector={}"


class Getter(Protocol):
    """What is asked of Kubernetes; blocks, and may raise KubeApiError."""

    def get(self, path: str) -> bytes:
        """Return what is there."""

    def close(self) -> None:
        """Give back what was used."""


class Exposing:
    """Keeps the file; ``problems`` are those of the last look."""

    def __init__(
        self, places: Places, *, connect: Callable[[Kubeconfig], Getter] | None = None
    ) -> None:
        self._places = places
        self._connect = connect or (lambda config: KubeApi(config, places.run_dir))
        self._api: tuple[Kubeconfig, Getter] | None = None
        self._told: bytes | None = None
        self.problems: tuple[Problem, ...] = ()

    async def work(self) -> None:
        """Look once. Never raises SkerryError."""
        before = self.problems
        try:
            data = await asyncio.to_thread(self._document)
            if data is not None and data != self._told:
                path = self._places.run_dir / FILE
                await asyncio.to_thread(files.write, path, data, mode=0o644, folder_mode=0o755)
                self._told = data
            for one in set(self.problems) - set(before):
                log.warning("%s", one.message)
        except (KubernetesError, ServiceError) as error:
            log.info("services were not looked at: %s", error)

    def _document(self) -> bytes | None:
        path = self._places.server_kubeconfig
        text = files.read_text(path, FILE_MAX)
        if text is None:
            return None
        config = read_kubeconfig(text, str(path))
        if self._api is None or self._api[0] != config:
            if self._api is not None:
                self._api[1].close()
            self._api = config, self._connect(config)
        api = self._api[1]
        annotated, self.problems = desired_from(_items(api.get(_SERVICES)))
        exposures = (*annotated, *self._by_hand())
        if not exposures and not (self._places.run_dir / FILE).exists():
            # The daemon is started by the file.
            return None
        slices: list[dict[str, Any]] = []
        for where in sorted({_where(one) for one in exposures}):
            namespace, _, name = where.partition("/")
            label = quote(f"kubernetes.io/service-name={name}")
            slices += _items(api.get(_SLICES.format(quote(namespace), label)))
        pods = pods_of(exposures, slices)
        return msgspec.json.encode(
            {
                "exposures": annotated,
                "pods": {to: [(at.host, at.port) for at in some] for to, some in pods.items()},
            }
        )

    def _by_hand(self) -> tuple[Exposure, ...]:
        """Return what a person on this node wants of Kubernetes' services."""
        found = wishes.load(self._places.services_dir).exposures
        return tuple(one for one in found if (one.to or "").startswith(KUBERNETES))


def _where(one: Exposure) -> str:
    namespace, name, _ = read_kubernetes(one.to or "")
    return f"{namespace}/{name}"


def _items(data: bytes) -> list[dict[str, Any]]:
    try:
        found = msgspec.json.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise KubernetesError(f"Kubernetes' answer is not JSON: {error}") from error
    items = found.get("items") if isinstance(found, dict) else None
    return [one for one in items or () if isinstance(one, dict)]
