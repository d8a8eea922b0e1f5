"""Names of the services that this node reaches: told by their daemon, answered by the supervisor.

One file between two processes (docs/services.md): ``NAME ADDRESS`` a line. The supervisor believes
none but addresses of services, which lead nowhere else.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from appliance.services.offers import SERVICE_RANGE
from provisioning.files import FileError, read_small, write_all
from provisioning.names import is_name

log = logging.getLogger(__name__)

FILE = "names"
_LIMIT = 64 * 1024
Addresses = Mapping[str, ipaddress.IPv4Address]


def publish(run_dir: Path, names: Iterable[tuple[str, str]]) -> None:
    """Say which names have which addresses on this node. Raises OSError."""
    text = "".join(f"{name} {address}\n" for name, address in names)
    write_all(run_dir, {FILE: text.encode()}, mode=0o644)


def read(data: bytes) -> Addresses:
    """Return the names in what `publish` wrote; what is malformed counts for nothing."""
    found: dict[str, ipaddress.IPv4Address] = {}
    for line in data.decode("ascii", errors="replace").splitlines():
        name, _, text = line.partition(" ")
        try:
            address = ipaddress.IPv4Address(text)
        except ValueError:
            continue
        if is_name(name) and address in SERVICE_RANGE:
            found[name] = address
    return found


class ServiceNames:
    """What the file says now; read again only when it is another."""

    def __init__(self, run_dir: Path) -> None:
        """Take the supervisor's folder: the daemon's lies beside it."""
        self._path = run_dir.with_name(f"{run_dir.name}-services") / FILE
        self._seen: tuple[int, int] | None = None
        self._names: Addresses = {}

    def __call__(self) -> Addresses:
        """Return the names; without a daemon that ever ran since the boot, none."""
        try:
            found = self._path.stat()
            seen = found.st_ino, found.st_mtime_ns
            if seen != self._seen:
                self._names, self._seen = read(read_small(self._path, _LIMIT)), seen
        except FileNotFoundError:
            self._names, self._seen = {}, None
        except (FileError, OSError) as error:
            log.warning("names of services are as before: %s", error)
        return self._names
