"""What ``make run`` ends with: a table of the nodes, and one fetching a page from the other."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from qemu.agent import Job
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


# Arguments: ADDRESS COUNT SECONDS. ICMP echo requests (RFC 792) on time, whatever is answered; at
# the end, up to 30 s for what is still on its way.
PING = """
import json, os, select, socket, struct, sys, time
target, count, interval = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
ident = os.getpid() & 0xFFFF
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
def checksum(data):
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF
begun, sent, seen = time.monotonic(), 0, set()
while len(seen) < count and time.monotonic() < begun + count * interval + 30:
    if sent < count and time.monotonic() >= begun + sent * interval:
        body = struct.pack("!HH", ident, sent) + b"skerry!!"
        head = struct.pack("!BBH", 8, 0, checksum(b"\\x08\\0\\0\\0" + body))
        s.sendto(head + body, (target, 0))
        sent += 1
    while select.select([s], [], [], 0.02)[0]:
        packet = s.recv(2048)
        icmp = packet[(packet[0] & 15) * 4:]
        if icmp[0] == 0 and struct.unpack("!H", icmp[4:6])[0] == ident:
            seen.add(struct.unpack("!H", icmp[6:8])[0])
print(json.dumps({"sent": sent, "received": len(seen),
                  "lost": sorted(set(range(count)) - seen)}))
"""


@dataclass(frozen=True, slots=True)
class Ping:
    """How many echo requests came back; ``lost`` are the numbers of those that did not."""

    sent: int
    received: int
    lost: list[int]


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
        'mkdir -p /run/skerry-lab && echo "Hello from $(uname -n) over $1" '
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


def begin_ping(machine: Machine, address: str, *, count: int, interval: float) -> Job:
    """Start pinging an IPv4 address from inside a guest, which has no ping program."""
    return machine.begin(["/usr/bin/python3", "-ISc", PING, address, str(count), str(interval)])


def end_ping(job: Job, *, timeout: float) -> Ping:
    """Wait for the end of a ping."""
    status, out, err = job.wait(timeout=timeout)
    if status:
        raise LabError(f"ping ended with {status}: {err.decode(errors='replace')[-500:]}")
    facts = json.loads(out)
    return Ping(facts["sent"], facts["received"], facts["lost"])


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
