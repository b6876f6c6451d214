"""The messages and HTTP bodies as JSON Schema (2020-12), with the limits of the settings. Pure."""

from __future__ import annotations

from functools import partial
from typing import Any

from streamer.errors import ErrorCode
from streamer.protocol.alerts import EVENTS, MAX_METADATA, MAX_QUIET, MAX_URL
from streamer.protocol.fields import LAST_TIMESTAMP
from streamer.protocol.messages import MAX_DETAIL, MAX_ID, MAX_INTERVAL, MAX_SEQ, MIN_DETAIL
from streamer.settings import Settings

Schema = dict[str, Any]


def ref(name: str) -> Schema:
    """Returns a reference to a schema by name."""
    return {"$ref": f"#/components/schemas/{name}"}


def thing(description: str, members: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    """Returns the schema of an object with required and optional members."""
    schema: Schema = {"type": "object", "description": description, "properties": {**members, **(optional or {})}}
    if members:
        schema["required"] = list(members)
    return schema


def message(
    kind: str, description: str, members: dict[str, Schema], optional: dict[str, Schema] | None = None
) -> Schema:
    """Returns the schema of a WebSocket message."""
    return thing(description, {"type": {"const": kind}, **members}, optional)


def typed(kind: str, description: str = "", **more: Any) -> Schema:
    """Returns the schema of a string, number or boolean."""
    return {"type": kind, **({"description": description} if description else {}), **more}


text, integer, number, flag = (partial(typed, kind) for kind in ("string", "integer", "number", "boolean"))


def items(of: Schema, **more: Any) -> Schema:
    """Returns the schema of an array."""
    return {"type": "array", "items": of, **more}


LAT = number("degrees north (WGS 84)", minimum=-90, maximum=90)
LONG = number("degrees east (WGS 84)", minimum=-180, maximum=180)
WRAPPED_LONG = number("degrees east (WGS 84); values beyond ±180 are taken modulo 360")
HEADING = number("degrees clockwise from north", minimum=0, maximum=360)
SPEED = number("metres per second", minimum=0)
TIMESTAMP = integer("epoch milliseconds", minimum=0, maximum=LAST_TIMESTAMP)
VENDOR_ID = text("`vendors.id`", minLength=1, maxLength=MAX_ID)
WATCH_ID = text("the name of the watch, given by the client", minLength=1, maxLength=MAX_ID)
SEQ = integer("rises within a connection", minimum=-MAX_SEQ, maximum=MAX_SEQ)
CODE = ref("ErrorCode")
FIX: dict[str, Schema] = {"vendorId": VENDOR_ID, "lat": LAT, "long": LONG, "timestamp": TIMESTAMP}
CARD: dict[str, Schema] = {
    **FIX,
    "name": text(),
    "open": flag("open for business"),
    "primaryImage": {"type": ["string", "null"], "description": "URL of an image"},
    "online": flag("its app is connected, or was within the last minute"),
}
MOVEMENT: dict[str, Schema] = {"heading": HEADING, "speed": SPEED}


def schemas(settings: Settings) -> dict[str, Schema]:
    """Returns every schema by name; references go to `#/components/schemas`."""
    position = {"lat": LAT, "long": LONG}
    when: Schema = {
        "description": "when the position was taken: epoch milliseconds, seconds (a number below 10^11) or RFC 3339; "
        "default: the time of arrival",
        "anyOf": [number(minimum=0, maximum=LAST_TIMESTAMP), text(format="date-time")],
    }
    unknown = {"type": ["number", "null"]}
    reported: dict[str, Schema] = {
        "timestamp": when,
        "heading": unknown | {"description": "degrees clockwise from north"},
        "speed": unknown | {"description": "metres per second"},
        "accuracy": unknown | {"description": "metres"},
    }
    watched: dict[str, Schema] = {
        "open": flag("only those open for business"),
        "interval": integer("minimum ms between updates", minimum=0, maximum=MAX_INTERVAL),
    }
    listed = items(VENDOR_ID, maxItems=settings.max_listed)
    cursor: Schema = {"type": ["string", "null"], "description": "`cursor` of the next page; null: the last one"}
    looked_at: dict[str, Schema] = {
        "area": ref("Area") | {"description": f"at most {settings.alert_extent:.0f} m wide and high"},
        "vendors": items(VENDOR_ID, minItems=1, maxItems=settings.alert_vendors),
        "open": flag("only vendors that are open"),
        "metadata": {"type": "object", "description": f"included in each webhook; at most {MAX_METADATA} bytes"},
    }
    alert_common: dict[str, Schema] = {
        "on": items(text(enum=list(EVENTS)), minItems=1),
        "url": text("https://, on the public internet", maxLength=MAX_URL),
        "quiet": integer("ms until the same event of a vendor is reported again", minimum=0, maximum=MAX_QUIET),
    }
    alert_members: dict[str, Schema] = {
        **looked_at,
        **alert_common,
        "expires": when | {"description": "when the alert ends"},
        "disabled": flag("true: no events until it is false again"),
    }
    alert_shown: dict[str, Schema] = {
        "id": text(),
        **alert_common,
        "createdAt": integer("epoch milliseconds"),
        "updatedAt": integer("epoch milliseconds"),
    }
    alert_optional: dict[str, Schema] = {
        **looked_at,
        "expires": integer("epoch milliseconds"),
        "startedAt": integer("events are reported from then on, epoch milliseconds; about a second after creation"),
        "failingSince": integer("no webhook was delivered since, epoch milliseconds"),
        "disabled": thing("No events are sent.", {"at": integer("epoch milliseconds"), "reason": text()}),
    }
    return {
        "ErrorCode": text("what was wrong", enum=[str(code) for code in ErrorCode]),
        "Position": thing("A position of an area.", {"lat": LAT, "long": WRAPPED_LONG}),
        "Circle": thing(
            "Everything within a radius, by great-circle distance.",
            {
                "center": ref("Position"),
                "radius": number("metres", minimum=0, maximum=settings.max_radius),
            },
        ),
        "Box": thing(
            "Edges included; sw.long > ne.long crosses the antimeridian; "
            f"at most {settings.max_extent:.0f} m wide and high.",
            {"ne": ref("Position"), "sw": ref("Position")},
        ),
        "Polygon": thing(
            f"[long, lat] as in GeoJSON, closed or not, even-odd. At most {settings.max_extent:.0f} m wide and high.",
            {
                "polygon": items(
                    {"type": "array", "prefixItems": [WRAPPED_LONG, LAT], "minItems": 2},
                    minItems=3,
                    maxItems=settings.max_vertices + 1,
                )
            },
        ),
        "Area": {"description": "What to watch.", "anyOf": [ref("Circle"), ref("Box"), ref("Polygon")]},
        "Fix": thing("A vendor's newest position.", FIX, MOVEMENT),
        "Card": thing("A vendor as customers see it.", CARD, MOVEMENT),
        "Group": thing(
            "Vendors near each other, of a watch as `counts`. An upsert by `group`; a `count` of 0 removes it.",
            {
                "group": text("the key of the group"),
                "lat": LAT | {"description": "the mean of its vendors' latitudes"},
                "long": LONG | {"description": "the mean of its vendors' longitudes"},
                "count": integer("vendors in it", minimum=0),
                "open": integer("vendors in it that are open for business", minimum=0),
                "online": integer("vendors in it whose app is connected", minimum=0),
            },
        ),
        # vendor app to server
        "PositionReport": thing(
            "A ping without its envelope. `lng`, `lon`, `latitude` and `longitude` are accepted as aliases.",
            position,
            {"seq": SEQ, **reported},
        ),
        "ping": thing(
            "One position. `type` may be left out.", position, {"type": {"const": "ping"}, "seq": SEQ, **reported}
        ),
        "pings": message(
            "pings",
            "Pings collected offline.",
            {"pings": items(ref("PositionReport"), maxItems=settings.max_batch)},
        ),
        "status": message(
            "status",
            "Open or close for business.",
            {"open": flag()},
            {"hidden": flag("with `open` false: leave every map until the vendor opens again")},
        ),
        "auth": message(
            "auth", "A token: the first message, or a replacement for the current token.", {"token": text()}
        ),
        # server to vendor app
        "hello": message(
            "hello",
            "The first message to a vendor app.",
            {
                "vendorId": VENDOR_ID,
                "time": integer("the server's clock, epoch milliseconds"),
                "durable": {
                    "type": ["integer", "null"],
                    "description": "`timestamp` of the newest stored ping; pings up to it need not be sent again",
                },
                "maxBatch": integer("maximum number of pings in one message", minimum=1),
            },
        ),
        "ack": message(
            "ack",
            "Cumulative: every ping of this connection up to this `seq` is committed in PostgreSQL, or was rejected.",
            {"seq": SEQ},
        ),
        "reject": message(
            "reject", "This one ping will never be stored.", {"seq": SEQ, "code": CODE, "message": text()}
        ),
        # customer app to server
        "watch": {
            "description": "Watch an area or some vendors. A second message with the same `id` moves the watch.",
            "type": "object",
            "properties": {
                "type": {"const": "watch"},
                "id": WATCH_ID,
                "area": ref("Area"),
                "vendors": listed,
                **watched,
                "as": {"const": "counts", "description": "show counts of vendors by group instead of the vendors"},
                "detail": integer("approximate maximum number of groups", minimum=MIN_DETAIL, maximum=MAX_DETAIL),
            },
            "required": ["type", "id"],
            "oneOf": [{"required": ["area"]}, {"required": ["vendors"]}],
        },
        "unwatch": message("unwatch", "End a watch.", {"id": WATCH_ID}),
        # server to customer app
        "snapshot": message(
            "snapshot",
            "Replaces everything the app holds for this id. Sent first, and again when updates may have been missed. "
            "A watch as `counts` gets `groups`, others get `vendors`.",
            {"id": WATCH_ID},
            {"vendors": items(ref("Card")), "groups": items(ref("Group"))},
        ),
        "update": message(
            "update",
            "Applied in order to the snapshot. `entered` is an upsert; empty lists are left out.",
            {"id": WATCH_ID},
            {
                "entered": items(ref("Card"), minItems=1),
                "moved": items(ref("Fix"), minItems=1),
                "left": items(VENDOR_ID, minItems=1),
                "groups": items(ref("Group"), minItems=1),
            },
        ),
        "unwatched": message("unwatched", "The watch has ended.", {"id": WATCH_ID}),
        # server to both
        "error": message(
            "error",
            "A request was rejected; the message names the wrong value.",
            {"code": CODE, "message": text()},
            {"id": WATCH_ID, "retryAfterMs": integer("milliseconds to wait before trying again", minimum=0)},
        ),
        "bye": message(
            "bye",
            "The server is stopping: reconnect after this delay, which differs between clients.",
            {"reconnectAfterMs": integer("milliseconds", minimum=0)},
        ),
        # HTTP
        "Problem": thing(
            "Problem details (RFC 9457).",
            {"type": text(), "status": integer(), "title": text(), "code": CODE, "detail": text()},
            {
                "retryAfterMs": integer("milliseconds to wait before trying again", minimum=0),
                "rejected": items(ref("RejectedPing")),
                "time": integer("the server's clock, epoch milliseconds"),
            },
        ),
        "RejectedPing": thing(
            "A ping that will never be stored.",
            {"index": integer("its index in the request", minimum=0), "code": CODE, "message": text()},
        ),
        "Report": thing(
            "Outcome of the pings of a request.",
            {
                "stored": integer("number of pings stored, now or by an earlier request", minimum=0),
                "rejected": items(ref("RejectedPing")),
                "time": integer("the server's clock, epoch milliseconds"),
            },
            {"duplicates": integer("number of pings for whose timestamp another position is stored", minimum=1)},
        ),
        "Found": thing(
            "A page of vendors found by name; without positions.",
            {
                "vendors": items(
                    thing(
                        "A vendor, on the map or not.",
                        {
                            "vendorId": VENDOR_ID,
                            "name": text(),
                            "open": flag("open for business"),
                            "primaryImage": {"type": ["string", "null"]},
                        },
                    )
                ),
                "next": cursor,
            },
        ),
        "SignInLink": thing(
            "A sign-in link: valid once, until `expiresAt`.",
            {
                "url": text("opens the vendor page"),
                "vendorId": VENDOR_ID,
                "expiresAt": integer("epoch milliseconds"),
                "qr": text("the URL as a QR code, an SVG document"),
            },
        ),
        "Erased": thing(
            "What was erased.",
            {
                "id": text("as in the request"),
                "rows": {"type": "object", "additionalProperties": integer(), "description": "rows by table"},
                "redis": integer("entries in Redis"),
                "backups": items(
                    thing("A backup that still contains it.", {"name": text(), "at": integer("epoch milliseconds")})
                ),
            },
        ),
        "SignIn": thing(
            "A token that a sign-in link was exchanged for.",
            {"token": text("a JWT"), "vendorId": VENDOR_ID, "expiresAt": integer("epoch milliseconds")},
        ),
        "Counts": thing("Vendor counts by group.", {"groups": items(ref("Group"))}),
        "Nearby": thing(
            "The nearest vendors, the nearest first.",
            {
                "vendors": items(
                    thing("A vendor.", {**CARD, "distance": number("metres", minimum=0)}, MOVEMENT),
                )
            },
        ),
        "History": thing(
            "A page of stored locations, in the order of time.",
            {
                "vendorId": VENDOR_ID,
                "locations": items(
                    thing("A stored ping.", {"id": text(), "lat": LAT, "long": LONG, "timestamp": TIMESTAMP})
                ),
                "next": {
                    "type": ["string", "null"],
                    "description": "`cursor` of the next page; null at the last",
                },
            },
        ),
        "AlertRequest": {
            "description": "An alert: a watch without a connection, whose events are sent to a URL.",
            "type": "object",
            "properties": alert_members,
            "required": ["on", "url"],
            "oneOf": [{"required": ["area"]}, {"required": ["vendors"]}],
        },
        "AlertPatch": {
            "description": "What to change (RFC 7386); null removes a member.",
            "type": "object",
            "properties": {name: {"anyOf": [schema, {"type": "null"}]} for name, schema in alert_members.items()},
            "minProperties": 1,
        },
        "Alert": thing("An alert as its owner sees it.", alert_shown, alert_optional),
        "NewAlert": thing(
            "An alert just created.",
            {**alert_shown, "secret": text("signs its webhooks (Standard Webhooks); returned only here")},
            alert_optional,
        ),
        "Alerts": thing("A page of alerts, the oldest first.", {"alerts": items(ref("Alert")), "next": cursor}),
        "Delivery": thing(
            "A webhook and the answers to it.",
            {
                "id": text("its `webhook-id`"),
                "type": text("as in its body"),
                "at": integer("when it happened, epoch milliseconds"),
                "state": text(enum=["waiting", "delivered", "given up"]),
                "attempts": items(
                    thing(
                        "One request.",
                        {"at": integer("epoch milliseconds"), "ms": integer("how long it took")},
                        {"status": integer("of the answer"), "error": text("why there was none")},
                    )
                ),
            },
            {"vendorId": VENDOR_ID, "nextAttempt": integer("epoch milliseconds")},
        ),
        "Deliveries": thing(
            "A page of webhooks, the newest first.", {"deliveries": items(ref("Delivery")), "next": cursor}
        ),
        "TestSent": thing("A test webhook.", {"id": text("its `webhook-id`")}),
        "Webhook": thing(
            "The webhook that is posted to the URL of an alert, signed as Standard Webhooks specifies.",
            {
                "type": text(enum=[f"vendor.{event}" for event in EVENTS]),
                "alertId": text(),
                "vendor": ref("Card"),
                "at": integer("when it happened, epoch milliseconds"),
            },
            {"metadata": {"type": "object", "description": "of the alert, if it has any"}},
        ),
        "FeatureCollection": thing(
            "GeoJSON (RFC 7946).",
            {
                "type": {"const": "FeatureCollection"},
                "features": items(
                    thing(
                        "A stored ping.",
                        {
                            "type": {"const": "Feature"},
                            "id": text(),
                            "geometry": thing(
                                "A point.",
                                {
                                    "type": {"const": "Point"},
                                    "coordinates": items(number(), minItems=2, maxItems=2),
                                },
                            ),
                            "properties": thing(
                                "Its vendor and time.",
                                {"vendorId": VENDOR_ID, "timestamp": TIMESTAMP, "time": text(format="date-time")},
                            ),
                        },
                    )
                ),
            },
        ),
    }
