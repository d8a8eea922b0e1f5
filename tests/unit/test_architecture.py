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
# The cluster agent is a process beside the supervisor, its client, and knows nothing of its inside.
AGENT = "appliance.kubernetes"
NOT_FOR_AGENT = ("appliance.supervisor", "appliance.control", "appliance.overlay.service")
# What decides touches neither a file nor a socket, and has no clock: in these folders all but these
# modules, and of the agent's, those.
EDGES_OF = {
    "appliance/cluster": set[str](),
    "appliance/control": {"service"},
    "appliance/ledger": {"commands", "secret_commands", "storage", "value_files"},
    "appliance/cni": {"kernel", "namespaces", "netlink_socket", "server", "service", "store"},
}
PURE = (
    *("keeper", "config", "credentials", "part", "records", "manifests", "facts"),
    *("reporting", "wear"),
)
EDGES = {"asyncio", "http", "os", "pathlib", "socket", "ssl", "subprocess", "time", "dbus_fast"}


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


def whole_imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_supervisor_and_cluster_agent_are_two_programs() -> None:
    own = ROOT / "appliance/kubernetes"
    for path in (ROOT / "appliance").rglob("*.py"):
        found = whole_imports(path)
        if path.is_relative_to(own):
            assert not {one for one in found if one.startswith(NOT_FOR_AGENT)}, path
        elif not path.is_relative_to(ROOT / "appliance/container_images"):  # A root program, too.
            assert not {one for one in found if one.startswith(AGENT)}, path


def edges_in(path: Path) -> set[str]:
    return {one.split(".")[0] for one in whole_imports(path)} & EDGES


def test_what_decides_for_the_engine_has_no_edges() -> None:
    for name in PURE:
        assert not edges_in(ROOT / f"appliance/kubernetes/{name}.py"), name


@pytest.mark.parametrize("folder", EDGES_OF)
def test_what_decides_has_no_edges(folder: str) -> None:
    found = {path.stem for path in (ROOT / folder).glob("*.py") if edges_in(path)}
    assert found == EDGES_OF[folder]


def test_modules_are_for_one_sitting() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for package in [*ALLOWED, "tests"]
        for path in (ROOT / package).rglob("*.py")
        if (lines := len(path.read_text().splitlines())) > LONGEST_MODULE
    }
    assert not long
