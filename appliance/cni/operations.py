"""The operations, from request to result. Blocking; several may run at once in worker threads.

The caller sees to it that those of one container come one after the other, and that `collect` and
`reconcile` run alone (`queues`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable

from appliance.cni import ipam, plan
from appliance.cni import steps as of
from appliance.cni.answers import check, check_status, result_of
from appliance.cni.errors import CniError, Code
from appliance.cni.journal import Entry
from appliance.cni.kernel import Kernel
from appliance.cni.provider import NoPods, Pods, Provider
from appliance.cni.results import Result
from appliance.cni.spec import Attachment, Request
from appliance.cni.store import Store, StoreError
from skerry.errors import SkerryError

log = logging.getLogger(__name__)


class Operations:
    """What a CNI server does; ``before`` is called before each action (tests end us there)."""

    def __init__(
        self,
        kernel: Kernel,
        store: Store,
        provider: Provider,
        *,
        before: Callable[[plan.Action], None],
    ) -> None:
        self._kernel = kernel
        self._store = store
        self._provider = provider
        self._before = before
        # Of the three below. Nothing that waits is done with it.
        self._lock = threading.Lock()
        self._state = ipam.empty("")
        self._entries: dict[Attachment, Entry] = {}
        self._complete = True

    def open(self) -> None:
        """Read what was written down. Raises StoreError."""
        self._store.open()
        state, self._entries, self._complete = self._store.load()
        self._state = plan.recovered(self._entries.values(), state)

    def add(self, request: Request, given: int | None) -> Result:
        """Attach a container; ``given`` is its opened namespace. Raises SkerryError."""
        attachment = _attachment(request)
        pods = self._pods()
        with self._kernel.namespace(request.netns, given) as namespace:
            network = pods.plan()
            self._prepare(pods, network)
            with self._lock:
                before = self._state.find(attachment)
                self._state, lease = ipam.allocate(self._state, network.ranges, attachment)
                leases, old = self._state, self._entries.get(attachment)
            wanted = plan.entry_for(network, attachment, request.netns, lease)
            try:
                snapshot = of.Snapshot()
                if old is not None:
                    snapshot = self._kernel.snapshot_of(wanted, namespace)
                self._perform(plan.add(wanted, old, snapshot, leases), namespace)
                return result_of(wanted, self._kernel.snapshot_of(wanted, namespace))
            except BaseException:
                self._undo(attachment, new=before is None)
                raise

    def delete(self, request: Request) -> None:
        """Take a container's attachment away; there may be none. Raises SkerryError."""
        self._delete(_attachment(request))

    def check(self, request: Request, given: int | None) -> None:
        """Compare an attachment with what it was. Raises CniError."""
        attachment = _attachment(request)
        with self._lock:
            entry, leases = self._entries.get(attachment), self._state
        with self._kernel.namespace(request.netns, given) as namespace:
            snapshot = of.Snapshot()
            if entry is not None:
                snapshot = self._kernel.snapshot_of(entry, namespace)
            previous = request.previous or Result()
            check(attachment, request.netns, previous, entry, snapshot, leases)

    def collect(self, request: Request) -> None:
        """Remove whatever of a network is not valid. Raises SkerryError.

        If the runtime does not say what is, only what has lost its namespace goes.
        """
        if request.valid is not None:
            with self._lock:
                entries, leases = tuple(self._entries.values()), self._state
            self._perform_apart(plan.collect(request.network, request.valid, entries, leases))
            self._store.forget_spoilt()
            self._complete = True
        self.reconcile()

    def status(self) -> None:
        """Raise CniError if an ADD would fail, or containers are cut off."""
        pods = self._provider()
        if isinstance(pods, NoPods):
            raise CniError(Code.UNAVAILABLE, pods.reason, hint=pods.hint)
        overlay = not pods.interface or self._kernel.has_link(pods.interface)
        with self._lock:
            leases = self._state
        check_status(pods.plan().ranges, leases, overlay=overlay)

    def reconcile(self) -> None:
        """Make kernel, leases and records agree. Raises SkerryError for what did not work out."""
        pods = self._provider()
        if isinstance(pods, Pods):
            self._prepare(pods, pods.plan())
        with self._lock:
            entries, leases = tuple(self._entries.values()), self._state
        snapshot = self._kernel.snapshot(entries)
        actions = plan.reconcile(entries, snapshot, leases, complete=self._complete)
        if actions:
            log.info("pod networking is put right: %d actions", len(actions))
        self._perform_apart(actions)

    # Performing

    def _pods(self) -> Pods:
        pods = self._provider()
        if isinstance(pods, NoPods):
            raise CniError(Code.TRY_AGAIN, pods.reason, hint=pods.hint)
        return pods

    def _prepare(self, pods: Pods, network: plan.Network) -> None:
        self._kernel.prepare(network.bridge_step(), pods.table())

    def _perform(self, actions: Iterable[plan.Action], namespace: int | None = None) -> None:
        for action in actions:
            self._before(action)
            match action:
                case plan.Write(entry):
                    self._write(entry)
                case plan.Forget(attachment):
                    with self._lock:
                        self._entries.pop(attachment, None)
                    self._store.forget(attachment)
                case of.Reserve():
                    with self._lock:
                        self._store.write_leases(self._state)
                case of.Release(attachment):
                    with self._lock:
                        state = ipam.release(self._state, attachment)
                        self._store.write_leases(state)
                        self._state = state
                case _:
                    self._kernel.perform(action, namespace)

    def _perform_apart(self, actions: Iterable[plan.Action]) -> None:
        """Perform what concerns several attachments: one that fails does not hold up the others.

        Raises the first error, once all was tried.
        """
        failed: SkerryError | None = None
        removing = skipping = False
        for action in actions:
            removing = removing or isinstance(action, plan.Write)
            if not skipping:
                try:
                    self._perform((action,))
                except SkerryError as error:
                    failed = failed or error
                    # What follows of the same removal needs what failed; its record stays.
                    skipping = removing
            if isinstance(action, plan.Forget):
                removing = skipping = False
        if failed is not None:
            raise failed

    def _write(self, entry: Entry) -> None:
        self._store.write(entry)
        with self._lock:
            self._entries[entry.attachment] = entry

    def _delete(self, attachment: Attachment) -> None:
        with self._lock:
            entry, lease = self._entries.get(attachment), self._state.find(attachment)
        for action in plan.delete(attachment, entry, lease):
            try:
                self._perform((action,))
            except StoreError as error:
                if not isinstance(action, plan.Write):
                    raise
                # No room for the note: a DEL that is killed now is sent again all the same.
                log.warning("%s", error)
                with self._lock:
                    self._entries[attachment] = action.entry

    def _undo(self, attachment: Attachment, *, new: bool) -> None:
        try:
            with self._lock:
                begun = attachment in self._entries
                if not begun and new:
                    self._state = ipam.release(self._state, attachment)
            if begun:
                self._delete(attachment)
        except SkerryError as error:
            # Its record says what is to be removed; the next DEL or reconciliation does.
            log.warning("a failed ADD could not be taken back yet: %s", error)


def _attachment(request: Request) -> Attachment:
    if request.attachment is None:
        raise CniError(Code.INTERNAL, f"a {request.command.value} without a container")
    return request.attachment
