"""``skerry``: finds the sub-commands of the packages that are installed, and runs one."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from skerry import __version__
from skerry.errors import SkerryError

# A node has fewer of them than a workstation; each offers `commands.register(subparsers)`.
PACKAGES = (
    *("provisioning", "appliance", "appliance.operator", "appliance.kubernetes"),
    *("appliance.container_images", "appliance.services", "ota", "image", "qemu"),
)

Handler = Callable[[argparse.Namespace], int | None]


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with the sub-commands of every installed package."""
    parser = argparse.ArgumentParser(
        prog="skerry", description="One image, one token, one cluster.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"skerry {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for package in PACKAGES:
        if _is_here(package) and _is_here(f"{package}.commands"):
            importlib.import_module(f"{package}.commands").register(subparsers)
    return parser


def _is_here(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False  # Its parent is not here.


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; a :class:`SkerryError` becomes two lines."""
    _complete_streams()
    parsed = build_parser().parse_args(arguments)
    handler: Handler = parsed.handler
    try:
        status = handler(parsed) or 0
        sys.stdout.flush()
    except SkerryError as error:
        print(f"skerry: {error}", file=sys.stderr)
        if error.hint:
            print(f"  {error.hint}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _forget_output()
        return 141
    except OSError as error:
        # What the machine refuses (a full disk under a redirected output, say) is no defect.
        print(f"skerry: {error}", file=sys.stderr)
        _forget_output()
        return 1
    return status


def _complete_streams() -> None:
    """Put /dev/null in the place of standard streams that the caller has closed."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = Path(os.devnull).open(mode, encoding="utf-8")  # noqa: SIM115 - as long as we
            setattr(sys, name, stream)


def _forget_output() -> None:
    """Keep the interpreter's last flush from complaining about an output that takes nothing."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
