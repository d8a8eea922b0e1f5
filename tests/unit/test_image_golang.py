"""What the name of a finished Go program depends on, and which Go builds it."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from image import golang
from image.errors import BuildError
from image.golang import Program, Replacement, build
from image.tools import ToolsRoot

PROGRAM = Program("thing", "./cmd/thing", "thing")
THEIRS = Program("thing", "example.org/other/cmd/it", "it")
REPLACEMENT = Replacement("example.org/other", "sub/theirs.go", "\told()\n", "\tnew()\n")
HOST = golang._Toolchain("/usr/bin/go", (1, 26, 8))


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(golang, "MODULES", tmp_path)
    folder = tmp_path / "thing"
    (folder / "cmd" / "thing").mkdir(parents=True)
    (folder / "go.mod").write_text("module skerry/thing\n\ngo 1.26.0\n")
    (folder / "go.sum").write_text("")
    (folder / "cmd" / "thing" / "main.go").write_text("package main\n")
    return folder


def _name(program: Program = PROGRAM, architecture: str = "amd64") -> str:
    return golang._input_hash(program, architecture, HOST)


def test_the_name_changes_with_whatever_changes_the_program(module: Path) -> None:
    names = {_name(), _name(architecture="arm64"), _name(replace(PROGRAM, tags=("x",)))}
    names.add(_name(replace(PROGRAM, ldflags=("-X a.b=c",))))
    names.add(_name(replace(PROGRAM, test=True)))
    names.add(_name(replace(PROGRAM, replacements=(REPLACEMENT,))))
    names.add(_name(replace(PROGRAM, replacements=(replace(REPLACEMENT, new="x"),))))
    names.add(golang._input_hash(PROGRAM, "amd64", replace(HOST, version=(1, 26, 9))))
    (module / "go.sum").write_text("another\n")
    names.add(_name())
    (module / "cmd" / "thing" / "main.go").write_text("package main // changed\n")
    names.add(_name())
    (module / "cmd" / "thing" / "embedded.yaml").write_text("a: 1\n")
    names.add(_name())
    (module / "internal" / "y").mkdir(parents=True)
    (module / "internal" / "y" / "y.go").write_text("package y\n")
    names.add(_name())
    assert len(names) == 12


def test_the_name_stays_when_only_go_elsewhere_or_a_test_changes(module: Path) -> None:
    before = _name()
    (module / "cmd" / "thing" / "main_test.go").write_text("package main\n")
    (module / "cmd" / "another").mkdir()
    (module / "cmd" / "another" / "main.go").write_text("package main\n")
    assert golang._input_hash(PROGRAM, "amd64", replace(HOST, program="/opt/go")) == before


def test_a_test_binary_of_ours_changes_with_its_tests(module: Path) -> None:
    before = _name(replace(PROGRAM, test=True))
    (module / "cmd" / "thing" / "main_test.go").write_text("package main\n")
    assert _name(replace(PROGRAM, test=True)) != before


def test_no_program_of_ours_is_a_package_that_another_could_use() -> None:
    """Else a program's name would have to change with what is in another's folder."""
    found = [path.read_text() for path in golang.MODULES.glob("*/cmd/**/*.go")]
    assert len(found) > 3
    assert all(re.search(r"^package main$", text, re.MULTILINE) for text in found)


def test_what_stands_in_for_a_module_is_in_the_folder_of_the_program() -> None:
    """Else its content would be in no name."""
    texts = [path.read_text() for path in golang.MODULES.glob("*/go.mod")]
    assert any("=> ./" in text for text in texts)
    assert not any(re.search(r"=> (?:\.\.|/|\")", text) for text in texts)


def test_the_name_of_a_dependencys_program_changes_with_what_goes_in_only(module: Path) -> None:
    with_added = replace(THEIRS, additions=(("example.org/other", "added"),))
    programs = (THEIRS, replace(THEIRS, test=True), with_added)
    before = [_name(one) for one in programs]
    (module / "cmd" / "thing" / "main.go").write_text("package main // changed\n")
    (module / "internal").mkdir()
    (module / "internal" / "y.go").write_text("package internal\n")
    assert [_name(one) for one in programs] == before

    (module / "added").mkdir()
    (module / "added" / "ours.go").write_text("package other\n")
    assert [_name(one) for one in programs[:2]] == before[:2]
    assert _name(with_added) != before[2]

    (module / "absent").mkdir()
    (module / "go.mod").write_text("module a\n\nreplace x.example/y => ./absent\n")
    without = [_name(one) for one in programs]
    (module / "absent" / "y.go").write_text("package y\n")
    names = {*before, *without, *(_name(one) for one in programs)}
    (module / "go.sum").write_text("another\n")
    names |= {_name(one) for one in programs}
    assert len(names) == 12


def test_another_architecture_is_refused_by_name() -> None:
    with pytest.raises(BuildError, match="'riscv64'"):
        build(PROGRAM, "riscv64")


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("go1.26.8", (1, 26, 8)),
        ("/usr/lib/go-1.26/bin/go", (1, 26)),
        ("go1.27rc1", (1, 27)),
        ("", ()),
    ],
)
def test_versions(text: str, numbers: tuple[int, ...]) -> None:
    assert golang._numbers(text) == numbers


def test_the_hosts_go_is_taken_if_it_is_new_enough(
    module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda _name: "/host/go")
    monkeypatch.setattr(golang, "_version", {("/host/go",): (1, 26, 8)}.__getitem__)
    assert golang._needed(module) == (1, 26, 0)
    assert golang._toolchain((1, 26, 0)) == golang._Toolchain("/host/go", (1, 26, 8))


def _tools_with(monkeypatch: pytest.MonkeyPatch, folder: Path, *versions: str) -> ToolsRoot:
    """Fake a tools root that has these versions of Go, on a host whose own is 1.19."""
    tools = ToolsRoot(folder / "root")
    for one in versions:
        (tools.path / "usr" / "lib" / f"go-{one}").mkdir(parents=True)
    monkeypatch.setattr(ToolsRoot, "ensure", lambda: tools)
    monkeypatch.setattr("shutil.which", lambda _name: "/host/go")

    def version(command: tuple[str, ...]) -> tuple[int, ...]:
        return (1, 19) if command == ("/host/go",) else (*golang._numbers(command[-1]), 3)

    monkeypatch.setattr(golang, "_version", version)
    return tools


def test_else_the_newest_of_the_tools_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tools = _tools_with(monkeypatch, tmp_path, "1.24", "1.26")
    chosen = golang._toolchain((1, 26, 0))
    assert chosen == golang._Toolchain("/usr/lib/go-1.26/bin/go", (1, 26, 3), tools)


def test_no_go_that_is_new_enough(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _tools_with(monkeypatch, tmp_path, "1.24")
    with pytest.raises(BuildError, match=r"no Go of version 1\.26\.0") as caught:
        golang._toolchain((1, 26, 0))
    assert "1.26.0" in str(caught.value.hint)


def test_the_results_used_last_are_kept_of_each_program_and_architecture(tmp_path: Path) -> None:
    names = [f"thing-amd64-{number:016x}" for number in range(golang._KEPT + 2)]
    others = [f"thing-arm64-{0:016x}", f"thing-amd64-go-{0:016x}"]
    for age, name in enumerate([*names, *others]):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (age, age))
    os.utime(tmp_path / names[0], (99, 99))
    golang._prune(tmp_path, "thing-amd64-")
    assert {one.name for one in tmp_path.iterdir()} == {names[0], *names[3:], *others}


@pytest.fixture
def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module as `go mod download` leaves it."""
    folder = tmp_path / "other"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "theirs.go").write_text("package sub\n\told()\n")
    monkeypatch.setattr(golang, "run", lambda *_, **__: f'{{"Dir": "{folder}"}}')
    return folder


def test_additions_are_new_files_of_a_copy(module: Path, other: Path, tmp_path: Path) -> None:
    (module / "added" / "sub").mkdir(parents=True)
    (module / "added" / "ours.go").write_text("package other\n")
    program = replace(PROGRAM, additions=(("example.org/other", "added"),))
    main = golang._with_changes(program, HOST, tmp_path / "scratch")
    assert "replace example.org/other => ./changed-0" in (main / "go.mod").read_text()
    found = {path.name for path in (main / "changed-0").iterdir()}
    assert found == {"sub", "ours.go"}
    assert not (other / "ours.go").exists()

    (module / "added" / "sub" / "theirs.go").write_text("package changed\n")
    with pytest.raises(BuildError, match=r"theirs\.go would change a file of example\.org/other"):
        golang._with_changes(program, HOST, tmp_path / "again")


def test_replacements_read_otherwise_in_a_copy(module: Path, other: Path, tmp_path: Path) -> None:
    (module / "added").mkdir()
    (module / "added" / "ours.go").write_text("package other\n")
    program = replace(
        PROGRAM, additions=(("example.org/other", "added"),), replacements=(REPLACEMENT,)
    )
    main = golang._with_changes(program, HOST, tmp_path / "scratch")
    # One copy has both.
    assert (main / "go.mod").read_text().count("\nreplace ") == 1
    assert (main / "changed-0" / "sub" / "theirs.go").read_text() == "package sub\n\tnew()\n"
    assert (main / "changed-0" / "ours.go").exists()
    assert (other / "sub" / "theirs.go").read_text() == "package sub\n\told()\n"


@pytest.mark.parametrize(
    ("text", "places"), [("package sub\n", 0), ("\told()\n\told()\n", 2), (None, 0)]
)
@pytest.mark.usefixtures("module")
def test_a_replacement_has_exactly_one_place(
    other: Path, tmp_path: Path, text: str | None, places: int
) -> None:
    """So that another version of the module is looked at, not built without the change."""
    path = other / "sub" / "theirs.go"
    path.unlink() if text is None else path.write_text(text)
    program = replace(PROGRAM, replacements=(REPLACEMENT,))
    said = rf"example\.org/other: sub/theirs\.go has {places} places that read 'old\(\)', not one"
    with pytest.raises(BuildError, match=said):
        golang._with_changes(program, HOST, tmp_path / "scratch")
