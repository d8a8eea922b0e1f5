"""How long Kubernetes' API is away: ``KUBECONFIG ADDRESS SECONDS``, run in a node's namespace.

Writes through the address again and again, each time on a connection of its own, with the server
verified as kubectl does. Prints the seconds until the first write that was taken.
"""

from __future__ import annotations

import http.client
import re
import ssl
import sys
import tempfile
import time
from pathlib import Path

from appliance.kubernetes.kubeconfig import read_kubeconfig

_PATH = "/api/v1/namespaces/default"
_ANSWER_SECONDS = 3.0


def write(address: str, context: ssl.SSLContext) -> str:
    """Change a namespace's annotation; return what is wrong, if anything."""
    connection = http.client.HTTPSConnection(
        address, 6443, timeout=_ANSWER_SECONDS, context=context
    )
    body = f'{{"metadata":{{"annotations":{{"written":"{time.time()}"}}}}}}'
    try:
        connection.request("PATCH", _PATH, body, {"Content-Type": "application/merge-patch+json"})
        answer = connection.getresponse()
        return "" if answer.status == 200 else f"{answer.status}: {answer.read(300)!r}"
    except (OSError, http.client.HTTPException) as error:
        return str(error) or type(error).__name__
    finally:
        connection.close()


def main(path: str, address: str, seconds: float) -> int:
    """Return 0 if a write was taken in time."""
    text = re.sub(r"server: \S+", f"server: https://{address}:6443", Path(path).read_text())
    config = read_kubeconfig(text, path)
    context = ssl.create_default_context(cadata=config.authority)
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(f"{config.certificate.rstrip()}\n{config.key}")
        file.flush()
        context.load_cert_chain(file.name)
    begun, said = time.monotonic(), ""
    while time.monotonic() - begun < seconds:
        trouble = write(address, context)
        if not trouble:
            print(f"{time.monotonic() - begun:.1f}")
            return 0
        if trouble != said:
            print(f"{time.monotonic() - begun:.1f}: {trouble}", file=sys.stderr)
        said = trouble
        time.sleep(0.2)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
