"""Starts a supervisor as a process: directories, logging, event loop."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import logging
import os
import signal
from contextlib import suppress
from pathlib import Path

import uvloop

from appliance import journal, machine, people
from appliance.config import SupervisorConfig
from appliance.edge import OverlayEdge, OverlayFactory
from appliance.journal import Redactor
from appliance.notify import Notifier
from appliance.people import Console
from appliance.slim import slim_netlink
from appliance.store import Store
from appliance.supervisor import Supervisor
from provisioning.identity import Identity
from skerry.errors import SkerryError

# A node that starts with its token at hand is past its first search by then.
LOAD_AFTER_SECONDS = 1.0


def prepare_directories(config: SupervisorConfig) -> None:
    """Make what is missing of the directories. Raises SkerryError for the run directory only."""
    with suppress(OSError):  # the store and the identity say what is wrong with it
        config.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        config.run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        config.inbox.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise SkerryError(
            f"{config.run_dir} can't be used: {error.strerror}",
            hint="On a node, systemd-tmpfiles makes it; by hand, give another --run-dir.",
        ) from error


def hold(directory: Path) -> int | None:
    """Take a directory for this process alone, until it ends; None if it can't be opened.

    The database is locked too, but there may be none: its disk is full, or read-only. Raises
    SkerryError if another process has the directory.
    """
    try:
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None  # whoever needs it says what is wrong with it
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise SkerryError(
            f"{directory} is in use by another process",
            hint="Is a second supervisor running? Stop it, or give this one its own --state-dir "
            "and --run-dir.",
        ) from error
    except OSError:
        os.close(handle)
        return None  # a file system without locks
    return handle


def run(config: SupervisorConfig, *, make_overlay: OverlayFactory | None = None) -> int:
    """Run a supervisor until it is told to stop."""
    os.umask(0o077)
    redactor = Redactor(people.TOKEN_PATTERNS)
    by_hand = os.environ.get("JOURNAL_STREAM") is None
    journal.set_up(
        redactor,
        level=logging.DEBUG if config.debug else logging.INFO,
        journal=None if by_hand else journal.JOURNAL_SOCKET,
    )
    prepare_directories(config)
    held = [hold(one) for one in (config.state_dir, config.run_dir)]
    notifier = Notifier()

    async def main() -> None:
        supervisor = Supervisor(
            config,
            make_overlay=make_overlay or _real_overlay,
            redactor=redactor,
            notifier=notifier,
            console=Console(config.issue),
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, supervisor.stop)
        try:
            await supervisor.start()
        except OSError as error:
            raise SkerryError(
                f"the local API can't listen on {config.socket}: {error.strerror or error}",
                hint="Its directory has to exist and to be writable, its path short.",
            ) from error
        # What is loaded by now stays: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        loading = asyncio.create_task(_load_while_waiting(supervisor))
        await supervisor.serve()
        await loading

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
    notifier.close()
    for handle in held:
        if handle is not None:
            os.close(handle)
    return 0


async def _load_while_waiting(supervisor: Supervisor) -> None:
    """Load the overlay's modules while a person fetches the token: it joins the sooner then."""
    await asyncio.sleep(LOAD_AFTER_SECONDS)
    if supervisor.waits_for_token:
        await asyncio.to_thread(_load_overlay)


def _load_overlay() -> None:
    slim_netlink()
    import appliance.control.service  # noqa: F401 - for its side effect: it is loaded


def _real_overlay(identity: Identity, store: Store, config: SupervisorConfig) -> OverlayEdge:
    # Netlink and discovery are most of what the process weighs: loaded when there is a network.
    slim_netlink()
    from appliance.control.service import Control
    from appliance.overlay.config import OverlayConfig

    return Control(
        identity,
        store,
        OverlayConfig(
            interface=config.interface,
            listen_port=config.listen_port,
            wireguard=config.wireguard,
            wireguard_go=config.wireguard_go,
        ),
        ledger=config.ledger,
        time_request=config.time_request,
        floor=machine.image_epoch(),
    )
