"""Handlers of ``skerry node`` and ``skerry revoke node``."""

from __future__ import annotations

import argparse
import ipaddress
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from appliance.ledger.assigned import ADDRESS, RANGE, closed_grants
from appliance.operator.drain_handlers import still_has_pods
from appliance.operator.errors import OperatorError
from appliance.operator.listing import NodeRow, node_rows, rows_here
from appliance.operator.resolve import find_node, find_revocable, names_of, revoked_reason
from appliance.operator.shared import (
    epochs_words,
    finish,
    look_around,
    now_ms,
    say_snapshot,
    say_waiting,
    snapshot_facts,
    working,
)
from appliance.operator.snapshot import Snapshot
from appliance.operator.statements import Desk
from appliance.operator.ways import node_here
from provisioning import operator_files as files
from provisioning.keys import id_text
from provisioning.membership import Member
from skerry import console
from skerry.errors import UsageError

_COLUMNS = ("NAME", "ID", "ADDRESS", "PODS", "ROLES", "LABELS", "GRANT", "STATE")


def node_ls(arguments: argparse.Namespace) -> int:
    """List the members; on a node that has no network's directory, as the node sees them."""
    facts, rows = _look(arguments, revoked=arguments.all)
    return _show(arguments, facts, rows)


def _look(
    arguments: argparse.Namespace, *, revoked: bool = False
) -> tuple[dict[str, Any], list[NodeRow]]:
    """Return the members and facts of who sees them so."""
    try:
        directory = files.find_network(arguments.network)
    except files.NetworkFilesError:
        socket = node_here()
        if arguments.network is not None or arguments.via is not None or socket is None:
            raise
        return _look_here(socket)
    network = files.load_network(directory)
    snapshot, trouble = look_around(directory, network, arguments)
    if snapshot is None:
        assert trouble is not None  # noqa: S101 - one of both
        raise trouble
    if not arguments.json:
        say_snapshot(snapshot, trouble)
        say_waiting(directory, network)
    return snapshot_facts(snapshot), node_rows(snapshot, network, now_ms(), revoked=revoked)


def _look_here(socket: Path) -> tuple[dict[str, Any], list[NodeRow]]:
    from appliance.api.client import call

    nodes = call("GET", "/v1/nodes", socket_path=socket)["nodes"]
    given = call("GET", "/v1/ledger/assigned", socket_path=socket)["entries"]
    keys = [str(one["key"]).split("/") for one in given]
    fixed = {kind: {key[0] for key in keys if key[1:] == [kind]} for kind in (ADDRESS, RANGE)}
    facts = {"where": str(socket), "fresh": True, "seen": now_ms() // 1000}
    return facts, rows_here(nodes, fixed[ADDRESS], fixed[RANGE])


def _show(arguments: argparse.Namespace, facts: dict[str, Any], rows: Sequence[NodeRow]) -> int:
    if arguments.json:
        print(json.dumps(facts | {"nodes": [asdict(one) for one in rows]}))
        return 0
    lines = [
        (
            one.name,
            one.node_id,
            (one.address or "-") + (" fixed" if one.address_fixed else ""),
            (one.range or "-") + (" fixed" if one.range_fixed else ""),
            ",".join(one.roles) or "-",
            ",".join(f"{key}={value}" for key, value in sorted(one.labels.items())) or "-",
            (one.grant_id or "-")[:8],
            f"{one.state}: {one.reason}" if one.reason else one.state,
        )
        for one in rows
    ]
    print(console.table(_COLUMNS, lines))
    return 0


def node_rename(arguments: argparse.Namespace) -> int:
    """Name a node."""

    def intent(desk: Desk, member: Member) -> str:
        before = _called(desk, member)
        desk.rename(member, arguments.name)
        return f"{before} is called {arguments.name}"

    return _about_node(arguments, intent)


def node_label(arguments: argparse.Namespace) -> int:
    """Label a node."""
    changes = _changes(arguments.labels)

    def intent(desk: Desk, member: Member) -> str:
        desk.label(member, changes)
        words = ", ".join(
            f"without {key}" if value is None else f"{key}={value}"
            for key, value in changes.items()
        )
        return f"{_called(desk, member)} is labelled {words}"

    return _about_node(arguments, intent)


def node_address(arguments: argparse.Namespace) -> int:
    """Fix a node's address."""
    address = None
    if arguments.address != "auto":
        try:
            address = ipaddress.IPv4Address(arguments.address)
        except ValueError as error:
            raise UsageError(
                f"{arguments.address[:60]!r} is no IPv4 address", hint="write 10.10.0.7, or auto"
            ) from error

    def intent(desk: Desk, member: Member) -> str:
        desk.fix_address(member, address)
        what = "finds its address itself" if address is None else f"has the address {address}"
        return f"{_called(desk, member)} {what}"

    return _about_node(arguments, intent)


def node_range(arguments: argparse.Namespace) -> int:
    """Fix a node's pod range, or show it."""
    if arguments.range is None and not arguments.auto:
        return _show_range(arguments)
    wanted = None
    if arguments.auto and arguments.range is not None:
        raise UsageError("a range and --auto contradict each other", hint="say one of them")
    if not arguments.auto:
        try:
            wanted = ipaddress.IPv4Network(arguments.range)
        except ValueError as error:
            raise UsageError(
                f"{arguments.range[:60]!r} is no IPv4 range", hint="write 10.244.7.0/24, or --auto"
            ) from error

    def intent(desk: Desk, member: Member) -> str:
        desk.fix_range(member, wanted)
        what = "finds its pod range itself" if wanted is None else f"has the pod range {wanted}"
        return f"{_called(desk, member)} {what}"

    done = _about_node(arguments, intent)
    console.note(
        "pods that it runs keep their addresses until they are made anew; if Kubernetes has "
        "another range for the node, `skerry cluster status` there says what to do"
    )
    return done


def _show_range(arguments: argparse.Namespace) -> int:
    facts, rows = _look(arguments)
    asked = arguments.node
    hits = [one for one in rows if asked in {one.name, one.node_id}]
    if not hits:
        raise OperatorError(
            f"no node is called {asked[:80]!r}, and no id is so", hint="known: skerry node ls"
        )
    (row, *_) = hits
    if arguments.json:
        keys = ("name", "node_id", "range", "range_fixed")
        print(json.dumps(facts | {key: asdict(row)[key] for key in keys}))
    else:
        fixed = ", fixed by the operator" if row.range_fixed else ""
        print(f"{row.range}{fixed}" if row.range else "none")
    return 0


def node_remove(arguments: argparse.Namespace) -> int:
    """Put a node out; the network keeps its secret."""
    return _put_out(arguments, epoch=False)


def revoke_node(arguments: argparse.Namespace) -> int:
    """Put a node out, and begin a new epoch."""
    return _put_out(arguments, epoch=True)


def _put_out(arguments: argparse.Namespace, *, epoch: bool) -> int:
    def intent(desk: Desk, snapshot: Snapshot) -> tuple[str, dict[str, Any]]:
        replica = desk.replica
        node_id = find_revocable(arguments.node, replica, desk.now_ms)
        member = replica.directory.member(node_id)
        if snapshot.node_id == id_text(node_id) and not arguments.yes:
            raise OperatorError(
                f"this command goes through the very node that is to go: {arguments.node}",
                hint="go through another one with --via, or say --yes",
            )
        name = names_of(replica, desk.now_ms).get(node_id, id_text(node_id))
        gently = not epoch and member is not None and still_has_pods(desk, member)
        before = len(desk.made)
        reason = revoked_reason(name, arguments.reason)
        begun = desk.revoke(nodes=[node_id], reason=reason, epoch=epoch)
        facts: dict[str, Any] = {"node_id": id_text(node_id), "epochs": list(begun)}
        if len(desk.made) == before:
            return f"{name} is out already; a revocation is final", facts
        if member is not None and epoch:
            _warn_of_grant(desk, member)
        if gently:
            console.note(
                "what pods it had end at once, and start elsewhere when Kubernetes has missed "
                f"them; the gentle way, before: skerry node drain {name}"
            )
        word = "revoked" if epoch else "removed"
        return f"{name} ({id_text(node_id)}) is {word}" + epochs_words(begun), facts

    with working(arguments) as work:
        (words, facts), report = work.do(intent)
    return finish(arguments, words, report, facts)


def _warn_of_grant(desk: Desk, member: Member) -> None:
    now = desk.now_ms / 1000
    ended = member.grant_expires is not None and now >= member.grant_expires
    if ended or member.grant_id in closed_grants(desk.replica, desk.now_ms):
        return
    console.note(
        f"its token (grant {id_text(member.grant_id)[:8]}) still lets nodes in: whoever has a copy "
        "comes in again under another name. To end that: "
        f"skerry token rotate {id_text(member.grant_id)[:8]}"
    )


def _about_node(arguments: argparse.Namespace, intent: Callable[[Desk, Member], str]) -> int:
    def whole(desk: Desk, _: Snapshot) -> tuple[str, Member]:
        member = find_node(arguments.node, desk.replica, desk.now_ms)
        return intent(desk, member), member

    with working(arguments) as work:
        (words, member), report = work.do(whole)
    return finish(arguments, words, report, {"node_id": member.id_text})


def _called(desk: Desk, member: Member) -> str:
    return f"{names_of(desk.replica, desk.now_ms)[member.node_id]} ({member.id_text})"


def _changes(given: list[str]) -> dict[str, str | None]:
    changes: dict[str, str | None] = {}
    for one in given:
        key, equals, value = one.partition("=")
        removed = not equals and key.endswith("-")
        key = key[:-1] if removed else key
        if key in changes or not key or not (equals or removed):
            raise UsageError(f"{one[:80]!r} is no new KEY=VALUE or KEY-")
        changes[key] = None if removed else value
    return changes
