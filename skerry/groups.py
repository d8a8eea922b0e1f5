"""Groups of sub-commands (``skerry token ...``) that more than one package adds to."""

from __future__ import annotations

import argparse
from typing import TypeAlias
from weakref import WeakKeyDictionary

# What add_subparsers returns has no public name; at run time it takes no parameter.
Actions: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001
_ACTIONS: WeakKeyDictionary[argparse.ArgumentParser, Actions] = WeakKeyDictionary()


def group(subparsers: Actions, name: str, explanation: str) -> Actions:
    """Return the actions of a group, to add one to; the group is made if nobody has yet."""
    parser = subparsers.choices.get(name)
    if parser is None:
        parser = subparsers.add_parser(name, help=explanation)
        _ACTIONS[parser] = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    return _ACTIONS[parser]
