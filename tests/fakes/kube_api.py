"""A Kubernetes API in a process: ``python -m tests.fakes.kube_api FOLDER`` (on 127.0.0.1:6443).

It leaves in FOLDER what the engine of a server leaves (kubeconfig, join token, database), asks
every caller for a certificate of its own authority, and knows Nodes; of what else is made it keeps
nothing. ``nodes.json`` in FOLDER holds the Nodes, and is written after each change.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import http.server
import ipaddress
import json
import ssl
import sys
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

PORT = 6443


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _certificate(
    subject: str, issuer: str, key: ec.EllipticCurvePrivateKey, by: ec.EllipticCurvePrivateKey
) -> str:
    now = datetime.datetime.now(datetime.UTC)
    authority = subject == issuer
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    )
    if not authority:
        names = x509.SubjectAlternativeName(
            [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
        )
        builder = builder.add_extension(names, critical=False)
    made = builder.sign(by, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM).decode()


def _key_text(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    ).decode()


class Api(http.server.BaseHTTPRequestHandler):
    """The answers."""

    nodes: Path
    protocol_version = "HTTP/1.1"

    def _load(self) -> dict[str, Any]:
        return dict(json.loads(self.nodes.read_text())) if self.nodes.exists() else {}

    def _say(self, status: int, document: object) -> None:
        data = document.encode() if isinstance(document, str) else json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        if self.path == "/readyz":
            self._say(200, "ok")
        elif self.path == "/api/v1/nodes":
            self._say(200, {"items": list(self._load().values())})
        elif self.path.startswith("/api/v1/pods?"):
            self._say(200, {"items": []})
        else:
            self._say(404, {"message": f"no {self.path}"})

    def do_PATCH(self) -> None:
        nodes, name = self._load(), self.path.rpartition("/")[2]
        patch = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if name not in nodes or self.headers["Content-Type"] != "application/merge-patch+json":
            self._say(404, {"message": f"no node {name}"})
            return
        for part, said in patch.items():
            nodes[name].setdefault(part, {}).update(said)
        self._store(nodes)
        self._say(200, nodes[name])

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._say(201, {})

    def do_DELETE(self) -> None:
        nodes, name = self._load(), self.path.rpartition("/")[2]
        self.rfile.read(int(self.headers["Content-Length"]))
        if nodes.pop(name, None) is None:
            self._say(404, {"message": f"no node {name}"})
            return
        self._store(nodes)
        self._say(200, {})

    def _store(self, nodes: dict[str, Any]) -> None:
        fresh = self.nodes.with_suffix(".new")
        fresh.write_text(json.dumps(nodes))
        fresh.replace(self.nodes)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def main(folder: Path) -> None:
    """Make the files and serve."""
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(3)]
    authority = _certificate("authority", "authority", keys[0], keys[0])
    server = _certificate("server", "authority", keys[1], keys[0])
    admin = _certificate("admin", "authority", keys[2], keys[0])
    (folder / "server.pem").write_text(server + _key_text(keys[1]))
    (folder / "authority.pem").write_text(authority)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    context.load_verify_locations(cadata=authority)
    context.verify_mode = ssl.CERT_REQUIRED
    Api.nodes = folder / "nodes.json"
    serving = http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Api)
    serving.socket = context.wrap_socket(serving.socket, server_side=True)
    (folder / "data/server/db").mkdir(parents=True)
    digest = hashlib.sha256(authority.encode()).hexdigest()
    (folder / "data/server/node-token").write_text(f"K10{digest}::server:{'5e' * 16}\n")

    def encoded(text: str) -> str:
        return base64.b64encode(text.encode()).decode()

    (folder / "k3s.yaml").write_text(
        "apiVersion: v1\nclusters:\n- cluster:\n"
        f"    certificate-authority-data: {encoded(authority)}\n"
        f"    server: https://127.0.0.1:{PORT}\n  name: default\nusers:\n- name: default\n  user:\n"
        f"    client-certificate-data: {encoded(admin)}\n"
        f"    client-key-data: {encoded(_key_text(keys[2]))}\n"
    )
    serving.serve_forever()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
