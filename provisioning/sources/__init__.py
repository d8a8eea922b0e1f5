"""Where a node without an identity looks for its token, in a fixed order.

The sources are:
0. ``person``: handed over on the running node (``skerry provision``)
1. ``credential``: the systemd credential ``skerry.token`` (SMBIOS, fw_cfg, ...)
2. ``cmdline``: ``skerry.token=`` on the kernel command line
3. ``disk``: the ``SKERRY`` partition of the disk that the firmware booted from
4. ``usb``: another file system labelled ``SKERRY``, such as a USB stick
5. ``nocloud``: a NoCloud seed, a file system labelled ``CIDATA``

The first *valid* token wins; a bad one never hides a good one behind it, it is reported. The
supervisor may not mount anything: 3 to 5 are copied into the inbox by `provisioning.media`, run
by root. Each source is a function without arguments that yields what it has, so that a new source
is one module and one line in :func:`node_sources`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from provisioning.errors import ProvisioningError
from provisioning.token import Token


@dataclass(frozen=True, slots=True)
class Candidate:
    """Bytes that may be a token. ``where`` names the place for a person."""

    source: str
    where: str
    content: bytes = field(repr=False)
    path: Path | None = None


@dataclass(frozen=True, slots=True)
class Rejected:
    """A place that had something, and why it is no use."""

    source: str
    where: str
    error: ProvisioningError
    path: Path | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """The token to use. ``path``: the inbox file it came in, to be discarded after use."""

    token: Token
    source_name: str
    where: str
    path: Path | None = None


@dataclass(frozen=True, slots=True)
class Search:
    """The outcome: the first valid token, and what was rejected before it."""

    found: Found | None
    rejected: tuple[Rejected, ...]


Source = Callable[[], Iterable[Candidate | Rejected]]


def find_token(sources: Iterable[Source], *, now: float) -> Search:
    """Return the first valid token of the sources; ``now`` (Unix seconds) judges its expiry."""
    rejected: list[Rejected] = []
    for source in sources:
        for one in source():
            if isinstance(one, Rejected):
                rejected.append(one)
                continue
            try:
                token = Token.parse(one.content)
                token.check_time(now)
            except ProvisioningError as error:
                rejected.append(Rejected(one.source, one.where, error, one.path))
                continue
            return Search(Found(token, one.source, one.where, one.path), tuple(rejected))
    return Search(None, tuple(rejected))


def node_sources(
    *,
    inbox: Path = Path("/run/skerry/inbox"),
    credentials: Path | None = None,
    cmdline: Path = Path("/proc/cmdline"),
) -> list[Source]:
    """Return a node's sources in their order; ``credentials`` is $CREDENTIALS_DIRECTORY."""
    from provisioning.sources import cmdline as kernel
    from provisioning.sources import credential
    from provisioning.sources import inbox as box

    return [
        lambda: box.tokens(inbox, box.PERSON),
        lambda: credential.tokens(credentials),
        lambda: kernel.tokens(cmdline),
        lambda: box.tokens(inbox, box.DISK),
        lambda: box.tokens(inbox, box.USB),
        lambda: box.tokens(inbox, box.NOCLOUD),
    ]
