"""What the name of a finished Go program depends on, and which Go builds it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from image import golang
from image.errors import BuildError
from image.golang import Program, build
from image.tools import ToolsRoot

PROGRAM = Program("thing", "./cmd/thing", "thing")
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
    names.add(golang._input_hash(PROGRAM, "amd64", replace(HOST, version=(1, 26, 9))))
    (module / "go.sum").write_text("another\n")
    names.add(_name())
    (module / "cmd" / "thing" / "main.go").write_text("package main // changed\n")
    names.add(_name())
    (module / "cmd" / "thing" / "embedded.yaml").write_text("a: 1\n")
    names.add(_name())
    assert len(names) == 9


@pytest.mark.usefixtures("module")
def test_the_name_stays_when_only_go_elsewhere_or_a_test_changes(module: Path) -> None:
    before = _name()
    (module / "cmd" / "thing" / "main_test.go").write_text("package main\n")
    assert golang._input_hash(PROGRAM, "amd64", replace(HOST, program="/opt/go")) == before


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


def test_additions_are_new_files_of_a_copy(
    module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "theirs.go").write_text("package other\n")
    (module / "added").mkdir()
    (module / "added" / "ours.go").write_text("package other\n")
    monkeypatch.setattr(golang, "run", lambda *_, **__: f'{{"Dir": "{other}"}}')
    program = replace(PROGRAM, additions=(("example.org/other", "added"),))
    main = golang._with_additions(program, HOST, tmp_path / "scratch")
    assert "replace example.org/other => ./with-additions-0" in (main / "go.mod").read_text()
    found = {path.name for path in (main / "with-additions-0").iterdir()}
    assert found == {"theirs.go", "ours.go"}
    assert not (other / "ours.go").exists()

    (module / "added" / "theirs.go").write_text("package changed\n")
    with pytest.raises(BuildError, match=r"theirs\.go would change a file of example\.org/other"):
        golang._with_additions(program, HOST, tmp_path / "again")
