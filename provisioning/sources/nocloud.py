"""A NoCloud seed: ``user-data`` or ``meta-data`` with a ``skerry`` mapping that has a ``token``.

cloud-init's files are YAML; there is no YAML parser on the node and none is wanted. Two forms are
read: a JSON document (which is YAML), and this one, with any other top-level keys around it::

    skerry:
      token: SKERRY1-...

The value may be quoted and a comment may follow; it stands on one line.
"""

from __future__ import annotations

import json
import re

from provisioning.errors import ProvisioningError

FILES = ("user-data", "meta-data")
_TOP = re.compile(r"skerry:\s*(#.*)?")
_TOKEN = re.compile(r"""\s+token:\s+(?:"([^"]*)"|'([^']*)'|([A-Za-z0-9]\S*))\s*(#.*)?""")


class SeedError(ProvisioningError):
    """A seed that speaks of Skerry in a form that is not read."""


def token_in(seed: str) -> str | None:
    """Return the token text of a seed file; None if it does not speak of Skerry."""
    text = seed.removeprefix("\ufeff")
    if text.lstrip().startswith("{"):
        return _token_in_json(text)
    lines = iter(text.splitlines())
    for line in lines:
        if _TOP.fullmatch(line):
            break
    else:
        return None
    for line in lines:
        if match := _TOKEN.fullmatch(line):
            return next(group for group in match.groups()[:3] if group is not None)
        if line.strip() and not line[0].isspace() and not line.startswith("#"):
            break
    raise SeedError(
        "the seed has a `skerry:` part without a readable `token:`",
        hint="write `skerry:` and below it, indented, `token: SKERRY1-...` on one line",
    )


def _token_in_json(text: str) -> str | None:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    part = document.get("skerry") if isinstance(document, dict) else None
    if part is None:
        return None
    token = part.get("token") if isinstance(part, dict) else None
    if not isinstance(token, str):
        raise SeedError("the seed's `skerry` has no `token` string")
    return token
