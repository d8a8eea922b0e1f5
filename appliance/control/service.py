"""The control plane of a real node: the overlay's edge, the ledger's file, the machine's clock.

Recipe::

    control = Control(identity, store, OverlayConfig(), ledger=Path("/data/skerry/ledger.db"))
    await control.start()
    control.access.put("shared", "greeting", b"hello", None)
    await control.stop()      # the tunnel and its peers stay
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from appliance.api.cluster import ClusterView
from appliance.api.route import Knowledge
from appliance.clock import SystemClock, ask, time_to_ask
from appliance.control.actions import LedgerChanged
from appliance.control.cluster_view import cluster_view
from appliance.control.plane import Action, ControlPlane, Kept
from appliance.control.views import (
    LedgerView,
    NodeView,
    ledger_view,
    names_view,
    nodes_view,
    visitors_of,
)
from appliance.ledger import gossip
from appliance.ledger.access import LedgerAccess
from appliance.ledger.keeper import Keeper
from appliance.ledger.storage import LedgerFile, Loaded
from appliance.ledger.timekeeper import Quality
from appliance.ledger.vault import Vault
from appliance.names.zone import NodeName
from appliance.overlay.brain import STORE_PREFIX, make_core
from appliance.overlay.clock import Now
from appliance.overlay.config import OverlayConfig
from appliance.overlay.service import Overlay, OverlayStatus
from appliance.problem import Problem
from appliance.status import Told, told_view
from appliance.store import Store
from provisioning.identity import Identity
from provisioning.keys import id_text

log = logging.getLogger(__name__)

T = TypeVar("T")
# What others have too is written soon, together, and without waiting for the disk: it survives the
# process at once, a power cut after the kernel's own write-back (storage.py says why that will do).
COMMIT_SECONDS = 0.2
CLOCK_SECONDS = 5.0


class Control:
    """One node among the others, from `start` to `stop`."""

    def __init__(
        self,
        identity: Identity,
        store: Store,
        config: OverlayConfig,
        *,
        ledger: Path,
        time_request: Path | None = None,
        floor: float = 0.0,
    ) -> None:
        """``time_request``: where to ask for the machine's clock to be set (`appliance.clock`).

        ``floor``: Unix seconds that are surely past, beside what the identity says.
        """
        self._identity = identity
        self._store = store
        self._config = config
        self._path = ledger
        self._time_request = time_request
        self._floor_ms = int(max(floor, identity.time_floor) * 1000)
        self._clock = SystemClock()
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._file: LedgerFile | None = None
        self._plane: ControlPlane | None = None
        self._overlay: Overlay | None = None
        self._access: LedgerAccess | None = None
        self._vault: Vault | None = None
        self._vault_timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._commit_due: asyncio.TimerHandle | None = None
        self._commits: set[asyncio.Task[None]] = set()
        self._trouble: tuple[Problem, ...] = ()

    @property
    def access(self) -> LedgerAccess | None:
        """What programs and people may do with the ledger; None before `start`."""
        return self._access

    @property
    def plane(self) -> ControlPlane:
        """The decisions. Only between `start` and `stop`."""
        assert self._plane is not None  # noqa: S101 - made by start
        return self._plane

    async def start(self) -> None:
        """Load the ledger, bring the interface up, begin to look for members.

        Raises OverlayError or LedgerError saying what is missing; `stop` cleans up then too.
        """
        file, loaded = await self._on_disk(partial(LedgerFile.open, self._path))
        self._file, self._trouble = file, file.problems()
        self._plane = plane = self._make_plane(loaded)
        self._overlay = Overlay(
            self._identity,
            self._store,
            self._config,
            brain=plane,
            perform_other=self._perform,
            unix=plane.unix,
        )
        self._access = LedgerAccess(plane.gossip, clock=time.monotonic, perform=self._written)
        self._vault = self._make_vault(self._access)
        self._vault.work()
        await self._overlay.start()
        self._wake_vault()
        self._task = asyncio.create_task(self._look_after())

    async def stop(self) -> None:
        """Stop; the tunnel, its addresses and its peers stay. What is known is on the disk."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        for timer in (self._vault_timer, self._commit_due):
            if timer is not None:
                timer.cancel()
        await asyncio.gather(*self._commits, return_exceptions=True)
        if self._access is not None:
            self._access.close()
        if self._overlay is not None:
            await self._overlay.stop()
        if self._file is not None:
            await self._on_disk(self._file.close)
        self._disk.shutdown()

    @property
    def vault(self) -> Vault | None:
        """The network's secrets; None before `start`."""
        return self._vault

    def snapshot(self) -> OverlayStatus:
        """Return what is so now, from memory."""
        assert self._overlay is not None  # noqa: S101 - made by start
        assert self._file is not None  # noqa: S101 - made by start
        shown = self._overlay.snapshot()
        policies = self.plane.policies
        visitors = visitors_of(self.plane)
        names = {
            id_text(node): policies.called(node, peer.member.name)
            for node, peer in self.plane.peers.items()
            if node not in visitors
        }
        peers = tuple(
            replace(one, name=names[one.node_id]) for one in shown.peers if one.node_id in names
        )
        held = policies.holdings.standing_range(time.monotonic())
        problem = policies.holdings.ranges.problem
        return replace(
            shown,
            peers=peers,
            problems=(*shown.problems, *self._file.problems()),
            pod_range=() if held is None else (str(held.ipv4), str(held.ipv6)),
            no_pods=problem.message if problem is not None and held is None else "",
        )

    @property
    def name(self) -> str:
        """What this node is called now: the operator may have renamed it."""
        return self.plane.policies.name_of(self._identity.member())

    def nodes(self) -> tuple[NodeView, ...]:
        """Return the members of the network, by name."""
        return nodes_view(self.plane, time.monotonic())

    def names(self) -> tuple[NodeName, ...]:
        """Return what members are called, for the resolver."""
        return names_view(self.plane, time.monotonic())

    def cluster(self) -> ClusterView:
        """Return the network as Kubernetes on this node needs it."""
        return cluster_view(self.plane, self.snapshot(), time.monotonic())

    def knowledge(self) -> Knowledge:
        """Return what questions for a route are answered from."""
        plane, mono = self.plane, time.monotonic()
        return Knowledge(
            own=self._identity.node_id,
            replica=plane.gossip.replica,
            views=plane.policies.holdings.views,
            members=[one.node_id for one in plane.policies.members()],
            names=names_view(plane, mono),
            overlay=self.snapshot(),
            settings=self._identity.network.settings,
            now_ms=plane.timekeeper.now_ms(mono),
        )

    def ledger(self) -> LedgerView:
        """Return what there is to say of the ledger as a whole."""
        return ledger_view(self.plane)

    def told(self) -> tuple[Told, ...]:
        """Return which members do not let this node in, and why."""
        plane = self.plane
        return told_view(plane.told.values(), now=plane.unix(time.monotonic()))

    # Between the plane and its edges

    def _make_vault(self, access: LedgerAccess) -> Vault:
        plane = self.plane
        keeper = Keeper(
            plane.gossip.replica,
            own=self._identity.node_id,
            wg_private=self._identity.wg_private,
            mono=time.monotonic(),
        )
        return Vault(
            keeper,
            plane.gossip,
            time.monotonic,
            plane.policies.members,
            self._written,
            alive=plane.policies.alive,
            name_of=access.owner_name,
        )

    def _wake_vault(self) -> None:
        """Let the vault work when it is due."""
        if self._vault_timer is not None:
            self._vault_timer.cancel()
        due = self._vault.next_timer() if self._vault else float("inf")
        if due < float("inf"):
            wait = max(due - time.monotonic(), 0.0)
            self._vault_timer = asyncio.get_running_loop().call_later(wait, self._work_vault)

    def _work_vault(self) -> None:
        if self._vault is None:
            return
        try:
            self._vault.work()
        except Exception:
            # A defect there is loud, and costs the secrets some time, not the node.
            log.exception("a defect while looking after the secrets")
            loop = asyncio.get_running_loop()
            self._vault_timer = loop.call_later(CLOCK_SECONDS, self._work_vault)
        else:
            self._wake_vault()

    def _make_plane(self, loaded: Loaded) -> ControlPlane:
        store = {**self._store.items(STORE_PREFIX), **self._store.items("control/")}
        kept = Kept(loaded.entries, loaded.high_water, loaded.sequence, loaded.guess_ms)
        return ControlPlane(
            self._identity,
            lambda admits, reading: make_core(
                self._identity, self._config, store, admits=admits, reading=reading
            ),
            kept=kept,
            remembered=store,
            random=os.urandom,
            now=Now(time.monotonic(), time.time()),
            clock=self._clock.look(),
        )

    def _written(self, actions: Iterable[gossip.Action]) -> None:
        assert self._overlay is not None  # noqa: S101 - made by start
        self._overlay.enact(self.plane.perform(actions, time.monotonic()))

    async def _perform(self, action: Action) -> None:
        if not isinstance(action, LedgerChanged):
            log.debug("nobody performs %s", type(action).__name__)
            return
        assert self._file is not None  # noqa: S101 - made by start
        stored = await self._on_disk(partial(self._keep, self._file, action))
        if not action.own and self._commit_due is None:
            loop = asyncio.get_running_loop()
            self._commit_due = loop.call_later(COMMIT_SECONDS, self._commit_soon)
        if self._access is None or self._vault is None:
            return
        for change in action.changes:
            self._access.changed(change, stored=stored)
            self._vault.changed(change, stored=stored)
        self._wake_vault()

    @staticmethod
    def _keep(file: LedgerFile, action: LedgerChanged) -> bool:
        """Note changes, and say whether those of this node are on the disk."""
        file.change(action.changes)
        if not action.own:
            return True
        file.mark(high_water=action.high_water, sequence=action.sequence)
        return file.commit(own=True)

    async def _look_after(self) -> None:
        """Look at the clock, and write what is to be written, now and then."""
        while True:
            await asyncio.sleep(CLOCK_SECONDS)
            try:
                mono = time.monotonic()
                self._look_at_clock(mono)
                await self._commit()
            except Exception:
                log.exception("a defect while looking after clock and ledger")

    def _look_at_clock(self, mono: float) -> None:
        look, timekeeper = self._clock.look(), self.plane.timekeeper
        self.plane.wall(look, mono)
        if look.step_ms:
            log.info("somebody moved this machine's clock by %.1f s", look.step_ms / 1000)
        wanted = time_to_ask(
            look,
            timekeeper.now_ms(mono),
            by_clocks=timekeeper.quality is not Quality.GUESSED,
            floor_ms=self._floor_ms,
        )
        if wanted is not None and self._time_request is not None:
            with suppress(OSError):
                if ask(self._time_request, wanted):
                    log.info("asked for this machine's clock to be set as members have it")

    def _commit_soon(self) -> None:
        self._commit_due = None
        task = asyncio.ensure_future(self._commit())
        self._commits.add(task)
        task.add_done_callback(self._commits.discard)

    async def _commit(self) -> None:
        file = self._file
        if file is None:
            return
        if file.problems() != self._trouble:
            # Begun afresh while we ran, perhaps: what is in memory is what there is.
            self._trouble = file.problems()
            await self._on_disk(partial(file.rewrite, tuple(self.plane.gossip.replica)))
        if file.dirty:
            await self._on_disk(file.commit)

    async def _on_disk(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._disk, call)
