"""The keys that sign update bundles: a development pair of this machine, or the operator's."""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass
from pathlib import Path

from image.artifacts import cache_directory
from image.errors import BuildError
from image.tools import locked

_TEN_YEARS = datetime.timedelta(days=3653)


@dataclass(frozen=True, slots=True)
class SigningKeys:
    """Where the certificate, its key and the key ring that trusts it are."""

    certificate: Path
    key: Path
    keyring: Path


def signing_keys(
    *, keyring: Path | None = None, key: Path | None = None, certificate: Path | None = None
) -> SigningKeys:
    """Return the operator's files, or the development pair of this machine.

    The development pair is in the cache, never in the checkout, and mode 0600. A key without its
    certificate, or the other way round, is refused.
    """
    if (key is None) != (certificate is None):
        raise BuildError(
            f"{'--key' if key else '--cert'} was given alone",
            hint="a bundle is signed with --key and --cert together",
        )
    for path in (keyring, key, certificate):
        if path is not None and not path.is_file():
            raise BuildError(f"there is no file {path}")
    if key and certificate:
        return SigningKeys(certificate, key, keyring or certificate)
    development = _development()
    return SigningKeys(development.certificate, development.key, keyring or development.keyring)


def _development() -> SigningKeys:
    directory = cache_directory() / "development-keys"
    certificate, key = directory / "cert.pem", directory / "key.pem"
    with locked(directory.with_suffix(".lock"), waiting_for="the development keys"):
        if not (certificate.exists() and key.exists()):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            _make(certificate, key)
    return SigningKeys(certificate, key, certificate)


def _make(certificate: Path, key: Path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Skerry development key")])
    # Nodes may start with a clock far in the past; RAUC checks these dates.
    begin = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    now = datetime.datetime.now(tz=datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(now + _TEN_YEARS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(private, hashes.SHA256())
    )
    pem = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    descriptor = os.open(key, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
    certificate.write_bytes(built.public_bytes(serialization.Encoding.PEM))
