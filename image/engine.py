"""The engine: ours, built from `image/engine`, or the official k3s release.

``ENGINE`` is ``skerry`` (the default) or ``k3s``, the latter with ``K3S_BIN=FILE`` or
``K3S_VERSION=v1.36.3+k3s1``. A release's program is checked against the release's own list of
checksums, and locked at first use: the same version with another content is refused from then on.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from image.artifacts import cache_directory
from image.errors import BuildError
from image.golang import MODULES, Program, Replacement, build
from image.tools import locked
from skerry import console

# Where a release's files are; `$K3S_RELEASES` names another place, such as a folder's file: URL.
RELEASES = "https://github.com/k3s-io/k3s/releases/download"
_PROGRAM = {"amd64": "k3s", "arm64": "k3s-arm64"}
# The kubelet announces itself and its CSI drivers through a variable of upstream's CSI plugin, one
# for the whole process. The controller manager would put its own there, which knows no Node, when
# it starts or comes to lead, whatever started first. What upstream does next in that function it
# does for the kubelet only, which it tells by the same interface.
_SET_NODE_INFO = (
    "\tnim = nodeinfomanager.NewNodeInfoManager(host.GetNodeName(), host, migratedPlugins)\n"
)
ONE_PROCESS = Replacement(
    "k8s.io/kubernetes",
    "pkg/volume/csi/csi_plugin.go",
    _SET_NODE_INFO,
    "\t// Changed by Skerry, 2026: set for the kubelet only.\n"
    f"\tif _, ok := host.(volume.KubeletVolumeHost); ok {{\n\t{_SET_NODE_INFO}\t}}\n",
)
_CHUNK = 1 << 20


def _kubernetes_version() -> str:
    """Return the version of Kubernetes that `image/engine/go.mod` pins, with its ``v``."""
    text = (MODULES / "engine" / "go.mod").read_text()
    found = re.search(r"^\s*k8s\.io/kubernetes (v\S+)$", text, re.MULTILINE)
    if not found:
        raise BuildError(f"{MODULES / 'engine' / 'go.mod'} requires no k8s.io/kubernetes")
    return found[1]


def own_program() -> Program:
    """Return our own engine as a program to build."""
    version = _kubernetes_version()
    major, minor, _patch = version.removeprefix("v").split(".", 2)
    stamps = {"gitVersion": version, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    flags = [f"-X {package}.{name}={text}" for package in packages for name, text in stamps.items()]
    return Program(
        "engine",
        "./cmd/skerry-engine",
        "skerry-engine",
        ldflags=tuple(flags),
        replacements=(ONE_PROCESS,),
    )


def kind(environment: Mapping[str, str] | None = None) -> str:
    """Return which engine is chosen: ``skerry`` or ``k3s``, or what else was asked for."""
    chosen = os.environ if environment is None else environment
    return chosen.get("ENGINE") or ("k3s" if chosen.get("K3S_BIN") else "skerry")


def ensure(architecture: str, environment: Mapping[str, str] | None = None) -> Path:
    """Return the path of the chosen engine's program. Raises :class:`BuildError`."""
    chosen = os.environ if environment is None else environment
    wanted = kind(chosen)
    if wanted == "skerry":
        return build(own_program(), architecture)
    if wanted != "k3s":
        raise BuildError(f"ENGINE is {wanted!r}", hint="it is skerry (the default) or k3s")
    version = chosen.get("K3S_VERSION", "")
    if version and not re.fullmatch(r"v\d+\.\d+\.\d+[-+a-z0-9.]*\+k3s\d+", version):
        raise BuildError(f"K3S_VERSION is {version!r}", hint="a release's name, as v1.36.3+k3s1")
    if file := chosen.get("K3S_BIN"):
        return _from_file(Path(file), version, architecture)
    if not version:
        raise BuildError("ENGINE=k3s needs the release", hint="set K3S_VERSION or K3S_BIN")
    return _from_release(version, architecture, chosen.get("K3S_RELEASES") or RELEASES)


def expected_sum(sums: str, name: str, where: str) -> str:
    """Return the SHA-256 that a release's list of checksums has for a file."""
    for line in sums.splitlines():
        digest, _, file = line.partition(" ")
        if file.strip().removeprefix("*") == name and re.fullmatch(r"[0-9a-f]{64}", digest):
            return digest
    raise BuildError(f"{where} has no SHA-256 of {name}")


def _sums_name(architecture: str) -> str:
    return f"sha256sum-{architecture}.txt"


def _from_file(file: Path, version: str, architecture: str) -> Path:
    """Check a program that lies on this machine: its release's list lies beside it."""
    if not file.is_file():
        raise BuildError(f"K3S_BIN is {file}, which is no file")
    sums = file.with_name(_sums_name(architecture))
    if not sums.is_file():
        raise BuildError(
            f"K3S_BIN: there is no {sums}", hint="put the release's list of checksums beside it"
        )
    wanted = expected_sum(sums.read_text(), _PROGRAM[architecture], str(sums))
    if (found := _digest(file)) != wanted:
        raise BuildError(f"{file} has SHA-256 {found}, {sums} says {wanted}")
    if version:
        _lock(version, architecture, wanted)
    # What is built of it is known by its path: that of a copy says what is in it.
    kept = cache_directory() / "k3s" / f"file-{wanted[:16]}" / "k3s"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        aside = kept.with_suffix(".new")
        shutil.copyfile(file, aside)
        aside.chmod(0o755)
        aside.rename(kept)
    return kept


def _from_release(version: str, architecture: str, releases: str) -> Path:
    folder = cache_directory() / "k3s" / f"{version}-{architecture}"
    program = folder / "k3s"
    with locked(folder.with_name(f"{folder.name}.lock"), waiting_for=f"k3s {version}"):
        if program.exists():
            _lock(version, architecture, _digest(program))
            return program
        with console.step(f"k3s {version} for {architecture}"):
            folder.mkdir(parents=True, exist_ok=True)
            base = f"{releases}/{version.replace('+', '%2B')}"
            sums, aside = folder / _sums_name(architecture), folder / "k3s.new"
            _fetch(f"{base}/{sums.name}", sums)
            wanted = expected_sum(sums.read_text(), _PROGRAM[architecture], sums.name)
            _fetch(f"{base}/{_PROGRAM[architecture]}", aside)
            if (found := _digest(aside)) != wanted:
                aside.unlink()
                raise BuildError(f"k3s {version} has SHA-256 {found}, its release says {wanted}")
            _lock(version, architecture, wanted)
            aside.chmod(0o755)
            aside.rename(program)
    return program


def _fetch(address: str, target: Path) -> None:
    try:
        with urllib.request.urlopen(address, timeout=60) as answer, target.open("wb") as file:  # noqa: S310 - https: or file:, from the caller
            shutil.copyfileobj(answer, file, _CHUNK)
    except (OSError, urllib.error.URLError) as error:
        target.unlink(missing_ok=True)
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # It is an answer, too.
        raise BuildError(
            f"{address} cannot be fetched: {error}",
            hint="fetch the release by other means and set K3S_BIN",
        ) from error


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _lock(version: str, architecture: str, digest: str) -> None:
    """Remember what a version is; refuse it when it is something else. In the cache: k3s.lock."""
    path = cache_directory() / "k3s" / "k3s.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text().splitlines() if path.exists() else []
    known = {tuple(line.split()[:2]): line.split()[2] for line in lines if len(line.split()) == 3}
    if known.setdefault((version, architecture), digest) != digest:
        raise BuildError(
            f"k3s {version} for {architecture} is not what it was when first used",
            hint=f"now SHA-256 {digest}; {path} has {known[version, architecture]}",
        )
    aside = path.with_suffix(".new")
    aside.write_text("".join(f"{name} {arch} {one}\n" for (name, arch), one in known.items()))
    aside.rename(path)
