"""Asks Debian's archive through apt, keeps .deb files by SHA-256, and makes base roots of them."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

from image import lock as locks
from image import packages
from image.artifacts import REPOSITORY, cache_directory
from image.board import Architecture
from image.errors import BuildError, LockError
from image.lock import Package, Use
from image.packages import Request
from image.tools import ToolsRoot, locked, mirror_arguments

_RESOLVED = re.compile(r"^'[^']+' ([a-z0-9][a-z0-9+.-]+)_\S+\.deb \d+", re.MULTILINE)
_OFFER = re.compile(r"'[^']+' (\S+)_(\S+)_(\S+)\.deb (\d+) SHA256:([0-9a-f]{64})")

# The state directory is ours, so the tools root's own apt state is neither used nor changed.
_APT_CONF = """
Dir::State "{state}";
Dir::State::status "{state}/status";
Dir::State::lists "{state}/lists";
Dir::Cache "{state}/cache";
Dir::Cache::archives "{state}/archives";
Dir::Etc "{state}/etc";
Dir::Etc::trustedparts "/etc/apt/trusted.gpg.d";
APT::Architecture "{architecture}";
APT::Architectures {{ "{architecture}"; }};
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "3";
"""


def lock_path(architecture: Architecture) -> Path:
    """Return the place of an architecture's lock in the checkout."""
    return REPOSITORY / "image" / "locks" / f"debian-{architecture.value}.lock"


def read_lock(architecture: Architecture) -> locks.Lock | None:
    """Return the lock of an architecture, or None when there is none yet."""
    path = lock_path(architecture)
    if not path.exists():
        return None
    lock = locks.parse(path.read_text(errors="replace"), name=str(path))
    if lock.architecture != architecture.value:
        raise LockError(f"{path} is a lock for {lock.architecture}, not {architecture.value}")
    return lock


def parse_offers(text: str, use: Use) -> list[tuple[Package, str]]:
    """Return the packages of ``apt-get --print-uris`` and apt's names for their files."""
    found = []
    for match in _OFFER.finditer(text):
        name, version, architecture, _, sha256 = match.groups()
        # apt escapes the colon of an epoch in the file's name.
        package = Package(unquote(name), unquote(version), sha256, use)
        found.append((package, f"{name}_{version}_{architecture}.deb"))
    return found


class Store:
    """The .deb files in the cache, by SHA-256."""

    def __init__(self) -> None:
        self.directory = cache_directory() / "debs"

    def path(self, sha256: str) -> Path:
        """Return where the file of a hash is, or would be."""
        return self.directory / f"{sha256}.deb"

    def has(self, sha256: str) -> bool:
        """Tell whether the file is there. What is there was checked when it came."""
        return self.path(sha256).exists()

    def add(self, file: Path, sha256: str) -> None:
        """Check a downloaded file and keep it."""
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != sha256:
            raise BuildError(f"{file.name} has SHA-256 {found}, not {sha256}", hint="try again")
        self.directory.mkdir(parents=True, exist_ok=True)
        file.rename(self.path(sha256))


class Archive:
    """Debian's archive as seen by apt, in a state directory of its own."""

    def __init__(self, tools: ToolsRoot, request: Request, state: Path, log: Path) -> None:
        self._tools = tools
        self._request = request
        self._state = state
        self._log = log
        for name in ("lists/partial", "archives/partial", "cache", "etc/preferences.d"):
            (state / name).mkdir(parents=True)
        (state / "status").touch()
        sources = mirror_arguments() or [tools.file("/etc/apt/sources.list").read_text()]
        (state / "etc" / "sources.list").write_text("\n".join(sources) + "\n")
        configuration = _APT_CONF.format(state=state, architecture=request.architecture.value)
        (state / "apt.conf").write_text(configuration)
        self._apt("update")

    def _apt(self, *words: str) -> str:
        return self._tools.run(
            ["sh", "-c", 'cd "$0/archives"; exec apt-get "$@"', str(self._state), *words],
            log=self._log,
            environment={"APT_CONFIG": str(self._state / "apt.conf")},
            hint="is the Debian mirror reachable (SKERRY_DEBIAN_MIRROR names another)?",
        )

    def offers(self) -> list[tuple[Package, str]]:
        """Return what the archive has now for the request, dependencies included."""
        request = self._request
        installed = self._resolved(request.installed)
        both = self._resolved((*request.installed, *request.kubernetes))
        if lost := installed - both:
            raise BuildError(
                f"with Kubernetes, apt would leave out {', '.join(sorted(lost))}",
                hint="the two sets of image/packages.py do not fit together",
            )
        return [
            *self._offered(installed, Use.INSTALL),
            *self._offered(both - installed, Use.KUBERNETES),
            *self._offered(request.fetched, Use.FETCH),
        ]

    def _resolved(self, names: Sequence[str]) -> set[str]:
        """Return the packages that are installed for these names, dependencies included."""
        said = self._apt("install", "--yes", "--print-uris", *names, "?essential")
        if not (found := set(_RESOLVED.findall(said))):
            raise BuildError("apt resolved the package list to nothing", hint=f"log: {self._log}")
        return found

    def _offered(self, names: Iterable[str], use: Use) -> list[tuple[Package, str]]:
        # Only `download` prints SHA-256 sums; it takes names, one architecture has one candidate.
        return parse_offers(self._apt("download", "--print-uris", *sorted(names)), use)

    def fill(self, store: Store, offers: Sequence[tuple[Package, str]]) -> None:
        """Download what the store lacks; apt checks the archive's signature, we check again."""
        missing = [(package, name) for package, name in offers if not store.has(package.sha256)]
        if missing:
            self._apt("download", *(f"{item.name}={item.version}" for item, _ in missing))
        for package, name in missing:
            store.add(self._state / "archives" / name, package.sha256)


@contextmanager
def open_archive(tools: ToolsRoot, request: Request, log: Path) -> Iterator[Archive]:
    """Give an archive with fresh package lists; its state goes when the block ends."""
    cache_directory().mkdir(parents=True, exist_ok=True)
    state = Path(tempfile.mkdtemp(prefix="apt-", dir=cache_directory()))
    try:
        yield Archive(tools, request, state, log)
    finally:
        shutil.rmtree(state, ignore_errors=True)


def provide(tools: ToolsRoot, request: Request, log: Path, *, strict: bool) -> locks.Decision:
    """Decide by the lock which packages to use, and bring every one of them into the store."""
    store = Store()
    lock = read_lock(request.architecture)
    offers: list[tuple[Package, str]] = []
    complete = (
        lock is not None
        and lock.request == request.fingerprint
        and all(store.has(item.sha256) for item in lock.packages)
    )
    if complete:
        return locks.decide(
            lock, request=request.fingerprint, stored=store.has, current=list, strict=strict
        )
    with open_archive(tools, request, log) as archive:
        offers = archive.offers()
        decision = locks.decide(
            lock,
            request=request.fingerprint,
            stored=store.has,
            current=lambda: [package for package, _ in offers],
            strict=strict,
        )
        wanted = {item.sha256 for item in decision.packages}
        archive.fill(store, [offer for offer in offers if offer[0].sha256 in wanted])
    return decision


def make_base(
    tools: ToolsRoot,
    architecture: Architecture,
    packages: Sequence[Package],
    output: Path,
    *,
    log: Path,
    epoch: int,
    only: Sequence[str] = (),
) -> None:
    """Make the tar file of a Debian root of exactly these packages, without any network.

    With ``only``: of these among them, what they depend on, and what is essential.
    """
    store = Store()
    repository = output.with_suffix(".repository")
    shutil.rmtree(repository, ignore_errors=True)
    repository.mkdir(parents=True)
    installed = [package for package in packages if package.use is Use.INSTALL]
    for package in installed:
        # Hard links: apt copies from here; the store and the repository are on one file system.
        os.link(store.path(package.sha256), repository / f"{package.name}.deb")
    try:
        tools.run(
            ["sh", "-eu", str(_SCRIPTS / "base.sh")],
            log=log,
            environment={
                "REPOSITORY": str(repository),
                "OUTPUT": str(output),
                "ARCHITECTURE": architecture.value,
                "INCLUDE": ",".join(only or [package.name for package in installed]),
                "SOURCE_DATE_EPOCH": str(epoch),
                # The initrd is our own; Debian's generator would take minutes under emulation.
                "INITRD": "No",
                "DEBIAN_FRONTEND": "noninteractive",
                "PYTHONHASHSEED": "0",
            },
        )
    finally:
        shutil.rmtree(repository, ignore_errors=True)


_SCRIPTS = Path(__file__).parent / "scripts"


def refresh_lock(architecture: str, log: Path) -> tuple[Path, Sequence[locks.Drift]]:
    """Make the lock of an architecture anew from the archive; return its place and what changed."""
    chosen = Architecture(architecture)
    request = packages.request(chosen)
    tools = ToolsRoot.ensure()
    with (
        locked(cache_directory() / f"debs-{architecture}.lock", waiting_for="the package store"),
        open_archive(tools, request, log) as archive,
    ):
        offers = archive.offers()
        archive.fill(Store(), offers)
    fresh = locks.Lock(
        architecture, request.fingerprint, tuple(sorted(package for package, _ in offers))
    )
    old = read_lock(chosen)
    path = lock_path(chosen)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(locks.render(fresh))
    return path, locks.drift(old.packages if old else (), fresh.packages)
