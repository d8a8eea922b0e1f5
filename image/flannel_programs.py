"""The programs of Flannel mode: Flannel's daemon, and the etcd that it is tested with.

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
# For tests and benchmarks without Kubernetes; no image has it.
ETCD = Program("flannel", "go.etcd.io/etcd/server/v3", "etcd")
# Stands before the other programs in the daemon's PATH.
TOOLS = MODULES / "flannel" / "tools"
