"""The program of Flannel mode: Flannel's daemon.

Flannel is its own module, not one file changed. What its module proxy lacks (a cloud's client
library) and what needs a C compiler (a backend that we do not use) is stood in for from outside:
`image/flannel/absent/` and `image/flannel/added/`.
"""

from __future__ import annotations

from image.golang import MODULES, Program

FLANNELD = Program(
    "flannel",
    "github.com/flannel-io/flannel",
    "flanneld",
    ldflags=("-X", "github.com/flannel-io/flannel/pkg/version.Version=v0.28.10"),
    additions=(("github.com/flannel-io/flannel", "added"),),
)
# Stands before the other programs in the daemon's PATH.
TOOLS = MODULES / "flannel" / "tools"
