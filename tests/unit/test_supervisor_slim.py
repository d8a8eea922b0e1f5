"""Each in a process of its own: what is imported once stays."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

NETLINK = """
from appliance.slim import slim_netlink
slim_netlink()
slim_netlink()
from pyroute2 import IPRoute, WireGuard
from pyroute2.netlink.exceptions import NetlinkError
import appliance.overlay.links, appliance.overlay.wireguard_kernel, sys
with IPRoute() as route:
    assert "lo" in [link.get_attr("IFLA_IFNAME") for link in route.get_links()]
assert not [name for name in sys.modules if name.startswith("pyroute2.ndb")]
try:
    from pyroute2 import NDB
except ImportError:
    pass
else:
    raise SystemExit("NDB is there")
"""

LIGHT = """
import sys
from skerry.__main__ import main
main(["{command}", "--socket=/nonexistent/api.sock"])
heavy = {{"aiohttp", "pyroute2", "cryptography", "nacl", "zeroconf", "asyncio", "sqlite3"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30
    )


def test_netlink_without_the_rest_of_pyroute2() -> None:
    result = run(NETLINK)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("command", ["status", "health"])
def test_status_and_health_import_nothing_heavy(command: str) -> None:
    result = run(LIGHT.format(command=command))
    assert result.returncode == 0, result.stderr
    assert "does not run here" in result.stderr
