"""The errors of machines and labs."""

from __future__ import annotations

from skerry.errors import SkerryError


class LabError(SkerryError):
    """A machine or the lab around it is not as it should be."""


class MachineError(LabError):
    """QEMU could not be started or driven, or the machine ended unexpectedly."""


class QmpError(MachineError):
    """QEMU refused a command, or the monitor is gone."""


class AgentError(LabError):
    """The lab agent in the guest cannot be reached, or the guest restarted meanwhile."""


class CommandError(LabError):
    """A command in the guest ended with a status other than 0."""


class WaitTimeoutError(LabError):
    """Something did not happen in time."""
