"""The package lock: which exact Debian packages an image is made of, by version and SHA-256.

A Debian mirror keeps only the current version of a package. What the lock names is therefore taken
from the local store or, while it is still current, from the archive; when it is gone from both, the
archive's signed current set is followed and the drift is recorded, or refused when strict.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from image.errors import LockError

_HEADER = "# Debian packages of an image. Made by `skerry image lock`; do not edit."
_FIELD = re.compile(r"# ([a-z]+): (\S+)")
_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]+")
_VERSION = re.compile(r"[A-Za-z0-9.+~:-]+")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Use(enum.StrEnum):
    """What a package is for: every image, images with Kubernetes, or the build alone."""

    INSTALL = "install"
    KUBERNETES = "kubernetes"
    FETCH = "fetch"


@dataclass(frozen=True, slots=True, order=True)
class Package:
    """One exact .deb file."""

    name: str
    version: str
    sha256: str
    use: Use = Use.INSTALL


@dataclass(frozen=True, slots=True)
class Lock:
    """The packages of one architecture, and the fingerprint of the request they answer."""

    architecture: str
    request: str
    packages: tuple[Package, ...]


@dataclass(frozen=True, slots=True)
class Drift:
    """A package that differs from the lock; a version is None where there is no such package."""

    name: str
    locked: str | None
    used: str | None


@dataclass(frozen=True, slots=True)
class Decision:
    """The packages to use, and how they differ from the lock."""

    packages: tuple[Package, ...]
    drift: tuple[Drift, ...]


def render(lock: Lock) -> str:
    """Return the text of a lock file: sorted, one package a line."""
    lines = [_HEADER, f"# architecture: {lock.architecture}", f"# request: {lock.request}"]
    lines += [
        f"{package.name} {package.version} {package.sha256} {package.use.value}"
        for package in sorted(lock.packages)
    ]
    return "\n".join(lines) + "\n"


def parse(text: str, *, name: str) -> Lock:
    """Return the lock in a file's text; raises :class:`LockError` naming file, line and value."""
    fields: dict[str, str] = {}
    packages: dict[str, Package] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        where = f"{name}, line {number}"
        if line.startswith("#"):
            if match := _FIELD.fullmatch(line):
                fields[match[1]] = match[2]
            continue
        package = _parse_line(line, where)
        if package.name in packages:
            raise LockError(f"{where}: {package.name} stands there twice", hint=_REFRESH)
        packages[package.name] = package
    for field in ("architecture", "request"):
        if field not in fields:
            raise LockError(f"{name}: no `# {field}:` line", hint=_REFRESH)
    if not packages:
        raise LockError(f"{name} names no package", hint=_REFRESH)
    return Lock(fields["architecture"], fields["request"], tuple(sorted(packages.values())))


def _parse_line(line: str, where: str) -> Package:
    words = line.split(" ")
    if len(words) != 4:
        raise LockError(f"{where}: {line!r} is not `NAME VERSION SHA256 USE`", hint=_REFRESH)
    name, version, sha256, use = words
    if not (_NAME.fullmatch(name) and _VERSION.fullmatch(version) and _SHA256.fullmatch(sha256)):
        raise LockError(f"{where}: {line!r} is not `NAME VERSION SHA256 USE`", hint=_REFRESH)
    if use not in {item.value for item in Use}:
        raise LockError(f"{where}: {use!r} is none of install, kubernetes, fetch", hint=_REFRESH)
    return Package(name, version, sha256, Use(use))


def decide(
    lock: Lock | None,
    *,
    request: str,
    stored: Callable[[str], bool],
    current: Callable[[], Iterable[Package]],
    strict: bool = False,
) -> Decision:
    """Decide which packages an image is made of.

    ``stored`` tells whether a .deb of a SHA-256 is in the store; ``current`` asks the archive (and
    is not called when the store has everything). It is all or nothing: a set that is half locked
    and half current may not fit together. Raises :class:`LockError` when ``strict``.
    """
    if lock and lock.request == request and all(stored(item.sha256) for item in lock.packages):
        return Decision(lock.packages, ())
    if strict and (lock is None or lock.request != request):
        problem = "there is no lock" if lock is None else "the lock is of another package list"
        raise LockError(
            problem, hint="refresh it with `skerry image lock`, or leave out LOCK=strict"
        )
    now = tuple(sorted(current()))
    if lock is None:
        return Decision(now, ())
    there = {package.sha256 for package in now}
    gone = [item for item in lock.packages if not stored(item.sha256) and item.sha256 not in there]
    if not gone and lock.request == request:
        return Decision(lock.packages, ())
    if strict:
        names = ", ".join(f"{item.name} {item.version}" for item in gone[:5])
        more = f" and {len(gone) - 5} more" if len(gone) > 5 else ""
        raise LockError(
            f"the archive no longer has {names}{more}, and neither has the store",
            hint="refresh the lock with `skerry image lock`, or leave out LOCK=strict",
        )
    return Decision(now, drift(lock.packages, now))


def drift(locked: Iterable[Package], used: Iterable[Package]) -> tuple[Drift, ...]:
    """Return how the used packages differ from the locked ones, by name."""
    before = {package.name: package for package in locked}
    after = {package.name: package for package in used}
    return tuple(
        Drift(
            name,
            before[name].version if name in before else None,
            after[name].version if name in after else None,
        )
        for name in sorted(before.keys() | after.keys())
        if name not in before or name not in after or before[name].sha256 != after[name].sha256
    )


_REFRESH = "make it anew with `skerry image lock`"
