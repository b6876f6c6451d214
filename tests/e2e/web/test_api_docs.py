"""The machine-readable API descriptions at /docs must match the running server."""

from __future__ import annotations

import asyncio
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import aiohttp
import jsonschema_rs
import openapi_spec_validator
import orjson
import pytest

from streamer.accounts.tokens import make_token
from streamer.errors import CloseCode, ErrorCode
from streamer.protocol import schemas
from streamer.protocol.asyncapi import CLOSES, asyncapi
from streamer.protocol.openapi import openapi
from streamer.settings import Settings
from streamer.storage import seed
from streamer.web.api_docs import ApiDocs, page
from tests.conftest import Serve
from tests.support.apps import SECRET, CustomerApp, VendorApp, circle, described, now_ms
from tests.support.browser import EXECUTABLE, SKIP, Chromium, Tab, browsing

PAGES = re.compile(r"/$|/vendor$|/favicon\.ico$|/map/|/client/|/docs|/openapi.json$|/embed|/manifest")
"""Pages, which are not part of the API."""
SOCKETS = {"/v1/vendor", "/v1/watch"}
SETTINGS = Settings.model_construct()


def references(value: Any) -> list[str]:
    """Yields all references of a document."""
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [found for inner in value.values() for found in references(inner)]
    return [found for inner in value for found in references(inner)] if isinstance(value, list) else []


@pytest.mark.parametrize("make", [openapi, asyncapi])
def test_every_reference_leads_somewhere(make: Any) -> None:
    """A generator that reads the document would stop at the first dead link."""
    document = orjson.loads(orjson.dumps(make(SETTINGS, "1")))
    for reference in references(document):
        found = document
        for step in reference.removeprefix("#/").split("/"):
            found = found[step]


def test_openapi_is_openapi() -> None:
    """Validated by the specification's schema, as tools silently ignore a misspelt member."""
    openapi_spec_validator.validate(openapi(SETTINGS, "1"))


def test_every_shape_is_a_json_schema() -> None:
    """Each message is described by a valid JSON Schema, also in the strict form that the tests use."""
    for name, shape in schemas.schemas(SETTINGS).items():
        jsonschema_rs.meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema", **shape})
        assert shape["description"], name
        assert re.fullmatch(r"[A-Za-z0-9._-]+", name)


def test_every_code_is_described() -> None:
    """A new error or close code must be in the documents."""
    assert set(CLOSES) == set(CloseCode)
    assert set(schemas.schemas(SETTINGS)["ErrorCode"]["enum"]) == {str(code) for code in ErrorCode}


async def test_endpoints_and_descriptions_match(serve: Serve) -> None:
    """All endpoints must be documented, and all documented ones must exist."""
    server = (await serve()).server
    served = {
        (route.method.lower(), route.resource.canonical)
        for route in server.app.router.routes()
        if route.resource is not None and route.method not in ("HEAD", "OPTIONS")
        if not PAGES.match(route.resource.canonical)
    }
    http = openapi(server.settings, "1")["paths"]
    promised = {(method, path) for path, methods in http.items() for method in methods}
    sockets = {channel["address"] for channel in asyncapi(server.settings, "1")["channels"].values()}
    assert sockets == SOCKETS
    assert served == promised | {("get", path) for path in SOCKETS}


@pytest.mark.timeout(240)
async def test_the_http_api_does_what_its_description_says(serve: Serve, database_url: str, tmp_path: Path) -> None:
    """Generated valid and invalid requests: statuses, types and schemas match the description, without a 500."""
    (one,) = await seed.seed(database_url, 1)
    server = await serve(watch_auth="required", alert_key=SECRET)
    token = make_token(SECRET, one.clerk_id, 3600)
    async with VendorApp(server.url, one.clerk_id) as app:
        await app.ping(52.2297, 21.0122)
        await app.acked(1)
    # every path refers to an existing vendor
    tmp_path.joinpath("schemathesis.toml").write_text(f'[parameters]\n"path.id" = "{one.vendor_id}"\n')
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/docs/openapi.json"),
        *("--header", f"Authorization: Bearer {token}", "--seed", "1", "--max-examples", "5", "--max-failures", "5"),
        *("--phases", "examples,coverage,fuzzing", "--no-shrink", "--no-color", "--generation-database", "none"),
        *("--exclude-path", "/metrics", "--exclude-path", "/v1/watch/events"),  # text, and an endless one
        *("--checks", CHECKS),
    ]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await asyncio.wait_for(process.communicate(), 200)
    said = out.decode()
    print(said)
    assert process.returncode == 0
    assert re.search(r"Operations: *\d+ selected", said)


CHECKS = ",".join(
    (
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_headers_conformance",
        "response_schema_conformance",
        "ignored_auth",
        "allow_header_conformance",
        "unsupported_method",
    )
)


async def test_history_and_reports_are_as_described(serve: Serve, database_url: str) -> None:
    """Answers to valid requests have no undocumented members."""
    (one,) = await seed.seed(database_url, 1)
    server = await serve()
    headers = {"Authorization": f"Bearer {make_token(SECRET, one.clerk_id, 600)}"}
    checks = described(("Report", "History", "FeatureCollection", "Nearby", "Card", "Problem"))
    here = f"/v1/vendors/{one.vendor_id}"
    async with aiohttp.ClientSession(server.url, headers=headers) as session:
        pings = [{"lat": 52.2297, "long": 21.0122, "timestamp": now_ms() + n, "heading": 3.5} for n in range(3)]
        async with session.post(f"{here}/locations", json=[*pings, {"lat": 91, "long": 0}]) as answer:
            checks["Report"].validate(await answer.json())
        async with session.get(f"{here}/locations") as answer:
            history = await answer.json()
            checks["History"].validate(history)
            assert len(history["locations"]) == 3
        async with session.get(f"{here}/locations", headers={"Accept": "application/geo+json"}) as answer:
            checks["FeatureCollection"].validate(await answer.json(content_type=None))
        async with session.get("/v1/vendors/nearby?lat=52.2297&long=21.0122") as answer:
            checks["Nearby"].validate(await answer.json())
        async with session.get(here) as answer:
            checks["Card"].validate(await answer.json())
        async with session.get("/v1/vendors/nobody") as answer:
            assert answer.status == 404
            checks["Problem"].validate(await answer.json(content_type=None))


async def test_events_are_the_messages_of_the_socket(serve: Serve, database_url: str) -> None:
    """An `EventSource` receives the socket's messages as described, including errors."""
    (one,) = await seed.seed(database_url, 1)
    server = await serve()
    checks = described(("snapshot", "update", "Problem"))
    area = {"lat": "52.2297", "long": "21.0122", "radius": "500"}
    heard: list[str] = []
    async with aiohttp.ClientSession(server.url) as session:
        async with session.get("/v1/watch/events", params=area) as stream, VendorApp(server.url, one.clerk_id) as app:
            assert stream.content_type == "text/event-stream"
            async with asyncio.timeout(30):
                while "update" not in heard:
                    line = await stream.content.readline()
                    if line.startswith(b"data:"):
                        message = orjson.loads(line[5:])
                        checks[message["type"]].validate(message)
                        heard.append(message["type"])
                        if message["type"] == "snapshot":
                            await app.ping(52.2297, 21.0122)
        assert heard[0] == "snapshot"
        wrong: list[dict[str, str]] = [{}, {**area, "radius": "1e9"}, {"area": "{"}, {"area": '{"polygon":[]}'}]
        for params in wrong:
            async with session.get("/v1/watch/events", params=params) as refused:
                assert refused.status == 400
                checks["Problem"].validate(await refused.json(content_type=None))


async def test_a_frame_that_is_not_described_is_noticed(serve: Serve, database_url: str) -> None:
    """All tests check received frames by the document; this proves that the check can fail."""
    server = await serve()
    async with CustomerApp(server.url) as app:
        await app.watch("w", circle(52.2297, 21.0122, 500))
        assert not app.undescribed
        app._compare({"type": "snapshot", "id": "w", "vendors": [{"vendorId": "v"}]})
        app._compare({"type": "snapshot", "id": "w", "vendors": [], "extra": 1})
        app._compare({"type": "news"})
        assert len(app.undescribed) >= 3
        app.undescribed.clear()


class Reader(HTMLParser):
    """The elements and links of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if values.get("href"):
            self.links.append(str(values["href"]))
        if values.get("src"):
            self.links.append(str(values["src"]))
        if values.get("id"):
            self.ids.add(str(values["id"]))
        if tag not in ("meta", "br", "html", "link", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag != "html":
            assert self.open.pop() == tag


async def test_the_page_loads_nothing_from_elsewhere(serve: Serve) -> None:
    """The reference needs no other host than this server, and all its links work."""
    server = await serve()
    async with aiohttp.ClientSession(server.url) as session:
        async with session.get("/docs") as answer:
            assert answer.status == 200
            text = await answer.text()
            assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        reader = Reader()
        reader.feed(text)
        assert not reader.open
        for link in set(reader.links):
            if link.startswith("#"):
                assert link[1:] in reader.ids
            else:
                async with session.get(link) as there:
                    assert there.status == 200
                    assert link.startswith("/docs/"), "nothing from elsewhere"
                    if link.endswith(".json"):
                        assert there.headers["Access-Control-Allow-Origin"] == "*"
        async with session.get("/openapi.json", allow_redirects=False) as moved:
            assert (moved.status, moved.headers["Location"]) == (302, "/docs/openapi.json")
    for name in ("/v1/vendor", "reconnectAfterMs", "ERR_AREA_TOO_LARGE", "4508", "GET /v1/vendors/{id}/locations"):
        assert name in text


def test_text_can_not_break_the_page() -> None:
    """A setting or description with markup is shown as text, not executed."""
    http, sockets = openapi(SETTINGS, "1"), asyncapi(SETTINGS, "1")
    http["info"]["description"] = "<script>alert(1)</script>`<b>`"
    shown = page(http, sockets)
    assert "<script>alert" not in shown
    assert "<code>&lt;b&gt;</code>" in shown


def test_every_operation_has_a_name_and_examples() -> None:
    """A code generator names functions by operationId; examples must be complete, as readers copy them."""
    document = ApiDocs(SETTINGS).openapi
    operations = [one for methods in document["paths"].values() for one in methods.values()]
    names = [one["operationId"] for one in operations]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z][A-Za-z]+", name) for name in names)
    for one in operations:
        languages = {sample["lang"]: sample["source"] for sample in one["x-codeSamples"]}
        assert set(languages) == {"curl", "JavaScript", "Python"}
        compile(languages["Python"], one["operationId"], "exec")
        assert all(("TOKEN" in source) == bool(one["security"]) for source in languages.values())
        assert all(
            f"{each['name']}=" in source
            for each in one.get("parameters", ())
            if each["in"] == "query" and each["required"]
            for source in languages.values()
        )


@pytest.mark.skipif(EXECUTABLE is None, reason=SKIP)
async def test_a_request_can_be_tried(endpoint: Chromium, serve: Serve, database_url: str) -> None:
    """A developer sends a request from the page and sees the answer, or the reason of an error."""
    (one,) = await seed.seed(database_url, 1)
    server = await serve()
    async with browsing(endpoint) as context:
        tab = Tab(await context.new_page())
        await tab.page.goto(f"{server.url}/docs#reportLocations")
        output = "document.querySelector('#reportLocations output').textContent"
        assert await tab.run("document.getElementById('reportLocations').open"), "a link opens what it names"
        await tab.page.fill("#reportLocations input[name=id]", one.vendor_id)
        await tab.page.click("#reportLocations button")
        await tab.until(f"{output}.startsWith('401') && {output}.includes('ERR_UNAUTHORIZED')", "why it was refused")
        await tab.page.fill("#token", make_token(SECRET, one.clerk_id, 600))
        await tab.page.click("#reportLocations button")
        await tab.until(f"{output}.startsWith('200') && {output}.includes('\"stored\": 1')", "the answer")
        assert server.url in await tab.run("document.querySelector('#reportLocations .sample pre').textContent")
