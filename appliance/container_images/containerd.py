"""containerd by its own command, ``ctr``: list, import, label. Blocking."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from appliance.container_images.importing import Held, RuntimeTroubleError

NAMESPACE = "k8s.io"  # the kubelet's, by way of containerd's CRI plugin
ADDRESS = Path("/run/containerd/containerd.sock")
CALL_SECONDS = 60.0
IMPORT_SECONDS = 600.0
WAIT_SECONDS = 120.0
_CONNECT = "5s"
_DIGEST = r"sha256:[0-9a-f]{64}"
_UNPACKED = re.compile(rf"^unpacking (\S+) \(({_DIGEST})\)", re.MULTILINE)
_ROW = re.compile(rf"^(\S+)\s+\S+\s+({_DIGEST})\s+(.*)$")


class Ctr:
    """The runtime behind a socket."""

    def __init__(self, program: str = "ctr", address: Path = ADDRESS) -> None:
        self._command = (
            *(program, "--address", str(address), "--namespace", NAMESPACE),
            *("--connect-timeout", _CONNECT),
        )

    def wait(self, seconds: float = WAIT_SECONDS) -> None:
        """Wait until containerd answers. Raises RuntimeTroubleError."""
        end = time.monotonic() + seconds
        while True:
            try:
                self._run("images", "list", "--quiet")
            except RuntimeTroubleError:
                if time.monotonic() >= end:
                    raise
                time.sleep(1.0)
            else:
                return

    def images(self) -> Mapping[str, Held]:
        """Return what there is, by name."""
        return parse_images(self._run("images", "list"))

    def load(self, path: Path) -> Mapping[str, str]:
        """Take in an archive; the packed layers are not kept beside the unpacked ones."""
        said = self._run(
            "images", "import", "--discard-unpacked-layers", str(path), seconds=IMPORT_SECONDS
        )
        return dict(_UNPACKED.findall(said))

    def remove(self, name: str) -> None:
        """Forget an image; what nothing else holds is collected."""
        self._run("images", "remove", name)

    def label(self, name: str, labels: Mapping[str, str]) -> None:
        """Set labels; an empty value takes a label away."""
        self._run("images", "label", name, *(f"{key}={value}" for key, value in labels.items()))

    def _run(self, *words: str, seconds: float = CALL_SECONDS) -> str:
        try:
            done = subprocess.run(
                [*self._command, *words],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise RuntimeTroubleError(
                f"containerd did not answer `{' '.join(words[:2])}` in {seconds:.0f} s"
            ) from error
        except OSError as error:
            raise RuntimeTroubleError(f"ctr can't be run: {error.strerror}") from error
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            said = lines[-1].removeprefix("ctr: ") if lines else f"status {done.returncode}"
            raise RuntimeTroubleError(
                f"containerd refused `{' '.join(words[:2])}`: {said[:500]}",
                hint="journalctl -u containerd",
            )
        return done.stdout


def parse_images(text: str) -> dict[str, Held]:
    """Return the images in the table that ``ctr images list`` prints."""
    found = {}
    for line in text.splitlines():
        if match := _ROW.match(line):
            # "io.a=b,io.c=d", or "-" for none: the last of the columns.
            labels = match[3].rsplit(maxsplit=1)[-1].split(",")
            keys = frozenset(label.partition("=")[0] for label in labels if "=" in label)
            found[match[1]] = Held(match[2], keys)
    return found
