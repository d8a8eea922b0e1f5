"""The cluster's branch of the error tree."""

from __future__ import annotations

from skerry.errors import SkerryError


class ClusterError(SkerryError):
    """Kubernetes on this node cannot have what was asked."""


class RangesExhaustedError(ClusterError):
    """Every node range of the pods' range is claimed."""


class ConflistError(ClusterError):
    """A CNI configuration that is not one that Skerry writes."""
