"""``skerry service run``: keeps offers, health and the kernel's rules as they should be.

One turn a second. Killed at any moment it leaves the rules and what flows as they are; its offers
end with their leases. What cannot be asked now is left as it is.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from appliance.api.client import ApiError, call
from appliance.names.services import publish
from appliance.problem import Problem
from appliance.services import kernel, probes, wishes
from appliance.services.errors import ServiceError
from appliance.services.observing import Observed, observe
from appliance.services.offers import BUCKET, LEASE_SECONDS, Offer
from appliance.services.plan import Kubernetes, Plan, Way, plan, questions_of, wanted
from appliance.services.wishes import FILE_MAX, Exposure, Wishes
from provisioning.files import FileError, read_small, write_all
from skerry.errors import SkerryError

log = logging.getLogger(__name__)

TURN_SECONDS = 1.0
# The kernel is told again although nothing changed: somebody may have flushed its rules.
AGAIN_SECONDS = 60.0
STATUS = "status.json"
# Its time is that of the last turn; people are told when it is older than this.
STATUS_SECONDS = 15.0
_FORWARDING = "forwarding-is-ours"


@dataclass(frozen=True, slots=True)
class Places:
    """Where things are."""

    data_dir: Path = Path("/data/services")
    run_dir: Path = Path("/run/skerry-services")
    socket: Path = Path("/run/skerry/api.sock")
    # What a cluster agent tells of Kubernetes' Services, if there is one.
    kubernetes: Path = Path("/run/skerry-cluster/services.json")


class _KubernetesFile(msgspec.Struct, frozen=True):
    exposures: tuple[Exposure, ...] = ()
    pods: dict[str, tuple[tuple[str, int], ...]] = {}


@dataclass(slots=True)
class Daemon:
    """Its state between turns."""

    places: Places
    clock: Callable[[], float] = time.monotonic
    health: probes.Health = field(default_factory=probes.Health)
    written: dict[str, tuple[bytes, float]] = field(default_factory=dict)
    ways: tuple[Way, ...] = ()
    applied: tuple[tuple[Way, ...], str, str, bool] | None = None
    applied_at: float = float("-inf")
    untidy: bool = False
    names: tuple[tuple[str, str], ...] | None = None
    problems: tuple[Problem, ...] = ()
    wishes: Wishes = field(default_factory=Wishes)

    def turn(self) -> None:
        """Do what is to be done now; trouble is in the status and in the log."""
        problems: list[Problem] = []
        try:
            self.wishes = wishes.load(self.places.data_dir)
        except ServiceError as error:
            problems.append(_problem("services-file", error))
        try:
            observed = observe(self.places.socket)
            problems += self._work(observed)
        except SkerryError as error:
            problems.append(_problem("services", error))
        self._say(problems)

    def _work(self, observed: Observed) -> Iterable[Problem]:
        own = observed.network.members.get(observed.network.own)
        if own is None or own.ipv4 is None or not observed.vpn:
            words = (
                "services need the encrypted overlay: this network's nodes only coordinate"
                if not observed.vpn
                else "this node has no overlay address yet"
            )
            return [Problem("services-no-overlay", words, "")]
        kubernetes = read_kubernetes_file(self.places.kubernetes)
        exposures, _ = wanted(self.wishes, kubernetes)
        questions = [
            asked for one in exposures for asked in questions_of(one, observed.network, kubernetes)
        ]
        well = self.health.heard(probes.ask(questions))
        made = plan(self.wishes, observed.network, observed.offers, well, kubernetes)
        self._apply(made, observed.interface, own.ipv4)
        self._offer(made.offers, observed.own_keys)
        if made.names != self.names:
            publish(self.places.run_dir, made.names)
            self.names = made.names
        return made.problems

    def _apply(self, made: Plan, interface: str, own: str) -> None:
        if self.untidy:
            self.untidy = False
            try:
                kernel.tidy(self.ways)
            except SkerryError as error:
                # Chains that nothing leads to do no harm; the next change tries again.
                log.warning("%s", error)
        leads_on = any(way.inward and way.targets for way in made.ways)
        guarded = kernel.is_ours(self.places.run_dir / _FORWARDING, needed=leads_on)
        wanted = made.ways, interface, own, guarded
        if wanted != self.applied or self.clock() >= self.applied_at + AGAIN_SECONDS:
            self._change(wanted)
        if leads_on:
            kernel.forward()

    def _change(self, wanted: tuple[tuple[Way, ...], str, str, bool]) -> None:
        ways, interface, own, guarded = wanted
        if ways:
            kernel.route()
        kernel.apply(ways, interface, own, guarded=guarded)
        if wanted != self.applied:
            log.info("%d ways to services", len(ways))
        gone = _targets(self.ways) - _targets(ways)
        self.applied, self.applied_at, self.ways = wanted, self.clock(), ways
        self.untidy = True
        kernel.forget(gone)

    def _offer(self, offers: Iterable[Offer], own_keys: frozenset[str]) -> None:
        """Write what changed and what is half through its lease; take back what is no more."""
        now = self.clock()
        keep = set()
        for one in offers:
            keep.add(one.key)
            value, until = self.written.get(one.key, (b"", 0.0))
            if value == one.value and now < until - LEASE_SECONDS / 2 and one.key in own_keys:
                continue
            path = f"/v1/ledger/{BUCKET}/{one.key}?lease={LEASE_SECONDS}"
            call("PUT", path, one.value, socket_path=self.places.socket)
            self.written[one.key] = one.value, now + LEASE_SECONDS
        for key in own_keys - keep:
            call("DELETE", f"/v1/ledger/{BUCKET}/{key}", socket_path=self.places.socket)
            self.written.pop(key, None)

    def _say(self, problems: Iterable[Problem]) -> None:
        """Log what is new, and write what is so: people ask (`skerry service ls`)."""
        said = tuple(problems)
        for one in set(said) - set(self.problems):
            log.warning("%s%s", one.message, f" ({one.hint})" if one.hint else "")
        if self.problems and not said:
            log.info("services: all is well again")
        self.problems = said
        document: dict[str, Any] = {
            "ways": [msgspec.to_builtins(one) for one in self.ways],
            "problems": [msgspec.to_builtins(one) for one in said],
        }
        text = msgspec.json.encode(document)
        path = self.places.run_dir / STATUS
        try:
            if path.exists() and path.read_bytes() == text:
                os.utime(path)
                return
            write_all(path.parent, {path.name: text}, mode=0o644)
        except OSError as error:
            log.warning("%s cannot be written: %s", path, error)


def _targets(ways: Iterable[Way]) -> set[tuple[str, str, int]]:
    return {(host, way.protocol, port) for way in ways for host, port in way.targets}


def _problem(code: str, error: SkerryError) -> Problem:
    return Problem(code, str(error), error.hint or "")


def read_kubernetes_file(path: Path) -> Kubernetes:
    """Return what a cluster agent left, or nothing; it is checked like a person's words."""
    try:
        found = msgspec.json.decode(read_small(path, FILE_MAX), type=_KubernetesFile)
        for one in found.exposures:
            wishes.check_exposure(one)
        pods = {
            to: tuple(wishes.target_of(f"{host}:{port}") for host, port in some)
            for to, some in found.pods.items()
        }
    except (OSError, FileError, ServiceError, msgspec.MsgspecError, ValueError) as error:
        if not isinstance(error, FileNotFoundError):
            log.warning("%s is passed over: %s", path, error)
        return Kubernetes()
    return Kubernetes(found.exposures, pods)


def run(places: Places, stopped: Callable[[], bool], ready: Callable[[], object]) -> None:
    """Turn until it is stopped."""
    places.run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    daemon = Daemon(places)
    first = True
    while not stopped():
        begun = time.monotonic()
        try:
            daemon.turn()
        except (ApiError, OSError) as error:
            log.warning("a turn failed: %s", error)
        if first:
            ready()
            first = False
        time.sleep(max(0.0, TURN_SECONDS - (time.monotonic() - begun)))
