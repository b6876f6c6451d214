"""The HTTP API as an OpenAPI 3.1 document. Pure: made from the tables and settings that the server uses."""

from __future__ import annotations

from functools import partial
from typing import Any

from streamer.errors import HTTP_STATUS, ErrorCode
from streamer.protocol.history import DEFAULT_LIMIT, MAX_LIMIT
from streamer.protocol.messages import DEFAULT_DETAIL, MAX_DETAIL, MAX_INTERVAL, MIN_DETAIL
from streamer.protocol.schemas import (
    LAT,
    LONG,
    VENDOR_ID,
    Schema,
    flag,
    integer,
    items,
    number,
    ref,
    schemas,
    text,
    thing,
)
from streamer.settings import Settings

DETAIL = integer(minimum=MIN_DETAIL, maximum=MAX_DETAIL, default=DEFAULT_DETAIL)
Security = list[dict[str, list[str]]]
"""How a token may be sent; an empty dict: without one."""

EXAMPLES = {
    "lat": 52.2297,
    "long": 21.0122,
    "radius": 2000,
    "limit": 10,
    "open": True,
    "query": "pierogi",
    "lon": "21.0122",
}
"""Example values of query parameters."""
COMMON = (ErrorCode.UNAUTHORIZED, ErrorCode.INVALID_TOKEN, ErrorCode.OVERLOADED, ErrorCode.INTERNAL)
"""Codes with which every operation that takes a token or a code may be refused."""
OF_VENDOR = (ErrorCode.VENDOR_NOT_FOUND, ErrorCode.RATE_LIMITED)
AREA = (
    ErrorCode.INVALID_MESSAGE,
    ErrorCode.INVALID_COORDINATES,
    ErrorCode.MISSING_FIELD,
    ErrorCode.INVALID_AREA,
    ErrorCode.AREA_TOO_LARGE,
)
PINGS = (
    *OF_VENDOR,
    ErrorCode.INVALID_JSON,
    ErrorCode.INVALID_MESSAGE,
    ErrorCode.MISSING_FIELD,
    ErrorCode.INVALID_COORDINATES,
    ErrorCode.INVALID_TIMESTAMP,
    ErrorCode.TIMESTAMP_IN_FUTURE,
    ErrorCode.TIMESTAMP_TOO_OLD,
    ErrorCode.FORBIDDEN,
)
TRACKER = (*OF_VENDOR, ErrorCode.MISSING_FIELD, ErrorCode.FORBIDDEN)
"""Without the codes of positions: a position that can never be stored is answered 200."""
SIGN_IN = (
    ErrorCode.INVALID_JSON,
    ErrorCode.INVALID_MESSAGE,
    ErrorCode.MISSING_FIELD,
    ErrorCode.FORBIDDEN,
    ErrorCode.VENDOR_NOT_FOUND,
)
ONE_ALERT = (ErrorCode.FORBIDDEN, ErrorCode.ALERT_NOT_FOUND)
WRITTEN_ALERT = (
    *AREA,
    ErrorCode.INVALID_JSON,
    ErrorCode.INVALID_TIMESTAMP,
    ErrorCode.INVALID_URL,
)


def openapi(settings: Settings, version: str) -> dict[str, Any]:
    """Returns the document for these settings."""
    history_auth = "its owner only" if settings.history_access == "owner" else "everyone who may watch"
    own: Security = [{"bearer": []}, {"query": []}]
    watch_auth: Security = [*own, {}] if settings.watch_auth == "optional" else own
    tracker_auth: Security = [*own, {"basic": []}]
    customers, vendors = partial(operation, "customers", watch_auth), partial(operation, "vendors", own)
    alerts, trackers = partial(operation, "alerts", own), partial(operation, "trackers", tracker_auth)
    backends, operators = partial(operation, "backends", [{"backend": []}]), partial(operation, "operators", [])
    reports = items(ref("PositionReport"), maxItems=settings.max_batch)
    vendor = parameter("path", "id", VENDOR_ID, "`vendors.id`", required=True)
    alert = parameter("path", "id", VENDOR_ID, "`id` of the alert", required=True)
    paging = [
        query("limit", integer(minimum=1, maximum=100, default=20), "maximum number of entries"),
        query("cursor", text(), "`next` of the page before"),
    ]
    paths: dict[str, Any] = {
        "/v1/vendors": {
            "get": customers(
                "searchVendors",
                "Search vendors by name, whether on the map or not",
                {"200": answer('Sorted by name; `Link: …; rel="next"` when there is another page.', ref("Found"))},
                [
                    query("query", text(), "beginnings of words, ignoring case and accents", required=True),
                    query("open", flag(), "only those open for business"),
                    query("limit", integer(minimum=1, maximum=100, default=20), "maximum number of vendors"),
                    query("cursor", text(), "`next` of the page before"),
                ],
                (ErrorCode.INVALID_MESSAGE, ErrorCode.RATE_LIMITED),
            )
        },
        "/v1/sign-in-links": {
            "post": backends(
                "createSignInLink",
                "Create a link that signs a device in as a vendor, once, within 15 minutes",
                {"201": answer("The link, and its QR code as SVG.", ref("SignInLink"))},
                [],
                SIGN_IN,
                body=json_body(thing("", {"vendorId": VENDOR_ID})),
            )
        },
        "/v1/sign-in": {
            "post": operation(
                "vendors",
                [],
                "signIn",
                "Exchange the code of a sign-in link for a token, once",
                {"200": answer("A token of the vendor's owner.", ref("SignIn"))},
                [],
                SIGN_IN,
                body=json_body(thing("", {"code": text("what follows `#code=` in the link")})),
            )
        },
        "/v1/erasures": {
            "post": backends(
                "erase",
                "Erase everything stored of a vendor, or of a user with all vendors, permanently",
                {"200": answer("What was erased; backups still contain it until they are deleted.", ref("Erased"))},
                [],
                (*SIGN_IN, ErrorCode.OVERLOADED),
                body=json_body(thing("", {"id": text("vendors.id, users.id or users.clerkId")})),
            )
        },
        "/v1/vendors/counts": {
            "get": customers(
                "countVendors",
                "Vendor counts by group, for maps that are zoomed out",
                {"200": answer("Groups; their counts add up to the vendors in the area.", ref("Counts"))},
                [
                    query("area", text(), "an area as in a `watch` message, as JSON; any box, the world included"),
                    query("lat", LAT, "or the centre of a circle"),
                    query("long", LONG, "the centre of a circle"),
                    query("radius", number(minimum=0, maximum=settings.max_radius), "metres"),
                    query("open", flag(), "only those open for business"),
                    query("detail", DETAIL, "about how many groups at most"),
                ],
                (*AREA, ErrorCode.INVALID_JSON),
            )
        },
        "/v1/vendors/nearby": {
            "get": customers(
                "listNearbyVendors",
                "The nearest vendors now, with `distance`",
                {"200": answer("The nearest first.", ref("Nearby"))},
                [
                    query("lat", LAT, "", required=True),
                    query("long", LONG, "", required=True),
                    query("radius", number(minimum=0, maximum=settings.max_radius, default=5000), "metres"),
                    query("limit", integer(minimum=1, maximum=1000, default=50), "maximum number of vendors"),
                ],
                (*AREA, ErrorCode.RATE_LIMITED),
            )
        },
        "/v1/vendors/{id}": {
            "get": customers(
                "getVendor",
                "One vendor's card, while it is on the map",
                {"200": answer("The card.", ref("Card"))},
                [vendor],
                OF_VENDOR,
            )
        },
        "/v1/watch/events": {
            "get": customers(
                "watchEvents",
                "A watch as Server-Sent Events, for `EventSource`",
                {
                    "200": answer(
                        "Each event's data is a message as on the socket `/v1/watch`: `snapshot`, "
                        "`update`, `error`, `bye`. After a reconnect a snapshot comes first.",
                        text(),
                        "text/event-stream",
                    )
                },
                [
                    query("lat", LAT, "the centre of a circle; else `area` or `vendors`"),
                    query("long", LONG, "the centre of a circle"),
                    query("radius", number(minimum=0, maximum=settings.max_radius), "metres"),
                    query("area", text(), "an area as in a `watch` message, as JSON"),
                    query("vendors", text(), "vendorIds, separated by commas"),
                    query("open", flag(), "only those open for business"),
                    query("interval", integer(minimum=0, maximum=MAX_INTERVAL), "minimum ms between updates"),
                    query("as", {"const": "counts"}, "groups of vendors with their counts in place of vendors"),
                    query("detail", DETAIL, "about how many groups at most"),
                    query("id", text(), "the `id` of the messages"),
                ],
                (*AREA, ErrorCode.INVALID_JSON, ErrorCode.FORBIDDEN, ErrorCode.RATE_LIMITED),
            )
        },
        "/v1/vendors/{id}/locations": {
            "post": vendors(
                "reportLocations",
                "Report one ping or an array of pings; answers after they are stored",
                {"200": answer("At least one ping is stored, or the request had none.", ref("Report"))},
                [vendor],
                PINGS,
                body=json_body(
                    {
                        "anyOf": [
                            ref("PositionReport"),
                            reports,
                            thing(
                                "As on the socket.",
                                {"pings": items(ref("PositionReport"), maxItems=settings.max_batch)},
                            ),
                        ]
                    }
                ),
            ),
            "get": operation(
                "vendors",
                own if settings.history_access == "owner" else watch_auth,
                "listLocations",
                f"Stored locations of a vendor, page by page: for {history_auth}",
                {
                    "200": {
                        "description": 'A page in the order of time; `Link: …; rel="next"` when there is another.',
                        "content": {
                            "application/json": {"schema": ref("History")},
                            "application/geo+json": {"schema": ref("FeatureCollection")},
                            "application/gpx+xml": {"schema": {}},
                        },
                    }
                },
                [
                    vendor,
                    query("from", text(), "from this time on, epoch milliseconds or RFC 3339; default: the last day"),
                    query("to", text(), "before this time; default: now"),
                    query(
                        "limit", integer(minimum=1, maximum=MAX_LIMIT, default=DEFAULT_LIMIT), "maximum number of rows"
                    ),
                    query("cursor", text(), "`next` of the page before"),
                ],
                (*OF_VENDOR, ErrorCode.INVALID_MESSAGE, ErrorCode.INVALID_TIMESTAMP, ErrorCode.FORBIDDEN),
                statuses=(406,),
            ),
        },
        "/v1/alerts": {
            "post": alerts(
                "createAlert",
                "Create an alert: events of vendors go to a URL as signed webhooks",
                {"201": answer("The alert, with its secret.", ref("NewAlert"))},
                [
                    header(
                        "Idempotency-Key", text(), "a second request with the same key returns the alert of the first"
                    )
                ],
                (*WRITTEN_ALERT, ErrorCode.FORBIDDEN, ErrorCode.TOO_MANY_ALERTS, ErrorCode.RATE_LIMITED),
                body=json_body(ref("AlertRequest")),
            ),
            "get": alerts(
                "listAlerts",
                "The user's own alerts",
                {"200": answer('The oldest first; `Link: …; rel="next"` when there is another page.', ref("Alerts"))},
                paging,
                (ErrorCode.FORBIDDEN, ErrorCode.INVALID_MESSAGE, ErrorCode.RATE_LIMITED),
            ),
        },
        "/v1/alerts/{id}": {
            "get": alerts(
                "getAlert",
                "One alert",
                {"200": answer("The alert.", ref("Alert"))},
                [alert],
                (*ONE_ALERT, ErrorCode.RATE_LIMITED),
            ),
            "patch": alerts(
                "changeAlert",
                "Change an alert, disable it or enable it again",
                {"200": answer("The alert.", ref("Alert"))},
                [alert],
                (*ONE_ALERT, *WRITTEN_ALERT, ErrorCode.RATE_LIMITED),
                body=json_body(ref("AlertPatch")),
            ),
            "delete": alerts(
                "deleteAlert",
                "Delete an alert; webhooks that are not sent yet are discarded",
                {"204": {"description": "It is deleted."}},
                [alert],
                ONE_ALERT,
            ),
        },
        "/v1/alerts/{id}/deliveries": {
            "get": alerts(
                "listDeliveries",
                "The webhooks of an alert, with the answers to them",
                {"200": answer("The newest first.", ref("Deliveries"))},
                [alert, *paging],
                (*ONE_ALERT, ErrorCode.INVALID_MESSAGE, ErrorCode.RATE_LIMITED),
            )
        },
        "/v1/alerts/{id}/test": {
            "post": alerts(
                "testAlert",
                "Send a webhook of the type `alert.test`",
                {"202": answer("It will be sent at once.", ref("TestSent"))},
                [alert],
                (*ONE_ALERT, ErrorCode.INVALID_MESSAGE, ErrorCode.RATE_LIMITED),
            )
        },
        "/v1/owntracks": {
            "post": trackers(
                "reportOwnTracks",
                "Report from an OwnTracks app in HTTP mode",
                {"200": answer("Stored, or a message without a position.", items({}, maxItems=0))},
                [query("vendorId", VENDOR_ID, "required if the user has several vendors")],
                TRACKER,
                body=json_body(
                    {
                        "type": "object",
                        "required": ["_type"],
                        "properties": {
                            "_type": text("`location`; other types are accepted and ignored"),
                            "lat": number(),
                            "lon": number(),
                            "tst": integer("epoch seconds"),
                            "vel": number("km/h"),
                            "cog": number("degrees"),
                        },
                    },
                    required=False,
                ),
            )
        },
        "/v1/osmand": {
            "get": osmand("reportOsmAndQuery", "Traccar Client, OsmAnd, GPSLogger: a ping in the query", tracker_auth),
            "post": osmand(
                "reportOsmAnd",
                "Tracker apps: a ping in the query or a form, or pings as JSON",
                tracker_auth,
                form=True,
            ),
        },
        "/livez": {
            "get": operators(
                "getLiveness",
                "Liveness probe",
                {"200": answer("The process is alive.", thing("", {"status": text()}))},
            )
        },
        "/readyz": {
            "get": operators(
                "getReadiness",
                "Readiness probe",
                {
                    "200": answer("The server can serve customers.", thing("", {"status": text()})),
                    "503": answer(
                        "The server is not ready; `causes` says why.",
                        thing("", {"status": text(), "causes": {"type": "object", "additionalProperties": text()}}),
                    ),
                },
            )
        },
        "/health": {
            "get": operators(
                "getHealth",
                "Health of every part, for operators",
                {
                    "200": answer("`healthy`", health()),
                    "503": answer("`unhealthy`, with `error` and `causes`", health()),
                },
            )
        },
        "/metrics": {
            "get": operators(
                "getMetrics",
                "Metrics for Prometheus",
                {"200": answer("Prometheus text format.", text(), "text/plain")},
            )
        },
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Venta location streamer, HTTP",
            "version": version,
            "description": "Degrees (WGS 84), metres, m/s, epoch milliseconds. Unknown members are ignored. "
            "The WebSockets are described by the AsyncAPI document.",
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name} for name in ("vendors", "customers", "alerts", "trackers", "backends", "operators")],
        "paths": paths,
        "webhooks": {
            "alert": {
                "post": {
                    "operationId": "onAlert",
                    "summary": "The webhook that is posted to the URL of an alert",
                    "tags": ["alerts"],
                    "parameters": [
                        header("webhook-id", text(), "the same for each attempt", required=True),
                        header("webhook-timestamp", text(), "of this attempt, epoch seconds", required=True),
                        header("webhook-signature", text(), "`v1,` and the signature in base64", required=True),
                    ],
                    "requestBody": json_body(ref("Webhook")),
                    "responses": {
                        "2XX": {"description": "The webhook is accepted. After any other answer it is sent again."},
                        "410": {"description": "The receiver is gone: the alert is disabled."},
                    },
                }
            }
        },
        "components": {
            "schemas": schemas(settings),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
                "query": {"type": "apiKey", "in": "query", "name": "token", "description": "the JWT"},
                "backend": {"type": "http", "scheme": "bearer", "description": "STREAMER_BACKEND_KEY"},
                "basic": {"type": "http", "scheme": "basic", "description": "the JWT as the password"},
            },
        },
    }


def operation(
    tag: str,
    security: Security,
    operation_id: str,
    summary: str,
    responses: dict[str, Any],
    parameters: list[dict[str, Any]] | None = None,
    codes: tuple[ErrorCode, ...] = (),
    *,
    body: dict[str, Any] | None = None,
    statuses: tuple[int, ...] = (),
) -> dict[str, Any]:
    """Returns an operation; each error code is listed at its HTTP status."""
    refused: dict[int, list[str]] = {}
    for code in (*codes, *COMMON) if codes else ():
        refused.setdefault(HTTP_STATUS[code], []).append(f"`{code}`")
    for status in statuses:
        refused.setdefault(status, []).append(f"`{ErrorCode.INVALID_MESSAGE}`")
    if body is not None:
        refused.setdefault(413, []).append(f"`{ErrorCode.INVALID_MESSAGE}`: the body is too large")
    described: dict[str, Any] = {
        "operationId": operation_id,
        "summary": summary,
        "tags": [tag],
        "security": security,
        "responses": {
            **responses,
            **{
                str(status): answer(", ".join(sorted(names)), ref("Problem"), "application/problem+json")
                for status, names in sorted(refused.items())
            },
        },
    }
    if parameters:
        described["parameters"] = parameters
    if body is not None:
        described["requestBody"] = body
    return described


def osmand(operation_id: str, summary: str, security: Security, *, form: bool = False) -> dict[str, Any]:
    """Returns an operation of the OsmAnd protocol, for either method."""
    members = {
        "lat": text("degrees north"),
        "lon": text("degrees east"),
        "timestamp": text("epoch seconds or milliseconds, or ISO 8601"),
        "speed": text("in knots, unless `speedUnit` says otherwise"),
        "speedUnit": text(enum=["kn", "kmh", "mps"]),
        "bearing": text("degrees"),
        "id": text("a vendorId, or the JWT for apps that can send nothing else"),
    }
    body = None
    if form:
        body = {
            "required": False,
            "content": {
                "application/x-www-form-urlencoded": {"schema": {"type": "object", "properties": members}},
                "application/json": {
                    "schema": thing(
                        "As Traccar Client, Overland or a background-geolocation plugin posts it, or an array.",
                        {},
                        {"location": {}, "locations": items({}), "device_id": text()},
                    )
                },
            },
        }
    return operation(
        "trackers",
        security,
        operation_id,
        summary,
        {"200": {"description": "Stored, or a report without a position."}},
        [
            query("vendorId", VENDOR_ID, "required if the user has several vendors"),
            *(query(name, schema, "") for name, schema in members.items()),
        ],
        TRACKER,
        body=body,
    )


def answer(description: str, schema: Schema, media: str = "application/json") -> dict[str, Any]:
    """Returns a response."""
    return {"description": description, "content": {media: {"schema": schema}}}


def json_body(schema: Schema, *, required: bool = True) -> dict[str, Any]:
    """Returns a JSON request body."""
    return {"required": required, "content": {"application/json": {"schema": schema}}}


def parameter(where: str, name: str, schema: Schema, description: str, *, required: bool = False) -> dict[str, Any]:
    """Returns a parameter of the query string, of the path, or a header."""
    described = {"name": name, "in": where, "required": required, "schema": schema}
    if name in EXAMPLES:
        described["example"] = EXAMPLES[name]
    if description:
        described["description"] = description
    return described


query, header = partial(parameter, "query"), partial(parameter, "header")


def health() -> Schema:
    """Returns the schema of `/health`."""
    check = {"type": "object", "required": ["ok"], "properties": {"ok": flag()}}
    return thing(
        "Contains no secrets.",
        {
            "status": text(enum=["healthy", "unhealthy"]),
            "timestamp": text(format="date-time"),
            "version": text(),
            "uptime": number("seconds"),
            "checks": {"type": "object", "additionalProperties": check},
        },
        {
            "tables": items(
                thing("Estimated size of a table.", {"table": text(), "rows": integer(), "bytes": integer()})
            ),
            "error": text(),
            "causes": {"type": "object", "additionalProperties": text()},
        },
    )
