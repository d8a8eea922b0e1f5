"""Containers' network namespaces: opening, checking, and doing something inside. Blocking.

A namespace is a property of a thread. Whatever goes into one does so in a thread that is made for
it and ends with it, so no thread that does anything else can ever be left behind there.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from appliance.cni.errors import CniError, Code
from skerry.errors import SkerryError

T = TypeVar("T")
_OWN = Path("/proc/self/ns/net")
_NEW_NET = 0x40000000  # clone(2): CLONE_NEWNET
_KIND_OF_NAMESPACE = 0xB703  # ioctl_nsfs(2): NS_GET_NSTYPE
_HINT = "it is what the runtime names in CNI_NETNS, /run/netns/... say"


def open_namespace(path: str) -> int:
    """Return an opened namespace, checked. Raises CniError."""
    try:
        # A pipe or a terminal under this name must not hold us up.
        opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
        raise CniError(
            Code.UNKNOWN_CONTAINER if missing else Code.ENVIRONMENT,
            f"the network namespace {path} can't be opened: {error.strerror}",
            hint=_HINT,
        ) from error
    try:
        check_namespace(opened, path)
    except CniError:
        os.close(opened)
        raise
    return opened


def check_namespace(opened: int, path: str) -> None:
    """Raise CniError unless it is a network namespace, and not the node's own."""
    try:
        network = fcntl.ioctl(opened, _KIND_OF_NAMESPACE) == _NEW_NET
    except OSError:
        network = False
    if not network:
        raise CniError(Code.ENVIRONMENT, f"{path} is no network namespace", hint=_HINT)
    if _identity(os.fstat(opened)) == _identity(_OWN.stat()):
        raise CniError(
            Code.ENVIRONMENT,
            f"{path} is the node's own network namespace",
            hint="a pod with hostNetwork gets no CNI call",
        )


def exists(path: str) -> bool:
    """Say whether a path is that of a network namespace."""
    try:
        # Only a regular file can be one, and opening another kind may do something.
        if not Path(path).is_file():
            return False
        os.close(open_namespace(path))
    except (CniError, OSError):
        return False
    return True


def inside(opened: int, work: Callable[[], T]) -> T:
    """Return what the work gives, done in the namespace. Raises what it raises."""
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            enter(opened)
            done.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again where it was asked for
            failed.append(error)

    thread = threading.Thread(target=run, name="cni-inside")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]


def enter(opened: int) -> None:
    """Put this thread into an opened network namespace. Raises SkerryError."""
    code = 0
    if hasattr(os, "setns"):  # from Python 3.12 on
        try:
            os.setns(opened, _NEW_NET)
        except OSError as error:
            code = error.errno or errno.EIO
    else:
        libc = ctypes.CDLL(None, use_errno=True)
        code = ctypes.get_errno() if libc.setns(opened, _NEW_NET) != 0 else 0
    if code:
        raise SkerryError(
            f"the container's network namespace can't be entered: {os.strerror(code)}",
            hint="whoever hosts the CNI server needs CAP_SYS_ADMIN",
        )


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino
