"""An entry of the ledger as those need it who only read: who says what, under which key."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Protocol

from appliance.ledger.assigned import read_id


class Said(Protocol):
    """An entry of the ledger, as far as it is read here."""

    @property
    def owner(self) -> bytes:
        """Who signed it."""

    @property
    def key(self) -> str:
        """Its key."""

    @property
    def value(self) -> bytes:
        """Its value."""


@dataclass(frozen=True, slots=True)
class Heard:
    """An entry that the local API told (`GET /v1/ledger/BUCKET`)."""

    owner: bytes
    key: str
    value: bytes


def heard(owner: str, key: str, value: str, encoding: str) -> Heard | None:
    """Return an entry out of the words of the local API, None if they are none."""
    node_id = read_id(owner)
    try:
        plain = encoding == "utf-8"
        content = value.encode() if plain else base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return None
    return None if node_id is None else Heard(node_id, key, content)
