"""The supervisor: the shell around the life cycle.

It performs what :mod:`appliance.lifecycle` decides and tells it what happened. Nothing that comes
from outside ends it; only a state directory that another supervisor uses, or a run directory that
can't be used, do.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from http import HTTPStatus

from appliance import lifecycle, machine
from appliance.api.cluster import cluster_routes
from appliance.api.http import HttpError, Request
from appliance.api.ledger import ledger_routes
from appliance.api.node import node_routes
from appliance.api.nodes import node_list_routes
from appliance.api.openapi import described
from appliance.api.route import route_routes
from appliance.api.router import Answer, Handler, Route
from appliance.api.secrets import secret_routes
from appliance.api.server import ApiServer
from appliance.config import SupervisorConfig
from appliance.edge import OverlayEdge, OverlayFactory
from appliance.enrolment import Enrolment
from appliance.journal import Redactor
from appliance.lifecycle import Lifecycle
from appliance.names.service import Names, serve_names
from appliance.names.zone import NodeName
from appliance.notify import Notifier
from appliance.people import Console, headline
from appliance.problem import (
    START_SECONDS,
    Problem,
    clock_problem,
    data_problem,
    overlay_problem,
    room_problem,
)
from appliance.status import OverlayView, Status, cluster_report, overlay_view
from appliance.store import Store
from provisioning.identity import Identity
from provisioning.keys import id_text
from provisioning.token import Token

log = logging.getLogger(__name__)

QUICK_TICK_SECONDS = 1.0
TICK_SECONDS = 5.0
STUCK_SECONDS = 60.0
LEAST_FREE = 8 * 1024 * 1024
# Without these the network's end would run.
_STOPPING = frozenset({"overlay", "identity-unusable"})
_STARTING = Problem("starting", "the node's end of the network is being started", "Try again soon.")


class Supervisor:
    """One node's supervisor. ``serve()`` returns after ``stop()``."""

    def __init__(
        self,
        config: SupervisorConfig,
        *,
        make_overlay: OverlayFactory,
        redactor: Redactor,
        notifier: Notifier,
        console: Console,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._make_overlay = make_overlay
        self._notifier = notifier
        self._console = console
        self._wall_clock = wall_clock
        self._store = Store.open(config.database, clock=wall_clock)
        self._enrolment = Enrolment(
            config, redactor=redactor, wall_clock=wall_clock, tell=self._feed
        )
        self._overlay: OverlayEdge | None = None
        self._names: Names | None = None
        self._release = machine.read_release()
        self._facts = Lifecycle()
        self._state_since = time.monotonic()
        self._begun = time.monotonic()
        self._serving = False
        self._ticked = time.monotonic()
        self._stopping = asyncio.Event()
        self._awake = asyncio.Event()
        self._jobs: set[asyncio.Task[None]] = set()
        self._api = ApiServer(config.socket, self.routes())

    async def start(self) -> None:
        """Look for an identity and open the API: from here on the service manager counts on us.

        :raises OSError: the API's socket can't be made.
        """
        self._keep_watchdog_fed()
        self._enrolment.load()
        await self._api.start()
        self._serving = True
        self._notifier.send(READY=1, STATUS=self._facts.state.value)

    async def serve(self) -> None:
        """Live until :meth:`stop`. The tunnel outlives us."""
        try:
            while not self._stopping.is_set():
                self._tick()
                await self._pause()
        finally:
            self._notifier.send(STOPPING=1)
            await self._wind_down()

    def stop(self) -> None:
        """End :meth:`serve`."""
        self._stopping.set()
        self._awake.set()

    @property
    def _identity(self) -> Identity | None:
        return self._enrolment.identity

    @property
    def waits_for_token(self) -> bool:
        """Whether a person has to give this node a token before anything else happens."""
        return self._facts.wants_token

    def routes(self) -> dict[tuple[str, str], Route | Handler]:
        """Return the API's table, with what there is to say of each route."""
        node = node_routes(status=self._get_status, health=self._get_health, token=self._post_token)
        table = {
            **node,
            **node_list_routes(lambda: end.nodes() if (end := self._end()) else None),
            **ledger_routes(lambda: end.access if (end := self._end()) else None),
            **secret_routes(lambda: end.vault if (end := self._end()) else None),
            **cluster_routes(lambda: end.cluster() if (end := self._end()) else None),
            **route_routes(lambda: end.knowledge() if (end := self._end()) else None),
        }
        return described(table)

    def _end(self) -> OverlayEdge | None:
        """Return the network's end on this node, None if there is no network.

        Raises HttpError if there is a network, and its end does not run.
        """
        if self._overlay is not None or self._facts.wants_token:
            return self._overlay
        stopped = (one for one in self._facts.reasons if one.code in _STOPPING)
        why = next(stopped, _STARTING)
        raise HttpError(HTTPStatus.CONFLICT, f"not now: {why.message}", why.hint)

    # The life cycle

    def _feed(self, event: lifecycle.Event) -> None:
        self._facts, actions = lifecycle.step(self._facts, event, time.monotonic())
        for action in actions:
            match action:
                case lifecycle.MakeIdentity():
                    self._start_job(self._enrolment.make())
                case lifecycle.StartOverlay():
                    self._start_job(self._start_overlay())
                case lifecycle.Report():
                    self._report(action)
        if actions:
            self._awake.set()

    def _tick(self) -> None:
        try:
            self._look_around()
            self._show()
        except Exception:
            # A defect in here must not take the tunnel's keeper down; it is loud in the journal.
            log.exception("a defect in the supervisor's round")
        self._ticked = time.monotonic()

    def _look_around(self) -> None:
        if not self._store.retry():
            log.debug("the state is in memory only")
        stored = self._store.problems()
        self._feed(lifecycle.Found("store", stored))
        self._feed(lifecycle.Found("disk", self._disk_problems(stored)))
        trouble = data_problem(machine.data_trouble(self._config.run_dir))
        self._feed(lifecycle.Found("data", (trouble,) if trouble else ()))
        met = 0
        if self._names is not None:
            self._feed(lifecycle.Found("names", self._names.problems()))
        if self._overlay is not None:
            if self._names is not None:
                self._names.call_machine(self._overlay.name)
            snapshot = self._overlay.snapshot()
            self._feed(lifecycle.Found("network", tuple(snapshot.problems)))
            met = sum(1 for peer in snapshot.peers if peer.up)
        self._feed(lifecycle.Found("clock", self._clock_problems(met)))
        self._feed(lifecycle.Tick(met))
        if self._facts.wants_token:
            self._enrolment.look()
        else:
            self._enrolment.ignore(self._name)

    def _disk_problems(self, stored: Sequence[Problem]) -> tuple[Problem, ...]:
        if any(problem.code == "disk-full" for problem in stored):
            return ()
        free = machine.free_bytes(self._config.state_dir)
        problem = free is not None and room_problem(free, str(self._config.state_dir), LEAST_FREE)
        return (problem,) if problem else ()

    def _clock_problems(self, met: int) -> tuple[Problem, ...]:
        floor = machine.image_epoch()
        if self._identity is not None:
            floor = max(floor, self._identity.time_floor)
        problem = clock_problem(self._wall_clock(), floor, members=met > 0)
        return (problem,) if problem else ()

    async def _start_overlay(self) -> None:
        identity = self._identity
        assert identity is not None  # noqa: S101 - StartOverlay follows an identity only
        overlay: OverlayEdge | None = None
        try:
            await self._serve_names(identity)
            overlay = self._make_overlay(identity, self._store, self._config)
            async with asyncio.timeout(START_SECONDS):
                await overlay.start()
            self._overlay = overlay
        except Exception as error:  # noqa: BLE001 - a defect there degrades the node, no more
            problem = overlay_problem(error)
            if overlay is not None:
                with suppress(Exception):
                    await overlay.stop()
            self._feed(lifecycle.OverlayFailed(problem))
        else:
            self._feed(lifecycle.OverlayStarted())

    async def _serve_names(self, identity: Identity) -> None:
        """Before there is a link: what appears with it is told to systemd-resolved at once."""
        port = self._config.resolver_port
        if self._names is None and port is not None:
            self._names = await serve_names(
                self._config.run_dir, identity, self._members_names, port=port
            )

    def _members_names(self) -> tuple[NodeName, ...] | None:
        if self._overlay is None or self._identity is None:
            return None
        return tuple(self._overlay.names())

    # People

    @property
    def _name(self) -> str:
        """What this node is called now: the operator may have renamed it."""
        if self._overlay is not None:
            return self._overlay.name
        return self._identity.name if self._identity else ""

    def _report(self, report: lifecycle.Report) -> None:
        state = report.state.value
        if report.before is not report.state:
            self._state_since = time.monotonic()
            log.info(
                "state %s -> %s",
                report.before.value if self._serving else "(starting)",
                state,
                extra={"skerry_state": state, "skerry_state_before": report.before.value},
            )
        for problem in report.new_reasons:
            log.warning(
                "%s. %s",
                problem.message,
                problem.hint,
                extra={"skerry_state": state, "skerry_reason": problem.code},
            )
        for problem in report.gone_reasons:
            log.info("no longer so: %s", problem.message, extra={"skerry_reason": problem.code})

    def _show(self) -> None:
        document = self.status()
        if self._console.show(document):
            self._notifier.send(STATUS=headline(document))

    def status(self) -> Status:
        """Return what is so now."""
        now = time.monotonic()
        identity = self._identity
        reasons = self._facts.reasons
        return Status(
            state=self._facts.state.value,
            state_since_s=round(now - self._state_since, 1),
            reasons=reasons,
            notices=tuple(one for one in self._facts.problems if one not in reasons),
            name=self._name,
            node_id=identity.id_text if identity else "",
            network=identity.network.name if identity else "",
            network_id=id_text(identity.network.network_id) if identity else "",
            release=self._release,
            uptime_s=machine.uptime(),
            supervisor_uptime_s=round(now - self._begun, 1),
            overlay=self._overlay_view(),
            ledger=self._overlay.ledger() if self._overlay else None,
            told=self._overlay.told() if self._overlay else (),
            cluster=cluster_report(self._config.cluster_status),
            refused_tokens=self._enrolment.refused(),
        )

    def _overlay_view(self) -> OverlayView | None:
        if self._overlay is None:
            return None
        return overlay_view(self._overlay.snapshot())

    # The API

    async def _get_status(self, _: Request) -> Answer:
        return HTTPStatus.OK, self.status()

    async def _get_health(self, _: Request) -> Answer:
        ailments = self._facts.ailments
        state = self._facts.state.value
        return HTTPStatus.OK, {"healthy": not ailments, "state": state, "why": ailments}

    async def _post_token(self, request: Request) -> Answer:
        if not self._facts.wants_token:
            raise self._no_token_wanted()
        token = Token.parse(request.body)
        token.check_time(self._wall_clock())
        log.info("token handed over through the local API", extra={"skerry_source": "api"})
        self._enrolment.take(token, None)
        await asyncio.wait(self._jobs)  # goes on if the client leaves
        identity = self._identity
        if identity is None:
            problem = next((one for one in self._facts.reasons if "identity" in one.code), None)
            raise HttpError(
                HTTPStatus.INSUFFICIENT_STORAGE,
                problem.message if problem else "the identity could not be made",
                problem.hint if problem else "journalctl -u skerry says more",
            )
        return HTTPStatus.OK, {
            "state": self._facts.state.value,
            "name": identity.name,
            "node_id": identity.id_text,
            "network": identity.network.name,
        }

    def _no_token_wanted(self) -> HttpError:
        if self._identity is not None:
            return HttpError(
                HTTPStatus.CONFLICT,
                f"this node already is {self._name} of network {self._identity.network.name}",
                "To move it to another network, erase its data partition first.",
            )
        return HttpError(
            HTTPStatus.CONFLICT,
            f"no token is taken now: the node is {self._facts.state.value}",
            " ".join(one.hint for one in self._facts.reasons) or "Try again in a moment.",
        )

    # Plumbing

    def _start_job(self, work: object) -> None:
        assert asyncio.iscoroutine(work)  # noqa: S101
        job = asyncio.ensure_future(work)
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)

    def _keep_watchdog_fed(self) -> None:
        """From the event loop, and only while the rounds go on: a hung supervisor gets killed."""
        if self._notifier.watchdog_seconds is None:
            return
        if time.monotonic() - self._ticked < STUCK_SECONDS:
            self._notifier.send(WATCHDOG=1)
        asyncio.get_running_loop().call_later(
            self._notifier.watchdog_seconds / 3, self._keep_watchdog_fed
        )

    async def _pause(self) -> None:
        settled = self._facts.state in (lifecycle.State.READY, lifecycle.State.DEGRADED)
        # A wrong clock is a reason until the first member answers; that is soon told.
        stages = (lifecycle.Stage.STARTING_OVERLAY, lifecycle.Stage.RUNNING)
        looking = self._facts.stage in stages and not self._facts.settled
        quick = not settled or looking or self._facts.wants_token
        self._awake.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(QUICK_TICK_SECONDS if quick else TICK_SECONDS):
                await self._awake.wait()

    async def _wind_down(self) -> None:
        for job in self._jobs:
            job.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)
        await self._api.stop()
        if self._names is not None:
            await self._names.stop()
        if self._overlay is not None:
            try:
                await self._overlay.stop()
            except Exception:
                log.exception("a defect while stopping the overlay")
        self._store.close()
