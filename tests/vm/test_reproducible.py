"""Two builds from the same inputs are the same bytes, whatever the builder's habits are."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from image import keys
from image.artifacts import REPOSITORY, Artifacts, cache_directory
from image.tools import ToolsRoot

BOARD = "x86_64"


def build(output: Path, *, umask: int, environment: Mapping[str, str]) -> Artifacts:
    """Build as a person would, and seal anew whatever the cache has."""
    arguments = ["image", "build", BOARD, "--fresh", "--output", str(output)]
    done = subprocess.run(
        [sys.executable, "-m", "skerry", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        umask=umask,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return Artifacts.of(BOARD, output)


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.fixture
def other_cache() -> Iterator[Path]:
    """A cache that has the tools, the packages, Go's and the keys, and no stage of a build.

    It lies in the real one, because packages are linked from there. The root is made anew of them.
    Go programs are not built again, which takes minutes: how they are made is in image/golang.py.
    """
    tools = ToolsRoot.ensure()
    keys.signing_keys()
    cache = cache_directory()
    other = cache / "reproducible-test"
    shutil.rmtree(other, ignore_errors=True)
    (other / "debs").mkdir(parents=True)
    for deb in (cache / "debs").iterdir():
        os.link(deb, other / "debs" / deb.name)
    (other / tools.path.name).symlink_to(tools.path)
    (other / "go").symlink_to(cache / "go")
    shutil.copytree(cache / "development-keys", other / "development-keys")
    yield other
    shutil.rmtree(other, ignore_errors=True)


def test_the_same_inputs_make_the_same_bytes(
    x86_image: Artifacts, tmp_path: Path, other_cache: Path
) -> None:
    first = x86_image  # the one that the other tests boot, whenever it was made
    second = build(
        tmp_path,
        umask=0o077,
        environment={"SKERRY_CACHE": str(other_cache), "TZ": "Asia/Kolkata", "LANG": "de_DE"},
    )
    identifiers = [json.loads(item.manifest.read_text())["build_id"] for item in (first, second)]
    assert identifiers[0] == identifiers[1], "the checkout changed between the two builds"
    for name in ("root", "boot", "disk", "sbom", "manifest"):
        one, two = (getattr(item, name) for item in (first, second))
        assert digest(one) == digest(two), f"{name} differs"
