"""Kubeconfig files as the engine writes them: read, and written for others.

No YAML library: the engine writes one cluster, one user and one context, each value on its own
line, and whatever else a file holds is refused by name.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from appliance.kubernetes.errors import KubernetesError

FILE_MAX = 64 * 1024
_SERVER = re.compile(r"https://(?:[a-z0-9.-]{1,253}|\[[0-9a-f:.]{2,45}\])(?::[0-9]{1,5})?")
_LINE = re.compile(
    r"^[ -]*(server|certificate-authority|client-certificate|client-key)(-data)?: *(\S+) *$",
    re.MULTILINE,
)
_PEM = re.compile(r"(?:-----BEGIN [A-Z ]+-----\n[A-Za-z0-9+/=\n]+-----END [A-Z ]+-----\n?)+")


@dataclass(frozen=True, slots=True)
class Kubeconfig:
    """Where an API is and how one shows who one is; all but ``server`` are PEM texts."""

    server: str
    authority: str
    certificate: str
    key: str = field(repr=False)

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if not _SERVER.fullmatch(self.server):
            raise KubernetesError(f"{self.server[:80]!r} is no address of a Kubernetes API")
        for what, text in (
            ("authority", self.authority),
            ("certificate", self.certificate),
            ("key", self.key),
        ):
            if not _PEM.fullmatch(text):
                raise KubernetesError(f"the {what} in a kubeconfig is not in PEM form")


def read_kubeconfig(text: str, where: str) -> Kubeconfig:
    """Return what a file says; it may name files, which are read. Raises KubernetesError."""
    found: dict[str, str] = {}
    for name, inline, value in _LINE.findall(text[:FILE_MAX]):
        if name in found:
            raise KubernetesError(f"{where} has more than one {name}", hint="give one cluster's")
        plain = value.strip("\"'")
        found[name] = plain if name == "server" else _content(plain, bool(inline), where)
    if (
        missing := {
            "server",
            "certificate-authority",
            "client-certificate",
            "client-key",
        }
        - found.keys()
    ):
        raise KubernetesError(f"{where} has no {min(missing)}")
    return Kubeconfig(
        found["server"],
        found["certificate-authority"],
        found["client-certificate"],
        found["client-key"],
    )


def _content(value: str, inline: bool, where: str) -> str:
    try:
        if inline:
            return base64.b64decode(value, validate=True).decode("ascii")
        with Path(value).open("rb") as file:
            return file.read(FILE_MAX).decode("ascii")
    except (OSError, ValueError, binascii.Error) as error:
        raise KubernetesError(f"what {where} refers to can't be read: {error}") from error


def kubeconfig_text(one: Kubeconfig, name: str) -> str:
    """Return the file's text; ``name`` is what cluster, user and context are called."""
    return (
        "apiVersion: v1\n"
        "kind: Config\n"
        "clusters:\n"
        f"- name: {name}\n"
        "  cluster:\n"
        f"    server: {one.server}\n"
        f"    certificate-authority-data: {_base64(one.authority)}\n"
        "users:\n"
        f"- name: {name}\n"
        "  user:\n"
        f"    client-certificate-data: {_base64(one.certificate)}\n"
        f"    client-key-data: {_base64(one.key)}\n"
        "contexts:\n"
        f"- name: {name}\n"
        "  context:\n"
        f"    cluster: {name}\n"
        f"    user: {name}\n"
        f"current-context: {name}\n"
    )


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


class _Packed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    format: int
    server: str
    authority: str
    certificate: str
    key: str


_FORMAT = 1


def pack(one: Kubeconfig) -> str:
    """Return the short form that fits into a secret: base64 once, not twice."""
    return msgspec.json.encode(
        _Packed(_FORMAT, one.server, one.authority, one.certificate, one.key)
    ).decode()


def unpack(text: str | bytes, where: str) -> Kubeconfig:
    """Return what `pack` made. Raises KubernetesError."""
    try:
        one = msgspec.json.decode(text, type=_Packed)
    except (ValueError, RecursionError) as error:
        raise KubernetesError(f"{where} holds no kubeconfig that this release reads") from error
    if one.format != _FORMAT:
        raise KubernetesError(
            f"{where} holds a kubeconfig of a later release", hint="update this machine's skerry"
        )
    return Kubeconfig(one.server, one.authority, one.certificate, one.key)
