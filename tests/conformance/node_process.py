"""The cluster agent of a node of namespaces, from outside of its file system, with its pods.

``python -m tests.conformance.node_process FOLDER API_SOCKET PID GROUP``: as
`tests.faults.cluster_process`; in addition, what the container runtime calls /run/netns/... is
looked for in the file system of PID.
"""

from __future__ import annotations

import sys
from pathlib import Path

from appliance.cni import namespaces
from appliance.kubernetes.launch import run
from tests.faults.cluster_process import Engines, places_of


def look_below(root: Path) -> None:
    """Have every path of a namespace lead into the machine's file system."""
    opened, exists = namespaces.open_namespace, namespaces.exists
    namespaces.open_namespace = lambda path: opened(f"{root}{path}")
    namespaces.exists = lambda path: exists(f"{root}{path}")


if __name__ == "__main__":
    folder, pid = Path(sys.argv[1]), int(sys.argv[3])
    places = places_of(folder, Path(sys.argv[2]))
    look_below(Path(f"/proc/{pid}/root"))
    sys.exit(run(places, units=Engines(folder, places, pid, sys.argv[4])))
