"""Makes container images (OCI image format 1.1) as archives: small, and the same bytes each time.

Layers are not compressed: the root file system that carries the archive does that, and a node has
less to do. No times, no users but numbers, files in the order of their names::

    image = Image(("skerry.local/pause:1",), "amd64", {"/pause": File(path)}, ("/pause",))
    write(image, Path("pause.tar"))
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from image.errors import BuildError

_INDEX = "application/vnd.oci.image.index.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
# What containerd's importer takes for the image's whole name.
_FULL_NAME = "io.containerd.image.name"
_REF_NAME = "org.opencontainers.image.ref.name"


@dataclass(frozen=True, slots=True)
class File:
    """A regular file: bytes, or the content of a file on the disk."""

    content: bytes | Path
    mode: int = 0o755


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link."""

    target: str


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory; those on the way to a file come by themselves, mode 0755."""

    mode: int = 0o755


Entry = File | Link | Directory


@dataclass(frozen=True, slots=True)
class Image:
    """One image for one architecture (Go's name of it, which is Debian's for ours).

    ``names``: whole names with tags, all for the same content. ``entries``: absolute paths.
    ``user``: ``UID:GID``; empty is root. ``below``: finished layers (tar files), the lowest first,
    on which the entries lie.
    """

    names: tuple[str, ...]
    architecture: str
    entries: Mapping[str, Entry]
    entrypoint: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    user: str = ""
    environment: tuple[str, ...] = ("PATH=/usr/sbin:/usr/bin:/sbin:/bin",)
    directory: str = "/"
    labels: Mapping[str, str] = field(default_factory=dict)
    below: tuple[Path, ...] = ()


def write(image: Image, output: Path) -> str:
    """Write the archive and return the digest of the image's manifest (``sha256:...``)."""
    for name in image.names:
        if ":" not in name.rpartition("/")[2]:
            raise BuildError(f"the image name {name!r} has no tag")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=output.parent) as layer:
        _write_tree(layer, image.entries)
        layer.flush()
        layers = [*(_Layer.of(path) for path in image.below), _Layer.of(Path(layer.name))]
        config = _json(_configuration(image, layers))
        manifest = _json(
            {
                "schemaVersion": 2,
                "mediaType": _MANIFEST,
                "config": _descriptor(_CONFIG, config),
                "layers": [
                    {"mediaType": _LAYER, "digest": f"sha256:{one.sha256}", "size": one.size}
                    for one in layers
                ],
            }
        )
        index = _json(_index(image, manifest))
        with output.open("wb") as file, _tar(file) as archive:
            # The short texts first: who looks for what an archive holds reads its beginning only.
            _add(archive, "oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
            _add(archive, "index.json", index)
            for blob in (manifest, config):
                _add(archive, f"blobs/sha256/{digest(blob)}", blob)
            for one in {one.sha256: one for one in layers}.values():
                entry = _member(f"blobs/sha256/{one.sha256}", 0o644)
                entry.size = one.size
                with one.path.open("rb") as blob_file:
                    archive.addfile(entry, blob_file)
    return f"sha256:{digest(manifest)}"


@dataclass(frozen=True, slots=True)
class _Layer:
    path: Path
    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> _Layer:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return cls(path, path.stat().st_size, digest)


def _configuration(image: Image, layers: Sequence[_Layer]) -> dict[str, object]:
    run: dict[str, object] = {
        "Entrypoint": list(image.entrypoint),
        "Env": list(image.environment),
        "WorkingDir": image.directory,
    }
    if image.arguments:
        run["Cmd"] = list(image.arguments)
    if image.user:
        run["User"] = image.user
    if image.labels:
        run["Labels"] = dict(image.labels)
    return {
        "architecture": image.architecture,
        "os": "linux",
        "config": run,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{one.sha256}" for one in layers]},
    }


def _index(image: Image, manifest: bytes) -> dict[str, object]:
    entries = [
        {
            **_descriptor(_MANIFEST, manifest),
            "platform": {"architecture": image.architecture, "os": "linux"},
            "annotations": {_FULL_NAME: name, _REF_NAME: name.rpartition(":")[2]},
        }
        for name in image.names
    ]
    return {"schemaVersion": 2, "mediaType": _INDEX, "manifests": entries}


def _descriptor(kind: str, blob: bytes) -> dict[str, object]:
    return {"mediaType": kind, "digest": f"sha256:{digest(blob)}", "size": len(blob)}


def digest(data: bytes) -> str:
    """Return the SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _write_tree(output: IO[bytes], entries: Mapping[str, Entry]) -> None:
    """Write a layer: parents before what is in them, all owned by root, all of the year 1970."""
    complete: dict[str, Entry] = {}
    for path, entry in entries.items():
        parts = path.strip("/").split("/")
        if not path.startswith("/") or any(part in {"", ".", ".."} for part in parts):
            raise BuildError(f"{path!r} is no absolute path of a file in an image")
        for depth in range(1, len(parts)):
            complete.setdefault("/".join(parts[:depth]), Directory())
        complete["/".join(parts)] = entry
    with _tar(output) as archive:
        for name in sorted(complete):
            _add_entry(archive, name, complete[name])


def _add_entry(archive: tarfile.TarFile, name: str, entry: Entry) -> None:
    match entry:
        case Directory(mode):
            member = _member(name, mode)
            member.type = tarfile.DIRTYPE
            archive.addfile(member)
        case Link(target):
            member = _member(name, 0o777)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
        case File(Path() as source, mode):
            member = _member(name, mode)
            with source.open("rb") as content:
                member.size = source.stat().st_size
                archive.addfile(member, content)
        case File(bytes() as data, mode):
            _add(archive, name, data, mode)


def _add(archive: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
    member = _member(name, mode)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def _member(name: str, mode: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.mode, member.mtime = mode, 0
    return member


def _tar(output: IO[bytes]) -> tarfile.TarFile:
    # USTAR has no room for anything that changes; a name that is too long for it is refused.
    return tarfile.open(fileobj=output, mode="w", format=tarfile.USTAR_FORMAT)
