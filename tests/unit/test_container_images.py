"""Bringing image archives to the runtime: what is brought, passed over, told, released."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from appliance.container_images import archives, importing
from appliance.container_images.archives import ArchiveError
from appliance.container_images.containerd import parse_images
from appliance.container_images.importing import (
    PINNED,
    SOURCE,
    Held,
    Outcome,
    Record,
    RuntimeTroubleError,
)

D1, D2 = (f"sha256:{letter * 64}" for letter in "12")


def tar(path: Path, members: Mapping[str, bytes], *, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def an_index(digest: str, *names: str) -> bytes:
    entries = [
        {"digest": digest, "annotations": {"io.containerd.image.name": one}} for one in names
    ]
    return json.dumps({"schemaVersion": 2, "manifests": entries}).encode()


def an_archive(folder: Path, name: str, digest: str = D1, *names: str) -> Path:
    return tar(folder / name, {"oci-layout": b"{}", "index.json": an_index(digest, *names)})


class FakeRuntime:
    """Takes what the archives' lists say; keeps a log."""

    def __init__(self) -> None:
        self.held: dict[str, Held] = {}
        self.log: list[str] = []
        self.refuse: set[str] = set()

    def images(self) -> Mapping[str, Held]:
        return dict(self.held)

    def load(self, path: Path) -> Mapping[str, str]:
        self.log.append(f"load {path.name}")
        with tarfile.open(path) as archive:
            opened = archive.extractfile("index.json")
            assert opened is not None
            index = json.loads(opened.read())
        for entry in index["manifests"]:
            name = entry["annotations"]["io.containerd.image.name"]
            self.held[name] = Held(entry["digest"])
        if path.name in self.refuse:
            # As containerd does: the name is there before the content is seen to be bad.
            raise RuntimeTroubleError(f"no room for {path.name}")
        return {
            entry["annotations"]["io.containerd.image.name"]: entry["digest"]
            for entry in index["manifests"]
        }

    def remove(self, name: str) -> None:
        del self.held[name]
        self.log.append(f"remove {name}")

    def label(self, name: str, labels: Mapping[str, str]) -> None:
        kept = set(self.held[name].labels)
        for key, value in labels.items():
            kept = kept | {key} if value else kept - {key}
        self.held[name] = Held(self.held[name].digest, frozenset(kept))
        self.log.append(f"label {name} {' '.join(sorted(labels))}")


class Node:
    """A runtime, the record, and what was told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runtime = FakeRuntime()
        self.stored = ""
        self.told: list[Outcome] = []

    def bring(self) -> list[Outcome]:
        self.told = []
        self.runtime.log = []
        outcomes = importing.bring(
            self.runtime,
            archives.find([self.folder]),
            importing.parse_record(self.stored),
            keep=self._keep,
            tell=self.told.append,
        )
        assert outcomes == self.told
        return outcomes

    def _keep(self, record: Record) -> None:
        self.stored = json.dumps(record)

    @property
    def loads(self) -> list[str]:
        return [line.removeprefix("load ") for line in self.runtime.log if line.startswith("load")]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_each_is_brought_once_and_pinned(node: Node) -> None:
    an_archive(node.folder, "b.tar", D2, "x/b:1")
    an_archive(node.folder, "a.tar", D1, "x/a:1", "x/a:1.2")
    outcomes = node.bring()
    assert [(one.path.name, one.names, one.skipped) for one in outcomes] == [
        ("a.tar", ("x/a:1", "x/a:1.2"), False),
        ("b.tar", ("x/b:1",), False),
    ]
    assert {PINNED, SOURCE} <= node.runtime.held["x/a:1.2"].labels
    assert all(one.skipped for one in node.bring())
    assert node.runtime.log == []


def test_what_has_the_same_content_under_another_name_is_not_brought_again(node: Node) -> None:
    path = an_archive(node.folder, "a.tar", D1, "x/a:1")
    node.bring()
    path.rename(node.folder / "z.tar")
    assert [one.skipped for one in node.bring()] == [True]


@pytest.mark.parametrize(
    "change",
    [
        lambda held: held.pop("x/a:1"),
        lambda held: held.update({"x/a:1": Held(D2, frozenset({PINNED}))}),
        lambda held: held.update({"x/a:1": Held(D1)}),
    ],
    ids=["gone", "another content", "not pinned"],
)
def test_what_the_runtime_has_no_more_is_brought_again(node: Node, change: object) -> None:
    an_archive(node.folder, "a.tar", D1, "x/a:1")
    node.bring()
    assert callable(change)
    change(node.runtime.held)
    node.bring()
    assert node.loads == ["a.tar"]
    assert node.runtime.held["x/a:1"].digest == D1
    assert PINNED in node.runtime.held["x/a:1"].labels


def test_a_new_release_replaces_a_name(node: Node) -> None:
    path = an_archive(node.folder, "a.tar", D1, "x/a:1", "x/a:1.0")
    node.bring()
    path.unlink()
    an_archive(node.folder, "a.tar", D2, "x/a:1", "x/a:1.1")
    node.bring()
    assert node.runtime.held["x/a:1"].digest == D2
    # The old version may be collected now.
    assert PINNED not in node.runtime.held["x/a:1.0"].labels
    assert len(json.loads(node.stored)) == 1


def test_pins_of_others_stay(node: Node) -> None:
    node.runtime.held["other/x:1"] = Held(D2, frozenset({PINNED}))
    node.bring()
    assert node.runtime.held["other/x:1"].labels == {PINNED}


def test_a_bad_archive_is_told_by_name_and_holds_up_no_other(node: Node) -> None:
    (node.folder / "a-garbage.tar").write_bytes(b"\x00garbage" * 1000)
    (node.folder / "b-empty.tar").write_bytes(b"")
    (node.folder / "c-folder.tar").mkdir()
    tar(node.folder / "d-nothing.tar", {"readme": b"hello"})
    tar(node.folder / "e-json.tar", {"index.json": b"{"})
    tar(node.folder / "f-nested.tar", {"index.json": b"[" * 100_000})
    tar(node.folder / "g-large.tar", {"index.json": b" " * (archives.LIST_MAX + 1)})
    tar(node.folder / "h-nameless.tar", {"index.json": b'{"manifests": []}'})
    an_archive(node.folder, "i-refused.tar", D2, "x/i:1")
    node.runtime.refuse.add("i-refused.tar")
    tar(node.folder / "j-packed.tar.gz", {"index.json": an_index(D1, "x/j:1")}, mode="w:gz")
    (node.folder / "j-cut.tar").write_bytes(
        an_archive(node.folder, "k-good.tar", D1, "x/k:1").read_bytes()[:700]
    )
    outcomes = {one.path.name: one for one in node.bring()}
    bad = [name for name, one in outcomes.items() if one.error]
    assert bad == [name for name in outcomes if name != "k-good.tar"]
    for name in bad:
        assert name in str(outcomes[name].error), name
    assert outcomes["k-good.tar"].names == ("x/k:1",)
    # They are looked at again, since they may have been replaced.
    assert {one.path.name for one in node.bring() if one.error} == set(bad)


def test_no_name_leads_to_half_of_an_image(node: Node) -> None:
    an_archive(node.folder, "a.tar", D1, "x/a:1", "x/a:2")
    node.runtime.held["x/a:2"] = Held(D1)
    node.runtime.refuse.add("a.tar")
    node.bring()
    # What another had brought, whole, under a name of the archive stays.
    assert node.runtime.held == {"x/a:2": Held(D1)}


def test_a_cut_costs_one_archive(node: Node) -> None:
    for letter in "abc":
        an_archive(node.folder, f"{letter}.tar", D1, f"x/{letter}:1")
    node.runtime.refuse.add("b.tar")
    node.bring()
    node.runtime.refuse.clear()
    node.bring()
    assert node.loads == ["b.tar"]


def test_what_was_written_down_may_be_garbage(node: Node) -> None:
    an_archive(node.folder, "a.tar", D1, "x/a:1")
    for text in ("", "{", "[]", '{"a": 1}', '{"a": {"b": 2}}', "[" * 100_000):
        node.stored = text
        node.runtime.held.clear()
        assert [one.error for one in node.bring()] == [None]
        assert node.loads == ["a.tar"]


def test_a_docker_archive_is_known_by_its_list(tmp_path: Path) -> None:
    words = json.dumps([{"Config": "x.json", "RepoTags": ["a:1", "b:2"], "Layers": []}]).encode()
    plain = tar(tmp_path / "plain.tar", {"x.json": b"{}", "manifest.json": words})
    dotted = tar(tmp_path / "dotted.tar", {"./manifest.json": words})
    assert archives.read(plain).names == ("a:1", "b:2")
    assert archives.read(dotted).identity == archives.read(plain).identity
    both = tar(tmp_path / "both.tar", {"manifest.json": words, "index.json": an_index(D1, "c:3")})
    assert archives.read(both).names == ("c:3",)


def test_only_archives_count(tmp_path: Path) -> None:
    for name in ("b.tar", "a.tgz", ".hidden.tar", "notes.txt", "c.tar.part"):
        (tmp_path / name).touch()
    found = archives.find([tmp_path, tmp_path / "absent"])
    assert [path.name for path in found] == ["a.tgz", "b.tar"]


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(ArchiveError, match="regular"):
        archives.read(tmp_path / "a.tar")


@pytest.mark.parametrize(
    "text",
    ["null", "3", '{"manifests": 3}', '{"manifests": [3, {"annotations": 1}]}', "[1]", "[{}]"],
)
def test_lists_of_other_forms_name_nothing(text: str) -> None:
    assert archives.names(text.encode()) == ()


def test_the_table_of_images_is_read() -> None:
    text = (
        "REF               TYPE           DIGEST  SIZE  PLATFORMS  LABELS\n"
        f"skerry.local/a:1  application/x  {D1} 2.0 MiB  linux/amd64 -      \n"
        f"x/b:2  application/y {D2} 50.6 MiB linux/amd64,linux/arm64/v8 "
        "io.cri-containerd.image=managed,io.cri-containerd.pinned=pinned \n"
    )
    assert parse_images(text) == {
        "skerry.local/a:1": Held(D1),
        "x/b:2": Held(D2, frozenset({"io.cri-containerd.image", PINNED})),
    }
