"""``skerry update ...``: what a person, and the node's own units, can do with updates."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from ota.errors import OtaError, Trouble
from skerry import console

if TYPE_CHECKING:
    from ota.update import Updates

REBOOT_NEEDED = 10
_STEADY = "the node keeps working meanwhile"


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``update`` and its own sub-commands."""
    parser = subparsers.add_parser("update", help="A/B updates of this node")
    commands = parser.add_subparsers(dest="update_command", metavar="ACTION", required=True)

    install = commands.add_parser("install", help="write a bundle into the other slot, and try it")
    install.add_argument("file", metavar="FILE", help="the bundle (.raucb)")
    install.add_argument("--reboot", action="store_true", help="reboot into it when it is written")
    install.add_argument(
        "--force", action="store_true", help="even a release that is running or failed before"
    )
    install.add_argument("--json", action="store_true", help="print the outcome as JSON")
    install.set_defaults(handler=install_command)

    status = commands.add_parser("status", help="slots, versions, trial, failures")
    status.add_argument("--json", action="store_true", help="as JSON")
    status.set_defaults(handler=status_command)

    rollback = commands.add_parser("rollback", help="go back to the other slot's system")
    rollback.add_argument("--reboot", action="store_true", help="reboot into it at once")
    rollback.set_defaults(handler=rollback_command)

    for name, text, handler in (
        ("settle", "take note of the booted slot (skerry-slot.service)", settle_command),
        ("mark-good", "end a trial well (skerry-mark-good.service)", mark_good_command),
        ("trial-failed", "end a trial badly (skerry-trial-failed.service)", trial_failed_command),
    ):
        commands.add_parser(name, help=text).set_defaults(handler=handler)


def install_command(arguments: argparse.Namespace) -> int:
    """Install a bundle."""
    import asyncio
    from pathlib import Path

    from ota.installer import Progress
    from ota.rauc import Rauc

    _need_root()
    updates = _updates()
    bundle = Path(arguments.file).resolve()

    async def install() -> dict[str, object]:
        async with Rauc.connect() as rauc:
            with console.step(f"checking {arguments.file}"):
                plan = await updates.plan(rauc, bundle, force=arguments.force)
            console.note(
                f"    version {plan.info.version} (build {plan.info.build_id or '?'}), "
                f"{console.format_size(plan.size)}, into slot {plan.target.bootname}; "
                f"version {plan.boot.version} in slot {plan.boot.slot} is kept; {_STEADY}"
            )
            bar = console.Progress("installing", plan.size)

            def show(progress: Progress) -> None:
                bar.update(plan.size * progress.percent // 100)

            pending = await updates.install(rauc, plan, show)
            bar.finish()
        return {
            "version": pending.version,
            "build_id": pending.build_id,
            "slot": pending.target,
            "reboot": "now" if arguments.reboot else "needed",
        }

    try:
        outcome = asyncio.run(install())
    except KeyboardInterrupt:
        console.note(
            "\nstopped: RAUC may still be writing, but this slot is not booted; the running system "
            "is untouched. Install again when `skerry update status` shows RAUC idle."
        )
        raise
    console.note(
        f"version {outcome['version']} is tried at the next boot. It stays only if the node "
        "becomes healthy; otherwise the boot loader returns to this system by itself."
    )
    if arguments.json:
        print(json.dumps(outcome))
    _maybe_reboot(now=arguments.reboot)
    return 0


def status_command(arguments: argparse.Namespace) -> int:
    """Show how this node stands with updates."""
    import asyncio

    from ota.status import collect, render

    document = asyncio.run(collect(_updates()))
    print(json.dumps(document, indent=2) if arguments.json else render(document))
    return 0


def rollback_command(arguments: argparse.Namespace) -> int:
    """Go back."""
    import asyncio

    from ota.rauc import Rauc

    _need_root()
    updates = _updates()

    async def rollback() -> str:
        async with Rauc.connect() as rauc:
            return await updates.rollback(rauc)

    console.note(asyncio.run(rollback()))
    _maybe_reboot(now=arguments.reboot)
    return 0


def settle_command(_: argparse.Namespace) -> int:
    """Take note of the booted slot."""
    import asyncio

    from ota.rauc import Rauc

    _need_root()
    updates = _updates()

    async def settle() -> None:
        async with Rauc.connect() as rauc:
            await updates.settle(rauc)

    asyncio.run(settle())
    return 0


def mark_good_command(_: argparse.Namespace) -> int:
    """End a trial well."""
    import asyncio

    from ota.rauc import Rauc

    _need_root()
    updates = _updates()

    async def mark_good() -> None:
        async with Rauc.connect() as rauc:
            await updates.mark_good(rauc)

    asyncio.run(mark_good())
    return 0


def trial_failed_command(_: argparse.Namespace) -> int:
    """End a trial badly: exit status 10 asks the unit's FailureAction= for the reboot."""
    _need_root()
    return REBOOT_NEEDED if _updates().trial_failed() else 0


def _updates() -> Updates:
    from ota.update import Updates

    return Updates(say=console.note)


def _need_root() -> None:
    import os

    if os.geteuid() != 0:
        raise OtaError(
            "only root may change this node's system",
            hint="run the command as root",
            trouble=Trouble.NOT_AUTHORISED,
        )


def _maybe_reboot(*, now: bool) -> None:
    import subprocess

    if not now:
        console.note("reboot when it suits you: systemctl reboot")
        return
    console.note("rebooting")
    sys.stdout.flush()
    done = subprocess.run(["systemctl", "reboot"], stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise OtaError(
            f"systemctl reboot failed with status {done.returncode}",
            hint="the next boot tries the new slot, however it comes about",
        )
