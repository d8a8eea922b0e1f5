"""Our own Go: format, vet and tests, with the flags and caches of the builds.

After the images, since these have compiled what ours depends on: a minute instead of ten.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from image.golang import MODULES, go_command

pytestmark = pytest.mark.timeout(1800)

MODULES_WITH_CODE = sorted(path.parent.name for path in MODULES.glob("*/cmd"))
# Compiled packages are known by their flags: without this one all of Kubernetes is built anew.
FLAGS = ("-trimpath",)


def folders(module: str) -> list[str]:
    """Return the folders of a module that have code of ours."""
    return [name for name in ("cmd", "internal") if (MODULES / module / name).is_dir()]


def run(command: list[str]) -> str:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}"
    return done.stdout


@pytest.mark.parametrize("module", MODULES_WITH_CODE)
def test_it_is_formatted(module: str) -> None:
    *before, program = go_command([], folder=module)
    gofmt = str(Path(program).with_name("gofmt"))  # both Go's own folder and Debian's have it
    assert run([*before, gofmt, "-l", *folders(module)]) == ""


@pytest.mark.parametrize("module", MODULES_WITH_CODE)
@pytest.mark.parametrize("action", ["vet", "test"])
def test_go_finds_nothing(module: str, action: str) -> None:
    packages = [f"./{name}/..." for name in folders(module)]
    # Go does not see that a file outside the module, such as a manifest, is not as it was.
    flags = (*FLAGS, "-count=1") if action == "test" else FLAGS
    run(go_command([action, *flags, *packages], folder=module))
