"""What people are told of a program that does not do what it should."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance import programs
from appliance.programs import ProgramError, RefusedError


def put(folder: Path, name: str, lines: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{lines}\n")
    path.chmod(0o755)


@pytest.fixture(autouse=True)
def only_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")


def test_it_gets_its_words_and_its_text(tmp_path: Path) -> None:
    put(tmp_path, "nft", 'echo "$@"; cat')
    assert programs.run("nft", ["-f", "-"], "flush", doing="laying") == b"-f -\nflush"


def test_a_refusal_says_what_was_done_and_what_the_program_said(tmp_path: Path) -> None:
    put(tmp_path, "nft", "echo 'no such table' >&2; exit 1")
    with pytest.raises(RefusedError, match=r"laying rules: nft says: no such table$"):
        programs.run("nft", [], doing="laying rules")


def test_a_silent_failure_says_its_status_and_a_long_one_is_cut(tmp_path: Path) -> None:
    put(tmp_path, "nft", "exit 3")
    with pytest.raises(RefusedError, match="status 3"):
        programs.run("nft", [], doing="laying rules")
    put(tmp_path, "nft", "head -c 100000 /dev/zero | tr '\\0' x >&2; exit 1")
    with pytest.raises(RefusedError) as caught:
        programs.run("nft", [], doing="laying rules")
    assert len(str(caught.value)) < 500


def test_a_missing_program_is_told_with_its_package() -> None:
    with pytest.raises(ProgramError, match="there is no nftables-none here") as caught:
        programs.run("nftables-none", [], doing="laying rules")
    assert caught.value.hint == "install nftables-none"
    assert not isinstance(caught.value, RefusedError)


def test_one_that_does_not_end_is_ended(tmp_path: Path) -> None:
    put(tmp_path, "nft", "exec sleep 60")
    with pytest.raises(ProgramError, match=r"within 0\.05 s"):
        programs.run("nft", [], doing="laying rules", seconds=0.05)


def test_what_can_not_be_started_is_told(tmp_path: Path) -> None:
    path = tmp_path / "nft"
    path.write_bytes(b"\x7fELF but none")
    path.chmod(0o755)
    with pytest.raises(ProgramError, match="can't be run: Exec format error"):
        programs.run("nft", [], doing="laying rules")
