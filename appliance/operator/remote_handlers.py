"""``skerry ledger fetch`` and ``publish``: a node's end of an operator's ssh connection."""

from __future__ import annotations

import argparse
import json
import sys

from appliance.operator.errors import PublishError
from appliance.operator.publisher import BATCH_BYTES, LocalPublisher


def fetch(arguments: argparse.Namespace) -> int:
    """Print all that the node holds, and how it sees the members."""
    print(json.dumps(LocalPublisher(arguments.socket).document()))
    return 0


def publish(arguments: argparse.Namespace) -> int:
    """Hand one batch from standard input to the node, and print the results."""
    limit = 2 * BATCH_BYTES
    data = sys.stdin.buffer.read(limit + 1)
    try:
        request = json.loads(data) if len(data) <= limit else None
    except (ValueError, RecursionError):
        request = None
    if not isinstance(request, dict):
        raise PublishError(
            "standard input holds no records", hint="skerry on the operator's machine sends them"
        )
    print(json.dumps(LocalPublisher(arguments.socket).hand_over(request)))
    return 0
