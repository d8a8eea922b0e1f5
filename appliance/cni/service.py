"""The CNI server of a node, in the event loop of whoever hosts it.

Netlink, namespaces and nft are for its own worker threads; the loop only receives, queues and
answers. It may be ended at any moment: the next start puts right what was under way, and pods
that run are not touched.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from appliance.cni import plan
from appliance.cni.errors import NEWEST, CniError, Code
from appliance.cni.kernel import Kernel
from appliance.cni.operations import Operations
from appliance.cni.provider import NoPods, Pods, Provider
from appliance.cni.queues import Queues
from appliance.cni.results import render_result, render_version
from appliance.cni.server import Answer, Caller, CniServer, refusal
from appliance.cni.spec import SUPPORTED, Command, Request, read_request
from appliance.cni.store import Store, StoreError
from skerry.errors import SkerryError

log = logging.getLogger(__name__)

RUN_DIR = Path("/run/skerry-cni")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
RECONCILE_SECONDS = 30.0
_WORKERS = 4
T = TypeVar("T")
Before = Callable[[plan.Action], None]

__all__ = ["RUN_DIR", "CniService", "NoPods", "Pods", "Provider", "operations_in"]


def operations_in(run_dir: Path, provider: Provider, *, before: Before | None = None) -> Operations:
    """Return what acts on this machine, with its records in a folder of a tmpfs.

    ``before`` is called before each action: tests end the process there.
    """
    store = Store(run_dir, BOOT_ID.read_text().strip())
    return Operations(Kernel(), store, provider, before=before or (lambda _: None))


class CniService:
    """Serves the CNI calls of a node.

    ``provider`` is called, also from worker threads, whenever it matters how pods are connected;
    it must not block. ``changed`` is to be called when it would say something else, so that the
    bridge and rules are there before the first pod.
    """

    def __init__(
        self,
        provider: Provider,
        run_dir: Path = RUN_DIR,
        *,
        operations: Operations | None = None,
    ) -> None:
        self._operations = operations or operations_in(run_dir, provider)
        self._server = CniServer(run_dir, self.handle)
        self._queues = Queues()
        self._tickets = itertools.count()
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._workers = ThreadPoolExecutor(_WORKERS, thread_name_prefix="cni")
        self._again = asyncio.Event()
        self._upkeep: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Put right what a process before us left, then take calls. Raises SkerryError, OSError."""
        await self._work(self._operations.open)
        try:
            await self._work(self._operations.reconcile)
        except SkerryError as error:
            # A DEL must come through whatever is wrong; what is left is tried again.
            log.warning("pod networking could not be put right yet: %s", error)
        await self._server.start()
        self._upkeep = asyncio.create_task(self._keep_up())

    async def stop(self) -> None:
        """Stop taking calls. Pods stay connected."""
        if self._upkeep is not None:
            self._upkeep.cancel()
            await asyncio.gather(self._upkeep, return_exceptions=True)
        await self._server.stop()
        await asyncio.to_thread(self._workers.shutdown)

    def changed(self) -> None:
        """Have a look at once: the provider says something else than before."""
        self._again.set()

    # Calls

    async def handle(self, body: bytes, namespace: int | None, caller: Caller) -> Answer:
        """Answer one request, whatever it is; ``namespace`` stays the caller's to close."""
        version = NEWEST
        try:
            request = read_request(body)
            version = request.cni_version
            return Answer(0, await self._answer(request, namespace, caller))
        except CniError as error:
            return refusal(_in(version, error))
        except StoreError as error:
            return refusal(_in(version, CniError(Code.IO, str(error), hint=error.hint)))
        except SkerryError as error:
            return refusal(_in(version, CniError(Code.INTERNAL, str(error), hint=error.hint)))
        except Exception as error:
            log.exception("a CNI call failed")
            told = CniError(Code.INTERNAL, f"{type(error).__name__}: {error}")
            return refusal(_in(version, told))

    async def _answer(self, request: Request, namespace: int | None, caller: Caller) -> bytes:
        do = self._operations
        match request.command:
            case Command.VERSION:
                return render_version(request.cni_version, SUPPORTED)
            case Command.STATUS:
                await self._work(do.status)
            case Command.ADD:
                add = _with_own(namespace, lambda own: do.add(request, own))
                result = await self._queued(request, caller, add)
                return render_result(result, request.cni_version)
            case Command.CHECK:
                check = _with_own(namespace, lambda own: do.check(request, own))
                await self._queued(request, caller, check)
            case Command.DEL:
                await self._queued(request, caller, lambda: do.delete(request))
            case Command.GC:
                await self._queued(request, caller, lambda: do.collect(request))
        return b""

    async def _queued(self, request: Request, caller: Caller, work: Callable[[], T]) -> T:
        attachment = request.attachment
        async with _Turn(self, attachment.container if attachment is not None else None):
            if caller.gone():
                raise CniError(Code.TRY_AGAIN, "the caller went while it waited")
            return await self._work(work)

    async def _work(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._workers, work)

    # Upkeep

    async def _keep_up(self) -> None:
        while True:
            try:
                async with asyncio.timeout(RECONCILE_SECONDS):
                    await self._again.wait()
            except TimeoutError:
                pass
            self._again.clear()
            try:
                async with _Turn(self, None):
                    await self._work(self._operations.reconcile)
            except SkerryError as error:
                log.warning("pod networking could not be put right yet: %s", error)
            except Exception:
                log.exception("pod networking could not be put right")

    # Turns

    async def take_turn(self, ticket: int, container: str | None) -> None:
        """Wait until it is a call's turn. Raises CniError when too many wait."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting[ticket] = turn
        try:
            self._wake(self._queues.submit(ticket, container))
            await turn
        except BaseException:
            self.end_turn(ticket)
            raise

    def end_turn(self, ticket: int) -> None:
        """Say that a call ended, or that it does not wait any more."""
        self._waiting.pop(ticket, None)
        self._wake(self._queues.finish(ticket))

    def _wake(self, tickets: tuple[int, ...]) -> None:
        for ticket in tickets:
            turn = self._waiting.get(ticket)
            if turn is not None and not turn.done():
                turn.set_result(None)

    def next_ticket(self) -> int:
        """Return a number that is used once."""
        return next(self._tickets)


class _Turn:
    def __init__(self, service: CniService, container: str | None) -> None:
        self._service = service
        self._container = container
        self._ticket = service.next_ticket()

    async def __aenter__(self) -> None:
        await self._service.take_turn(self._ticket, self._container)

    async def __aexit__(self, *_: object) -> None:
        self._service.end_turn(self._ticket)


def _with_own(namespace: int | None, work: Callable[[int | None], T]) -> Callable[[], T]:
    """Return work that has a descriptor of its own: nobody else closes it while it is in use."""

    def run() -> T:
        own = os.dup(namespace) if namespace is not None else None
        try:
            return work(own)
        finally:
            if own is not None:
                os.close(own)

    return run


def _in(version: str, error: CniError) -> CniError:
    if error.cni_version == NEWEST:
        error.cni_version = version
    return error
