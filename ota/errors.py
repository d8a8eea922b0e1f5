"""What can go wrong with an update."""

from __future__ import annotations

from enum import Enum

from skerry.errors import SkerryError


class Trouble(Enum):
    """The cause, for code; the message of the error is for people."""

    NO_SERVICE = "RAUC's service cannot be reached"
    NOT_AUTHORISED = "the caller may not update this node"
    BUSY = "RAUC is at another job"
    NO_FILE = "the bundle cannot be read"
    SIGNATURE = "the bundle's signature is not valid here"
    TRUNCATED = "the bundle is damaged or cut short"
    COMPATIBLE = "the bundle is for another kind of machine"
    SPACE = "no room left on a device"
    REFUSED = "policy refuses this bundle or slot"
    RECORD = "a record in the update directory cannot be written"
    TIMEOUT = "RAUC did not answer in time"
    OTHER = "something else"


class OtaError(SkerryError):
    """An update that cannot go on; ``trouble`` names the cause for code."""

    def __init__(
        self, message: str, *, hint: str | None = None, trouble: Trouble = Trouble.OTHER
    ) -> None:
        super().__init__(message, hint=hint)
        self.trouble = trouble
