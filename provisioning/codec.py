"""The one encoding of everything that is signed, stored or put into a token.

MessagePack of frozen array-like structs, in exactly one form: shortest integers and lengths, no
unknown or missing elements, map keys in byte order without repeats. What does not encode to the
very bytes it was decoded from is refused, so that no second spelling of a signed thing exists.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from provisioning.errors import FormatError

T = TypeVar("T")
_ENCODER = msgspec.msgpack.Encoder(order="sorted")


def encode(value: object) -> bytes:
    """Return the canonical bytes of a struct."""
    return _ENCODER.encode(value)


def decode(data: bytes, kind: type[T], *, limit: int) -> T:
    """Return the ``kind`` that ``data`` holds.

    Nothing is parsed beyond ``limit`` bytes. Raises FormatError for anything but the canonical
    form; the message carries no content, since that may be secret.
    """
    if len(data) > limit:
        raise FormatError(f"it has {len(data)} bytes, at most {limit} are allowed")
    try:
        value = msgspec.msgpack.decode(data, type=kind, strict=True)
        again = _ENCODER.encode(value)
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
        raise FormatError(f"it is not a well-formed {kind.__name__}") from error
    if again != data:
        raise FormatError(f"it is not the canonical form of a {kind.__name__}")
    return value
