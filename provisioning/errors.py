"""The package's branch of the error tree."""

from __future__ import annotations

from skerry.errors import SkerryError


class ProvisioningError(SkerryError):
    """Something is off with a network, a token, an identity or a medium."""


class FormatError(ProvisioningError):
    """Bytes that are not what they should be; callers turn it into their own error."""
