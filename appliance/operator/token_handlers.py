"""Handlers of ``skerry token ls``, ``token rotate``, ``revoke grant`` and ``network sync``."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from appliance.operator import resolve
from appliance.operator.errors import OperatorError
from appliance.operator.listing import grant_rows, grants_in
from appliance.operator.resolve import names_of
from appliance.operator.shared import (
    epochs_words,
    finish,
    id_of,
    look_around,
    now_ms,
    report_facts,
    say_snapshot,
    say_waiting,
    snapshot_facts,
    working,
)
from appliance.operator.snapshot import Snapshot
from appliance.operator.statements import Desk
from appliance.operator.work import Work
from provisioning import operator_commands
from provisioning import operator_files as files
from provisioning.durations import expiry, moment_text
from provisioning.keys import id_text
from provisioning.network import NetworkInfo
from provisioning.operator_grants import GrantNote, add_grant, load_grants, note_of, terms_of
from provisioning.token import Token, make_token
from skerry import console
from skerry.errors import UsageError

_PATH_MAX = 200


def token_ls(arguments: argparse.Namespace) -> int:
    """List the grants."""
    directory = files.find_network(arguments.network)
    network = files.load_network(directory)
    notes = load_grants(directory)
    snapshot, trouble = look_around(directory, network, arguments)
    rows = grant_rows(snapshot, notes, now_ms())
    if arguments.json:
        facts = (
            snapshot_facts(snapshot) if snapshot else {"where": None, "fresh": False, "seen": None}
        )
        grants = [
            msgspec.to_builtins(one.note)
            | {"state": one.state, "used": one.used, "made_here": one.made_here}
            | {"nodes": list(one.nodes), "epoch": one.note.epoch if one.made_here else None}
            for one in rows
        ]
        print(json.dumps(facts | {"grants": grants}))
        return 0
    if snapshot is None:
        console.note(f"{trouble}; who used them, and which are closed or revoked, is unknown")
        if trouble is not None and trouble.hint:
            console.note(f"  {trouble.hint}")
    else:
        say_snapshot(snapshot, trouble)
    say_waiting(directory, network)
    lines = [_grant_line(one.note, one.state, one.used, made_here=one.made_here) for one in rows]
    print(console.table(("GRANT", "ROLES", "LABELS", "EXPIRES", "USED", "STATE", "MADE"), lines))
    return 0


def _grant_line(
    note: GrantNote, state: str, used: int | None, *, made_here: bool
) -> tuple[str, ...]:
    allowed = "any" if note.count is None else str(note.count)
    return (
        note.grant_id,
        ",".join(note.roles) + (" founder" if note.founder else ""),
        ",".join(f"{key}={value}" for key, value in sorted(note.labels.items())) or "-",
        "never" if note.expires is None else moment_text(note.expires),
        f"{'?' if used is None else used} of {allowed}",
        state if used is not None or state != "open" else "open?",
        "here" if made_here else "elsewhere",
    )


def token_rotate(arguments: argparse.Namespace) -> int:
    """Close a grant, and make a token in its place."""

    def intent(desk: Desk, snapshot: Snapshot) -> GrantNote:
        notes = load_grants(work.directory)
        old = _rotated(arguments.grant, desk, snapshot, notes)
        desk.close_grant(id_of(old.grant_id))
        return old

    with working(arguments) as work:
        old, report = work.do(intent, blind=True)
        token = _replacement(work, old, arguments.expires)
        note = note_of(token.grant, token.network.epoch, replaces=old.grant_id)
        add_grant(work.directory, note)
    words = f"grant {old.grant_id} lets nobody new in; its nodes stay in"
    if not arguments.json:
        operator_commands.show_token(token, as_json=False)
        return finish(arguments, words, report, {})
    more = {"closed": old.grant_id} | report_facts(report)
    operator_commands.show_token(token, as_json=True, more=more)
    return report.status


def _replacement(work: Work, old: GrantNote, expires: str | None) -> Token:
    terms, now = terms_of(old), time.time()
    end = None if terms.lasts is None else int(now) + terms.lasts
    return make_token(
        work.root.network,
        work.root.seed,
        now=now,
        roles=terms.roles,
        labels=terms.labels,
        expires=end if expires is None else expiry(expires, now),
        count=terms.count,
        founder=terms.founder,
    )


def _rotated(
    given: str | None, desk: Desk, snapshot: Snapshot, notes: tuple[GrantNote, ...]
) -> GrantNote:
    """Return the grant that is to be replaced."""
    rows = {one.note.grant_id: one for one in grant_rows(snapshot, notes, desk.now_ms)}
    if given is None:
        left = [one for one in rows.values() if one.state in {"open", "used up"}]
        if len(left) != 1:
            known = ", ".join(one.note.grant_id for one in left[: resolve.SHOWN_MAX])
            raise OperatorError(
                f"{len(left)} grants are open" + (f": {known}" if known else ""),
                hint="say which one is to be replaced: skerry token ls"
                if left
                else "make a token with `skerry token new`",
            )
        return left[0].note
    token = _as_token(given, desk.root.network)
    if token is not None:
        return note_of(token.grant, token.network.epoch)
    grant_id = id_text(resolve.find_grant(given, map(id_of, rows)))
    if grant_id not in rows:
        raise OperatorError(
            f"nothing is known of the grant {grant_id}",
            hint="give its token, or make one with `skerry token new`",
        )
    if rows[grant_id].state == "revoked":
        raise OperatorError(
            f"the grant {grant_id} is revoked", hint="make a token with `skerry token new`"
        )
    return rows[grant_id].note


def revoke_grant(arguments: argparse.Namespace) -> int:
    """Put out a grant and all who came in under it."""

    def intent(desk: Desk, snapshot: Snapshot) -> tuple[str, dict[str, Any]]:
        grant_id = _grant_id(arguments.grant, desk, work.directory)
        names = names_of(desk.replica, desk.now_ms)
        nodes = [one for one in desk.replica.directory if one.grant_id == grant_id]
        out = sorted(names[one.node_id] for one in nodes)
        facts: dict[str, Any] = {"grant_id": id_text(grant_id), "nodes": out}
        already = grant_id in resolve.revoked_grants(desk.replica, desk.now_ms)
        others = len(nodes) < len(desk.replica.directory)
        if snapshot.node_id in {one.id_text for one in nodes} and others and not arguments.yes:
            raise OperatorError(
                "this command goes through a node that is to go",
                hint="go through one that stays, with --via, or say --yes",
            )
        if not already:
            _confirm(_going(grant_id, out), yes=arguments.yes)
        before = len(desk.made)
        begun = desk.revoke(grants=[grant_id], reason=arguments.reason)
        facts["epochs"] = list(begun)
        if len(desk.made) == before:
            return f"grant {id_text(grant_id)} is revoked already", facts
        whom = f"{len(out)} node(s) are out: {', '.join(out)}" if out else "no node used it"
        return f"grant {id_text(grant_id)} is revoked, {whom}" + epochs_words(begun), facts

    with working(arguments) as work:
        (words, facts), report = work.do(intent, blind=True)
    return finish(arguments, words, report, facts)


def network_sync(arguments: argparse.Namespace) -> int:
    """Publish what waits, and learn the epoch."""
    with working(arguments) as work:
        _, report = work.do(lambda _, __: None)
    if report.trouble is not None and not report.waiting:
        raise report.trouble
    words = "what was said earlier" if report.waiting else f"the network is in epoch {report.epoch}"
    return finish(arguments, words, report, {})


def _going(grant_id: bytes, out: list[str]) -> str:
    if not out:
        return f"Revoke grant {id_text(grant_id)}? No known node came in under it."
    return (
        f"Revoke grant {id_text(grant_id)}? {len(out)} node(s) go out with it, for ever: "
        f"{', '.join(out)}."
    )


def _confirm(question: str, *, yes: bool) -> None:
    if yes:
        console.note(question)
        return
    if not sys.stdin.isatty():
        raise UsageError(question, hint="there is no terminal to ask on: say --yes")
    if input(f"{question} [y/N] ").strip().lower() not in {"y", "yes"}:
        raise OperatorError("nothing was revoked")


def _as_token(given: str, network: NetworkInfo) -> Token | None:
    """Return the token that was given in place of a grant's id, or None if it is none."""
    path = Path(given)
    looks = given == "-" or given.upper().startswith("SKERRY")
    if not looks and not (len(given) < _PATH_MAX and path.is_file()):
        return None
    token = operator_commands.read_token(given)
    if token.network.network_id != network.network_id:
        raise OperatorError(
            f"this is a token of another network ({token.network.name})",
            hint="say which network with --network",
        )
    return token


def _grant_id(given: str, desk: Desk, directory: Path) -> bytes:
    token = _as_token(given, desk.root.network)
    if token is not None:
        return token.grant.grant_id
    known = {id_of(one.grant_id) for one in load_grants(directory)} | set(grants_in(desk.replica))
    return resolve.find_grant(given, known)
