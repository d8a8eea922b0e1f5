"""Debian's containerd with our configuration, archives and importer; systemd on our units."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.container_images.containerd import Ctr
from appliance.container_images.importing import PINNED, RuntimeTroubleError
from image import kubernetes, oci, workloads
from image.board import Architecture
from image.oci import Directory, Entry, File, Image
from image.tools import ToolsRoot

pytestmark = pytest.mark.timeout(300)

UNITS = kubernetes.OVERLAY / "usr/lib/systemd/system"
# What each may reach at most. containerd and the engine are root on purpose, and not here.
EXPOSURE = {"skerry-container-images.service": 2.0, "skerry-cluster.service": 4.5}
MACHINE = {"x86_64": Architecture.AMD64, "aarch64": Architecture.ARM64}[os.uname().machine]


@dataclass(frozen=True)
class Containerd:
    """A containerd of the tools root, with our configuration in other places."""

    directory: Path
    ctr: Ctr

    @property
    def address(self) -> Path:
        return self.directory / "containerd.sock"

    def skerry(self, *folders: Path) -> subprocess.CompletedProcess[str]:
        """Run the importer as its unit does."""
        words = ["--record", str(self.directory / "images.json"), "--address", str(self.address)]
        for folder in folders:
            words += ["--folder", str(folder)]
        search = f"{self.directory}:{os.environ['PATH']}"
        return subprocess.run(
            [sys.executable, "-m", "skerry", "container-images", "import", *words],
            capture_output=True,
            text=True,
            env=os.environ | {"PATH": search},
            timeout=120,
        )


@pytest.fixture(scope="module")
def containerd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containerd]:
    directory = tmp_path_factory.mktemp("containerd")
    tools = ToolsRoot.ensure()
    text = (kubernetes.OVERLAY / "etc/containerd/config.toml").read_text()
    for old, new in {
        "/var/lib/containerd": f"{directory}/root",
        'state = "/run/containerd"': f'state = "{directory}/state"',
        "/run/containerd/containerd.sock": f"{directory}/containerd.sock",
        "/usr/lib/cni": f"{directory}/cni",
        "/etc/cni/net.d": f"{directory}/net.d",
    }.items():
        assert old in text, old
        text = text.replace(old, new)
    (directory / "config.toml").write_text(text)
    # The importer runs `ctr`: this one is in the tools root.
    wrapper = directory / "ctr"
    wrapper.write_text(f'#!/bin/sh\nexec {shlex.join(tools.command(["ctr"]))} "$@"\n')
    wrapper.chmod(0o755)
    log = (directory / "log").open("w")
    process = subprocess.Popen(
        tools.command(["containerd", "--config", str(directory / "config.toml")]),
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    ctr = Ctr(str(wrapper), directory / "containerd.sock")
    try:
        try:
            ctr.wait(60.0)
        except RuntimeTroubleError:
            pytest.fail((directory / "log").read_text()[-3000:])
        yield Containerd(directory, ctr)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in {0, -signal.SIGTERM}
        log.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


def an_image(name: str, content: bytes, architecture: str = MACHINE.value) -> Image:
    entries: dict[str, Entry] = {"/a": File(content), "/tmp": Directory(0o1777)}
    return Image((f"skerry.local/{name}",), architecture, entries, ("/a",))


def test_the_configuration_is_containerds(containerd: Containerd) -> None:
    log = (containerd.directory / "log").read_text()
    complaints = re.findall(r"^.*level=(?:error|fatal).*$", log, re.MULTILINE)
    # On this machine there is neither a network configuration nor a shim's folder yet.
    assert [one for one in complaints if "cni config load failed" not in one] == []
    listed = subprocess.run(
        [str(containerd.directory / "ctr"), "--address", str(containerd.address), "plugins", "ls"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    states = {tuple(row[:2]): row[-1] for line in listed.splitlines() if (row := line.split())}
    assert states["io.containerd.grpc.v1", "cri"] == "ok"
    assert states["io.containerd.snapshotter.v1", "overlayfs"] == "ok"
    kinds = {kind for kind, _ in states}
    assert "io.containerd.nri.v1" not in kinds
    assert {name for kind, name in states if kind == "io.containerd.snapshotter.v1"} <= {
        "overlayfs",
        "native",
    }


def test_what_we_make_is_taken_in_pinned_and_not_twice(
    containerd: Containerd, folder: Path
) -> None:
    busybox = ToolsRoot.ensure().file("/usr/bin/busybox")
    sources = workloads.Sources(MACHINE, busybox, "1.37.0")
    digests = {}
    for name, recipe in {"pause": workloads.pause, "busybox": workloads.busybox}.items():
        digests[name] = oci.write(recipe(sources), folder / f"{name}.tar")
    first = containerd.skerry(folder)
    assert first.returncode == 0, first.stderr
    assert "2 brought, 0 there before, 0 bad" in first.stderr
    held = containerd.ctr.images()
    assert held["skerry.local/pause:1"].digest == digests["pause"]
    assert held["skerry.local/busybox:1"] == held["skerry.local/busybox:1.37.0"]
    assert PINNED in held["skerry.local/busybox:1"].labels
    again = containerd.skerry(folder)
    assert "0 brought, 2 there before, 0 bad" in again.stderr
    (folder / "busybox.tar").unlink()
    assert containerd.skerry(folder).returncode == 0
    assert PINNED not in containerd.ctr.images()["skerry.local/busybox:1"].labels


def test_the_packed_layer_is_not_kept(containerd: Containerd, folder: Path) -> None:
    oci.write(an_image("large:1", b"\x7fELF" + os.urandom(1 << 20)), folder / "large.tar")
    assert containerd.skerry(folder).returncode == 0
    blobs = containerd.directory / "root/io.containerd.content.v1.content/blobs"
    end = time.monotonic() + 30.0  # containerd collects a moment later
    while any(path.stat().st_size >= 1 << 20 for path in blobs.rglob("*") if path.is_file()):
        assert time.monotonic() < end
        time.sleep(0.2)


def test_what_docker_saves_is_taken_in_by_the_name_it_has(
    containerd: Containerd, folder: Path
) -> None:
    """The older form: a manifest.json, layers as folders."""
    scratch = folder.parent / "docker"
    scratch.mkdir()
    oci.write(an_image("docker:1", b"program"), scratch / "oci.tar")
    with tarfile.open(scratch / "oci.tar") as archive:
        archive.extractall(scratch / "x", filter="data")
    index = json.loads((scratch / "x/index.json").read_text())
    blob = (scratch / "x/blobs/sha256").joinpath
    manifest = json.loads(blob(index["manifests"][0]["digest"][7:]).read_text())
    config, layer = manifest["config"]["digest"][7:], manifest["layers"][0]["digest"][7:]
    listed = [{"Config": "c.json", "RepoTags": ["here:2"], "Layers": ["layer/layer.tar"]}]
    (scratch / "manifest.json").write_text(json.dumps(listed))
    with tarfile.open(folder / "docker.tar", "w") as archive:
        archive.add(blob(layer), "layer/layer.tar")
        archive.add(blob(config), "c.json")
        archive.add(scratch / "manifest.json", "manifest.json")
    done = containerd.skerry(folder)
    assert done.returncode == 0, done.stderr
    assert any(one.endswith("/library/here:2") for one in containerd.ctr.images())
    assert "0 brought, 1 there before, 0 bad" in containerd.skerry(folder).stderr


def test_bad_archives_are_named_and_hold_up_no_other(containerd: Containerd, folder: Path) -> None:
    other = "arm64" if MACHINE is Architecture.AMD64 else "amd64"
    oci.write(an_image("elsewhere:1", b"x", other), folder / "a-elsewhere.tar")
    oci.write(an_image("cut:1", bytes(100_000)), folder / "cut")
    (folder / "b-cut.tar").write_bytes((folder / "cut").read_bytes()[:20_000])
    (folder / "c-garbage.tar").write_bytes(b"garbage")
    whole = (folder / "cut").read_bytes()
    (folder / "d-wrong.tar").write_bytes(whole[:60_000] + b"X" + whole[60_001:])
    oci.write(an_image("good:1", b"good"), folder / "e-good.tar")
    done = containerd.skerry(folder)
    # The folder is not the release's: its bad files are the operator's business.
    assert done.returncode == 0
    assert "1 brought, 0 there before, 4 bad" in done.stderr
    for name in ("a-elsewhere.tar", "b-cut.tar", "c-garbage.tar", "d-wrong.tar"):
        assert name in done.stderr, done.stderr
    held = containerd.ctr.images()
    assert "skerry.local/good:1" in held
    assert "skerry.local/cut:1" not in held
    assert "Traceback" not in done.stderr


def test_without_containerd_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(RuntimeTroubleError, match="containerd"):
        Ctr(str(ToolsRoot.ensure().file("/usr/bin/ctr")), tmp_path / "no.sock").wait(0.0)


@pytest.mark.parametrize("unit", sorted(EXPOSURE))
def test_exposure(unit: str) -> None:
    argv = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(UNITS / unit)]
    result = subprocess.run(
        ToolsRoot.ensure().command(argv), capture_output=True, text=True, timeout=60
    )
    match = re.search(r"Overall exposure level for \S+: ([0-9.]+)", result.stdout)
    assert match, result.stderr
    assert float(match[1]) <= EXPOSURE[unit]


@pytest.mark.parametrize("unit", sorted(path.name for path in UNITS.glob("*.service")))
def test_every_setting_is_one_that_systemd_knows(unit: str) -> None:
    argv = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(UNITS / unit)]
    result = subprocess.run(
        ToolsRoot.ensure().command(argv), capture_output=True, text=True, timeout=60
    )
    # The programs are not in the tools root; that is said too, and is not about a setting.
    wrong = [
        line
        for line in result.stderr.splitlines()
        if "Unknown" in line or "Failed to parse" in line
    ]
    assert wrong == []
