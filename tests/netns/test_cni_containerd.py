"""The runtime itself: containerd attaches a container of its own, on a machine of its own."""

from __future__ import annotations

import platform
import shutil
import signal
from pathlib import Path

import pytest

from image import workloads
from image.board import Architecture
from tests.contract.engine_world import Machine, World
from tests.netns.cni import CniLab
from tests.netns.lab import run, wait_until

pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]

_ARCHITECTURE = {"x86_64": Architecture.AMD64, "aarch64": Architecture.ARM64}[platform.machine()]
_CTR = ("ctr", "-n", "k8s.io")


def test_containerd_attaches_a_container_that_outlives_the_server() -> None:
    pause = workloads.archive("pause", workloads.Sources(_ARCHITECTURE, Path("/nowhere"), ""))
    with World(Path("/bin/true"), pause) as world, CniLab() as lab:
        machine = world.machine("one")
        machine.containerd()
        node = lab.node(machine.namespace)
        clean = node.traces()
        configure(machine, lab.programs, node.config_dir)
        said = machine.run(
            *(*_CTR, "run", "--snapshotter", "native", "--cni", "--detach"),
            *("skerry.local/pause:1", "pod"),
            check=False,
        )
        assert node.traces() != clean, said
        reach = node.command("ping", "-c", "1", "-W", "2", "10.244.7.2")
        assert " 0% packet loss" in run(*reach, check=False)
        # The namespace's path is one of the machine's: here it leads nowhere, or elsewhere. That
        # the link leads somewhere is enough for the container to stay.
        attached = node.traces()
        node.end(signal.SIGKILL)
        node.start()
        assert node.traces() == attached
        assert " 0% packet loss" in run(*reach, check=False)
        # Nobody calls DEL for it; its end is seen all the same.
        machine.run(*_CTR, "task", "kill", "-s", "9", "pod")
        wait_until(lambda: not node.traces()["links"], 20, "the container is gone")
        node.end()
        node.start()
        assert node.traces() == clean


def configure(machine: Machine, programs: Path, configuration: Path) -> None:
    """Give a machine the plugins and their configuration, where containerd's tools look."""
    folder = machine.shared / "cni"
    folder.mkdir()
    for one in programs.iterdir():
        shutil.copy(one, folder / one.name)
    shutil.copy(configuration / "10-skerry.conflist", folder)
    machine.run(
        *("sh", "-c"),
        "rm /etc/cni/net.d/*; mkdir -p /opt/cni; ln -s /data/shared/cni /opt/cni/bin;"
        "mv /opt/cni/bin/*.conflist /etc/cni/net.d/",
    )
