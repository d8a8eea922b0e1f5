"""The engine's keeper at work: looks at the machine, asks `keeper` what to do, and does it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from appliance.kubernetes import files, keeper, manifests
from appliance.kubernetes.errors import KubernetesError
from appliance.kubernetes.files import FileTroubleError
from appliance.kubernetes.keeper import (
    Attempts,
    Machine,
    PlaceManifest,
    RemoveConfig,
    RemoveConflist,
    Restart,
    SetAside,
    Start,
    Step,
    Stop,
    Unit,
    Wanted,
    WriteConfig,
    WriteConflist,
)
from appliance.kubernetes.part import Kind
from appliance.kubernetes.places import AGENT_UNIT, IMAGES_UNIT, PODS_SLICE, SERVER_UNIT, Places
from appliance.kubernetes.units import Units
from appliance.problem import Problem

log = logging.getLogger(__name__)

_CONFIG_MAX = 256 * 1024
_DIGEST_MAX = 128


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a turn."""

    machine: Machine
    problems: tuple[Problem, ...] = ()

    def running(self, kind: Kind) -> bool:
        """Say whether the engine of a part runs."""
        unit = keeper.UNITS.get(kind)
        return unit is not None and self.machine.unit(unit).state is Unit.ACTIVE


class EngineKeeper:
    """One node's engine."""

    def __init__(self, places: Places, units: Units, clock: Callable[[], float]) -> None:
        self._places = places
        self._units = units
        self._clock = clock
        self._attempts = Attempts()
        self._begun: float | None = None
        self._prepared = False
        self._restarts = 0

    @property
    def attempts(self) -> int:
        """How often the engine was started in a row, by us or by systemd."""
        return max(self._attempts.count, self._restarts)

    @property
    def outdated(self) -> bool:
        """Whether it runs with another configuration than it should."""
        return self._attempts.outdated is not None

    async def prepare(self) -> None:
        """Have the container images brought in before the engine needs them; once."""
        if self._prepared:
            return
        try:
            await self._units.start(IMAGES_UNIT)
        except KubernetesError as error:
            log.warning("the container images are not brought in early: %s", error)
        self._prepared = True

    async def observe(self, wanted: Mapping[str, str] | None = None) -> Machine:
        """Return what there is. Raises UnitError."""
        places = self._places
        server, agent, pods = await self._units.facts(SERVER_UNIT, AGENT_UNIT, PODS_SLICE)
        return Machine(
            server,
            agent,
            files.read_text(places.config, _CONFIG_MAX),
            files.read_text(places.applied, _DIGEST_MAX),
            files.read(places.conflist, _CONFIG_MAX),
            {
                name: text
                for name in wanted or ()
                if (text := files.read_text(places.engine_manifests / name, _CONFIG_MAX))
                is not None
            },
            pods.state,
            places.state.is_dir(),
        )

    async def keep(self, wanted: Wanted) -> Outcome:
        """Do what is to be done now; what goes wrong is told, and tried again by the next call."""
        now = self._clock()
        try:
            machine = await self.observe(wanted.manifests)
        except KubernetesError as error:
            nothing = keeper.UnitFacts(Unit.MISSING)
            problem = Problem("systemd", str(error), error.hint or "")
            return Outcome(Machine(nothing, nothing), (problem,))
        self._count(wanted, machine, now)
        self._attempts = self._attempts.looked(wanted, machine, now)
        problems = list(wanted.problems)
        for step in keeper.steps(wanted, machine, self._attempts, now):
            try:
                await self._perform(step, now)
            except KubernetesError as error:
                code = "disk" if isinstance(error, FileTroubleError) else "engine-unit"
                problems.append(Problem(code, str(error), error.hint or ""))
                break
        found = keeper.engine_problem(wanted, machine, self._attempts)
        return Outcome(machine, (*problems, *((found,) if found is not None else ())))

    def _count(self, wanted: Wanted, machine: Machine, now: float) -> None:
        """Forget the failures of an engine that has run for a while."""
        unit = keeper.UNITS.get(wanted.part.kind)
        self._restarts = 0 if unit is None else machine.unit(unit).restarts
        if not keeper.settled(machine, wanted.part):
            self._begun = None
        elif self._begun is None:
            self._begun = now
        elif self._attempts.count and now - self._begun > keeper.GOOD_SECONDS:
            self._attempts = replace(self._attempts, count=0)

    async def _perform(self, step: Step, now: float) -> None:
        places = self._places
        match step:
            case WriteConfig(text):
                await asyncio.to_thread(files.write, places.config, text.encode())
                log.info("the engine's configuration is written")
            case RemoveConfig():
                files.remove(places.config)
                files.remove(places.applied)
            case WriteConflist(data):
                await asyncio.to_thread(
                    files.write, places.conflist, data, mode=0o644, folder_mode=0o755
                )
                log.info("the CNI configuration is written: %s", places.conflist)
            case RemoveConflist():
                files.remove(places.conflist)
                log.warning("the CNI configuration is removed: no new pods start here")
            case PlaceManifest(name, text):
                await asyncio.to_thread(files.write, places.engine_manifests / name, text.encode())
                log.info("the manifest %s is given to the engine", name)
            case SetAside():
                aside = files.set_aside(places.state)
                log.warning("the state of a server that was replaced is kept at %s", aside)
            case Start(unit, digest):
                self._attempts = self._attempts.again(now)
                log.info("starting %s (attempt %d)", unit, self._attempts.count)
                await self._units.start(unit)
                files.write(places.applied, digest.encode())
            case Restart(unit, digest):
                self._attempts = Attempts(0, now)
                log.info("restarting %s: its configuration changed", unit)
                await self._units.restart(unit)
                files.write(places.applied, digest.encode())
            case Stop(unit):
                log.info("stopping %s", unit)
                await self._units.stop(unit)


def read_manifests(places: Places, known: Mapping[str, str]) -> dict[str, str]:
    """Return the add-ons that the image brings, filled in. Raises KubernetesError."""
    found = {}
    try:
        paths = sorted(places.manifests.iterdir()) if places.manifests.is_dir() else []
    except OSError as error:
        raise KubernetesError(f"{places.manifests} can't be read: {error.strerror}") from error
    for path in paths:
        if manifests.NAME.fullmatch(path.name):
            text = files.read_text(path, manifests.MANIFEST_MAX) or ""
            found[f"skerry-{path.name}"] = manifests.fill(path.name, text, known)
    return found
