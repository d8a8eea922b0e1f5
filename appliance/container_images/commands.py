"""``skerry container-images import``: run by skerry-container-images.service."""

from __future__ import annotations

import argparse
from pathlib import Path

from skerry.groups import Actions, group

SHIPPED = Path("/usr/share/skerry/images")
OPERATORS = Path("/data/kubernetes/images")
RECORD = Path("/data/kubernetes/images.json")


def register(subparsers: Actions) -> None:
    """Add our sub-commands."""
    actions = group(
        subparsers, "container-images", "Kubernetes' images that this node brings along"
    )
    bring = actions.add_parser("import", help="give containerd what it does not have yet")
    bring.add_argument("--folder", type=Path, action="append", help=argparse.SUPPRESS)
    bring.add_argument("--record", type=Path, default=RECORD, help=argparse.SUPPRESS)
    bring.add_argument("--address", type=Path, help=argparse.SUPPRESS)
    bring.set_defaults(handler=_import)


def _import(arguments: argparse.Namespace) -> int:
    import json

    from appliance.container_images import archives, importing
    from appliance.container_images.containerd import ADDRESS, Ctr
    from appliance.kubernetes import files
    from skerry import console

    record: Path = arguments.record
    runtime = Ctr(address=arguments.address or ADDRESS)
    runtime.wait()

    def keep(known: importing.Record) -> None:
        files.write(record, json.dumps(known, indent=1, sort_keys=True).encode())

    def tell(outcome: importing.Outcome) -> None:
        if outcome.error is not None:
            console.note(f"{outcome.error}")
            if outcome.error.hint:
                console.note(f"  {outcome.error.hint}")
        elif not outcome.skipped:
            console.note(f"{outcome.path}: {', '.join(outcome.names)}")

    try:
        text = record.read_text(errors="replace")[: importing.RECORD_MAX]
    except OSError:
        text = ""
    outcomes = importing.bring(
        runtime,
        archives.find(arguments.folder or (SHIPPED, OPERATORS)),
        importing.parse_record(text),
        keep=keep,
        tell=tell,
    )
    skipped = sum(outcome.skipped for outcome in outcomes)
    failed = sum(outcome.error is not None for outcome in outcomes)
    brought = len(outcomes) - skipped - failed
    console.note(f"archives: {brought} brought, {skipped} there before, {failed} bad")
    # Of the release all must be good; an operator's bad file is told and is not the node's failure.
    own = [outcome for outcome in outcomes if outcome.error and SHIPPED in outcome.path.parents]
    return 1 if own else 0
