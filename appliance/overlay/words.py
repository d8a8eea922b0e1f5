"""The words for what is refused, fit for the wire and for a log."""

from __future__ import annotations

import msgspec

from appliance.overlay.admission import Denied
from appliance.overlay.errors import WireError
from appliance.overlay.wire import CAUSE_MAX, DETAIL_MAX, Body, RefusalBody
from provisioning import codec
from provisioning.membership import CertificateError


def refusal_body(body: Body, to: bytes, denied: Denied, limit: int) -> RefusalBody:
    """Return what to sign for the node ``to`` that sent ``body``, words cut to ``limit`` bytes."""
    told = RefusalBody(
        network_id=body.network_id,
        epoch=body.epoch,
        to=to,
        echo=body.nonce,
        cause=_printable(denied.cause)[:CAUSE_MAX] or "denied",
        detail=_printable(denied.detail)[:DETAIL_MAX],
    )
    while len(codec.encode(told)) > limit and told.detail:
        told = msgspec.structs.replace(told, detail=told.detail[:-1])
    return told


def cause_of(error: CertificateError | WireError) -> str:
    """Return the short code of what is wrong with a message."""
    if isinstance(error, WireError):
        return error.cause
    return error.cause.name.lower().replace("_", "-")


def _printable(text: str) -> str:
    return "".join(one if one.isprintable() else " " for one in text)
