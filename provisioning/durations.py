"""How people say how long: ``30d``, ``12h``, ``never``, or a date."""

from __future__ import annotations

import datetime
import re

from skerry.errors import UsageError

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400, "y": 365 * 86400}
_SPAN = re.compile(r"([0-9]{1,6})([smhdwy])", re.ASCII)


def expiry(text: str, now: float) -> int | None:
    """Return when (Unix seconds) something ends that is to last ``text`` from ``now``.

    A span is a number and one of s m h d w y; a date (ISO 8601, UTC unless it says otherwise)
    ends when it begins; ``never`` is None. Raises UsageError, also for a time that has passed.
    """
    if text == "never":
        return None
    if match := _SPAN.fullmatch(text):
        end = int(now) + int(match[1]) * _UNITS[match[2]]
    else:
        try:
            moment = datetime.datetime.fromisoformat(text)
        except ValueError as error:
            raise UsageError(
                f"{text!r} is no time", hint="say 30d, 12h, never, or a date like 2027-01-31"
            ) from error
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=datetime.UTC)
        end = int(moment.timestamp())
    if end <= now:
        raise UsageError(f"{text!r} has passed already", hint="say how long from now: 30d")
    return end


def moment_text(seconds: float) -> str:
    """Return Unix seconds as people read them, in UTC."""
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.strftime("%Y-%m-%d %H:%M UTC")
