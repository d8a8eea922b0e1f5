"""The tools root: a Debian trixie tree in the cache that holds every tool a build or a test needs.

Any Debian or Ubuntu host becomes alike by it; the host itself needs only mmdebstrap and unshare::

    tools = ToolsRoot.ensure()
    subprocess.run(tools.command(["mkfs.erofs", "--version"]))

A command enters the root in a mount namespace of its own, keeps its working directory and process
id, and sees the checkout, the cache and /tmp under the same absolute paths as outside.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from image.artifacts import REPOSITORY, cache_directory
from image.errors import BuildError, ToolsError
from image.process import run
from skerry import console

SUITE = "trixie"
PACKAGES = (
    "busybox-static",
    "ca-certificates",
    "containerd",
    "cpio",
    "cryptsetup-bin",
    "dbus-daemon",
    "debian-archive-keyring",
    "dosfstools",
    "e2fsprogs",
    "erofs-utils",
    "fdisk",
    "golang-1.26-go",
    "grub-common",
    "grub-efi-amd64-bin",
    "kmod",
    "mmdebstrap",
    "mtools",
    "nftables",
    "openssl",
    "ovmf",
    "python3-minimal",
    "qemu-efi-aarch64",
    "qemu-system-arm",
    "qemu-system-x86",
    "qemu-user",
    "qemu-utils",
    "rauc",
    "runc",
    "squashfs-tools",
    "systemd",
    "u-boot-qemu",
    "xz-utils",
    "zstd",
)
# Where the mirror's release is too old for a package of ours; nothing else is taken from there.
_BACKPORTS = """set -eu
cd "$1/etc/apt"
lines=$(cat sources.list sources.list.d/*.list 2>/dev/null | sed -n 's/ @ main/ @-backports main/p')
printf '%s\\n' "$lines" >sources.list.d/backports.list
""".replace("@", SUITE)
_EXCLUDED = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")
_SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_KEYRINGS = (
    Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
    Path("/usr/share/keyrings/debian-archive-keyring.pgp"),
)

# Arguments: ROOT CWD BIND... -- COMMAND. The root is bound onto itself because a chroot that is no
# mount point confuses mmdebstrap and RAUC. Everything is exec'ed, so the process id stays. What is
# made inside has the same modes whatever the caller's umask is.
_ENTER = """
set -eu
root=$1 cwd=$2
shift 2
mount --bind "$root" "$root"
for place in dev proc sys; do mount --rbind "/$place" "$root/$place"; done
for file in /etc/resolv.conf /etc/hosts /etc/ssl/certs/ca-certificates.crt; do
    [ -f "$file" ] || continue
    [ -f "$root$file" ] || : >"$root$file"
    mount --bind "$file" "$root$file"
done
while [ "$1" != -- ]; do
    if [ -d "$1" ]; then mkdir -p "$root$1"; mount --rbind "$1" "$root$1"; fi
    shift
done
shift
umask 022
export PATH=@PATH@ LC_ALL=C.UTF-8
exec chroot "$root" /bin/sh -c 'cd "$1"; shift; exec "$@"' sh "$cwd" "$@"
""".replace("@PATH@", _SEARCH_PATH)


def mirror_lines(mirror: str | None, components: str, *, keyring: Path | None = None) -> list[str]:
    """Return mmdebstrap's mirror arguments for the release, its updates and its security suite.

    Without a mirror the list is empty: mmdebstrap knows where a Debian suite lives. A given mirror
    is one whose security archive lies beside it, as ``.../debian`` and ``.../debian-security``.
    """
    if not mirror:
        return []
    base = mirror.rstrip("/")
    signed = f"[signed-by={keyring}] " if keyring else ""
    return [
        f"deb {signed}{base} {SUITE} {components}",
        f"deb {signed}{base} {SUITE}-updates {components}",
        f"deb {signed}{base}-security {SUITE}-security {components}",
    ]


def mirror_arguments(components: str = "main") -> list[str]:
    """Return mmdebstrap's mirror arguments as ``$SKERRY_DEBIAN_MIRROR`` wants them."""
    keyring = next((path for path in _KEYRINGS if path.exists()), None)
    return mirror_lines(os.environ.get("SKERRY_DEBIAN_MIRROR"), components, keyring=keyring)


def outermost(places: Iterable[Path]) -> list[Path]:
    """Return the places that lie in no other of them, sorted: binding those shows all."""
    kept: list[Path] = []
    for place in sorted(set(places)):
        if not any(place.is_relative_to(other) for other in kept):
            kept.append(place)
    return kept


@contextmanager
def locked(path: Path, *, waiting_for: str) -> Iterator[None]:
    """Hold an exclusive lock on a file; say so when another process has it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = path.open("w")
    except OSError as error:
        raise BuildError(
            f"the cache {path.parent} cannot be used: {error.strerror}",
            hint="SKERRY_CACHE names another directory",
        ) from error
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.note(f"    waiting: another process makes {waiting_for}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True, slots=True)
class ToolsRoot:
    """A finished tools root."""

    path: Path

    @classmethod
    def ensure(cls) -> ToolsRoot:
        """Return the tools root, making it first if the cache has none of these packages.

        Takes about 40 s and 1.6 GiB the first time. Safe beside other processes doing the same; a
        broken-off attempt leaves nothing. Raises :class:`ToolsError`.
        """
        path = cache_directory() / f"tools-{_inputs_hash()}"
        if path.is_dir():
            return cls(path)
        if not shutil.which("mmdebstrap"):
            raise ToolsError(
                "this host has no mmdebstrap, which makes the tools root",
                hint="run `make setup`, or: apt-get install mmdebstrap",
            )
        with locked(path.with_suffix(".lock"), waiting_for="the tools root"):
            if not path.is_dir():
                with console.step(f"tools root (Debian {SUITE}, about 1.6 GiB, once) in {path}"):
                    _make(path)
        return cls(path)

    def command(
        self,
        argv: Sequence[str],
        *,
        cwd: Path | None = None,
        binds: Iterable[Path] = (),
    ) -> list[str]:
        """Return the argv that runs ``argv`` inside the root.

        The checkout, the cache, /tmp and ``$TMPDIR`` are visible under their own paths, and so is
        every directory in ``binds``. ``cwd`` is ours unless given; where it is not visible it
        becomes ``/``. Environment and network are the caller's, except PATH and LC_ALL.
        """
        here = (cwd or Path.cwd()).absolute()
        visible = [
            REPOSITORY,
            cache_directory(),
            Path("/tmp"),  # noqa: S108 - shown, not written
            *(path.absolute() for path in binds),
        ]
        if "TMPDIR" in os.environ:
            visible.append(Path(os.environ["TMPDIR"]).absolute())
        if not any(here.is_relative_to(place) for place in visible):
            here = Path("/")
        return [
            *_namespace(),
            "/bin/sh",
            "-c",
            _ENTER,
            "skerry-tools",
            str(self.path),
            str(here),
            *(str(place) for place in outermost(visible)),
            "--",
            *argv,
        ]

    def run(
        self,
        argv: Sequence[str],
        *,
        log: Path | None = None,
        environment: dict[str, str] | None = None,
        binds: Iterable[Path] = (),
        hint: str | None = None,
    ) -> str:
        """Run a command inside the root and return its output; raises :class:`BuildError`."""
        return run(self.command(argv, binds=binds), log=log, environment=environment, hint=hint)

    def file(self, path: str) -> Path:
        """Return the outside path of a file in the root, such as a firmware image."""
        return self.path / path.lstrip("/")

    def versions(self, packages: Iterable[str]) -> dict[str, str]:
        """Return the installed versions of tools whose output ends up in an image."""
        wanted = set(packages)
        found: dict[str, str] = {}
        name = ""
        for line in self.file("/var/lib/dpkg/status").read_text(errors="replace").splitlines():
            if line.startswith("Package: "):
                name = line.removeprefix("Package: ")
            elif line.startswith("Version: ") and name in wanted:
                found[name] = line.removeprefix("Version: ")
        return dict(sorted(found.items()))


def _inputs_hash() -> str:
    inputs = "\n".join((SUITE, *PACKAGES, _BACKPORTS, *_EXCLUDED))
    return hashlib.sha256(inputs.encode()).hexdigest()[:12]


def _namespace() -> list[str]:
    if os.geteuid() == 0:
        return ["unshare", "--mount", "--propagation", "private"]
    # Needs the subordinate ids of /etc/subuid, which Debian and Ubuntu give every user.
    return ["unshare", "--map-root-user", "--map-auto", "--mount", "--propagation", "private"]


def _make(path: Path) -> None:
    """Build beside the final place and rename, so that a directory of that name is complete."""
    for stale in path.parent.glob(f"{path.name}.new-*"):
        _remove(stale)
    aside = path.with_name(f"{path.name}.new-{os.getpid()}")
    log = path.with_suffix(".log")
    log.unlink(missing_ok=True)
    begun = time.monotonic()

    def show(line: str) -> None:
        if line.startswith("I: ") and "success" not in line:
            console.note(f"    {console.format_elapsed(time.monotonic() - begun):>6}  {line[3:]}")

    argv = [
        "mmdebstrap",
        f"--mode={'root' if os.geteuid() == 0 else 'unshare'}",
        "--variant=apt",
        "--format=directory",
        '--aptopt=Apt::Install-Recommends "false"',
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in _EXCLUDED),
        f"--setup-hook={_BACKPORTS}",
        f"--include={','.join(PACKAGES)}",
        SUITE,
        str(aside),
        *mirror_arguments(),
    ]
    try:
        run(argv, log=log, on_line=show, environment={"DEBIAN_FRONTEND": "noninteractive"})
        aside.rename(path)
    except BuildError as error:
        raise ToolsError(
            f"the tools root could not be made: {error}",
            hint=f"is a Debian mirror reachable (SKERRY_DEBIAN_MIRROR names another)? log: {log}",
        ) from error
    finally:
        if aside.exists():
            _remove(aside)


def _remove(path: Path) -> None:
    subprocess.run([*_namespace(), "rm", "-rf", "--one-file-system", str(path)], check=False)
