"""What names and labels may look like, in one place."""

from __future__ import annotations

import re
from collections.abc import Mapping

from provisioning.errors import ProvisioningError

LABELS_MAX = 16
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?", re.ASCII)


def is_name(text: str) -> bool:
    """Say whether it is a lower-case DNS label (RFC 1123): what nodes and networks are called."""
    return _NAME.fullmatch(text) is not None


def check_name(text: str, what: str) -> str:
    """Return the name, or raise ProvisioningError saying what names look like."""
    if not is_name(text):
        raise ProvisioningError(
            f"{text!r} cannot be the name of a {what}",
            hint="use 1 to 63 of a-z, 0-9 and '-', not beginning or ending with '-'",
        )
    return text


def are_labels(labels: Mapping[str, str]) -> bool:
    """Say whether keys and values are label words (1 to 63 of A-Z a-z 0-9 . _ / -), 16 at most."""
    return len(labels) <= LABELS_MAX and all(
        _LABEL.fullmatch(word) for pair in labels.items() for word in pair
    )
