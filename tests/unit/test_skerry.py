from __future__ import annotations

import argparse
import io

import pytest

import skerry.__main__
from skerry import console
from skerry.errors import SkerryError, UsageError


def test_elapsed_and_sizes_read_well() -> None:
    assert console.format_elapsed(4.23) == "4.2s"
    assert console.format_elapsed(187) == "3m07s"
    assert console.format_size(0) == "0 B"
    assert console.format_size(289 * 1024**2) == "289.0 MiB"
    assert console.format_size(5 * 1024**4) == "5120.0 GiB"


def test_table_aligns_columns_under_their_header() -> None:
    drawn = console.table(("name", "state"), [("a", "ready"), ("longer", "joining")])
    assert drawn.splitlines() == ["name    state", "a       ready", "longer  joining"]


def test_progress_off_a_terminal_is_a_line_every_tenth() -> None:
    stream = io.StringIO()
    bar = console.Progress("writing", 1000, stream=stream)
    for done in range(0, 1001, 10):
        bar.update(done)
    bar.finish()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 11
    assert lines[-1].startswith("writing: 100% 1000 B of 1000 B")


def test_progress_of_nothing_does_not_divide_by_zero() -> None:
    stream = io.StringIO()
    console.Progress("writing", 0, stream=stream).update(0)
    assert "0%" in stream.getvalue()


def test_step_says_when_it_failed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SkerryError), console.step("boot"):
        raise SkerryError("no")
    assert "boot: failed after" in capsys.readouterr().err


def run_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int:
    def handler(_arguments: argparse.Namespace) -> int:
        raise error

    def build_parser() -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser()
        parser.set_defaults(handler=handler)
        return parser

    monkeypatch.setattr(skerry.__main__, "build_parser", build_parser)
    return skerry.__main__.main([])


def test_an_error_is_two_lines_for_a_person(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status = run_with(monkeypatch, SkerryError("the disk is full", hint="remove something"))
    assert status == 1
    assert capsys.readouterr().err == "skerry: the disk is full\n  remove something\n"


def test_usage_errors_and_interrupts_have_their_own_status(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert run_with(monkeypatch, UsageError("what?")) == 2
    assert run_with(monkeypatch, KeyboardInterrupt()) == 130


def test_every_package_on_this_machine_contributes_its_commands() -> None:
    text = skerry.__main__.build_parser().format_help()
    for command in ("network", "token", "flash", "status", "update", "image", "bundle", "lab"):
        assert command in text
