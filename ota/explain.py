"""RAUC's and D-Bus's error texts in clear words with a way out. Pure.

RAUC reports nearly everything as one generic D-Bus error with a text, so the text has to tell. The
phrases are those of RAUC 1.13; tests/contract/test_rauc.py hears most of them from RAUC itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from ota.errors import OtaError, Trouble


@dataclass(frozen=True, slots=True)
class _Meaning:
    trouble: Trouble
    message: str
    hint: str


_NO_SERVICE = _Meaning(
    Trouble.NO_SERVICE,
    "RAUC's service does not answer on the system bus",
    "look at `systemctl status rauc.service dbus.service`; this command is for a Skerry node",
)
_NOT_AUTHORISED = _Meaning(
    Trouble.NOT_AUTHORISED,
    "only root may talk to RAUC on this node",
    "run the command as root",
)
_TIMEOUT = _Meaning(
    Trouble.TIMEOUT,
    "RAUC did not answer in time",
    "look at `journalctl -u rauc.service`; restarting rauc.service is safe when it is idle",
)

_BY_NAME = {
    "org.freedesktop.DBus.Error.ServiceUnknown": _NO_SERVICE,
    "org.freedesktop.DBus.Error.NameHasNoOwner": _NO_SERVICE,
    "org.freedesktop.DBus.Error.Disconnected": _NO_SERVICE,
    "org.freedesktop.DBus.Error.AccessDenied": _NOT_AUTHORISED,
    "org.freedesktop.DBus.Error.AuthFailed": _NOT_AUTHORISED,
    "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired": _NOT_AUTHORISED,
    "org.freedesktop.DBus.Error.NoReply": _TIMEOUT,
    "org.freedesktop.DBus.Error.Timeout": _TIMEOUT,
    "org.freedesktop.DBus.Error.TimedOut": _TIMEOUT,
}
_BY_PREFIX = (("org.freedesktop.DBus.Error.Spawn.", _NO_SERVICE),)

# The first match counts: the specific phrases stand before the general ones.
_BY_TEXT: tuple[tuple[tuple[str, ...], _Meaning], ...] = (
    (
        ("already processing a different method",),
        _Meaning(
            Trouble.BUSY,
            "RAUC is already at work on this node",
            "wait for the other installation; `skerry update status` shows it",
        ),
    ),
    (
        ("compatible mismatch",),
        _Meaning(
            Trouble.COMPATIBLE,
            "the bundle is for another kind of machine",
            "take the bundle that was built for this board",
        ),
    ),
    (
        ("no space left on device",),
        _Meaning(
            Trouble.SPACE,
            "there is no room left on a device",
            "free space on /data, or build a bundle that fits the slot",
        ),
    ),
    (
        ("does not fit to slot", "is too small for image"),
        _Meaning(
            Trouble.SPACE,
            "the bundle's system is larger than the slot",
            "build a smaller image; slots keep their size for the life of the disk",
        ),
    ),
    (
        ("failed mounting bundle",),
        _Meaning(
            Trouble.OTHER,
            "the bundle's contents cannot be opened",
            "copy the file again; if that does not help, look for dm-verity in `journalctl -k`",
        ),
    ),
    (
        ("no such file or directory", "permission denied", "is a directory", "no such file:"),
        _Meaning(
            Trouble.NO_FILE,
            "RAUC cannot read the bundle",
            "give the path of a .raucb file on this node that root can read",
        ),
    ),
    (
        # What openssl says of a CMS that parses, but was signed by somebody else.
        ("signature verification failed", "failed to verify signature", "verify error"),
        _Meaning(
            Trouble.SIGNATURE,
            "the bundle is not signed by a key that this node trusts",
            "sign it with the key whose certificate is in the image (docs/updates.md, Keys)",
        ),
    ),
    (
        (
            "invalid bundle format",
            "failed splicing data",
            "squashfs",
            "input/output error",
            "checksum",
        ),
        _Meaning(
            Trouble.TRUNCATED,
            "the bundle is damaged or cut short",
            "copy the file again and compare its SHA-256 with the builder's",
        ),
    ),
)


def explain(text: str, *, error_name: str = "", doing: str = "") -> OtaError:
    """Return the error that tells a person what RAUC's ``text`` means.

    ``doing`` says what was tried ("checking /data/x.raucb"). RAUC's own words are kept at the end:
    nothing is lost when the explanation misses the point.
    """
    meaning = _by_name(error_name) or _by_text(text)
    where = f" while {doing}" if doing else ""
    words = " ".join(text.split())
    if meaning is None:
        return OtaError(
            f"RAUC failed{where}: {words or error_name or 'no reason given'}",
            hint="more is in `journalctl -u rauc.service`",
        )
    detail = f" (RAUC: {words})" if words else ""
    return OtaError(f"{meaning.message}{where}{detail}", hint=meaning.hint, trouble=meaning.trouble)


def _by_name(name: str) -> _Meaning | None:
    if name in _BY_NAME:
        return _BY_NAME[name]
    return next((meaning for prefix, meaning in _BY_PREFIX if name.startswith(prefix)), None)


def _by_text(text: str) -> _Meaning | None:
    folded = text.casefold()
    return next(
        (meaning for phrases, meaning in _BY_TEXT if any(phrase in folded for phrase in phrases)),
        None,
    )
