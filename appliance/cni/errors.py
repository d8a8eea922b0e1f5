"""What goes wrong in a CNI call, with the code by which the runtime knows it (CNI 1.1.0, "Error").

Codes up to 99 belong to the specification; ours begin at 100.
"""

from __future__ import annotations

from enum import IntEnum

from skerry.errors import SkerryError

NEWEST = "1.1.0"


class Code(IntEnum):
    """The code of an error. 8 to 10 are not specified, so nothing of ours has them."""

    VERSION = 1
    UNSUPPORTED_FIELD = 2
    UNKNOWN_CONTAINER = 3
    ENVIRONMENT = 4
    IO = 5
    DECODE = 6
    CONFIG = 7
    TRY_AGAIN = 11
    UNAVAILABLE = 50
    LIMITED = 51
    NO_ADDRESS = 100
    NOT_AS_EXPECTED = 101
    INTERNAL = 102


class CniError(SkerryError):
    """A call that is refused, or came to nothing; ``code`` is what the runtime acts upon.

    ``cni_version`` is the one that the caller asked for, where that is known and supported.
    """

    def __init__(
        self,
        code: Code,
        message: str,
        *,
        details: str = "",
        hint: str | None = None,
        cni_version: str = NEWEST,
    ) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.details = details
        self.cni_version = cni_version
