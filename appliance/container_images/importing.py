"""Brings the archives of a node to its container runtime: decisions over a `Runtime`.

What was brought is written down by the archive's identity. An archive is passed over as long as the
runtime still has what came out of it; what no archive gives any more may be collected again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from appliance.container_images import archives
from appliance.container_images.archives import Archive
from skerry.errors import SkerryError

# The kubelet never collects an image with this label (containerd's CRI plugin tells it).
PINNED = "io.cri-containerd.pinned"
# Ours, so that nobody else's pin is ever taken away.
SOURCE = "skerry.archive"
_LABELS = frozenset({PINNED, SOURCE})
RECORD_MAX = 1024 * 1024


class RuntimeTroubleError(SkerryError):
    """The container runtime could not be asked, or refused."""


class Runtime(Protocol):
    """What is needed of a container runtime. All of it raises RuntimeTroubleError."""

    def images(self) -> Mapping[str, Held]:
        """Return what there is, by name."""

    def load(self, path: Path) -> Mapping[str, str]:
        """Take in an archive, unpacked; return the names of what came out, with their digests."""

    def remove(self, name: str) -> None:
        """Forget an image."""

    def label(self, name: str, labels: Mapping[str, str]) -> None:
        """Set labels of an image; an empty value takes a label away."""


@dataclass(frozen=True, slots=True)
class Held:
    """An image that the runtime has."""

    digest: str
    labels: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one archive: brought now, there before, or the error."""

    path: Path
    names: tuple[str, ...] = ()
    skipped: bool = False
    error: SkerryError | None = None


# The record: identity of an archive -> name of an image -> digest.
Record = dict[str, dict[str, str]]


def bring(
    runtime: Runtime,
    paths: Iterable[Path],
    record: Record,
    *,
    keep: Callable[[Record], None],
    tell: Callable[[Outcome], None],
) -> list[Outcome]:
    """Bring every archive, in this order, and return what came of each.

    A name in several archives is the last one's. ``keep`` is called after each archive that was
    brought, so that a cut costs one. Raises RuntimeTroubleError when the runtime cannot be asked.
    """
    held = dict(runtime.images())
    outcomes: list[Outcome] = []
    wanted: dict[str, str] = {}
    for path in paths:
        try:
            archive = archives.read(path)
            known = record.get(archive.identity)
            if known and all(_same(held, name, digest) for name, digest in known.items()):
                outcome = Outcome(path, tuple(known), skipped=True)
            else:
                came = _take(runtime, archive, held)
                outcome = Outcome(path, tuple(came))
                held |= {name: Held(digest, _LABELS) for name, digest in came.items()}
                record[archive.identity] = came
                keep(record)
        except SkerryError as error:
            outcome = Outcome(path, error=error)
        else:
            wanted |= dict.fromkeys(outcome.names, archive.identity)
        outcomes.append(outcome)
        tell(outcome)
    _release(runtime, held, wanted)
    _forget(record, set(wanted.values()), keep)
    return outcomes


def _same(held: Mapping[str, Held], name: str, digest: str) -> bool:
    return name in held and held[name].digest == digest and PINNED in held[name].labels


def _take(runtime: Runtime, archive: Archive, before: Mapping[str, Held]) -> dict[str, str]:
    try:
        came = dict(runtime.load(archive.path))
    except RuntimeTroubleError as error:
        # A name that leads to half of an image is worse than none: a pod would never start.
        for name, image in runtime.images().items():
            if name in archive.names and image.digest != getattr(before.get(name), "digest", None):
                runtime.remove(name)
        raise RuntimeTroubleError(f"{archive.path}: {error}", hint=error.hint) from error
    if not came:
        raise archives.ArchiveError(
            f"{archive.path}: no image in it has a name",
            hint="name it when it is made: a pod can't ask for an image without a name",
        )
    for name in came:
        runtime.label(name, {PINNED: "pinned", SOURCE: archive.identity[:32]})
    return came


def _release(runtime: Runtime, held: Mapping[str, Held], wanted: Mapping[str, str]) -> None:
    """Let the kubelet collect what came out of an archive that is not there any more."""
    for name, image in held.items():
        if name not in wanted and image.labels >= _LABELS:
            runtime.label(name, {PINNED: "", SOURCE: ""})


def _forget(record: Record, identities: set[str], keep: Callable[[Record], None]) -> None:
    gone = [identity for identity in record if identity not in identities]
    for identity in gone:
        del record[identity]
    if gone:
        keep(record)


def parse_record(text: str) -> Record:
    """Return what was written down; what can't be read is as if it were not there."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(document, dict):
        return {}
    return {
        identity: digests
        for identity, digests in document.items()
        if isinstance(digests, dict)
        and all(isinstance(one, str) for one in (*digests, *digests.values()))
    }
