"""``skerry image`` and ``skerry bundle``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from skerry import __version__, console

if TYPE_CHECKING:
    from image.board import Architecture
    from image.build import Wanted


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add our sub-commands."""
    image = subparsers.add_parser("image", help="build disk images, refresh the package lock")
    commands = image.add_subparsers(dest="action", metavar="ACTION", required=True)
    build = commands.add_parser("build", help="build the disk image of a board")
    _common(build)
    build.add_argument("--output", type=Path, metavar="DIR", help="default: build/BOARD")
    build.set_defaults(handler=_build)
    lock = commands.add_parser("lock", help="lock the archive's current Debian packages")
    lock.add_argument("architecture", nargs="*", help="amd64, arm64 (default: both)")
    lock.set_defaults(handler=_lock)
    container = commands.add_parser(
        "oci", help="overlay and pod networking as a container image, with its DaemonSet"
    )
    container.add_argument(
        "architecture", nargs="?", default="amd64", help="amd64 (default) or arm64"
    )
    container.add_argument(
        "--name",
        default=f"skerry.local/skerry:{__version__}",
        help="what the image is called (default: %(default)s)",
    )
    container.add_argument("--output", type=Path, metavar="DIR", help="default: build/oci")
    container.set_defaults(handler=_oci)
    boards = commands.add_parser("boards", help="list the boards")
    boards.set_defaults(handler=_boards)
    tools = commands.add_parser("tools", help="make the tools root, or run a command in it")
    tools.add_argument("argv", nargs=argparse.REMAINDER, help="a command")
    tools.set_defaults(handler=_tools)

    bundle = subparsers.add_parser("bundle", help="build signed update bundles")
    actions = bundle.add_subparsers(dest="action", metavar="ACTION", required=True)
    make = actions.add_parser("build", help="build the update bundle of a board")
    _common(make)
    make.add_argument(
        "--output", type=Path, metavar="FILE", help="default: build/BOARD/update.raucb"
    )
    make.set_defaults(handler=_bundle)


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("board", help="a folder of board_configs/")
    parser.add_argument("--version", default=__version__, help=f"default: {__version__}")
    parser.add_argument(
        "--overlay",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="files that are put over the root, last; may be given again",
    )
    parser.add_argument("--keyring", type=Path, help="certificates that the image trusts (PEM)")
    parser.add_argument("--key", type=Path, help="key that signs bundles (PEM)")
    parser.add_argument("--cert", type=Path, help="certificate of that key (PEM)")
    parser.add_argument(
        "--without-kubernetes",
        action="store_true",
        help="the overlay only: no containerd, engine, container images",
    )
    parser.add_argument("--fresh", action="store_true", help="seal the root again, cached or not")


@contextmanager
def _disk_trouble() -> Iterator[None]:
    """Say in words that a disk is full or a place cannot be written."""
    try:
        yield
    except OSError as error:
        from image.errors import BuildError

        raise BuildError(
            str(error), hint="is there room, and may you write? A build needs about 4 GiB."
        ) from error


def _build(arguments: argparse.Namespace) -> None:
    from image import build

    with _disk_trouble():
        build.image(_wanted(arguments, output=arguments.output))


def _bundle(arguments: argparse.Namespace) -> None:
    from image import bundle

    wanted = _wanted(arguments, output=None)
    with _disk_trouble():
        bundle.build(wanted, output=arguments.output)


def _wanted(arguments: argparse.Namespace, *, output: Path | None) -> Wanted:
    from image.build import Wanted
    from image.keys import signing_keys

    return Wanted(
        board=arguments.board,
        version=arguments.version,
        keys=signing_keys(keyring=arguments.keyring, key=arguments.key, certificate=arguments.cert),
        overlays=tuple(path.absolute() for path in arguments.overlay),
        output=output,
        fresh=arguments.fresh,
        kubernetes=not arguments.without_kubernetes,
    )


def _lock(arguments: argparse.Namespace) -> None:
    from image.artifacts import cache_directory
    from image.board import Architecture
    from image.debs import refresh_lock

    names = arguments.architecture or [item.value for item in Architecture]
    for name in [_architecture(name).value for name in names]:
        path, changed = refresh_lock(name, cache_directory() / "logs" / f"lock-{name}.log")
        console.note(f"{path}: {len(changed)} changed")
        for item in changed:
            console.note(f"  {item.name}: {item.locked or '-'} -> {item.used or '-'}")


def _oci(arguments: argparse.Namespace) -> None:
    from image import foreign
    from image.artifacts import REPOSITORY

    output = arguments.output or REPOSITORY / "build" / "oci"
    with _disk_trouble():
        made = foreign.make(
            _architecture(arguments.architecture), arguments.name, output.absolute()
        )
    size = console.format_size(made.archive.stat().st_size)
    console.note(f"{made.archive} ({size}), {made.manifest}")


def _architecture(name: str) -> Architecture:
    from image.board import Architecture
    from skerry.errors import UsageError

    if name not in {item.value for item in Architecture}:
        raise UsageError(f"there is no architecture {name!r}", hint="amd64 or arm64")
    return Architecture(name)


def _boards(_arguments: argparse.Namespace) -> None:
    from image import board

    rows = [(name, board.load(name).description) for name in board.available()]
    print(console.table(("board", "what it is"), rows))


def _tools(arguments: argparse.Namespace) -> int:
    import subprocess

    from image.tools import ToolsRoot

    tools = ToolsRoot.ensure()
    if not arguments.argv:
        print(tools.path)
        return 0
    return subprocess.run(tools.command(arguments.argv), check=False).returncode
