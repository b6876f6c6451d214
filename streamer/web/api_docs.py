"""API reference: `/docs`, a page with forms to send requests, `/docs/openapi.json` and `/docs/asyncapi.json`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import orjson
from aiohttp import web

from streamer import __version__
from streamer.protocol.asyncapi import asyncapi
from streamer.protocol.openapi import openapi
from streamer.protocol.schemas import Schema
from streamer.settings import Settings, number
from streamer.web.static import serve_files

FOLDER = Path(__file__).resolve().parent
FILES = {"docs.css": "text/css", "docs.js": "text/javascript"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'none'"
)
ORIGIN = "https://streamer.example"
"""A placeholder for this server's origin in examples; the page's script replaces it with the real one."""
BODIES: dict[str, Any] = {
    "createSignInLink": {"vendorId": "VENDOR_ID"},
    "signIn": {"code": "CODE"},
    "reportLocations": {"lat": 52.2297, "long": 21.0122},
    "reportOwnTracks": {"_type": "location", "lat": 52.2297, "lon": 21.0122, "tst": 1732467600},
    "reportOsmAnd": {"location": {"coords": {"latitude": 52.2297, "longitude": 21.0122}}, "device_id": "VENDOR_ID"},
}
"""Example bodies by operationId."""


class ApiDocs:
    """Serves both documents and the page made from them, with the limits of this server's settings."""

    def __init__(self, settings: Settings) -> None:
        http, sockets = openapi(settings, __version__), asyncapi(settings, __version__)
        http["servers"] = [{"url": settings.public_url or "/"}]
        for path, methods in http["paths"].items():
            for method, operation in methods.items():
                operation["x-codeSamples"] = samples(method, path, operation)
        self.openapi, self.asyncapi = http, sockets
        self._page = page(http, sockets).encode()

    def routes(self) -> list[web.RouteDef]:
        """Returns the routes of the page, its files and the documents."""
        return [
            web.get("/docs", self.docs),
            web.get("/docs/openapi.json", document(self.openapi)),
            web.get("/docs/asyncapi.json", document(self.asyncapi)),
            web.get("/docs/{name}", serve_files(FOLDER, FILES)),
            web.get("/openapi.json", self.redirect),
        ]

    async def docs(self, _: web.Request) -> web.Response:
        """`GET /docs`: the API reference."""
        headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
        return web.Response(body=self._page, content_type="text/html", charset="utf-8", headers=headers)

    async def redirect(self, _: web.Request) -> web.Response:
        """`GET /openapi.json`: redirects to where the document is."""
        raise web.HTTPFound("/docs/openapi.json")


def document(value: object) -> Callable[[web.Request], Any]:
    """Returns a handler that serves a document to tools of any origin."""
    body = orjson.dumps(value)
    headers = {"Cache-Control": "no-cache", "Access-Control-Allow-Origin": "*"}

    async def handle(_: web.Request) -> web.Response:
        return web.Response(body=body, content_type="application/json", headers=headers)

    return handle


def samples(method: str, path: str, operation: Mapping[str, Any]) -> list[dict[str, str]]:
    """Returns one operation's request in curl, JavaScript and Python (`x-codeSamples`)."""
    given = {one["name"]: one["example"] for one in operation.get("parameters", ()) if "example" in one}
    query = urlencode({name: json.dumps(v) if isinstance(v, bool) else v for name, v in given.items()})
    url = f"{ORIGIN}{path.replace('{id}', 'VENDOR_ID')}" + (f"?{query}" if query else "")
    body = BODIES.get(operation["operationId"])
    token = bool(operation["security"])
    headers = {
        **({"Authorization": "Bearer TOKEN"} if token else {}),
        **({"Content-Type": "application/json"} if body else {}),
    }
    curl = [f"curl '{url}'"]
    curl += [f"-X {method.upper()}"] if method not in ("get", "post") else []
    curl += [f"-H '{name}: {value}'" for name, value in headers.items()]
    curl += [f"-d '{json.dumps(body)}'"] if body else []
    options = ", ".join(
        [
            *([f'method: "{method.upper()}"'] if method != "get" else []),
            *([f"headers: {json.dumps(headers)}"] if headers else []),
            *([f"body: JSON.stringify({json.dumps(body)})"] if body else []),
        ]
    )
    plain = {name: value for name, value in headers.items() if name != "Content-Type"}
    keywords = "".join(
        [f", headers={json.dumps(plain)}" if plain else "", f", json={json.dumps(body)}" if body else ""]
    )
    fetch = f'const response = await fetch("{url}"{f", {{ {options} }}" if options else ""});'
    requests = f'import requests\n\nresponse = requests.{method}("{url}"{keywords})'
    return [
        {"lang": "curl", "source": " \\\n  ".join(curl)},
        {"lang": "JavaScript", "source": fetch + "\nconsole.log(response.status, await response.text());"},
        {"lang": "Python", "source": requests + "\nprint(response.status_code, response.text)"},
    ]


def page(http: Mapping[str, Any], sockets: Mapping[str, Any]) -> str:
    """Returns both documents as one HTML page, which loads nothing from elsewhere."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        "<title>API reference · Venta location streamer</title><link rel=stylesheet href=/docs/docs.css>",
        "<script type=module src=/docs/docs.js></script><main>",
        "<h1>API reference</h1>",
        f"<p>{as_html(http['info']['description'])}</p>",
        "<p>For tools: <a href=/docs/openapi.json>OpenAPI 3.1</a> (HTTP), "
        "<a href=/docs/asyncapi.json>AsyncAPI 3</a> (WebSockets).</p>",
        "<nav><a href=#http>HTTP</a> · <a href=#sockets>WebSockets</a> · <a href=#closes>Close codes</a> · "
        "<a href=#shapes>Schemas</a></nav>",
        "<p class=token><label>Token for the requests on this page "
        "<input id=token autocomplete=off spellcheck=false placeholder=eyJhbGciOi…></label></p>",
        "<h2 id=http>HTTP</h2>",
    ]
    for tag in http["tags"]:
        parts.append(f"<h3>For {as_html(tag['name'])}</h3>")
        for path, methods in http["paths"].items():
            parts += [call(method, path, one) for method, one in methods.items() if tag["name"] in one["tags"]]
    parts += [
        "<h2 id=sockets>WebSockets</h2>",
        *(socket(sockets, name) for name in sockets["channels"]),
        "<h2 id=closes>Close codes</h2>",
        table(
            ("code", "when", "reconnect?"),
            ((f"{one['code']}", as_html(one["when"]), as_html(one["comeBack"])) for one in sockets["x-close-codes"]),
        ),
        "<h2 id=shapes>Schemas</h2>",
    ]
    for name, schema in http["components"]["schemas"].items():
        head = f"<code>{as_html(name)}</code> {as_html(schema.get('description', ''))}"
        parts.append(f"<details id='{name}'><summary>{head}</summary>{members(schema)}</details>")
    return "\n".join([*parts, "</main></html>"])


def socket(sockets: Mapping[str, Any], name: str) -> str:
    """Returns a WebSocket: the messages in both directions."""
    channel = sockets["channels"][name]
    parts = [f"<h3><code>{as_html(channel['address'])}</code></h3><p>{as_html(channel['description'])}</p>"]
    for flow in sockets["operations"].values():
        if flow["channel"]["$ref"] == f"#/channels/{name}":
            parts.append(f"<p class=flow>{as_html(flow['summary'])}</p>")
            for link in flow["messages"]:
                message = link["$ref"].rpartition("/")[2]
                summary = sockets["components"]["messages"][message]["summary"]
                schema = sockets["components"]["schemas"][message]
                head = f"<code>{as_html(message)}</code> {as_html(summary)}"
                parts.append(f"<details><summary>{head}</summary>{members(schema)}</details>")
    return "".join(parts)


def call(method: str, path: str, one: Mapping[str, Any]) -> str:
    """Returns an operation: parameters, body, responses, examples, and a form to try it."""
    ways = [" and ".join(way) or "no token" for way in one["security"]]
    parts = [
        f"<summary><code>{method.upper()} {as_html(path)}</code> {as_html(one['summary'])}</summary>",
        f"<p>Token: {as_html(', '.join(ways) or 'none')}.</p>",
    ]
    parameters = one.get("parameters", ())
    if parameters:
        rows = (
            (
                f"<code>{as_html(each['name'])}</code>",
                "required" if each["required"] else "",
                kind(each["schema"]),
                as_html(each.get("description", each["schema"].get("description", ""))),
            )
            for each in parameters
        )
        parts.append(table(("parameter", "", "type", "description"), rows))
    contents = one.get("requestBody", {}).get("content", {})
    for media, body in contents.items():
        parts.append(f"<p>Body, <code>{as_html(media)}</code>: {kind(body['schema'])}</p>{members(body['schema'])}")
    responses = (
        (
            status,
            as_html(each["description"]),
            "<br>".join(f"{as_html(m)}: {kind(c['schema'])}" for m, c in each.get("content", {}).items()),
        )
        for status, each in one["responses"].items()
    )
    parts.append(table(("status", "description", "content"), responses))
    parts += [
        f"<details class=sample><summary>{sample['lang']}</summary><pre>{escape(sample['source'])}</pre></details>"
        for sample in one.get("x-codeSamples", ())
    ]
    if "text/event-stream" not in one["responses"].get("200", {}).get("content", {}):
        parts.append(form(method, path, one))
    return f"<details id='{one['operationId']}'>{''.join(parts)}</details>"


def form(method: str, path: str, one: Mapping[str, Any]) -> str:
    """Returns the form that sends one operation's request."""
    fields = [
        f"<label>{as_html(each['name'])} <input name='{escape(each['name'])}' data-in={each['in']}"
        f" value='{escape(json.dumps(each['example']) if 'example' in each else '').strip(chr(34))}'"
        f"{' required' if each['required'] else ''}></label>"
        for each in one.get("parameters", ())
    ]
    if "requestBody" in one:
        example = escape(json.dumps(BODIES.get(one["operationId"], {})))
        fields.append(f"<label>body <textarea name=body rows=3>{example}</textarea></label>")
    return (
        f"<form data-method={method.upper()} data-path='{escape(path)}'>{''.join(fields)}"
        "<button>Send request</button><output></output></form>"
    )


def members(schema: Schema) -> str:
    """Returns the members of an object as a table, or the type of anything else."""
    if "properties" not in schema:
        return f"<p>{kind(schema)}</p>" if schema else ""
    required = set(schema.get("required", ()))
    rows = (
        (
            f"<code>{as_html(name)}</code>",
            "required" if name in required else "",
            kind(one),
            as_html(one.get("description", "")),
        )
        for name, one in schema["properties"].items()
    )
    return table(("member", "", "type", "description"), rows)


def kind(schema: Schema) -> str:
    """Returns the type of a value in a few words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"<a href='#{name}'>{as_html(name)}</a>"
    for several in ("anyOf", "oneOf"):
        if several in schema and "type" not in schema:
            return " or ".join(kind(one) for one in schema[several])
    if "const" in schema:
        return f"<code>{as_html(orjson.dumps(schema['const']).decode())}</code>"
    if "enum" in schema:
        return ", ".join(f"<code>{as_html(one)}</code>" for one in schema["enum"])
    if schema.get("type") == "array":
        bound = f", at most {schema['maxItems']}" if schema.get("maxItems") else ""
        return f"list of {kind(schema.get('items', {}))}{bound}"
    named = schema.get("type", "anything")
    words = " or ".join(named) if isinstance(named, list) else named
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None or high is not None:
        words += f" {'' if low is None else f'from {number(low)}'}{'' if high is None else f' to {number(high)}'}"
    if "default" in schema:
        words += f" (default {schema['default']})"
    return as_html(words)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Returns a table of cells that are HTML already."""
    top = "".join(f"<th scope=col>{cell}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def as_html(value: str) -> str:
    """Returns text as HTML; text between backticks becomes code."""
    pieces = escape(value).split("`")
    return "".join(piece if at % 2 == 0 else f"<code>{piece}</code>" for at, piece in enumerate(pieces))
