"""The layout is the architecture: who may import whom."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ALLOWED = {
    "skerry": set[str](),
    "provisioning": {"skerry"},
    "ota": {"skerry"},
    "appliance": {"skerry", "provisioning", "ota"},
    "image": {"skerry"},
    "qemu": {"skerry", "image"},
}
LONGEST_MODULE = 500


def imports_of(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
    return {name.split(".")[0] for name in found}


def forbidden_imports(package: str, source: str) -> set[str]:
    ours = set(ALLOWED) | {"tests"}
    return (imports_of(ast.parse(source)) & ours) - ALLOWED[package] - {package}


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_packages_import_only_what_they_may(package: str) -> None:
    modules = sorted((ROOT / package).rglob("*.py"))
    assert modules
    wrong = {
        str(path.relative_to(ROOT)): bad
        for path in modules
        if (bad := forbidden_imports(package, path.read_text()))
    }
    assert not wrong


def test_the_check_itself_sees_a_wrong_arrow() -> None:
    assert forbidden_imports("ota", "from appliance.overlay import core") == {"appliance"}
    assert forbidden_imports("provisioning", "import ota.rauc") == {"ota"}
    assert forbidden_imports("appliance", "import provisioning.token, ota") == set()


def test_modules_are_for_one_sitting() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for package in [*ALLOWED, "tests"]
        for path in (ROOT / package).rglob("*.py")
        if (lines := len(path.read_text().splitlines())) > LONGEST_MODULE
    }
    assert not long
