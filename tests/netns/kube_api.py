"""A real API server without nodes: the engine's server, waiting for a container runtime for ever.

Pods are objects only; whoever asks for one says by itself where it runs and which addresses it has.
"""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from http.client import HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any

from image import engine
from tests.netns.lab import LabError, run, wait_until
from tests.netns.pinger import inside

ADDRESS = "10.99.0.1"
# Deadlines are for machines that have much else to do.
_START_SECONDS = 180
_MERGE = "application/merge-patch+json"


class KubeApi:
    """The server in a namespace; everything of it is in one folder."""

    def __init__(self, namespace: str, *, name: str = "localhost") -> None:
        """Start it; ``name``: a name or address besides 127.0.0.1 that it is asked under."""
        self.namespace = namespace
        self._kept = tempfile.TemporaryDirectory(prefix="skerry-api-")
        self.folder = Path(self._kept.name)
        self.kubeconfig = self.folder / "kubeconfig"
        self._program = str(engine.ensure("amd64"))
        run("ip", "-n", namespace, "addr", "add", f"{ADDRESS}/32", "dev", "lo")
        words = ["server", "--data-dir", str(self.folder / "data"), "--node-name", "server"]
        words += ["--node-ip", ADDRESS, "--flannel-backend", "none", "--disable-network-policy"]
        words += ["--container-runtime-endpoint", f"unix://{self.folder}/nobody.sock"]
        words += ["--write-kubeconfig", str(self.kubeconfig), "--tls-san", name]
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                ["ip", "netns", "exec", namespace, self._program, *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            wait_until(self.kubeconfig.exists, _START_SECONDS, "the API server has its keys")
            self._tls = self._credentials()
            wait_until(self._ready, _START_SECONDS, "the API server is ready")
        except LabError as error:
            said = (self.folder / "log").read_text(errors="replace")[-2000:]
            self.close()
            raise LabError(f"{error}\n{said}") from error

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait(10)
        self._kept.cleanup()

    def call(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """Return what the API answers. Raises LabError when it refuses."""
        status, answer = self._request(method, path, body)
        if status >= 300:
            raise LabError(f"{method} {path}: {status} {answer.get('message', answer)}")
        return answer

    # Objects

    def node(self, name: str, *, pod_cidr: str | None = None) -> None:
        """Make a Node."""
        spec = {} if pod_cidr is None else {"podCIDR": pod_cidr, "podCIDRs": [pod_cidr]}
        # A kubelet's Node has some, and Flannel does not survive one without.
        notes = {"test.skerry/made": "by hand"}
        document = {"metadata": {"name": name, "annotations": notes}, "spec": spec}
        self.call("POST", "/api/v1/nodes", document)

    def space(self, name: str, labels: Mapping[str, str]) -> None:
        """Make a namespace in which pods may be made."""
        self.call("POST", "/api/v1/namespaces", {"metadata": {"name": name, "labels": labels}})
        account = f"/api/v1/namespaces/{name}/serviceaccounts/default"
        wait_until(lambda: self._request("GET", account)[0] == 200, 90, f"{name} has its account")

    def pod(
        self,
        space: str,
        name: str,
        node: str,
        *,
        labels: Mapping[str, str],
        ports: Mapping[str, int],
    ) -> None:
        """Make a pod on a node; it has no address yet."""
        listed = [{"name": one, "containerPort": port} for one, port in ports.items()]
        container = {"name": "main", "image": "none", "ports": listed}
        spec = {"nodeName": node, "automountServiceAccountToken": False, "containers": [container]}
        document = {"metadata": {"name": name, "labels": labels}, "spec": spec}
        self.call("POST", f"/api/v1/namespaces/{space}/pods", document)

    def runs(self, space: str, name: str, addresses: Sequence[str]) -> None:
        """Say that a pod runs, and under which addresses; what a kubelet does."""
        listed = [{"ip": one} for one in addresses]
        status = {"phase": "Running", "podIP": addresses[0], "podIPs": listed}
        self.call("PATCH", f"/api/v1/namespaces/{space}/pods/{name}/status", {"status": status})

    def policy(self, space: str, name: str, spec: Mapping[str, object]) -> None:
        """Make a NetworkPolicy."""
        path = f"/apis/networking.k8s.io/v1/namespaces/{space}/networkpolicies"
        self.call("POST", path, {"metadata": {"name": name}, "spec": spec})

    def no_policies(self, space: str) -> None:
        """Delete all policies of a namespace."""
        self.call("DELETE", f"/apis/networking.k8s.io/v1/namespaces/{space}/networkpolicies")

    # How it is asked

    def _ready(self) -> bool:
        try:
            return self._request("GET", "/readyz")[0] == 200
        except (OSError, HTTPException):
            return False

    def _request(self, method: str, path: str, body: object = None) -> tuple[int, dict[str, Any]]:
        kind = _MERGE if method == "PATCH" else "application/json"
        data = None if body is None else json.dumps(body).encode()
        with (
            inside(self.namespace),
            closing(HTTPSConnection("127.0.0.1", 6443, context=self._tls, timeout=30)) as there,
        ):
            there.request(method, path, data, {"Content-Type": kind})
            answer = there.getresponse()
            text = answer.read()
        document = json.loads(text) if text.startswith(b"{") else {"message": text.decode()}
        return answer.status, document

    def _credentials(self) -> ssl.SSLContext:
        words = (self._program, "kubectl", "--kubeconfig", str(self.kubeconfig), "config", "view")
        view = json.loads(run(*words, "--raw", "-o", "json"))
        user, cluster = view["users"][0]["user"], view["clusters"][0]["cluster"]
        certificate, key = self.folder / "certificate", self.folder / "key"
        certificate.write_bytes(base64.b64decode(user["client-certificate-data"]))
        key.touch(0o600)
        key.write_bytes(base64.b64decode(user["client-key-data"]))
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        made = ssl.create_default_context(cadata=authority)
        made.load_cert_chain(certificate, key)
        return made
