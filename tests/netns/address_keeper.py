"""A machine that keeps the API's address on its LAN: ``ADDRESS NODE_ADDRESS LIFETIME FOLDER``.

It has it as long as FOLDER has the file ``lead``, as the cluster agent has while the ledger says
so. After each look it writes ``said``: whether it is here, and the problem's code.
"""

from __future__ import annotations

import ipaddress
import json
import sys
import time
from pathlib import Path

from appliance.kubernetes import lan_address
from appliance.kubernetes.lan_address import LanAddress
from appliance.kubernetes.lan_edge import MachineLan

TURN_SECONDS = 0.1


def main(address: str, node_address: str, lifetime: str, folder: Path) -> None:
    """Keep it for ever."""
    lan_address.LIFETIME_SECONDS = int(lifetime)
    lan_address.ANNOUNCE_SECONDS = 0.5
    lan_address.RIVAL_SECONDS = 1.0
    here, wanted = LanAddress(MachineLan()), ipaddress.IPv4Address(address)
    said, new = folder / "said", folder / "said.new"
    while True:
        problem = None
        if (folder / "lead").exists():
            problem = here.keep(wanted, node_address, time.monotonic())
        else:
            here.leave(wanted)
        code = "" if problem is None else problem.code
        new.write_text(json.dumps({"here": here.here, "problem": code}))
        new.rename(said)
        time.sleep(TURN_SECONDS)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4]))
