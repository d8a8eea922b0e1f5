"""The cluster agent's branch of the error tree."""

from __future__ import annotations

from skerry.errors import SkerryError


class KubernetesError(SkerryError):
    """Kubernetes on this node can't have, or can't be, what was asked."""


class SupervisorError(KubernetesError):
    """The supervisor can't be asked, or what it said can't be used; ``status`` if it said no."""

    def __init__(self, message: str, *, hint: str | None = None, status: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status


class UnitError(KubernetesError):
    """The service manager can't be asked, or refused."""


class KubeApiError(KubernetesError):
    """The Kubernetes API can't be asked, or said what can't be used; ``status`` if it said no."""

    def __init__(self, message: str, *, hint: str | None = None, status: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status
