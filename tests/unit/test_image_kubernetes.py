"""What an image with Kubernetes has above one without, and that the caches know the difference."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from image import build, engine, kubernetes, oci, payload, workloads
from image.board import Architecture, load
from image.errors import BuildError
from image.golang import Program
from image.kubernetes import Parts
from image.payload import Release
from image.workloads import Sources
from skerry.__main__ import build_parser

RELEASE = Release("1.2.3", "x86_64", "0123", "c0ffee")


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache in which every Go program is there, without anything being compiled."""
    monkeypatch.setenv("SKERRY_CACHE", str(tmp_path))

    def made(program: Program, architecture: str) -> Path:
        path = tmp_path / "go" / f"{program.name}-{architecture}" / program.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"{program.name} for {architecture}".encode())
        path.chmod(0o755)
        return path

    monkeypatch.setattr(kubernetes, "build", made)
    monkeypatch.setattr(workloads, "build", made)
    own = made(Program("engine", "./cmd/skerry-engine", "skerry-engine"), "amd64")
    monkeypatch.setattr(engine, "ensure", lambda _architecture: own)
    return tmp_path


@pytest.fixture
def sources(cache: Path) -> Sources:
    busybox = cache / "busybox"
    busybox.write_bytes(b"a shell")
    return Sources(Architecture.AMD64, busybox, "1.37.0")


@pytest.fixture
def debian(cache: Path) -> Path:
    for package, paths in kubernetes.DEBIAN.items():
        for path in paths:
            place = cache / "debian" / package / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.encode())
    return cache / "debian"


def the_parts(debian: Path, sources: Sources) -> Parts:
    return kubernetes.parts(Architecture.AMD64, debian, sources)


def compose(directory: Path, parts: Parts | None) -> Path:
    wheels = directory.with_suffix(".wheels")
    wheels.mkdir()
    directory.mkdir()
    payload.compose(
        directory,
        board=load("x86_64"),
        release=RELEASE,
        wheels_directory=wheels,
        keyring="PEM",
        parts=parts,
        overlays=(),
    )
    return directory


def test_everything_has_its_place(tmp_path: Path, debian: Path, sources: Sources) -> None:
    root = compose(tmp_path / "root", the_parts(debian, sources))
    programs = (
        *("usr/bin/containerd", "usr/bin/containerd-shim-runc-v2", "usr/bin/ctr", "usr/sbin/runc"),
        *("usr/lib/cni/skerry-cni", "usr/lib/cni/portmap", "usr/lib/cni/bandwidth"),
        *("usr/lib/cni/loopback", "usr/lib/skerry/bin/skerry-engine"),
    )
    for name in programs:
        assert (root / name).stat().st_mode & 0o7777 == 0o755, name
    for name in ("usr/bin/k3s", "usr/bin/kubectl"):
        assert (root / name).resolve() == root / "usr/lib/skerry/bin/skerry-engine"
    archives = {path.name for path in (root / "usr/share/skerry/images").iterdir()}
    assert archives == {"pause.tar", "coredns.tar", "local-path-provisioner.tar", "busybox.tar"}
    assert (root / "usr/share/skerry/images/pause.tar").stat().st_mode & 0o7777 == 0o644
    for name in ("usr/lib/systemd/system/containerd.service", "etc/containerd/config.toml"):
        assert (root / name).is_file(), name


def test_without_kubernetes_nothing_of_it_is_there(tmp_path: Path) -> None:
    root = compose(tmp_path / "root", None)
    names = [str(path.relative_to(root)) for path in root.rglob("*")]
    # The commands are Python and come along; they find nothing to do.
    found = [
        name
        for name in names
        if re.search(r"containerd|engine|usr/lib/cni|images|manifests|kubernetes|k3s|kubectl", name)
        and not name.startswith("usr/lib/skerry/appliance/")
    ]
    assert found == []
    assert (root / "usr/lib/systemd/system/skerry.service").is_file()
    assert not (root / "usr/lib/systemd/system/skerry-cluster.service").exists()


def test_the_key_follows_what_is_in_it(
    monkeypatch: pytest.MonkeyPatch, debian: Path, sources: Sources, cache: Path
) -> None:
    first = the_parts(debian, sources).key
    assert the_parts(debian, sources).key == first
    elsewhere = cache / "go" / "another" / "skerry-engine"
    elsewhere.parent.mkdir()
    elsewhere.touch()
    monkeypatch.setattr(engine, "ensure", lambda _architecture: elsewhere)
    assert the_parts(debian, sources).key != first


def test_a_part_that_is_missing_is_named(debian: Path, sources: Sources) -> None:
    (debian / "runc/usr/sbin/runc").unlink()
    with pytest.raises(BuildError, match="usr/sbin/runc"):
        the_parts(debian, sources)


def test_an_archive_is_made_once_and_anew_when_its_content_changed(sources: Sources) -> None:
    first = workloads.archive("busybox", sources)
    written = first.stat().st_mtime_ns
    assert workloads.archive("busybox", sources) == first
    assert first.stat().st_mtime_ns == written
    sources.busybox.write_bytes(b"another shell")
    assert workloads.archive("busybox", sources) != first


def test_old_archives_go(sources: Sources) -> None:
    made = []
    for number in range(9):
        sources.busybox.write_bytes(f"shell {number}".encode())
        made.append(workloads.archive("busybox", sources))
        os.utime(made[-1].parent, (number, number))
    pause = workloads.archive("pause", sources)
    sources.busybox.write_bytes(b"the newest")
    newest = workloads.archive("busybox", sources)
    assert newest.exists()
    assert pause.exists()
    assert [path.exists() for path in made] == [False] * 4 + [True] * 5


def test_images_of_two_architectures_are_two(sources: Sources) -> None:
    arm = Sources(Architecture.ARM64, sources.busybox, sources.busybox_version)
    for name in workloads.SHIPPED:
        assert workloads.archive(name, sources) != workloads.archive(name, arm)
        assert workloads.SHIPPED[name](arm).architecture == "arm64"


def test_names_have_the_version_and_the_one_that_manifests_use(sources: Sources) -> None:
    assert workloads.pause(sources).names == ("skerry.local/pause:1",)
    assert workloads.busybox(sources).names == (
        "skerry.local/busybox:1.37.0",
        "skerry.local/busybox:1",
    )
    version, one = workloads.coredns(sources).names
    assert re.fullmatch(r"skerry\.local/coredns:\d+\.\d+\.\d+", version)
    assert one == "skerry.local/coredns:1"
    manifests = "".join(
        path.read_text()
        for path in (kubernetes.OVERLAY / "usr/share/skerry/manifests").glob("*.yaml")
    )
    given = {name for recipe in workloads.SHIPPED.values() for name in recipe(sources).names}
    used = set(re.findall(r"skerry\.local/[a-z0-9./:-]+", manifests))
    assert {"skerry.local/coredns:1", "skerry.local/busybox:1"} <= used <= given
    configuration = (kubernetes.OVERLAY / "etc/containerd/config.toml").read_text()
    assert 'sandbox_image = "skerry.local/pause:1"' in configuration


def test_no_image_runs_as_root_without_need(sources: Sources) -> None:
    for recipe in (workloads.pause, workloads.coredns):
        user = recipe(sources).user
        assert user
        assert not user.startswith("0")


def test_applets_are_links_to_the_one_program(sources: Sources) -> None:
    entries = workloads.busybox(sources).entries
    assert entries["/bin/sh"] == oci.Link("busybox")
    assert {"/bin/mkdir", "/bin/rm", "/bin/wget", "/tmp"} <= entries.keys()


def test_an_unknown_image_is_refused_with_those_there_are(sources: Sources) -> None:
    with pytest.raises(BuildError, match="nginx") as caught:
        workloads.archive("nginx", sources)
    assert "coredns" in (caught.value.hint or "")


def test_a_module_that_is_not_required_is_named() -> None:
    with pytest.raises(BuildError, match=r"example\.org/absent"):
        workloads.module_version("example.org/absent")


@pytest.mark.parametrize(
    ("version", "upstream"),
    [("1:1.37.0-6+b9", "1.37.0"), ("1.37.0-6", "1.37.0"), ("2:1.2-rc1-3", "1.2-rc1"), ("7", "7")],
)
def test_the_upstream_part_of_a_debian_version(version: str, upstream: str) -> None:
    assert workloads.debian_upstream(version) == upstream


def test_the_option_reaches_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted: list[build.Wanted] = []
    monkeypatch.setattr(build, "image", wanted.append)
    for words in (
        ["image", "build", "x86_64"],
        ["image", "build", "x86_64", "--without-kubernetes"],
    ):
        arguments = build_parser().parse_args(words)
        arguments.handler(arguments)
    assert [one.kubernetes for one in wanted] == [True, False]


def test_containerds_files_are_not_written_by_the_callers_habit(
    tmp_path: Path, debian: Path, sources: Sources
) -> None:
    before = os.umask(0o077)
    try:
        root = compose(tmp_path / "root", the_parts(debian, sources))
    finally:
        os.umask(before)
    assert (root / "usr/share/skerry/images").stat().st_mode & 0o777 == 0o755
    assert (root / "etc/containerd/config.toml").stat().st_mode & 0o777 == 0o644


def test_the_modules_of_programs_are_read() -> None:
    text = (
        "/x/coredns: go1.26.8\n\tpath\tskerry/workloads/cmd/coredns\n"
        "\tmod\tskerry/workloads\t(devel)\t\n"
        "\tdep\texample.org/b\tv1.2.3\th1:0=\n\tdep\texample.org/a\tv0.1.0\n"
        "\t=>\texample.org/fork\tv0.1.1\th1:0=\n\tbuild\t-trimpath=true\n"
        "/x/pause: go1.26.8\n\tdep\texample.org/b\tv1.2.3\th1:0=\n"
    )
    assert kubernetes.parse_modules(text) == (
        ("example.org/b", "v1.2.3"),
        ("example.org/fork", "v0.1.1"),
    )
