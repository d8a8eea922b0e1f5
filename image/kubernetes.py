"""What an image with Kubernetes has above one without: programs, container images, static files.

Nothing is made here: each part comes out of a cache of its own (Debian's packages, Go programs,
container images), so that a change of one is not the making of the others.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from image import engine, workloads
from image.artifacts import REPOSITORY, cache_directory
from image.board import Architecture
from image.errors import BuildError
from image.flannel_programs import FLANNELD, TOOLS
from image.golang import Program, build, go_command
from image.process import run

# Laid over rootfs_overlay/: units, containerd's configuration, add-ons.
OVERLAY = REPOSITORY / "rootfs_kubernetes"
_PLUGINS = "github.com/containernetworking/plugins/plugins"
CNI = (
    Program("cni", "./cmd/skerry-cni", "skerry-cni"),
    Program("cni", f"{_PLUGINS}/main/loopback", "loopback"),
    Program("cni", f"{_PLUGINS}/meta/portmap", "portmap"),
    Program("cni", f"{_PLUGINS}/meta/bandwidth", "bandwidth"),
)
FLANNELD_PATH = "usr/lib/skerry/bin/flanneld"
FLANNEL_TOOLS = "usr/lib/skerry/flannel"
ENGINE_PATH = "usr/lib/skerry/bin/skerry-engine"
# Where Debian's containerd looks for plugins.
CNI_DIRECTORY = "usr/lib/cni"
IMAGES_DIRECTORY = "usr/share/skerry/images"
# k3s's names: called by them, the engine is k3s, or kubectl.
LINKS = {
    "usr/bin/k3s": "../lib/skerry/bin/skerry-engine",
    "usr/bin/kubectl": "../lib/skerry/bin/skerry-engine",
}
# There with the official k3s, which opens no gate of ours: its text says nothing.
FOREIGN_ENGINE = "usr/share/skerry/engine-is-k3s"
# What is taken out of Debian's packages; the older shims, the stress test and texts stay behind.
DEBIAN = {
    "containerd": ("usr/bin/containerd", "usr/bin/containerd-shim-runc-v2", "usr/bin/ctr"),
    "runc": ("usr/sbin/runc",),
}


@dataclass(frozen=True, slots=True)
class Parts:
    """Programs and images by their path in the root, and the links to them.

    ``programs`` are those out of Go modules, in the root or in its images: for the parts list.
    """

    files: Mapping[str, Path]
    links: Mapping[str, str]
    programs: tuple[Path, ...] = ()

    @property
    def key(self) -> str:
        """A hash of what is where: files in the cache lie there under the hash of their inputs."""
        found = {place: _identity(path) for place, path in self.files.items()}
        text = json.dumps([found, dict(self.links)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def parts(architecture: Architecture, debian: Path, sources: workloads.Sources) -> Parts:
    """Return all parts, making those that the caches lack.

    ``debian`` has one folder for each unpacked package. The engine's first build takes minutes.
    """
    files = {path: debian / package / path for package, paths in DEBIAN.items() for path in paths}
    files[ENGINE_PATH] = engine.ensure(architecture.value)
    files |= {f"{CNI_DIRECTORY}/{item.name}": build(item, architecture.value) for item in CNI}
    files[FLANNELD_PATH] = build(FLANNELD, architecture.value)
    programs = [path for place, path in files.items() if place.startswith("usr/lib/")]
    files |= {f"{FLANNEL_TOOLS}/{path.name}": path for path in sorted(TOOLS.iterdir())}
    programs += [build(item, architecture.value) for item in workloads.PROGRAMS]
    files |= {
        f"{IMAGES_DIRECTORY}/{name}.tar": workloads.archive(name, sources)
        for name in workloads.SHIPPED
    }
    for place, path in files.items():
        if not path.is_file():
            raise BuildError(f"{path} is not there; it was to be /{place} of the image")
    foreign = {FOREIGN_ENGINE: "k3s"} if engine.kind() == "k3s" else {}
    return Parts(files, LINKS | foreign, tuple(programs))


def go_modules(found: Parts, log: Path) -> tuple[tuple[str, str], ...]:
    """Return names and versions of the Go modules that are linked into the programs, sorted."""
    folder = CNI[0].folder
    words = ["version", "-m", *(str(path) for path in found.programs)]
    return parse_modules(run(go_command(words, folder=folder), log=log))


def parse_modules(text: str) -> tuple[tuple[str, str], ...]:
    """Return the modules in what ``go version -m`` prints; a replaced one counts by what it is."""
    modules = []
    for line in text.splitlines():
        match line.split():
            case ["dep", name, version, *_]:
                modules.append((name, version))
            # Ours stand in for what is left out, or add files: it is still called as it was.
            case ["=>", name, version, *_] if modules and not name.startswith("."):
                modules[-1] = (name, version)
    return tuple(sorted(set(modules)))


def lay_out(found: Parts, directory: Path) -> None:
    """Put the parts into a tree: programs 0755, archives 0644."""
    for place, path in found.files.items():
        target = directory / place
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        shutil.copyfile(path, target)
        target.chmod(0o644 if path.suffix == ".tar" else 0o755)
    for place, words in found.links.items():
        target = directory / place
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.symlink_to(words)


def _identity(path: Path) -> str:
    cache = cache_directory()
    if path.is_relative_to(cache):
        return str(path.relative_to(cache))
    return hashlib.sha256(path.read_bytes()).hexdigest()
