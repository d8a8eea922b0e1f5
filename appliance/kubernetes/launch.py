"""Starts the cluster agent as a process: logging, signals, the loop, the service manager."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine

from appliance import journal
from appliance.journal import Redactor
from appliance.kubernetes import files
from appliance.kubernetes.agent import TURN_SECONDS, Agent
from appliance.kubernetes.api_address import ApiAddress
from appliance.kubernetes.asking import Supervisor
from appliance.kubernetes.draining import Draining
from appliance.kubernetes.engine import EngineKeeper
from appliance.kubernetes.errors import KubernetesError
from appliance.kubernetes.exposing import Exposing
from appliance.kubernetes.lan_doors import LanDoors
from appliance.kubernetes.lan_edge import MachineLan
from appliance.kubernetes.observing import Observer
from appliance.kubernetes.places import Places
from appliance.kubernetes.pods import CniHost, HostedCni
from appliance.kubernetes.pods_only import PodsOnly, node_name
from appliance.kubernetes.sealing import Sealer
from appliance.kubernetes.serving import KubeSide
from appliance.kubernetes.units import Systemd, Units
from appliance.notify import Notifier

log = logging.getLogger(__name__)

# A turn that takes longer than this is a defect: the watchdog may end it.
TURN_LONGEST_SECONDS = 240.0
_DEFECT_PAUSE = 10.0


def run(
    places: Places, *, units: Units | None = None, cni: CniHost | None = None, debug: bool = False
) -> int:
    """Run a cluster agent until it is told to stop. What runs on the node goes on then."""
    os.umask(0o077)
    by_hand = os.environ.get("JOURNAL_STREAM") is None
    journal.set_up(
        Redactor(),
        level=logging.DEBUG if debug else logging.INFO,
        journal=None if by_hand else journal.JOURNAL_SOCKET,
    )
    files.make_folder(places.run_dir)
    notifier = Notifier()
    try:
        asyncio.run(_main(places, units or Systemd(), cni or HostedCni(places), notifier))
    finally:
        notifier.close()
    return 0


def _leave() -> None:
    """End at once: a thread may wait half a minute for a Kubernetes that does not answer."""
    sys.stderr.flush()
    os._exit(0)


def _agent(places: Places, units: Units, cni: CniHost) -> Agent | PodsOnly:
    supervisor = Supervisor(places.socket)
    if places.pods_only:
        return PodsOnly(places, supervisor=supervisor, cni=cni, name=node_name(os.environ))
    observer = Observer(supervisor)
    return Agent(
        places,
        supervisor=supervisor,
        engine=EngineKeeper(places, units, time.monotonic),
        kube=KubeSide(places, observer, draining=Draining(supervisor)),
        sealer=Sealer(places, supervisor),
        observer=observer,
        cni=cni,
        api_address=ApiAddress(lan=MachineLan()),
        doors=LanDoors(MachineLan()),
        exposing=Exposing(places),
    )


async def _main(places: Places, units: Units, cni: CniHost, notifier: Notifier) -> None:
    agent = _agent(places, units, cni)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    beat = _Beat(notifier)
    tasks = [
        asyncio.create_task(_again(agent.turn, beat.turned, agent.tell_defect)),
        asyncio.create_task(_again(agent.ask_kubernetes, lambda: None, agent.tell_defect)),
        asyncio.create_task(beat.keep()),
    ]
    try:
        await stop.wait()
    finally:
        notifier.send(STOPPING=1)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await cni.stop()
        await units.close()
        _leave()


class _Beat:
    """Tells the service manager that the loop turns."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._last = time.monotonic()
        self._ready = False

    def turned(self) -> None:
        """Take note of a turn that came to its end."""
        self._last = time.monotonic()
        if not self._ready:
            self._ready = self._notifier.send(READY=1)

    async def keep(self) -> None:
        """Feed the watchdog as long as turns end."""
        pause = (self._notifier.watchdog_seconds or 60.0) / 3
        while True:
            if time.monotonic() - self._last < TURN_LONGEST_SECONDS:
                self._notifier.send(WATCHDOG=1)
            await asyncio.sleep(pause)


async def _again(
    work: Callable[[], Coroutine[None, None, float]],
    done: Callable[[], None],
    tell: Callable[[Exception], None],
) -> None:
    """Do it again and again, each time after as many seconds as it said."""
    while True:
        wait = TURN_SECONDS
        try:
            wait = await work()
        except asyncio.CancelledError:
            raise
        except KubernetesError as error:
            log.warning("%s", error)
        except Exception as error:
            # A defect costs a turn, not the node.
            log.exception("a defect in the cluster agent")
            tell(error)
            wait = _DEFECT_PAUSE
        done()
        await asyncio.sleep(wait)
