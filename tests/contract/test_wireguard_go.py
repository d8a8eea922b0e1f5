"""A host without Go builds the userspace WireGuard with the tools root's."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from image import wireguard_go
from image.golang import go_command


def test_the_tools_roots_go_works_on_our_module_from_wherever_it_is_called(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("shutil.which", lambda _name: None)
    monkeypatch.chdir(tmp_path)
    program = wireguard_go.PROGRAM
    command = go_command(["list", "-m", "-mod=readonly"], folder=program.folder)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"module {done.stdout.strip()}\n" in (program.source / "go.mod").read_text()
