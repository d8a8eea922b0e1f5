"""Builds the Go programs that tests use beside an image's own: ``python -m tests.programs``.

Run with the images, so that no test waits minutes for a compiler within its own time limit.
"""

from __future__ import annotations

from image import wireguard_go
from image.flannel_programs import FLANNELD
from image.golang import Program, build
from tests.contract.test_engine_options import CSI_STAND_IN
from tests.netns.cni import PROGRAMS, REFERENCE
from tests.netns.test_netpol import ENFORCER

ARCHITECTURE = "amd64"


def main() -> None:
    """Build what the cache lacks."""
    wireguard_go.ensure()
    for program in (FLANNELD, ENFORCER, CSI_STAND_IN):
        build(program, ARCHITECTURE)
    for name, package in (PROGRAMS | REFERENCE).items():
        build(Program("cni", package, name), ARCHITECTURE)


if __name__ == "__main__":
    main()
