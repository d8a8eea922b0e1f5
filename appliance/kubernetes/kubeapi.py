"""A small client of the Kubernetes API: HTTPS with a client certificate, one connection kept.

It blocks: the agent calls it in a worker thread, one call at a time. Answers are bounded in size
and time. A handshake costs a small server more than the question, so the connection is used again.
"""

from __future__ import annotations

import http.client
import json
import ssl
import tempfile
import time
from pathlib import Path
from urllib.parse import quote, urlsplit

from appliance.kubernetes.errors import KubeApiError
from appliance.kubernetes.kubeconfig import Kubeconfig
from appliance.kubernetes.records import (
    Lease,
    NodeObject,
    Record,
    Remove,
    patch_of,
    read_lease,
    read_node,
    read_nodes,
)
from appliance.kubernetes.service_account import ServiceAccount

SECONDS = 30.0
ANSWER_MAX = 32 * 1024 * 1024
_READ = 64 * 1024
_MERGE = "application/merge-patch+json"


class KubeApi:
    """The API that a kubeconfig, or a pod's service account, leads to, as whom it says.

    ``scratch`` is a folder for root alone on a tmpfs.
    """

    def __init__(
        self, config: Kubeconfig | ServiceAccount, scratch: Path, *, seconds: float = SECONDS
    ) -> None:
        parts = urlsplit(config.server)
        self._host = parts.hostname or "localhost"
        self._port = parts.port or 443
        self._where = config.server
        self._seconds = seconds
        self._account = config if isinstance(config, ServiceAccount) else None
        self._context = _context(config, scratch)
        self._connection: http.client.HTTPSConnection | None = None

    def ready(self) -> bool:
        """Say whether it serves."""
        try:
            return self.ask("GET", "/readyz").strip() == b"ok"
        except KubeApiError:
            return False

    def ask(
        self, method: str, path: str, body: bytes | None = None, kind: str = "application/json"
    ) -> bytes:
        """Send a request and return the answer's body. Raises KubeApiError."""
        headers = {"Accept": "application/json", "Content-Type": kind}
        if self._account is not None:
            headers["Authorization"] = f"Bearer {self._account.bearer()}"
        again = self._connection is not None
        try:
            status, data = self._exchange(method, path, body, headers)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            if again and not isinstance(error, TimeoutError):
                # It was closed meanwhile: servers end connections that rest.
                return self.ask(method, path, body, kind)
            raise KubeApiError(
                f"the Kubernetes API at {self._where} does not answer: "
                f"{str(error) or type(error).__name__}",
                hint="skerry cluster status; journalctl -u skerry-engine-server",
            ) from error
        except KubeApiError:
            self.close()
            raise
        if status >= 400:
            raise KubeApiError(
                f"the Kubernetes API refused {method} {path}: {_said(data, status)}",
                status=status,
            )
        return data

    def get(self, path: str) -> bytes:
        """Return what is at a path."""
        return self.ask("GET", path)

    def nodes(self) -> tuple[NodeObject, ...]:
        """Return all nodes."""
        return read_nodes(self.ask("GET", "/api/v1/nodes"))

    def node(self, name: str) -> NodeObject | None:
        """Return a node, None if there is none."""
        try:
            return read_node(self.ask("GET", f"/api/v1/nodes/{quote(name)}"))
        except KubeApiError as error:
            if error.status == 404:
                return None
            raise

    def lease(self) -> Lease | None:
        """Return the lease of the controller manager's leader, None if there is none."""
        path = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/kube-controller-manager"
        try:
            return read_lease(self.ask("GET", path))
        except KubeApiError as error:
            if error.status == 404:
                return None
            raise

    def perform(self, change: Record | Remove) -> None:
        """Record a node's ranges, or delete a node."""
        path = f"/api/v1/nodes/{quote(change.node)}"
        if isinstance(change, Record):
            self.ask("PATCH", path, patch_of(change), _MERGE)
            return
        body = json.dumps({"preconditions": {"uid": change.uid}}).encode()
        try:
            self.ask("DELETE", path, body)
        except KubeApiError as error:
            if error.status != 404:
                raise

    def close(self) -> None:
        """Close the connection; the next question opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _exchange(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str]
    ) -> tuple[int, bytes]:
        deadline = time.monotonic() + self._seconds
        if self._connection is None:
            self._connection = http.client.HTTPSConnection(
                self._host, self._port, timeout=self._seconds, context=self._context
            )
        self._connection.request(method, path, body, headers)
        answer = self._connection.getresponse()
        return answer.status, self._read(answer, path, deadline)

    def _read(self, answer: http.client.HTTPResponse, path: str, deadline: float) -> bytes:
        data = bytearray()
        while part := answer.read1(_READ):
            data += part
            if len(data) > ANSWER_MAX:
                raise KubeApiError(f"the Kubernetes API answers {path} with too much")
            if time.monotonic() > deadline:
                raise KubeApiError(f"the Kubernetes API answers {path} too slowly")
        return bytes(data)


def _context(config: Kubeconfig | ServiceAccount, scratch: Path) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cadata=config.authority)
        # Python 3.13 wants extensions that not every engine's authority has; the chain, the name
        # and the dates are verified all the same.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if isinstance(config, ServiceAccount):
            return context
        # `ssl` takes a client's key from a file only: one that is at once gone.
        with tempfile.TemporaryDirectory(prefix=".client-", dir=scratch) as folder:
            path = Path(folder) / "client.pem"
            path.write_text(f"{config.certificate.rstrip()}\n{config.key}", encoding="ascii")
            context.load_cert_chain(path)
    except (ssl.SSLError, OSError, ValueError) as error:
        raise KubeApiError(f"the credentials for {config.server} can't be used: {error}") from error
    return context


def _said(data: bytes, status: int) -> str:
    try:
        return str(json.loads(data)["message"])[:300]
    except (ValueError, RecursionError, KeyError, TypeError):
        return f"status {status}"
