"""``skerry status`` as text, from the document of the API."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from skerry.console import format_size, table

Document = Mapping[str, Any]
_PEERS = ("MEMBER", "ADDRESS", "PATH", "RTT", "HANDSHAKE", "STATE")
_REFUSALS = ("REFUSED", "FROM", "TIMES", "LAST")
# `control.views.LedgerView.clock`, for people.
_CLOCKS = {"kept": "not synced"}
_TOLD = ("REFUSED BY", "CAUSE", "LAST", "ITS WORDS")


def render(document: Document) -> str:
    """Return the status as lines of text without colours, fit for a terminal of any kind."""
    parts = [_head(document)]
    for title, key, mark in (("Reasons", "reasons", "!"), ("Notices", "notices", "-")):
        if entries := document.get(key):
            parts.append("\n".join([title, *_problems(entries, mark)]))
    if tokens := document.get("refused_tokens"):
        parts.append("\n".join(["Tokens that can't be used", *_tokens(tokens)]))
    if document.get("state") == "unprovisioned":
        parts.append(
            "Waiting for a token. Give it one: skerry provision TOKEN, or token.txt on the SKERRY\n"
            "partition or on a USB stick labelled SKERRY."
        )
    overlay = document.get("overlay") or {}
    if overlay:
        parts.append(_peers(overlay.get("peers") or ()))
        if refusals := overlay.get("refusals"):
            parts.append(_refusals(refusals))
    if told := document.get("told"):
        parts.append(_told(told))
    return "\n\n".join(parts)


def _head(document: Document) -> str:
    release = document.get("release") or {}
    overlay = document.get("overlay") or {}
    state = f"{document.get('state', '?')} for {age(document.get('state_since_s'))}"
    rows = [(document.get("name") or "(no name yet)", state)]
    if document.get("node_id"):
        rows.append(("node", str(document["node_id"])))
        rows.append(("network", f"{document.get('network')} ({document.get('network_id')})"))
    version = release.get("version") or "(not an image)"
    details = [release.get("board"), release.get("build_id")]
    version += "".join(f", {detail}" for detail in details if detail)
    rows.append(("release", version))
    rows.append(("slot", release.get("slot") or "-"))
    rows.append(
        (
            "up",
            f"{age(document.get('uptime_s'))}, supervisor "
            f"{age(document.get('supervisor_uptime_s'))}",
        )
    )
    if overlay:
        rows += _overlay(overlay)
        if pods := ", ".join(overlay.get("pod_range") or ()) or overlay.get("no_pods"):
            rows.append(("pods", str(pods)))
    if ledger := document.get("ledger"):
        rows.append(("ledger", _ledger(ledger)))
    if cluster := document.get("cluster"):
        rows.append(("cluster", _cluster(cluster)))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _overlay(overlay: Document) -> list[tuple[str, str]]:
    port = f"UDP port {overlay.get('listen_port')}"
    if overlay.get("mode") == "off":
        return [("overlay", f"none: the network has no tunnel (vpn is off), {port}")]
    interface = f"{overlay.get('interface')}, {overlay.get('mode')} WireGuard, {port}"
    return [
        ("overlay", ", ".join(overlay.get("addresses") or ()) or "(no address yet)"),
        ("interface", interface),
    ]


def _ledger(ledger: Document) -> str:
    members = ledger.get("members")
    said = [
        f"{ledger.get('entries')} entries, {format_size(ledger.get('bytes') or 0)}",
        f"epoch {ledger.get('epoch')}",
        f"clock {_CLOCKS.get(str(ledger.get('clock')), ledger.get('clock'))}",
    ]
    if members is not None:
        said.append(f"{ledger.get('contacts')} of {max(members - 1, 0)} members within reach")
    return ", ".join(said)


def _cluster(cluster: Document) -> str:
    said = [str(cluster.get("state") or "?"), str(cluster.get("why") or "")]
    if problems := cluster.get("problems"):
        said.append(f"{len(problems)} problem(s): skerry cluster status")
    return _plain(", ".join(one for one in said if one))


def _plain(text: str) -> str:
    return "".join(sign if sign.isprintable() else "?" for sign in text)


def _problems(entries: Iterable[Document], mark: str) -> list[str]:
    lines = []
    for entry in entries:
        lines.append(f"  {mark} {entry.get('code')}: {entry.get('message')}")
        if entry.get("hint"):
            lines.append(f"      {entry['hint']}")
    return lines


def _tokens(entries: Iterable[Document]) -> list[str]:
    lines = []
    for entry in entries:
        lines.append(f"  ! {entry.get('where')}: {entry.get('error')}")
        if entry.get("hint"):
            lines.append(f"      {entry['hint']}")
    return lines


def _peers(peers: Iterable[Document]) -> str:
    rows = [
        (
            str(peer.get("name") or peer.get("node_id")),
            ", ".join(peer.get("addresses") or ()) or "-",
            f"{peer.get('path') or '-'} {peer.get('endpoint') or ''}".strip(),
            "-" if peer.get("rtt_ms") is None else f"{peer['rtt_ms']:.1f} ms",
            "-" if peer.get("handshake_age_s") is None else age(peer["handshake_age_s"]),
            "up" if peer.get("up") else "down",
        )
        for peer in peers
    ]
    return table(_PEERS, rows) if rows else "No other member is known so far."


def _refusals(refusals: Iterable[Document]) -> str:
    rows = [
        (
            str(one.get("cause")),
            str(one.get("who")),
            str(one.get("count")),
            f"{age(one.get('age_s'))} ago",
        )
        for one in refusals
    ]
    return table(_REFUSALS, rows)


def _told(entries: Iterable[Document]) -> str:
    rows = [
        (
            str(one.get("who") or one.get("node_id")),
            str(one.get("cause")),
            f"{age(one.get('age_s'))} ago",
            # Another member's words go to a terminal here.
            _plain(str(one.get("detail"))),
        )
        for one in entries
    ]
    return table(_TOLD, rows)


def age(seconds: float | None) -> str:
    """Return a span of time in its two largest units: ``3d 4h``, ``12s``; ``?`` if unknown."""
    if seconds is None:
        return "?"
    whole = max(int(seconds), 0)
    for size, unit, small, small_unit in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "m"),
        (60, "m", 1, "s"),
    ):
        if whole >= size:
            rest = whole % size // small
            return f"{whole // size}{unit} {rest}{small_unit}" if rest else f"{whole // size}{unit}"
    return f"{whole}s"
