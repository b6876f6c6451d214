"""Verifies and parses the webhooks of alerts, for any web framework. No I/O."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from base64 import b64decode, b64encode
from binascii import Error
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from venta_client.errors import ClientError

TOLERANCE = 300.0
"""Maximum difference in seconds between a webhook's timestamp and this machine's clock, against replays."""
PREFIX = "whsec_"


class WebhookRefused(ClientError):
    """The request is not a webhook signed with this secret, or is too old; answer it with 400."""


@dataclass(frozen=True, slots=True)
class Webhook:
    """A verified webhook."""

    id: str
    """The same for every attempt; use it to ignore duplicates."""
    type: str
    """`vendor.entered`, `vendor.left`, `vendor.opened`, … or `alert.test`."""
    alert_id: str
    at: int
    """The time of the event, epoch milliseconds."""
    vendor: Mapping[str, Any] | None
    """The vendor's card; None for a test."""
    metadata: Mapping[str, Any]
    """The alert's metadata."""


def verify(
    secret: str | list[str],
    headers: Mapping[str, str],
    body: bytes,
    *,
    tolerance: float = TOLERANCE,
    now: float | None = None,
) -> Webhook:
    """Verifies a request and returns its webhook.

    Args:
        secret: The alert's `secret`, or several during a rotation.
        headers: The request's headers; names are case-insensitive.
        body: The raw bytes of the body.
        now: Epoch seconds; by default this machine's clock.

    Raises:
        WebhookRefused: A header is missing, the signature is wrong, or the timestamp is too far from now.
    """
    named = {name.lower(): value for name, value in headers.items()}
    try:
        id, timestamp, given = (named[f"webhook-{name}"] for name in ("id", "timestamp", "signature"))
    except KeyError as missing:
        raise WebhookRefused(f"the header {missing.args[0]} is missing") from None
    try:
        sent = int(timestamp)
    except ValueError:
        raise WebhookRefused(f"webhook-timestamp is no number: {timestamp!r:.40}") from None
    if abs((time.time() if now is None else now) - sent) > tolerance:
        raise WebhookRefused(f"webhook-timestamp {sent} is more than {tolerance:g} s from this machine's clock")
    signed = f"{id}.{timestamp}.".encode("utf-8", "surrogateescape") + body
    expected = [b"v1," + _signature(each, signed) for each in ([secret] if isinstance(secret, str) else secret)]
    offered = given.encode("utf-8", "replace").split(b" ")
    if not any(hmac.compare_digest(one, other) for one in expected for other in offered):
        raise WebhookRefused("the signature is wrong: the secret is another alert's, or the body was changed")
    try:
        event = json.loads(body)
        return Webhook(
            id, event["type"], event["alertId"], event["at"], event.get("vendor"), event.get("metadata") or {}
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        raise WebhookRefused("the body is not the webhook of an alert") from None


def _signature(secret: str, signed: bytes) -> bytes:
    try:
        key = b64decode(secret.removeprefix(PREFIX), validate=True)
    except (Error, ValueError):
        raise ValueError("the secret is not one that came with an alert: it begins with whsec_") from None
    return b64encode(hmac.new(key, signed, hashlib.sha256).digest())
