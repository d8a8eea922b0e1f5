"""Container images: what is in an archive, and that it is the same each time."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from pathlib import Path

import pytest

from image import oci
from image.errors import BuildError
from image.oci import Directory, File, Image, Link


def an_image(
    tmp_path: Path, names: tuple[str, ...] = ("skerry.local/a:1.2", "skerry.local/a:1")
) -> Image:
    program = tmp_path / "program"
    program.write_bytes(b"\x7fELF" + bytes(3000))
    return Image(
        names,
        "arm64",
        {
            "/bin/a": File(program),
            "/bin/b": Link("a"),
            "/etc/passwd": File(b"root:x:0:0::/:\n", 0o644),
            "/tmp": Directory(0o1777),
        },
        ("/bin/a",),
        ("--now",),
        user="1:2",
    )


def content(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {
            member.name: opened.read()
            for member in archive
            if (opened := archive.extractfile(member)) is not None
        }


def test_everything_is_found_by_its_digest(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    digest = oci.write(an_image(tmp_path), path)
    files = content(path)
    for name, data in files.items():
        if name.startswith("blobs/sha256/"):
            assert hashlib.sha256(data).hexdigest() == name.removeprefix("blobs/sha256/")
    assert json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads(files["index.json"])
    assert {one["digest"] for one in index["manifests"]} == {digest}
    notes = [one["annotations"] for one in index["manifests"]]
    assert [one["io.containerd.image.name"] for one in notes] == [
        "skerry.local/a:1.2",
        "skerry.local/a:1",
    ]
    assert [one["org.opencontainers.image.ref.name"] for one in notes] == ["1.2", "1"]
    assert index["manifests"][0]["platform"] == {"architecture": "arm64", "os": "linux"}

    def blob(descriptor: dict[str, object]) -> bytes:
        data = files[f"blobs/{str(descriptor['digest']).replace(':', '/')}"]
        assert len(data) == descriptor["size"]
        return data

    manifest = json.loads(blob(index["manifests"][0]))
    config = json.loads(blob(manifest["config"]))
    assert (config["architecture"], config["os"]) == ("arm64", "linux")
    assert config["config"]["Entrypoint"] == ["/bin/a"]
    assert config["config"]["Cmd"] == ["--now"]
    assert config["config"]["User"] == "1:2"
    # Not compressed: the layer's digest is that of what is in it.
    assert config["rootfs"]["diff_ids"] == [manifest["layers"][0]["digest"]]
    blob(manifest["layers"][0])


def test_the_layer_has_what_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    oci.write(an_image(tmp_path), path)
    layer = max(content(path).values(), key=len)
    inner = tmp_path / "layer.tar"
    inner.write_bytes(layer)
    with tarfile.open(inner) as archive:
        members = {member.name: member for member in archive}
    assert list(members) == ["bin", "bin/a", "bin/b", "etc", "etc/passwd", "tmp"]
    assert {name: member.mode for name, member in members.items()} == {
        "bin": 0o755,
        "bin/a": 0o755,
        "bin/b": 0o777,
        "etc": 0o755,
        "etc/passwd": 0o644,
        "tmp": 0o1777,
    }
    assert members["bin/b"].issym()
    assert members["bin/b"].linkname == "a"
    assert members["bin"].isdir()
    assert members["bin/a"].size == 3004
    assert {(one.uid, one.gid, one.mtime, one.uname) for one in members.values()} == {(0, 0, 0, "")}


def test_the_same_bytes_each_time(tmp_path: Path) -> None:
    one, two = tmp_path / "one.tar", tmp_path / "two.tar"
    image = an_image(tmp_path)
    first = oci.write(image, one)
    os.utime(tmp_path / "program", (1, 1))
    (tmp_path / "program").chmod(0o700)
    before = os.umask(0o077)
    try:
        turned = Image(
            image.names,
            image.architecture,
            dict(reversed(list(image.entries.items()))),
            image.entrypoint,
            image.arguments,
            user=image.user,
        )
        assert oci.write(turned, two) == first
    finally:
        os.umask(before)
    assert one.read_bytes() == two.read_bytes()


def test_another_content_is_another_digest(tmp_path: Path) -> None:
    image = an_image(tmp_path)
    first = oci.write(image, tmp_path / "one.tar")
    (tmp_path / "program").write_bytes(b"\x7fELF" + bytes(3001))
    assert oci.write(image, tmp_path / "two.tar") != first


@pytest.mark.parametrize("name", ["skerry.local/a", "host:5000/a"])
def test_a_name_without_a_tag_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BuildError, match=name):
        oci.write(an_image(tmp_path, (name,)), tmp_path / "a.tar")
    assert not (tmp_path / "a.tar").exists()


@pytest.mark.parametrize("path", ["bin/a", "/", "/../etc/passwd", "/a//b", "/./a"])
def test_a_path_that_leads_elsewhere_is_refused(tmp_path: Path, path: str) -> None:
    image = Image(("a:1",), "amd64", {path: File(b"")}, ("/a",))
    with pytest.raises(BuildError, match="absolute path"):
        oci.write(image, tmp_path / "a.tar")
