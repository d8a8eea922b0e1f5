"""``skerry cluster status``: the agent's report, for people and for machines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from appliance.kubernetes.errors import KubernetesError
from appliance.kubernetes.report import read
from appliance.kubernetes.wear import read_words
from skerry.console import table


def show(path: Path, *, as_json: bool) -> int:
    """Print what the cluster agent reported last; exit status 1 if it has problems."""
    document = read(path)
    if document is None:
        there = path.exists()
        raise KubernetesError(
            f"{path} is no report of the cluster agent"
            if there
            else f"the cluster agent does not run here: there is no {path}",
            hint="On a node: systemctl status skerry-cluster; journalctl -u skerry-cluster",
        )
    print(json.dumps(document, indent=2) if as_json else "\n".join(words(document)))
    return 1 if document.get("problems") else 0


def words(document: Mapping[str, Any]) -> list[str]:
    """Return the report as lines."""
    engine = document.get("engine") or {}
    unit = str(engine.get("unit", "")) or "none"
    rows = [
        ("state", str(document.get("state", "?"))),
        ("role", f"{document.get('role', '?')} ({document.get('why', '')})"),
        ("engine", f"{unit}, {engine.get('state')}" if engine.get("state") else unit),
        ("node", "ready" if document.get("node_ready") else "not ready"),
        ("API", str(document.get("api") or "-")),
        ("address", _address(document.get("api_address"))),
        ("pods", str(document.get("cni") or "-")),
        ("writes", read_words(document.get("writes"))),
    ]
    lines = [f"{name:<8}{_plain(value)}" for name, value in rows]
    nodes = document.get("nodes")
    if isinstance(nodes, dict) and nodes:
        found = [(str(name), "ready" if ready else "not ready") for name, ready in nodes.items()]
        lines += ["", table(("NODE", "STATE"), sorted(found))]
    for one in document.get("problems") or ():
        lines += ["", f"! {_plain(one.get('code'))}: {_plain(one.get('message'))}"]
        if one.get("hint"):
            lines.append(f"    {_plain(one['hint'])}")
    return lines


def _address(one: object) -> str:
    """Return the words for the address that follows the leader."""
    if not isinstance(one, dict):
        return "-"
    if not one.get("why"):
        return f"{one.get('address')}{', here' if one.get('here') else ''}"
    return f"none: {one['why']}. {one.get('hint', '')}"


def _plain(value: object) -> str:
    """Return a text as a terminal may have it: parts come from other machines."""
    return "".join(sign if sign.isprintable() else "?" for sign in str(value))
