"""Which engine is taken, and that a k3s release is what it says."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from image import engine
from image.errors import BuildError

VERSION = "v1.36.3+k3s1"


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("SKERRY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def release(folder: Path, content: bytes, says: bytes | None = None) -> str:
    """Make a release's files; return the address of all releases."""
    place = folder / "releases" / VERSION
    place.mkdir(parents=True, exist_ok=True)
    (place / "k3s").write_bytes(content)
    digest = hashlib.sha256(content if says is None else says).hexdigest()
    (place / "sha256sum-amd64.txt").write_text(f"{'0' * 64}  k3s-airgap.tar\n{digest}  k3s\n")
    return (folder / "releases").as_uri()


def test_ours_is_the_default_and_carries_the_version_of_kubernetes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine, "build", lambda program, arch: Path(f"/{program.name}-{arch}"))
    assert engine.ensure("arm64", {}) == Path("/skerry-engine-arm64")
    version = engine._kubernetes_version()
    flags = engine.own_program().ldflags
    assert f"-X k8s.io/component-base/version.gitVersion={version}" in flags


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"ENGINE": "k0s"}, "'k0s'"),
        ({"ENGINE": "k3s"}, "needs the release"),
        ({"ENGINE": "k3s", "K3S_VERSION": "latest"}, "'latest'"),
        ({"K3S_BIN": "/nowhere/k3s"}, "/nowhere/k3s"),
    ],
)
def test_what_is_wrong_is_named(environment: dict[str, str], said: str) -> None:
    with pytest.raises(BuildError, match=said):
        engine.ensure("amd64", environment)


def test_a_release_is_fetched_checked_and_kept(tmp_path: Path) -> None:
    chosen = {"ENGINE": "k3s", "K3S_VERSION": VERSION, "K3S_RELEASES": release(tmp_path, b"k3s")}
    program = engine.ensure("amd64", chosen)
    assert program.read_bytes() == b"k3s"
    assert program.stat().st_mode & 0o777 == 0o755
    # From the cache, with no release to be had
    assert engine.ensure("amd64", chosen | {"K3S_RELEASES": "file:///nowhere"}) == program


def test_a_release_that_is_not_what_its_list_says_is_refused(tmp_path: Path) -> None:
    releases = release(tmp_path, b"k3s", says=b"another")
    chosen = {"ENGINE": "k3s", "K3S_VERSION": VERSION, "K3S_RELEASES": releases}
    with pytest.raises(BuildError, match="its release says"):
        engine.ensure("amd64", chosen)
    with pytest.raises(BuildError, match="its release says"):
        engine.ensure("amd64", chosen)


def test_a_release_that_cannot_be_fetched_says_the_way_out() -> None:
    chosen = {"ENGINE": "k3s", "K3S_VERSION": VERSION, "K3S_RELEASES": "file:///nowhere"}
    with pytest.raises(BuildError, match="cannot be fetched") as caught:
        engine.ensure("amd64", chosen)
    assert "K3S_BIN" in str(caught.value.hint)


def test_a_file_needs_the_releases_list_beside_it(tmp_path: Path) -> None:
    release(tmp_path, b"k3s")
    file = tmp_path / "releases" / VERSION / "k3s"
    assert engine.ensure("amd64", {"K3S_BIN": str(file)}).read_bytes() == b"k3s"
    file.write_bytes(b"changed")
    with pytest.raises(BuildError, match=r"sha256sum-amd64\.txt says"):
        engine.ensure("amd64", {"K3S_BIN": str(file)})
    file.with_name("sha256sum-amd64.txt").unlink()
    with pytest.raises(BuildError, match="there is no"):
        engine.ensure("amd64", {"K3S_BIN": str(file)})


def test_a_version_is_locked_at_its_first_use(tmp_path: Path) -> None:
    file = tmp_path / "releases" / VERSION / "k3s"
    for content in (b"first", b"second"):
        release(tmp_path, content)
        chosen = {"K3S_BIN": str(file), "K3S_VERSION": VERSION}
        if content == b"first":
            engine.ensure("amd64", chosen)
            engine.ensure("amd64", chosen)
        else:
            with pytest.raises(BuildError, match="not what it was when first used"):
                engine.ensure("amd64", chosen)
