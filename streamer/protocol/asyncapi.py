"""The WebSocket API as an AsyncAPI 3 document. Pure: made from the tables and settings that the server uses."""

from __future__ import annotations

from typing import Any

from streamer.errors import CloseCode
from streamer.protocol.messages import BEARER, SUBPROTOCOL
from streamer.protocol.schemas import ref, schemas
from streamer.settings import Settings

VENDOR_SENDS = ("ping", "pings", "status", "auth")
VENDOR_RECEIVES = ("hello", "ack", "reject", "error", "bye")
CUSTOMER_SENDS = ("watch", "unwatch", "auth")
CUSTOMER_RECEIVES = ("snapshot", "update", "unwatched", "error", "bye")

CLOSES: dict[CloseCode, tuple[str, str]] = {
    CloseCode.NORMAL: ("normal closure", "no"),
    CloseCode.GOING_AWAY: ("the server goes away; `bye` was sent before", "yes, after `reconnectAfterMs`"),
    CloseCode.PROTOCOL_ERROR: ("a frame breaks the WebSocket protocol", "no"),
    CloseCode.INVALID_DATA: ("a text message is not UTF-8, or can't be inflated", "no"),
    CloseCode.TOO_BIG: ("a message is too large", "no"),
    CloseCode.INTERNAL: ("internal error; see the server's log", "yes"),
    CloseCode.RESTART: ("the server restarts; `bye` was sent before", "yes, after `reconnectAfterMs`"),
    CloseCode.NOT_THIS_PROTOCOL: ("too many bad messages", "no"),
    CloseCode.UNAUTHORIZED: ("no token in time, or an invalid or expired one", "with a new token"),
    CloseCode.FORBIDDEN: ("not this user's vendor", "no"),
    CloseCode.NOT_FOUND: ("no such vendor, or it was deleted", "no"),
    CloseCode.SILENT: ("no frame from the client for too long", "yes"),
    CloseCode.TOO_MANY: ("too many connections or messages", "yes, later"),
    CloseCode.TOO_SLOW: ("the client reads too slowly", "yes"),
}
"""Reason for each close code, and whether a client should reconnect."""


def asyncapi(settings: Settings, version: str) -> dict[str, Any]:
    """Returns the document for these settings."""
    shapes = schemas(settings)
    names = sorted({*VENDOR_SENDS, *VENDOR_RECEIVES, *CUSTOMER_SENDS, *CUSTOMER_RECEIVES})
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Venta location streamer, WebSockets",
            "version": version,
            "description": "JSON in UTF-8, one object per message. Degrees (WGS 84), metres, m/s, epoch milliseconds. "
            "Unknown members are ignored.",
        },
        "defaultContentType": "application/json",
        "servers": {"here": {"host": "localhost", "protocol": "wss"}},
        "channels": {
            "vendor": channel(
                "/v1/vendor",
                "A vendor app reports where it is. `?vendorId=` is needed only if the user has several vendors.",
                (*VENDOR_SENDS, *VENDOR_RECEIVES),
            ),
            "watch": channel(
                "/v1/watch",
                f"A customer app watches areas or vendors, up to {settings.max_watches} at once.",
                (*CUSTOMER_SENDS, *CUSTOMER_RECEIVES),
            ),
        },
        "operations": {
            "report": flow("receive", "vendor", "Messages from a vendor app.", VENDOR_SENDS),
            "answer": flow("send", "vendor", "Messages to a vendor app.", VENDOR_RECEIVES),
            "look": flow("receive", "watch", "Messages from a customer app.", CUSTOMER_SENDS),
            "show": flow("send", "watch", "Messages to a customer app.", CUSTOMER_RECEIVES),
        },
        "components": {
            "messages": {
                name: {
                    "name": name,
                    "summary": shapes[name]["description"],
                    "payload": ref(name),
                }
                for name in names
            },
            "schemas": shapes,
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "JWT",
                    "description": f"also as ?token=, as the subprotocol {BEARER}<token> beside {SUBPROTOCOL}, or as "
                    f'the first message {{"type":"auth"}} within {settings.auth_timeout:g} s',
                }
            },
        },
        "x-close-codes": [{"code": int(code), "when": when, "comeBack": back} for code, (when, back) in CLOSES.items()],
    }


def channel(address: str, description: str, names: tuple[str, ...]) -> dict[str, Any]:
    """Returns a WebSocket endpoint."""
    return {
        "address": address,
        "description": description,
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in names},
        "bindings": {"ws": {"method": "GET"}},
    }


def flow(action: str, where: str, summary: str, names: tuple[str, ...]) -> dict[str, Any]:
    """Returns one direction of an endpoint, from the server's view."""
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{where}"},
        "summary": summary,
        "messages": [{"$ref": f"#/channels/{where}/messages/{name}"} for name in names],
    }
