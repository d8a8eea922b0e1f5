"""What the cluster agent says of itself: ``status.json``, and a few lines for people."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from appliance.kubernetes import files
from appliance.kubernetes.errors import KubernetesError
from appliance.kubernetes.wear import Writes
from appliance.problem import Problem

log = logging.getLogger(__name__)

STATUS_MAX = 256 * 1024


class State(Enum):
    """How it goes."""

    WAITING = "waiting"
    OFF = "off"
    STARTING = "starting"
    READY = "ready"
    DEGRADED = "degraded"


@dataclass(frozen=True, slots=True)
class EngineReport:
    """The engine's unit."""

    unit: str = ""
    state: str = ""
    starts: int = 0


@dataclass(frozen=True, slots=True)
class ApiReport:
    """The address that follows the leader; ``here``: this node has it; ``why`` none is in use."""

    address: str = ""
    here: bool = False
    why: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """The document of ``/run/skerry-cluster/status.json``; fields are only ever added."""

    state: str
    role: str
    why: str
    engine: EngineReport
    node_ready: bool
    api: str
    problems: tuple[Problem, ...]
    cni: str = ""
    nodes: Mapping[str, bool] | None = None
    writes: Writes | None = None
    api_address: ApiReport | None = None


def text(report: Report) -> str:
    """Return the file's text."""
    return json.dumps(asdict(report), indent=2) + "\n"


def read(path: Path) -> dict[str, Any] | None:
    """Return the document as it is on the disk, None if there is none that can be read."""
    try:
        with path.open("rb") as file:
            document = json.loads(file.read(STATUS_MAX))
    except (OSError, ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


class Reporter:
    """Writes reports to a file that everybody may read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._told = ""

    def tell(self, made: Report) -> None:
        """Write a report if it differs from the last one; trouble is logged."""
        content = text(made)
        if content == self._told:
            return
        try:
            files.write(self._path, content.encode(), mode=0o644, folder_mode=0o755)
        except KubernetesError as error:
            log.warning("%s", error)
        else:
            self._told = content
