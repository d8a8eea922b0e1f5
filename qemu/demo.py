"""What ``make run`` ends with: a table of the nodes, and one fetching a page from the other."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from qemu.errors import LabError
from qemu.machine import Machine
from skerry import console

PORT = 8080
HEADER = ("node", "state", "slot", "overlay address", "peer", "path", "rtt")

# Arguments: URL. Measures the request alone, not Python's start.
_FETCH = """
import json, sys, time, urllib.request
begun = time.monotonic()
with urllib.request.urlopen(sys.argv[1], timeout=60) as answer:
    body = answer.read()
    took = time.monotonic() - begun
    print(json.dumps({"status": answer.status, "bytes": len(body), "ms": took * 1000,
                      "text": body[:200].decode(errors="replace")}))
"""


@dataclass(frozen=True, slots=True)
class Fetch:
    """An HTTP answer that came through the overlay."""

    url: str
    status: int
    size: int
    milliseconds: float
    text: str

    def to_json(self) -> dict[str, object]:
        """Return the machine-readable form."""
        return {
            "url": self.url,
            "status": self.status,
            "bytes": self.size,
            "ms": round(self.milliseconds, 1),
        }


def node_status(machine: Machine) -> dict[str, Any]:
    """Return the document of ``skerry status --json`` in a guest."""
    answer = machine.run(["skerry", "status", "--json"]).check()
    document = json.loads(answer.stdout)
    if not isinstance(document, dict):
        raise LabError(f"{machine.spec.name}: `skerry status --json` gave no object")
    return document


def rows(statuses: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Return the table's rows: one for each node and peer."""
    table: list[list[str]] = []
    for machine, status in statuses.items():
        overlay = status.get("overlay") or {}
        release = status.get("release") or {}
        name = f"{machine} ({status['name']})" if status.get("name") else machine
        head = [name, str(status.get("state")), str(release.get("slot") or "-")]
        head.append(", ".join(overlay.get("addresses") or ["-"]))
        for peer in overlay.get("peers") or [{}]:
            rtt = peer.get("rtt_ms")
            path = str(peer.get("path") or "-") if peer.get("up") else "down"
            shown = f"{rtt:.1f} ms" if isinstance(rtt, (int, float)) else "-"
            table.append([*head, str(peer.get("name") or "-"), path if peer else "-", shown])
            head = [""] * len(head)
    return table


def overlay_address(status: dict[str, Any]) -> str:
    """Return a node's IPv4 address in the overlay, else its first one."""
    addresses = (status.get("overlay") or {}).get("addresses") or []
    plain = [str(address).partition("/")[0] for address in addresses]
    if not plain:
        raise LabError(f"node {status.get('name')} has no overlay address")
    return next((address for address in plain if ":" not in address), plain[0])


def serve_page(machine: Machine, address: str) -> str:
    """Serve a page on a node's overlay address, until it reboots; returns the URL."""
    script = (
        "systemctl -q is-active skerry-lab-page && exit 0; "
        'mkdir -p /run/skerry-lab && echo "Hello from $(hostname) over $1" '
        ">/run/skerry-lab/index.html && "
        "exec systemd-run --quiet --collect --unit=skerry-lab-page -p DynamicUser=yes "
        '/usr/bin/python3 -I -m http.server --bind "$1" --directory /run/skerry-lab "$2"'
    )
    machine.run(["/bin/sh", "-c", script, "sh", address, str(PORT)], check=True)
    host = f"[{address}]" if ":" in address else address
    machine.wait_for(
        ["/usr/bin/python3", "-ISc", _CONNECT, address, str(PORT)], timeout=120, every=0.5
    )
    return f"http://{host}:{PORT}/"


_CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)"


def fetch(machine: Machine, url: str) -> Fetch:
    """Fetch a page from inside a guest."""
    answer = machine.run(["/usr/bin/python3", "-Ic", _FETCH, url], timeout=180).check()
    facts = json.loads(answer.stdout)
    return Fetch(url, facts["status"], facts["bytes"], facts["ms"], facts["text"])


def show(machines: list[Machine]) -> dict[str, object]:
    """Print table and fetch; returns both for ``--json``. Raises :class:`LabError` on failure."""
    statuses = {machine.spec.name: node_status(machine) for machine in machines}
    console.note("")
    console.note(console.table(HEADER, rows(statuses)))
    result: dict[str, object] = {"nodes": statuses}
    if len(machines) > 1:
        target = machines[1]
        with console.step(f"{machines[0].spec.name} fetches a page from {target.spec.name}"):
            url = serve_page(target, overlay_address(statuses[target.spec.name]))
            answer = fetch(machines[0], url)
        console.note(
            f"    GET {answer.url}: {answer.status}, {answer.size} bytes, "
            f"{answer.milliseconds:.0f} ms: {answer.text.strip()}"
        )
        if answer.status != 200:
            raise LabError(f"{url} answered with status {answer.status}")
        result["fetch"] = answer.to_json()
    return result
