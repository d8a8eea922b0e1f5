"""Manifest, parts list, our files in the root, keys and the tools root's arguments."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from image import build, keys, manifest, payload, source, tools
from image.artifacts import REPOSITORY, Artifacts, cache_directory
from image.board import load
from image.errors import BuildError
from image.lock import Drift, Package, Use
from image.payload import Release
from image.source import source_epoch
from skerry.__main__ import build_parser

PACKAGES = (
    Package("libc6", "2.41-12", "a" * 64),
    Package("libstdc++6", "14.2.0-19", "b" * 64),
    Package("busybox-static", "1:1.37", "c" * 64, Use.FETCH),
)
RELEASE = Release("1.2.3", "x86_64", "0123", "c0ffee")


def written() -> dict[str, object]:
    return manifest.manifest(
        release={"version": "1.2.3"},
        architecture="amd64",
        epoch=1_700_000_000,
        packages=PACKAGES,
        drift=(Drift("libc6", "2.41-11", "2.41-12"),),
        python={"msgspec": "0.22.0"},
        go=(("k8s.io/api", "v0.36.3"), ("k8s.io/api", "v0.35.0")),
        tools={"erofs-utils": "1.8"},
        verity={"root_hash": "ff"},
        outputs=[manifest.Output("root.img", 4096, 4096, "d" * 64)],
    )


def test_a_manifest_is_json_and_names_versions_sizes_and_drift() -> None:
    found = json.loads(json.dumps(written()))
    assert found["drift"] == [{"name": "libc6", "locked": "2.41-11", "used": "2.41-12"}]
    assert found["outputs"] == [{"name": "root.img", "size": 4096, "sha256": "d" * 64}]
    assert [item["name"] for item in found["debian"]] == ["busybox-static", "libc6", "libstdc++6"]
    assert found["python"] == {"msgspec": "0.22.0"}
    assert {one["version"] for one in found["go"]} == {"v0.36.3", "v0.35.0"}


def test_the_parts_list_is_spdx_with_every_part_once() -> None:
    document = manifest.sbom(
        name="skerry-x86_64",
        version="1.2.3",
        build_id="0123",
        architecture="amd64",
        epoch=1_700_000_000,
        packages=PACKAGES,
        python={"PyNaCl": "1.6.2"},
        go=(("k8s.io/api", "v0.36.3"), ("k8s.io/api", "v0.35.0")),
    )
    found = json.loads(json.dumps(document))
    assert found["spdxVersion"] == "SPDX-2.3"
    assert found["creationInfo"]["created"] == "2023-11-14T22:13:20Z"
    names = [part["SPDXID"] for part in found["packages"]]
    assert len(names) == len(set(names)) == 7
    # SPDX 2.3, 3.2: letters, digits, dots and dashes.
    assert all(re.fullmatch(r"SPDXRef-[A-Za-z0-9.-]+", name) for name in names)
    contained = {
        item["relatedSpdxElement"]
        for item in found["relationships"]
        if item["relationshipType"] == "CONTAINS"
    }
    assert contained == set(names) - {"SPDXRef-image"}
    locators = [
        part["externalRefs"][0]["referenceLocator"]
        for part in found["packages"]
        if "externalRefs" in part
    ]
    assert "pkg:deb/debian/libstdc%2B%2B6@14.2.0-19?arch=amd64" in locators
    assert "pkg:pypi/pynacl@1.6.2" in locators
    assert {"pkg:golang/k8s.io/api@v0.36.3", "pkg:golang/k8s.io/api@v0.35.0"} <= set(locators)


def test_only_installed_packages_count() -> None:
    status = (
        "Package: a\nStatus: install ok installed\nVersion: 1\n\n"
        "Package: b\nStatus: deinstall ok config-files\nVersion: 2\n\n"
        "Package: c\nStatus: install ok installed\nVersion: 3\nDescription: x\n Package: no\n"
    )
    assert manifest.installed_packages(status) == {"a": "1", "c": "3"}


def test_pinned_packages_are_read_from_a_lock() -> None:
    text = 'aiohttp==3.14.5 \\\n    --hash=sha256:00\ncolorama==0.4 ; sys_platform == "win32" \\\n'
    assert payload.pinned_packages(text) == {"aiohttp": "3.14.5", "colorama": "0.4"}


def test_files_are_laid_over_with_modes_of_our_own(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "usr/bin").mkdir(parents=True, mode=0o700)
    (source / "usr/bin/tool").write_text("x")
    (source / "usr/bin/tool").chmod(0o700)
    (source / "usr/plain").write_text("y")
    (source / "usr/plain").chmod(0o666)
    (source / "usr/link").symlink_to("nowhere")
    (source / "usr/__pycache__").mkdir()
    (source / "usr/__pycache__/x.pyc").write_bytes(b"")
    payload.lay_over(source, target)
    payload.lay_over(source, target)
    assert (target / "usr/bin").stat().st_mode & 0o777 == 0o755
    assert (target / "usr/bin/tool").stat().st_mode & 0o777 == 0o755
    assert (target / "usr/plain").stat().st_mode & 0o777 == 0o644
    assert str((target / "usr/link").readlink()) == "nowhere"
    assert not (target / "usr/__pycache__").exists()


def test_a_tree_has_another_hash_when_anything_that_matters_changes(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    seen = [payload.digest_tree([tree])]
    file = tree / "a"
    file.write_text("1")
    seen.append(payload.digest_tree([tree]))
    file.write_text("2")
    seen.append(payload.digest_tree([tree]))
    file.chmod(0o755)
    seen.append(payload.digest_tree([tree]))
    file.rename(tree / "b")
    seen.append(payload.digest_tree([tree]))
    assert len(set(seen)) == len(seen)
    file = tree / "b"
    file.touch()
    assert payload.digest_tree([tree]) == seen[-1], "times do not matter"


def test_the_root_says_which_release_it_is() -> None:
    files = payload.made_files(load("x86_64"), RELEASE, "PEM")
    assert json.loads(files["usr/lib/skerry/release.json"]) == {
        "version": "1.2.3",
        "board": "x86_64",
        "build_id": "0123",
        "commit": "c0ffee",
    }
    assert 'ID="skerry"' in files["usr/lib/os-release"]
    assert files["etc/rauc/keyring.pem"] == "PEM"
    assert "iTCO_wdt\n" in files["usr/lib/modules-load.d/10-skerry-watchdog.conf"]


def test_epochs_come_from_the_environment_or_from_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1234")
    assert source_epoch() == 1234
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "tomorrow")
    with pytest.raises(BuildError, match="tomorrow"):
        source_epoch()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "")
    monkeypatch.setattr(source, "_git", lambda *_: "")
    assert source_epoch() == source.BASE_EPOCH


def test_development_keys_are_made_once_private_and_outside_the_checkout(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SKERRY_CACHE", str(tmp_path))
    first = keys.signing_keys()
    assert first.key.stat().st_mode & 0o777 == 0o600
    assert first.key.is_relative_to(tmp_path)
    text = first.key.read_bytes()
    assert keys.signing_keys() == first
    assert first.key.read_bytes() == text
    assert b"BEGIN CERTIFICATE" in first.keyring.read_bytes()


def test_the_operators_keys_come_as_a_pair(tmp_path: Path) -> None:
    key, certificate = tmp_path / "k", tmp_path / "c"
    key.touch()
    with pytest.raises(BuildError, match="given alone"):
        keys.signing_keys(key=key)
    with pytest.raises(BuildError, match="there is no file"):
        keys.signing_keys(key=key, certificate=certificate)
    certificate.touch()
    assert keys.signing_keys(key=key, certificate=certificate).keyring == certificate


def test_no_mirror_is_named_unless_the_operator_names_one() -> None:
    assert tools.mirror_lines(None, "main") == []
    lines = tools.mirror_lines("http://mirror.example/debian/", "main", keyring=Path("/k.gpg"))
    assert lines == [
        "deb [signed-by=/k.gpg] http://mirror.example/debian trixie main",
        "deb [signed-by=/k.gpg] http://mirror.example/debian trixie-updates main",
        "deb [signed-by=/k.gpg] http://mirror.example/debian-security trixie-security main",
    ]


def test_a_command_in_the_tools_root_sees_checkout_cache_and_tmp(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SKERRY_CACHE", str(tmp_path))
    monkeypatch.delenv("TMPDIR", raising=False)
    argv = tools.ToolsRoot(tmp_path / "root").command(["ls", "-l"], cwd=Path("/nowhere"))
    assert argv[0] == "unshare"
    assert argv[-3:] == ["--", "ls", "-l"]
    after = argv[argv.index("skerry-tools") + 1 :]
    assert after[0] == str(tmp_path / "root")
    assert after[1] == "/", "an invisible working directory becomes the root"
    assert "/tmp" in after
    shown = [Path(place) for place in after[2 : after.index("--")]]
    assert any(REPOSITORY.is_relative_to(place) for place in shown)


def test_a_cache_that_is_no_directory_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with (
        pytest.raises(BuildError, match="cannot be used") as caught,
        tools.locked(tmp_path / "cache" / "x.lock", waiting_for="x"),
    ):
        pass
    assert "SKERRY_CACHE" in (caught.value.hint or "")


def test_a_full_disk_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_wanted: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build, "image", full)
    monkeypatch.setattr(keys, "signing_keys", lambda **_: None)
    arguments = build_parser().parse_args(["image", "build", "x86_64"])
    with pytest.raises(BuildError, match="No space left") as caught:
        arguments.handler(arguments)
    assert "room" in (caught.value.hint or "")


def test_only_the_outermost_of_nested_places_is_bound() -> None:
    places = [Path("/a/b"), Path("/a"), Path("/c"), Path("/a"), Path("/ab")]
    assert tools.outermost(places) == [Path("/a"), Path("/ab"), Path("/c")]


def test_artifacts_lie_in_build_or_where_told(tmp_path: Path) -> None:
    assert Artifacts.of("x86_64").disk == REPOSITORY / "build/x86_64/disk.img"
    assert Artifacts.of("x86_64", tmp_path).manifest == tmp_path / "manifest.json"
    assert cache_directory().is_absolute()
