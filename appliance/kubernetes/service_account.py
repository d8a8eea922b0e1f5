"""What a pod is given to ask its cluster's Kubernetes API with: an address, an authority, a token.

The names are Kubernetes' own: every container of a pod with a service account has them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from appliance.kubernetes import files
from appliance.kubernetes.config import bracketed
from appliance.kubernetes.errors import KubernetesError

FOLDER = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_MAX = 64 * 1024
_HINT = "the manifest of `skerry image oci` gives the pod its service account"


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    """Where the API is, what its certificate is signed by (PEM), and where the token lies."""

    server: str
    authority: str
    token_file: Path

    def bearer(self) -> str:
        """Return the token; the kubelet puts a new one there every hour. Raises KubernetesError."""
        text = (files.read_text(self.token_file, _MAX) or "").strip()
        if not text or not text.isascii() or not text.isprintable():
            raise KubernetesError(f"{self.token_file} holds no token", hint=_HINT)
        return text


def read_account(environment: Mapping[str, str], folder: Path = FOLDER) -> ServiceAccount:
    """Return this pod's service account. Raises KubernetesError."""
    host = environment.get("KUBERNETES_SERVICE_HOST", "")
    port = environment.get("KUBERNETES_SERVICE_PORT", "443")
    try:
        ipaddress.ip_address(host)
        number = int(port)
    except ValueError:
        raise KubernetesError(
            f"{host[:80]!r}, port {port[:10]!r}, is no address of the Kubernetes API",
            hint="Kubernetes sets KUBERNETES_SERVICE_HOST and _PORT in every pod",
        ) from None
    authority = files.read_text(folder / "ca.crt", _MAX)
    if authority is None:
        raise KubernetesError(f"there is no {folder / 'ca.crt'}", hint=_HINT)
    return ServiceAccount(f"https://{bracketed(host)}:{number}", authority, folder / "token")
