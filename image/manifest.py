"""What a build leaves in writing: a manifest and a parts list (SPDX 2.3)."""

from __future__ import annotations

import datetime
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from image.lock import Drift, Package

_SPDX_ID = re.compile(r"[^A-Za-z0-9.-]")


@dataclass(frozen=True, slots=True)
class Output:
    """A file that was made: its size in bytes, and what it takes on the medium."""

    name: str
    size: int
    allocated: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Output:
        """Measure and hash a file."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        status = path.stat()
        return cls(path.name, status.st_size, status.st_blocks * 512, digest)


def installed_packages(status: str) -> dict[str, str]:
    """Return names and versions of the installed packages in dpkg's status file."""
    found = {}
    for block in status.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version|Status): (.+)$", block, re.MULTILINE))
        if fields.get("Status") == "install ok installed":
            found[fields["Package"]] = fields["Version"]
    return dict(sorted(found.items()))


def manifest(
    *,
    release: Mapping[str, str],
    architecture: str,
    epoch: int,
    packages: Sequence[Package],
    drift: Sequence[Drift],
    python: Mapping[str, str],
    go: Sequence[tuple[str, str]],
    tools: Mapping[str, str],
    verity: Mapping[str, object],
    outputs: Iterable[Output],
) -> dict[str, object]:
    """Return the manifest as JSON's types, the same for the same inputs."""
    return {
        "format": 1,
        **release,
        "architecture": architecture,
        "source_date_epoch": epoch,
        "verity": dict(verity),
        "outputs": [
            {"name": item.name, "size": item.size, "sha256": item.sha256}
            for item in sorted(outputs, key=lambda item: item.name)
        ],
        "debian": [
            {
                "name": item.name,
                "version": item.version,
                "sha256": item.sha256,
                "use": item.use.value,
            }
            for item in sorted(packages)
        ],
        "drift": [{"name": item.name, "locked": item.locked, "used": item.used} for item in drift],
        "python": dict(sorted(python.items())),
        "go": [{"name": name, "version": version} for name, version in sorted(go)],
        "tools": dict(sorted(tools.items())),
    }


def sbom(
    *,
    name: str,
    version: str,
    build_id: str,
    architecture: str,
    epoch: int,
    packages: Sequence[Package],
    python: Mapping[str, str],
    go: Sequence[tuple[str, str]],
) -> dict[str, object]:
    """Return an SPDX 2.3 document (JSON): each Debian and Python package, each Go module.

    A Go module counts once for each version that is linked into a program.
    """
    created = datetime.datetime.fromtimestamp(epoch, tz=datetime.UTC)
    parts = [_debian_part(item, architecture) for item in sorted(packages)]
    parts += [_python_part(*item) for item in sorted(python.items())]
    parts += [_go_part(*item) for item in sorted(go)]
    whole = {
        "SPDXID": "SPDXRef-image",
        "name": name,
        "versionInfo": version,
        "downloadLocation": "NOASSERTION",
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": "Apache-2.0",
        "copyrightText": "NOASSERTION",
        "filesAnalyzed": False,
        "primaryPackagePurpose": "OPERATING-SYSTEM",
    }
    return {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": f"{name}-{version}",
        "documentNamespace": f"urn:skerry:sbom:{name}:{version}:{build_id}",
        "creationInfo": {
            "created": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "creators": ["Tool: skerry-image"],
        },
        "packages": [whole, *parts],
        "relationships": [
            {
                "spdxElementId": "SPDXRef-DOCUMENT",
                "relationshipType": "DESCRIBES",
                "relatedSpdxElement": "SPDXRef-image",
            },
            *(
                {
                    "spdxElementId": "SPDXRef-image",
                    "relationshipType": "CONTAINS",
                    "relatedSpdxElement": part["SPDXID"],
                }
                for part in parts
            ),
        ],
    }


def _debian_part(package: Package, architecture: str) -> dict[str, object]:
    locator = f"pkg:deb/debian/{package.name}@{package.version}?arch={architecture}"
    part = _part("deb", package.name, package.version, locator)
    part["checksums"] = [{"algorithm": "SHA256", "checksumValue": package.sha256}]
    part["supplier"] = "Organization: Debian"
    return part


def _python_part(name: str, version: str) -> dict[str, object]:
    return _part("pypi", name, version, f"pkg:pypi/{name.lower()}@{version}")


def _go_part(name: str, version: str) -> dict[str, object]:
    part = _part("go", f"{name}-{version}", version, f"pkg:golang/{name}@{version}")
    return part | {"name": name}


def _part(kind: str, name: str, version: str, locator: str) -> dict[str, object]:
    return {
        "SPDXID": f"SPDXRef-{kind}-{_SPDX_ID.sub('-', name)}",
        "name": name,
        "versionInfo": version,
        "downloadLocation": "NOASSERTION",
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": "NOASSERTION",
        "copyrightText": "NOASSERTION",
        "filesAnalyzed": False,
        "externalRefs": [
            {
                "referenceCategory": "PACKAGE-MANAGER",
                "referenceType": "purl",
                "referenceLocator": locator.replace("+", "%2B"),
            }
        ],
    }
