"""The images that Kubernetes' tests of networking ask for.

Their program is the one of `k8s.io/kubernetes` (`test/images/agnhost`). What lies around it in the
published images, the shell, curl, dig and nc that the tests call in pods, is Debian's here.
"""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from image import workloads
from image.artifacts import cache_directory
from image.golang import build, go_command
from image.oci import Directory, Entry, File, Image, Link
from image.tools import SUITE, ToolsRoot, locked, mirror_arguments
from skerry import console

AGNHOST = "agnhost"
# Those that are asked for by name; each is AGNHOST under another. That of glibc is glibc's here as
# well, and of nginx only the addresses are looked at.
ALSO = ("glibc-dns-testing", "nginx")
PACKAGES = (
    "base-files",
    "bind9-dnsutils",
    "coreutils",
    "curl",
    "dash",
    "grep",
    "hostname",
    "iproute2",
    "libc-bin",
    "netcat-openbsd",
    "sed",
)
_EXCLUDED = ("doc", "man", "info", "locale", "lintian")


def archive(sources: workloads.Sources) -> Path:
    """Return the archive of the image with everything in it, from the cache or made now."""
    program = build(workloads.AGNHOST, sources.architecture.value)
    module = _module() / "test" / "images" / "agnhost" / "porter"
    entries: dict[str, Entry] = {
        "/agnhost": File(program),
        # Nothing is configured in the layer below, so nobody chose an nc.
        "/usr/bin/nc": Link("nc.openbsd"),
        "/uploads": Directory(0o1777),
        # A certificate for servers that say what they are asked to; no secret, it is published.
        "/localhost.crt": File(module / "localhost.crt", 0o644),
        "/localhost.key": File(module / "localhost.key", 0o644),
        "/etc/passwd": File(b"root:x:0:0:root:/:/bin/sh\n", 0o644),
        "/etc/group": File(b"root:x:0:\n", 0o644),
    }
    name = f"{workloads.REGISTRY}/{AGNHOST}:{workloads.INTERFACE}"
    image = Image(
        *((name,), sources.architecture.value, entries, ("/agnhost",), ("pause",)),
        below=(_tools(),),
    )
    return workloads.kept(f"e2e-{AGNHOST}", image)


def _module() -> Path:
    command = go_command(["list", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes"], folder="engine")
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Path(done.stdout.strip())


def _tools() -> Path:
    """Return the layer of Debian's packages, unpacked and not configured: 65 MB, made in 15 s.

    Their versions are whatever the mirror has when it is made first.
    """
    packages = ",".join(PACKAGES)
    key = hashlib.sha256(f"{SUITE} {packages}".encode()).hexdigest()[:16]
    layer = cache_directory() / "oci" / f"layer-e2e-{key}.tar"
    with locked(layer.with_suffix(".lock"), waiting_for="the layer of tools"):
        if layer.exists():
            return layer
        layer.parent.mkdir(parents=True, exist_ok=True)
        aside = layer.with_suffix(".new.tar")
        words = ["mmdebstrap", "--mode=root", "--variant=extract", "--format=tar"]
        words += [f"--include={packages}", "--skip=output/dev,output/mknod"]
        words += ['--aptopt=Apt::Install-Recommends "false"']
        words += [f"--dpkgopt=path-exclude=/usr/share/{one}/*" for one in _EXCLUDED]
        with console.step("Debian's tools for the image of Kubernetes' tests"):
            ToolsRoot.ensure().run([*words, SUITE, str(aside), *mirror_arguments()])
        aside.rename(layer)
    return layer
