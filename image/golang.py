"""Builds Go programs out of the modules in this folder, pinned by their go.mod and go.sum.

A program is a package of `image/FOLDER`, ours or of what it depends on::

    path = build(Program("engine", "./cmd/skerry-engine", "skerry-engine"), "arm64")

Compiled packages and modules are kept in one place for all of them (`$SKERRY_CACHE/go`), finished
programs under the hash of everything that went into them. By hand::

    python -m image.golang cni ./cmd/skerry-cni skerry-cni arm64
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from image.artifacts import cache_directory
from image.errors import BuildError
from image.process import run
from image.tools import ToolsRoot, locked
from skerry import console

MODULES = Path(__file__).resolve().parent
ARCHITECTURES = ("amd64", "arm64")
_FLAGS = ("-trimpath", "-buildvcs=false", "-mod=readonly")
_LINK = ("-s", "-w", "-buildid=")
_SAY_EVERY_SECONDS = 20.0
# Of each program and architecture; an engine weighs 150 MB.
_KEPT = 6


@dataclass(frozen=True, slots=True)
class Replacement:
    """A place of a module's ``file`` that reads otherwise in one program.

    The pinned file has ``old`` exactly once, or the build fails: who takes another version of the
    module has to look at the place again.
    """

    module: str
    file: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Program:
    """One program to build.

    ``folder``: the module, a folder of `image/`. ``package``: one of its packages (``./cmd/x``) or
    of its dependencies (a whole import path). ``name``: what the file is called. ``ldflags`` are
    added to ours. ``test``: the package's test binary, as ``go test -c`` makes it. ``additions``:
    pairs of a module and a folder beside go.mod, whose files are new in that module for this build.
    ``replacements``: what reads otherwise in a module for this build.
    """

    folder: str
    package: str
    name: str
    tags: tuple[str, ...] = ()
    ldflags: tuple[str, ...] = ()
    test: bool = False
    additions: tuple[tuple[str, str], ...] = ()
    replacements: tuple[Replacement, ...] = ()

    @property
    def source(self) -> Path:
        """The folder of the module."""
        return MODULES / self.folder

    @property
    def changed(self) -> tuple[str, ...]:
        """The modules that this program has with changes."""
        found = [module for module, _ in self.additions]
        return tuple(dict.fromkeys([*found, *(one.module for one in self.replacements)]))


def build(program: Program, architecture: str) -> Path:
    """Return the path of the finished program, static, for ``amd64`` or ``arm64``.

    Builds it if the cache has none of these inputs; the first build of the engine takes some 10
    minutes. Safe beside other processes doing the same. Raises :class:`BuildError`.
    """
    if architecture not in ARCHITECTURES:
        raise BuildError(f"{program.name} cannot be built for {architecture!r}: only amd64, arm64")
    toolchain = _toolchain(_needed(program.source))
    kept = cache_directory() / "go" / "programs"
    folder = kept / f"{program.name}-{architecture}-{_input_hash(program, architecture, toolchain)}"
    finished = folder / program.name
    if finished.exists():
        os.utime(folder)  # it counts as used: others go first
        return finished
    with locked(folder.with_name(f"{folder.name}.lock"), waiting_for=program.name):
        if not finished.exists():
            with console.step(f"building {program.name} for {architecture} into {folder}"):
                _build(program, architecture, toolchain, finished)
                _prune(kept, f"{program.name}-{architecture}-")
    return finished


def _prune(kept: Path, prefix: str) -> None:
    """Remove the results that were not used for the longest time."""
    made = [one for one in kept.glob(f"{prefix}{'[0-9a-f]' * 16}") if one.is_dir()]
    for folder in sorted(made, key=lambda one: one.stat().st_mtime)[:-_KEPT]:
        shutil.rmtree(folder, ignore_errors=True)
        folder.with_name(f"{folder.name}.log").unlink(missing_ok=True)


def go_command(words: Sequence[str], *, folder: str) -> list[str]:
    """Return the argv that runs ``go WORDS`` in a module's folder with the shared caches."""
    source = MODULES / folder
    settings = [f"{name}={value}" for name, value in _environment().items()]
    chdir = ["env", "-C", str(source), *settings]
    return [*chdir, *_toolchain(_needed(source)).command(source), *words]


@dataclass(frozen=True, slots=True)
class _Toolchain:
    """A Go: the host's, or that of the tools root at the same path inside it."""

    program: str
    version: tuple[int, ...]
    tools: ToolsRoot | None = None

    def command(self, cwd: Path) -> list[str]:
        return self.tools.command([self.program], cwd=cwd) if self.tools else [self.program]


def _needed(source: Path) -> tuple[int, ...]:
    """Return the version on the ``go`` line of a go.mod."""
    text = (source / "go.mod").read_text()
    found = re.search(r"^go (\d+(?:\.\d+)*)$", text, re.MULTILINE)
    if not found:
        raise BuildError(f"{source / 'go.mod'} has no `go` line")
    return _numbers(found[1])


def _numbers(text: str) -> tuple[int, ...]:
    """Return the first version in a text: 1, 26, 8 for ``go1.26.8`` and ``/usr/lib/go-1.26.8/``."""
    found = re.search(r"\d+(?:\.\d+)*", text)
    return tuple(int(one) for one in found[0].split(".")) if found else ()


def _toolchain(needed: tuple[int, ...]) -> _Toolchain:
    """Return a Go that is new enough: the host's, else the newest of the tools root."""
    host = shutil.which("go")
    if host and (version := _version((host,))) >= needed:
        return _Toolchain(host, version)
    tools = ToolsRoot.ensure()
    found = [f"/usr/lib/{path.name}/bin/go" for path in tools.file("/usr/lib").glob("go-*.*")]
    for program in sorted(found, key=_numbers, reverse=True):
        version = _version(tuple(tools.command([program])))
        if version >= needed:
            return _Toolchain(program, version, tools)
    wanted = ".".join(str(one) for one in needed)
    raise BuildError(
        f"no Go of version {wanted} or newer: neither on this host nor in {tools.path}",
        hint=f"install Go {wanted} and put it on PATH",
    )


@functools.cache
def _version(command: tuple[str, ...]) -> tuple[int, ...]:
    done = subprocess.run(
        [*command, "env", "GOVERSION"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"GOTOOLCHAIN": "local", "GOWORK": "off"},
    )
    return _numbers(done.stdout.strip()) if done.returncode == 0 else ()


def _environment(architecture: str | None = None) -> Mapping[str, str]:
    home = cache_directory() / "go"
    settings = {
        "CGO_ENABLED": "0",
        "GOAMD64": "v1",
        "GOARM64": "v8.0",
        "GOCACHE": str(home / "build"),
        "GOFLAGS": "-modcacherw",
        "GOMODCACHE": str(home / "mod"),
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
    }
    return settings | ({"GOARCH": architecture, "GOOS": "linux"} if architecture else {})


def _input_hash(program: Program, architecture: str, toolchain: _Toolchain) -> str:
    """Return the name of the result: whatever can change it is in it."""
    digest = hashlib.sha256(
        repr((program, architecture, toolchain.version, _FLAGS, _LINK)).encode()
    )
    for path in sorted(_inputs(program)):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(program.source)} {content}\n".encode())
    return digest.hexdigest()[:16]


def _inputs(program: Program) -> set[Path]:
    """Return the files of the program's own folder that can change it.

    A package of a dependency has no code of the folder, but for what is added to its modules or
    takes the place of one. Of ours, nothing comes from other programs: no package imports a main.
    """
    source = program.source
    found = {source / "go.mod", source / "go.sum"}
    if program.package.startswith("./"):
        apart, own = source / "cmd", source / program.package
        found |= {
            path
            for path in source.rglob("*")
            if not path.is_relative_to(apart) or path.is_relative_to(own)
        }
    else:
        standing_in = re.findall(r"=> \./(\S+)", (source / "go.mod").read_text())
        for folder in (*standing_in, *(folder for _, folder in program.additions)):
            found |= set((source / folder).rglob("*"))
    tested = program.test and program.package.startswith("./")
    return {
        path for path in found if path.is_file() and (tested or not path.name.endswith("_test.go"))
    }


def _build(program: Program, architecture: str, toolchain: _Toolchain, finished: Path) -> None:
    finished.parent.parent.mkdir(parents=True, exist_ok=True)
    log = finished.parent.with_name(f"{finished.parent.name}.log")
    log.unlink(missing_ok=True)
    begun = said = time.monotonic()
    packages = 0

    def show(_line: str) -> None:
        nonlocal said, packages
        packages += 1
        if (now := time.monotonic()) - said >= _SAY_EVERY_SECONDS:
            said = now
            elapsed = console.format_elapsed(now - begun)
            console.note(f"    {elapsed:>6}  {packages} packages compiled")

    with tempfile.TemporaryDirectory(dir=finished.parent.parent) as scratch:
        made = Path(scratch) / program.name
        source = program.source
        if program.changed:
            source = _with_changes(program, toolchain, Path(scratch))
        words = ["test", "-c"] if program.test else ["build", "-v"]
        words += [*_FLAGS, f"-ldflags={' '.join((*_LINK, *program.ldflags))}"]
        words += [f"-tags={','.join(program.tags)}"] if program.tags else []
        words += ["-o", str(made), program.package]
        run(
            [*toolchain.command(source), *words],
            cwd=source,
            environment=_environment(architecture),
            log=log,
            on_line=show,
            hint=f"the Go module proxy must be reachable the first time; log: {log}",
        )
        made.chmod(0o755)
        finished.parent.mkdir(exist_ok=True)
        made.replace(finished)


def _with_changes(program: Program, toolchain: _Toolchain, scratch: Path) -> Path:
    """Return a copy of the program's module that takes changed copies of modules.

    Copies, since Go's own ``-overlay`` refuses what stands in place of a file of its module cache.
    """
    main = scratch / "main"
    shutil.copytree(program.source, main)
    with (main / "go.mod").open("a") as file:
        for number, module in enumerate(program.changed):
            # A relative path, always the same: it stands in the program's build information.
            copy = main / f"changed-{number}"
            fetch = [*toolchain.command(program.source), "mod", "download", "-json", module]
            said = run(
                fetch,
                cwd=program.source,
                environment=_environment(),
                hint="the Go module proxy must be reachable the first time",
            )
            shutil.copytree(json.loads(said)["Dir"], copy)
            for folder in (folder for name, folder in program.additions if name == module):
                _add(main / folder, copy, module)
            for one in (one for one in program.replacements if one.module == module):
                _replace(one, copy)
            file.write(f"\nreplace {module} => ./{copy.name}\n")
    return main


def _add(folder: Path, copy: Path, module: str) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            target = copy / path.relative_to(folder)
            if target.exists():
                raise BuildError(f"{path} would change a file of {module}")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def _replace(one: Replacement, copy: Path) -> None:
    path = copy / one.file
    text = path.read_text() if path.is_file() else ""
    if (places := text.count(one.old)) != 1:
        raise BuildError(
            f"{one.module}: {one.file} has {places} places that read {one.old.strip()!r}, not one",
            hint="look at what that place is in the pinned version, and change the Replacement",
        )
    path.write_text(text.replace(one.old, one.new))


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        sys.exit("usage: python -m image.golang FOLDER PACKAGE NAME [ARCHITECTURE]")
    _folder, _package, _name, _architecture = [*sys.argv[1:], "amd64"][:4]
    sys.stdout.write(f"{build(Program(_folder, _package, _name), _architecture)}\n")
