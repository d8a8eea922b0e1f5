"""Who is let in: the question that is asked of whoever knows more than the certificate's chain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from provisioning.membership import Member


@dataclass(frozen=True, slots=True)
class Denied:
    """Why a member with a good certificate is not let in; ``cause`` is a short code."""

    cause: str
    detail: str


Admits = Callable[[Member], Denied | None]
