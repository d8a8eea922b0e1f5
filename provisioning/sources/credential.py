"""The systemd credential ``skerry.token``: from SMBIOS, fw_cfg, a boot stub or a container manager.

systemd puts it into $CREDENTIALS_DIRECTORY of a unit that imports it (systemd.exec(5)).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from provisioning.files import FileError, read_small
from provisioning.sources import Candidate, Rejected
from provisioning.token import TEXT_LIMIT

SOURCE = "credential"
NAME = "skerry.token"


def tokens(directory: Path | None) -> Iterator[Candidate | Rejected]:
    """Yield the credential if the unit was given one."""
    if directory is None:
        return
    where = f"credential {NAME}"
    try:
        content = read_small(directory / NAME, TEXT_LIMIT)
    except FileNotFoundError:
        return
    except FileError as error:
        yield Rejected(SOURCE, where, error)
    except OSError as error:
        yield Rejected(SOURCE, where, FileError(f"cannot be read: {error.strerror}"))
    else:
        yield Candidate(SOURCE, where, content)
