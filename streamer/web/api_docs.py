"""The contract, made once: `/docs` for people, `/docs/openapi.json` and `/docs/asyncapi.json` for tools."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

import orjson
from aiohttp import web

from streamer import __version__
from streamer.protocol.asyncapi import asyncapi
from streamer.protocol.openapi import openapi
from streamer.protocol.schemas import Schema
from streamer.settings import Settings

STYLE = """
:root { color-scheme: light dark; }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
code, pre { font-family: ui-monospace, monospace; font-size: .92em; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid; }
details { border: 1px solid color-mix(in srgb, currentColor 25%, transparent); border-radius: .4rem; margin: .5rem 0;
  padding: .3rem .8rem; }
summary { cursor: pointer; padding: .2rem 0; overflow-wrap: anywhere; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { text-align: left; vertical-align: top; padding: .2rem .8rem .2rem 0; }
.way { font-weight: 700; }
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'"


class ApiDocs:
    """The handlers; the documents say what this server's settings allow."""

    def __init__(self, settings: Settings) -> None:
        self.openapi = openapi(settings, __version__)
        self.asyncapi = asyncapi(settings, __version__)
        self._page = page(self.openapi, self.asyncapi).encode()
        self._openapi = orjson.dumps(self.openapi)
        self._asyncapi = orjson.dumps(self.asyncapi)

    def routes(self) -> list[web.RouteDef]:
        """Where everything is."""
        return [
            web.get("/docs", self.docs),
            web.get("/docs/openapi.json", self.http),
            web.get("/docs/asyncapi.json", self.sockets),
        ]

    async def docs(self, _: web.Request) -> web.Response:
        """`GET /docs`: both documents, to be read."""
        return web.Response(
            body=self._page,
            content_type="text/html",
            charset="utf-8",
            headers={
                "Content-Security-Policy": POLICY,
                "Cache-Control": "no-cache",
                "X-Content-Type-Options": "nosniff",
            },
        )

    async def http(self, _: web.Request) -> web.Response:
        """`GET /docs/openapi.json`."""
        return document(self._openapi)

    async def sockets(self, _: web.Request) -> web.Response:
        """`GET /docs/asyncapi.json`."""
        return document(self._asyncapi)


def document(body: bytes) -> web.Response:
    """A document for tools of any origin."""
    return web.Response(
        body=body,
        content_type="application/json",
        headers={"Cache-Control": "no-cache", "Access-Control-Allow-Origin": "*"},
    )


def page(http: Mapping[str, Any], sockets: Mapping[str, Any]) -> str:
    """Both documents as one page that needs nothing else."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>The wire contract of the Venta location streamer</title><style>{STYLE}</style><main>",
        "<h1>The wire contract</h1>",
        f"<p>{told(http['info']['description'])}</p>",
        "<p>For tools: <a href=/docs/openapi.json>OpenAPI 3.1</a> (HTTP), "
        "<a href=/docs/asyncapi.json>AsyncAPI 3</a> (WebSockets).</p>",
        "<nav><a href=#http>HTTP</a> · <a href=#sockets>WebSockets</a> · <a href=#closes>Close codes</a> · "
        "<a href=#shapes>Shapes</a></nav>",
        "<h2 id=sockets>WebSockets</h2>",
        *(socket(sockets, name) for name in sockets["channels"]),
        "<h2 id=closes>Close codes</h2>",
        table(
            ("code", "when", "come back?"),
            ((f"{one['code']}", told(one["when"]), told(one["comeBack"])) for one in sockets["x-close-codes"]),
        ),
        "<h2 id=http>HTTP</h2>",
    ]
    for tag in http["tags"]:
        parts.append(f"<h3>For {told(tag['name'])}</h3>")
        for path, methods in http["paths"].items():
            parts += [call(method, path, one) for method, one in methods.items() if tag["name"] in one["tags"]]
    parts.append("<h2 id=shapes>Shapes</h2>")
    for name, schema in http["components"]["schemas"].items():
        head = f"<code>{told(name)}</code> {told(schema.get('description', ''))}"
        parts.append(f"<details id='{anchor(name)}'><summary>{head}</summary>{members(schema)}</details>")
    return "\n".join([*parts, "</main></html>"])


def socket(sockets: Mapping[str, Any], name: str) -> str:
    """A socket: what the client sends, what it hears."""
    channel = sockets["channels"][name]
    parts = [f"<h3><code>{told(channel['address'])}</code></h3><p>{told(channel['description'])}</p>"]
    for flow in sockets["operations"].values():
        if flow["channel"]["$ref"] == f"#/channels/{name}":
            parts.append(f"<p class=way>{told(flow['summary'])}</p>")
            for link in flow["messages"]:
                kind = link["$ref"].rpartition("/")[2]
                said = sockets["components"]["messages"][kind]["summary"]
                shape = sockets["components"]["schemas"][kind]
                parts.append(
                    f"<details><summary><code>{told(kind)}</code> {told(said)}</summary>{members(shape)}</details>"
                )
    return "".join(parts)


def call(method: str, path: str, one: Mapping[str, Any]) -> str:
    """An operation: parameters, body, answers."""
    parts = [f"<summary><code>{method.upper()} {told(path)}</code> {told(one['summary'])}</summary>"]
    ways = [" and ".join(way) or "no token" for way in one["security"]]
    parts.append(f"<p>Token: {told(', '.join(ways) or 'none')}.</p>")
    if one.get("parameters"):
        parts.append(
            table(
                ("parameter", "", "is", "what"),
                (
                    (
                        f"<code>{told(each['name'])}</code>",
                        "required" if each["required"] else "",
                        kind(each["schema"]),
                        told(each.get("description", each["schema"].get("description", ""))),
                    )
                    for each in one["parameters"]
                ),
            )
        )
    for media, body in one.get("requestBody", {}).get("content", {}).items():
        parts.append(f"<p>Body, <code>{told(media)}</code>: {kind(body['schema'])}</p>{members(body['schema'])}")
    parts.append(
        table(
            ("status", "what", "as"),
            (
                (
                    status,
                    told(each["description"]),
                    "<br>".join(f"{told(m)}: {kind(c['schema'])}" for m, c in each.get("content", {}).items()),
                )
                for status, each in one["responses"].items()
            ),
        )
    )
    return f"<details>{''.join(parts)}</details>"


def members(schema: Schema) -> str:
    """The members of an object as a table; nothing for what is none."""
    if "properties" not in schema:
        return f"<p>{kind(schema)}</p>" if schema else ""
    required = set(schema.get("required", ()))
    return table(
        ("member", "", "is", "what"),
        (
            (
                f"<code>{told(name)}</code>",
                "required" if name in required else "",
                kind(one),
                told(one.get("description", "")),
            )
            for name, one in schema["properties"].items()
        ),
    )


def kind(schema: Schema) -> str:
    """What a value is, in a few words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"<a href='#{anchor(name)}'>{told(name)}</a>"
    for several in ("anyOf", "oneOf"):
        if several in schema and "type" not in schema:
            return " or ".join(kind(one) for one in schema[several])
    if "const" in schema:
        return f"<code>{told(orjson.dumps(schema['const']).decode())}</code>"
    if "enum" in schema:
        return ", ".join(f"<code>{told(one)}</code>" for one in schema["enum"])
    if schema.get("type") == "array":
        bound = f", at most {schema['maxItems']}" if schema.get("maxItems") else ""
        return f"list of {kind(schema.get('items', {}))}{bound}"
    named = schema.get("type", "anything")
    words = " or ".join(named) if isinstance(named, list) else named
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None or high is not None:
        words += f" {'' if low is None else f'from {shown(low)}'}{'' if high is None else f' to {shown(high)}'}"
    if "default" in schema:
        words += f" (left out: {schema['default']})"
    return told(words)


def shown(bound: float) -> str:
    """A bound without an exponent."""
    return str(int(bound)) if float(bound).is_integer() else str(bound)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of ready cells."""
    top = "".join(f"<th scope=col>{cell}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def told(text: str) -> str:
    """Text for a page; what stands between backticks as code."""
    pieces = escape(text).split("`")
    return "".join(piece if at % 2 == 0 else f"<code>{piece}</code>" for at, piece in enumerate(pieces))


def anchor(name: str) -> str:
    """A name as the target of a link."""
    return name.replace(" ", "-")
