"""The container images that a node brings along, out of Go modules and Debian's busybox.

Each is an archive in the cache under the hash of what goes into it. A name has two tags: the
version of what is inside, and `1`, which the manifests of ours use: a cluster whose nodes run two
releases so finds on each node what that node has.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from image import oci
from image.artifacts import cache_directory
from image.board import Architecture
from image.errors import BuildError
from image.golang import MODULES, Program, build
from image.oci import Directory, Entry, File, Image, Link
from image.tools import locked
from skerry import console

REGISTRY = "skerry.local"
INTERFACE = "1"
_NOBODY = "65532:65532"
_KEPT = 6

PAUSE = Program("workloads", "./cmd/pause", "pause")
COREDNS = Program("workloads", "./cmd/coredns", "coredns")
LOCAL_PATH = Program(
    "workloads", "github.com/rancher/local-path-provisioner", "local-path-provisioner"
)
PROGRAMS = (PAUSE, COREDNS, LOCAL_PATH)
AGNHOST = Program("engine", "k8s.io/kubernetes/test/images/agnhost", "agnhost")

# What the local-path provisioner's helper and a person in a pod use.
_APPLETS = """
cat chgrp chmod chown cp cut date dd df du echo env false find free grep head hostname id ip
kill ln ls mkdir mktemp mount mv nc netstat nslookup ping ping6 printf ps pwd rm rmdir sed sh
sleep sort stat sync tail tar tee test timeout top touch tr traceroute true umount uname uniq vi
wc wget which xargs
"""


@dataclass(frozen=True, slots=True)
class Sources:
    """What the images of an architecture are made of."""

    architecture: Architecture
    busybox: Path
    busybox_version: str


Recipe = Callable[[Sources], Image]


def pause(sources: Sources) -> Image:
    """Return the image that holds a pod's namespaces."""
    return _program(sources, PAUSE, _names("pause"), user="65535:65535")


def coredns(sources: Sources) -> Image:
    """Return the cluster's name server."""
    names = _names("coredns", module_version("github.com/coredns/coredns"))
    return _program(sources, COREDNS, names, user=_NOBODY)


def local_path(sources: Sources) -> Image:
    """Return what gives pods a folder of the node's data partition."""
    names = _names(
        "local-path-provisioner", module_version("github.com/rancher/local-path-provisioner")
    )
    return _program(sources, LOCAL_PATH, names)


def busybox(sources: Sources) -> Image:
    """Return a shell with the usual tools: the helper that makes and empties those folders."""
    entries = _shell(sources)
    names = _names("busybox", sources.busybox_version)
    return Image(names, sources.architecture.value, entries, (), ("/bin/sh",))


def agnhost(sources: Sources) -> Image:
    """Return Kubernetes' own test image (one program: servers and clients); not in the product."""
    version = module_version("k8s.io/kubernetes", folder="engine")
    program = File(build(AGNHOST, sources.architecture.value))
    entries = _shell(sources) | {"/agnhost": program}
    names = _names("agnhost", version)
    return Image(names, sources.architecture.value, entries, ("/agnhost",), ("pause",))


# In every image with Kubernetes, and on demand.
SHIPPED: dict[str, Recipe] = {
    "pause": pause,
    "coredns": coredns,
    "local-path-provisioner": local_path,
    "busybox": busybox,
}
OTHERS: dict[str, Recipe] = {"agnhost": agnhost}


def archive(name: str, sources: Sources) -> Path:
    """Return the path of an image's archive, from the cache or made now."""
    recipe = (SHIPPED | OTHERS).get(name)
    if recipe is None:
        known = ", ".join(sorted(SHIPPED | OTHERS))
        raise BuildError(f"there is no container image {name!r}", hint=f"there are {known}")
    return kept(name, recipe(sources))


def kept(name: str, image: Image) -> Path:
    """Return the path of the archive of an image, from the cache or made now."""
    folder = cache_directory() / "oci"
    path = folder / f"{name}-{image.architecture}-{_key(image)}" / f"{name}.tar"
    if path.exists():
        os.utime(path.parent)
        return path
    with locked(path.parent.with_suffix(".lock"), waiting_for=f"the image {name}"):
        if not path.exists():
            with console.step(f"container image {image.names[-1]} for {image.architecture}"):
                path.parent.mkdir(parents=True, exist_ok=True)
                aside = path.with_suffix(".new")
                oci.write(image, aside)
                aside.rename(path)
    _prune(folder, f"{name}-{image.architecture}-")
    return path


def _prune(folder: Path, prefix: str) -> None:
    """Leave the archives that were used last: another checkout may be building with one of them."""
    kept = [path for path in folder.glob(f"{prefix}*") if path.is_dir()]
    for path in sorted(kept, key=lambda one: one.stat().st_mtime)[:-_KEPT]:
        shutil.rmtree(path, ignore_errors=True)


def module_version(module: str, *, folder: str = "workloads") -> str:
    """Return the version of a module in a go.mod of ours, without its ``v``."""
    path = MODULES / folder / "go.mod"
    found = re.search(rf"\s{re.escape(module)} v([0-9][0-9A-Za-z.+-]*)", path.read_text())
    if not found:
        raise BuildError(f"{path} does not require {module}")
    return found[1]


def debian_upstream(version: str) -> str:
    """Return the upstream part of a Debian version: 1.37.0 of 1:1.37.0-6+b3."""
    return version.partition(":")[2].rpartition("-")[0] if ":" in version else version.split("-")[0]


def _names(name: str, version: str = "") -> tuple[str, ...]:
    tags = [tag for tag in (version, INTERFACE) if tag]
    return tuple(f"{REGISTRY}/{name}:{tag}" for tag in tags)


def _program(
    sources: Sources, program: Program, names: tuple[str, ...], *, user: str = ""
) -> Image:
    path = f"/{program.name}"
    entries: dict[str, Entry] = {path: File(build(program, sources.architecture.value))}
    return Image(names, sources.architecture.value, entries | _users(), (path,), user=user)


def _shell(sources: Sources) -> dict[str, Entry]:
    entries: dict[str, Entry] = {"/bin/busybox": File(sources.busybox)}
    entries |= {f"/bin/{applet}": Link("busybox") for applet in _APPLETS.split()}
    return entries | {"/tmp": Directory(0o1777)} | _users()  # noqa: S108 - inside the image


def _users() -> dict[str, Entry]:
    return {
        "/etc/passwd": File(
            b"root:x:0:0:root:/:/sbin/nologin\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n", 0o644
        ),
        "/etc/group": File(b"root:x:0:\nnobody:x:65534:\n", 0o644),
    }


def _key(image: Image) -> str:
    """Return a hash over all that an archive is made of; programs count by content."""
    state = hashlib.sha256(inspect.getsource(oci).encode())
    for path, entry in sorted(image.entries.items()):
        state.update(path.encode() + b"\0")
        if isinstance(entry, File) and isinstance(entry.content, Path):
            with entry.content.open("rb") as file:
                state.update(hashlib.file_digest(file, "sha256").digest())
            state.update(str(entry.mode).encode())
        else:
            state.update(repr(entry).encode())
    rest = (image.names, image.architecture, image.entrypoint, image.arguments, image.user)
    rest_too = (image.environment, image.directory, dict(image.labels))
    state.update(json.dumps((*rest, *rest_too)).encode())
    for layer in image.below:
        with layer.open("rb") as file:
            state.update(hashlib.file_digest(file, "sha256").digest())
    return state.hexdigest()[:16]
