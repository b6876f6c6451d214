"""What is spoken on the WebSockets, as AsyncAPI 3. Pure: made from the tables and settings the server works with."""

from __future__ import annotations

from typing import Any

from streamer.errors import CloseCode
from streamer.protocol.messages import BEARER, SUBPROTOCOL
from streamer.protocol.schemas import ref, schemas
from streamer.settings import Settings

VENDOR_SENDS = ("ping", "pings", "status", "auth")
VENDOR_HEARS = ("hello", "ack", "reject", "error", "bye")
CUSTOMER_SENDS = ("watch", "unwatch", "auth")
CUSTOMER_HEARS = ("snapshot", "update", "unwatched", "error", "bye")

CLOSES: dict[CloseCode, tuple[str, str]] = {
    CloseCode.NORMAL: ("a normal end", "no"),
    CloseCode.GOING_AWAY: ("the server goes away; `bye` came before", "yes, after `reconnectAfterMs`"),
    CloseCode.PROTOCOL_ERROR: ("a frame breaks the WebSocket protocol", "no"),
    CloseCode.INVALID_DATA: ("a text message is not UTF-8, or can't be inflated", "no"),
    CloseCode.TOO_BIG: ("a message is too large", "no"),
    CloseCode.INTERNAL: ("the server failed; its log says why", "yes"),
    CloseCode.RESTART: ("the server restarts; `bye` came before", "yes, after `reconnectAfterMs`"),
    CloseCode.NOT_THIS_PROTOCOL: ("too many bad messages", "no"),
    CloseCode.UNAUTHORIZED: ("no token in time, a bad or an expired one", "with a new token"),
    CloseCode.FORBIDDEN: ("not this user's vendor", "no"),
    CloseCode.NOT_FOUND: ("no such vendor, or it was deleted", "no"),
    CloseCode.SILENT: ("nothing was heard of the client", "yes"),
    CloseCode.TOO_MANY: ("too many connections or messages", "yes, later"),
    CloseCode.TOO_SLOW: ("the client reads too slowly", "yes"),
}
"""When the server closes with which code, and whether to come back."""


def asyncapi(settings: Settings, version: str) -> dict[str, Any]:
    """The document."""
    shapes = schemas(settings)
    names = sorted({*VENDOR_SENDS, *VENDOR_HEARS, *CUSTOMER_SENDS, *CUSTOMER_HEARS})
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Venta location streamer, WebSockets",
            "version": version,
            "description": "JSON in UTF-8, one object a message. Degrees (WGS 84), metres, m/s, epoch milliseconds. "
            "Unknown members are ignored.",
        },
        "defaultContentType": "application/json",
        "servers": {"here": {"host": "localhost", "protocol": "wss"}},
        "channels": {
            "vendor": channel(
                "/v1/vendor",
                "A vendor app reports where it is. `?vendorId=` names the vendor; with exactly one it may be left out.",
                (*VENDOR_SENDS, *VENDOR_HEARS),
            ),
            "watch": channel(
                "/v1/watch",
                f"A customer app watches areas or vendors, up to {settings.max_watches} at once.",
                (*CUSTOMER_SENDS, *CUSTOMER_HEARS),
            ),
        },
        "operations": {
            "report": flow("receive", "vendor", "What a vendor app sends.", VENDOR_SENDS),
            "answer": flow("send", "vendor", "What a vendor app hears.", VENDOR_HEARS),
            "look": flow("receive", "watch", "What a customer app sends.", CUSTOMER_SENDS),
            "show": flow("send", "watch", "What a customer app hears.", CUSTOMER_HEARS),
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
    """One socket."""
    return {
        "address": address,
        "description": description,
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in names},
        "bindings": {"ws": {"method": "GET"}},
    }


def flow(action: str, where: str, summary: str, names: tuple[str, ...]) -> dict[str, Any]:
    """One direction of a socket, as the server sees it."""
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{where}"},
        "summary": summary,
        "messages": [{"$ref": f"#/channels/{where}/messages/{name}"} for name in names],
    }
