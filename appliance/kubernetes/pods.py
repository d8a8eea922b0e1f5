"""The CNI server, hosted: `appliance.cni.service` told what the agent knows."""

from __future__ import annotations

import logging
from typing import Protocol

from appliance.cluster import conflist
from appliance.cluster.errors import ConflistError
from appliance.cni.provider import NoPods, Pods
from appliance.cni.service import CniService
from appliance.kubernetes import files
from appliance.kubernetes.places import Places
from appliance.problem import Problem
from skerry.errors import SkerryError

log = logging.getLogger(__name__)


class CniHost(Protocol):
    """Whoever answers the CNI plugin's calls."""

    async def use(self, pods: Pods | NoPods | None) -> None:
        """Connect pods so from now on (None: as before); those that run are put right."""

    async def stop(self) -> None:
        """Take no more calls; pods stay connected."""

    def problems(self) -> tuple[Problem, ...]:
        """Return what is wrong with it."""


class HostedCni:
    """Ours, in this process. It is started with the first `use`, and again if that failed."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._pods: Pods | NoPods = remembered(places)
        self._service: CniService | None = None
        self._problem: Problem | None = None

    async def use(self, pods: Pods | NoPods | None) -> None:
        """Connect pods so from now on."""
        changed = pods is not None and pods != self._pods
        self._pods = pods or self._pods
        if self._service is None:
            await self._start()
        elif changed:
            self._service.changed()

    async def stop(self) -> None:
        """Take no more calls."""
        if self._service is not None:
            await self._service.stop()
            self._service = None

    def problems(self) -> tuple[Problem, ...]:
        """Return why calls are not taken."""
        return () if self._problem is None else (self._problem,)

    async def _start(self) -> None:
        service = CniService(lambda: self._pods, self._places.cni_dir)
        try:
            await service.start()
        except (SkerryError, OSError) as error:
            hint = error.hint if isinstance(error, SkerryError) else None
            problem = Problem(
                "cni",
                f"pods can't be connected: {error}",
                hint or "It is tried again by itself; journalctl -u skerry-cluster says more.",
            )
            if self._problem != problem:
                log.warning("%s", problem.message)
            self._problem = problem
        else:
            self._service, self._problem = service, None


def remembered(places: Places) -> Pods | NoPods:
    """Return how pods were connected before this process, by the configuration it left."""
    data = files.read(places.conflist, conflist.TEXT_MAX + 1)
    if data is not None:
        try:
            return Pods(conflist.read_conflist(data), gate=places.gate)
        except ConflistError as error:
            log.warning("%s", error)
    return NoPods("this node has not learned its pod range yet")
