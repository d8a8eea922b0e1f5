"""The services' branch of the error tree."""

from __future__ import annotations

from skerry.errors import SkerryError


class ServiceError(SkerryError):
    """A service that cannot be exposed or reached as asked."""
