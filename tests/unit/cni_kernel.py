"""A kernel for the operations: the machine of `cni_world`, which can refuse one thing."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from appliance.cni import steps as of
from appliance.cni.errors import CniError, Code
from appliance.cni.journal import Entry
from appliance.cni.kernel import Kernel
from appliance.cni.netlink_socket import KernelError
from tests.unit.cni_world import World

OPENED = 99


class FakeKernel(Kernel):
    """Does what the real one does, on a `World`; ``refuses`` is a kind of step that fails."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.refuses: tuple[type, ...] = ()
        # The host's end of a link that can't be removed.
        self.stuck = ""
        self.prepared: list[tuple[of.Bridge, str]] = []

    def prepare(self, bridge: of.Bridge, table: str) -> None:
        self.prepared.append((bridge, table))
        self.world.bridges.setdefault(bridge.name, set()).update(bridge.gateways)

    def has_link(self, name: str) -> bool:
        return name in self.world.bridges

    @contextmanager
    def namespace(self, path: str, given: int | None) -> Iterator[int]:
        if path not in self.world.namespaces:
            raise CniError(Code.UNKNOWN_CONTAINER, f"{path} can't be opened")
        yield OPENED if given is None else given

    def perform(self, step: of.Step | of.Undo, namespace: int | None = None) -> None:
        stuck = isinstance(step, of.RemoveVeth) and step.host == self.stuck
        if stuck or isinstance(step, self.refuses):
            raise KernelError(errno.EPERM, f"a {type(step).__name__}")
        if isinstance(step, of.Veth | of.Addresses | of.Routes):
            assert namespace == OPENED
        self.world.perform((step,))

    def snapshot_of(self, entry: Entry, namespace: int | None) -> of.Snapshot:
        seen = self.world.snapshot()
        assert namespace == OPENED
        return replace(seen, namespaces=seen.namespaces & {entry.netns})

    def snapshot(self, entries: Iterable[Entry]) -> of.Snapshot:
        seen = self.world.snapshot()
        paths = {one.netns for one in entries}
        return replace(seen, namespaces=seen.namespaces & paths, inside={})
