"""A netlink socket: sends requests, waits for what the kernel says. Blocking."""

from __future__ import annotations

import errno
import itertools
import os
import socket
from typing import Self

from appliance.cni import netlink as nl
from appliance.cni.netlink import Kind, Request
from skerry.errors import SkerryError

_SOL_NETLINK, _STRICT_CHECK = 270, 12
_READ_MAX = 1 << 17
# The kernel answers at once; this is for one that never does.
_SECONDS = 20.0
# How often a list is asked for that changes while it is given.
_ATTEMPTS = 16
_ABSENT = frozenset({errno.ENODEV, errno.ENOENT, errno.ENXIO})


class KernelError(SkerryError):
    """The kernel refused something; ``code`` is its errno."""

    def __init__(self, code: int, what: str, *, hint: str | None = None) -> None:
        super().__init__(f"{what}: {os.strerror(code)}", hint=hint)
        self.code = code

    @property
    def absent(self) -> bool:
        """Whether it is that something is not there."""
        return self.code in _ABSENT


class Netlink:
    """One socket; it belongs to the namespace that its thread was in when it was made."""

    def __init__(self, protocol: int = socket.NETLINK_ROUTE) -> None:
        """Open it. Raises KernelError."""
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol
            )
        except OSError as error:
            raise KernelError(error.errno or errno.EIO, "opening a netlink socket") from error
        self._socket.setsockopt(_SOL_NETLINK, _STRICT_CHECK, 1)
        self._socket.settimeout(_SECONDS)
        self._numbers = itertools.count(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def do(self, *requests: Request) -> None:
        """Have all of it done, in order, in one call of the kernel.

        Raises KernelError for the first that failed; those behind it were tried all the same.
        """
        self._exchange(requests)

    def ask(self, request: Request) -> list[bytes]:
        """Return the bodies of all that is answered, as of one moment. Raises KernelError.

        Whoever took a link for gone that a list merely skipped would cut off a running container.
        """
        for _ in range(_ATTEMPTS - 1):
            try:
                return self._exchange((request,))
            except KernelError as error:
                if error.code != errno.EINTR:
                    raise
        return self._exchange((request,))

    def link(self, name: str) -> nl.Link | None:
        """Return a link, None if there is none of this name."""
        try:
            return nl.read_link(self.ask(nl.get_link(name))[0])
        except KernelError as error:
            if error.absent:
                return None
            raise

    def links(self) -> list[nl.Link]:
        """Return all links."""
        return [nl.read_link(one) for one in self.ask(nl.get_links())]

    def addresses(self, index: int) -> frozenset[str]:
        """Return the addresses of a link, with their prefixes."""
        found = map(nl.read_address, self.ask(nl.get_addresses(index)))
        return frozenset(one.address for one in found if one is not None and one.index == index)

    def routes(self, index: int) -> frozenset[tuple[str, str]]:
        """Return destination and gateway of a link's routes."""
        found = map(nl.read_route, self.ask(nl.get_routes()))
        return frozenset(
            (one.destination, one.gateway)
            for one in found
            if one is not None and one.index == index
        )

    def _exchange(self, requests: tuple[Request, ...]) -> list[bytes]:
        waiting = {next(self._numbers): one for one in requests}
        data = b"".join(one.encode(number) for number, one in waiting.items())
        try:
            self._socket.send(data)
            return self._answers(waiting)
        except OSError as error:
            # Without a number it is that nothing came.
            code = error.errno or errno.ETIMEDOUT
            raise KernelError(code, requests[0].what) from error

    def _answers(self, waiting: dict[int, Request]) -> list[bytes]:
        bodies: list[bytes] = []
        failed: tuple[int, str] | None = None
        while waiting:
            data = self._socket.recv(_READ_MAX)
            if nl.torn(data):
                failed = (errno.EINTR, next(iter(waiting.values())).what)
            for kind, sequence, body in nl.messages(data):
                if sequence not in waiting:
                    continue
                if kind not in (Kind.ERROR, Kind.DONE):
                    bodies.append(body)
                    continue
                what = waiting.pop(sequence).what
                if (code := nl.error_of(body)) and failed is None:
                    failed = (code, what)
        if failed is not None:
            raise KernelError(*failed)
        return bodies
