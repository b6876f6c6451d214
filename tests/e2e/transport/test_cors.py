"""CORS: a bug here would break web apps of other origins, or give access to all pages."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from streamer.accounts.tokens import make_token
from streamer.storage.seed import SeededVendor
from tests.conftest import Serve
from tests.support.apps import SECRET, VendorApp
from tests.support.browser import EXECUTABLE, SKIP, Chromium, Tab, browsing

APP, EVIL = "https://app.example", "https://evil.example"
HERE = (52.2297, 21.0122)
AROUND = "lat=52.23&long=21.01&radius=3000"
NEARBY = f"/v1/vendors/nearby?{AROUND}"
ALLOW, EXPOSE, VARY = "Access-Control-Allow-Origin", "Access-Control-Expose-Headers", "Vary"


async def answered(session: aiohttp.ClientSession, url: str, origin: str | None = APP) -> tuple[int, str | None]:
    """Returns the status of an answer, and the origins that may read it."""
    async with session.get(url, headers={"Origin": origin} if origin else {}) as response:
        return response.status, response.headers.get(ALLOW)


async def test_everyones_pages(serve: Serve, session: aiohttp.ClientSession) -> None:
    """By default a web app on another host can read answers, errors and streams."""
    url = (await serve()).url
    assert await answered(session, url + NEARBY) == (200, "*")
    assert await answered(session, url + "/v1/vendors/nobody") == (404, "*")
    assert await answered(session, url + "/v1/nothing") == (404, "*")
    assert await answered(session, url + NEARBY + "&token=nonsense") == (401, "*")
    assert await answered(session, f"{url}/v1/watch/events?{AROUND}") == (200, "*")
    async with session.get(url + NEARBY, headers={"Origin": APP}) as response:
        assert "Retry-After" in response.headers[EXPOSE]
        assert VARY not in response.headers


async def test_some_pages(serve: Serve, session: aiohttp.ClientSession) -> None:
    """With configured origins, pages of others can read no answers and no streams; `Vary` separates cached answers."""
    url = (await serve(origins=APP)).url
    assert await answered(session, url + NEARBY) == (200, APP)
    assert await answered(session, url + NEARBY, url) == (200, url)
    assert await answered(session, url + NEARBY, EVIL) == (200, None)
    assert await answered(session, f"{url}/v1/watch/events?{AROUND}", EVIL) == (403, None)
    async with session.get(url + NEARBY, headers={"Origin": EVIL}) as response:
        assert response.headers[VARY] == "Origin"


async def test_history_varies_by_both(serve: Serve, session: aiohttp.ClientSession, vendor: SeededVendor) -> None:
    """History also depends on Accept: without it in `Vary`, a cache would return the format of another app."""
    url = (await serve(origins=APP)).url
    headers = {"Origin": APP, "Authorization": f"Bearer {make_token(SECRET, vendor.clerk_id, 600)}"}
    async with session.get(f"{url}/v1/vendors/{vendor.vendor_id}/locations", headers=headers) as response:
        assert (response.status, response.headers.getall(VARY)) == (200, ["Accept", "Origin"])


async def test_endpoints_outside_the_api_have_no_cors(serve: Serve, session: aiohttp.ClientSession) -> None:
    """Web pages can't read operators' endpoints; clients that are not browsers get no CORS headers."""
    url = (await serve()).url
    for path in ("/health", "/metrics", "/"):
        assert (await answered(session, url + path))[1] is None, path
    assert await answered(session, url + NEARBY, None) == (200, None)
    async with session.options(url + NEARBY) as response:
        assert (response.status, response.headers["Allow"]) == (204, "GET, HEAD, OPTIONS")
        assert "Access-Control-Allow-Methods" not in response.headers


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/v1/vendors/nearby", "GET, HEAD, OPTIONS"),
        ("/v1/vendors/v/locations", "GET, HEAD, OPTIONS, POST"),
        ("/v1/watch/events", "GET, OPTIONS"),
    ],
)
async def test_asking_beforehand(serve: Serve, session: aiohttp.ClientSession, path: str, methods: str) -> None:
    """A browser's preflight request has neither token nor JSON, and must not be refused for that."""
    url = (await serve(watch_auth="required")).url
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    async with session.options(url + path, headers={"Origin": APP, **asks}) as response:
        assert (response.status, response.headers[ALLOW]) == (204, "*")
        assert response.headers["Access-Control-Allow-Methods"] == methods
        assert response.headers["Access-Control-Allow-Headers"] == "Authorization, Content-Type, Idempotency-Key"
    async with session.options(f"{url}/v1/nothing", headers={"Origin": APP, **asks}) as response:
        assert response.status == 404


@pytest.fixture
async def elsewhere() -> AsyncIterator[str]:
    """An empty page of another origin."""

    async def page(request: web.Request) -> web.Response:
        return web.Response(text="<!doctype html><title>An app</title>", content_type="text/html")

    app = web.Application()
    app.router.add_get("/", page)
    async with TestServer(app, host="127.0.0.1") as server:
        yield str(server.make_url("")).rstrip("/")


SEES = """([url, token]) => fetch(url, {headers: {Authorization: `Bearer ${token}`}}).then(
    async (answer) => (await answer.json()).vendors.map((card) => card.vendorId), (error) => String(error))"""
REPORTS = """([url, token]) => fetch(url, {method: "POST", body: JSON.stringify({lat: 52.23, long: 21.01}), headers:
    {Authorization: `Bearer ${token}`, "Content-Type": "application/json"}}).then((answer) => answer.status, String)"""
HEARS = """(url) => new Promise((done) => {
    const events = new EventSource(url);
    events.onmessage = ({data}) => (events.close(), done(JSON.parse(data).type));
    events.onerror = () => (events.close(), done("nothing"));
})"""


@pytest.mark.skipif(EXECUTABLE is None, reason=SKIP)
@pytest.mark.timeout(300)
@pytest.mark.parametrize("mine", [True, False], ids=["allowed", "another's"])
async def test_in_a_browser(serve: Serve, vendor: SeededVendor, endpoint: Chromium, elsewhere: str, mine: bool) -> None:
    """In a real browser a web app of an allowed origin can watch, stream and report; one of another origin can't."""
    server = await serve(origins=elsewhere if mine else APP)
    id, token = vendor.vendor_id, make_token(SECRET, vendor.clerk_id, 600)
    async with VendorApp(server.url, vendor.clerk_id) as truck, browsing(endpoint) as context:
        await truck.ping(*HERE)
        await truck.acked(1)
        tab = Tab(await context.new_page())
        await tab.page.goto(elsewhere)
        seen = await tab.run(SEES, [server.url + NEARBY, token])
        heard = await tab.run(HEARS, f"{server.url}/v1/watch/events?{AROUND}&token={token}")
        reported = await tab.run(REPORTS, [f"{server.url}/v1/vendors/{id}/locations", token])
    if mine:
        assert (seen, heard, reported) == ([id], "snapshot", 200), tab.errors
    else:
        refused = "TypeError: Failed to fetch"
        assert (seen, heard, reported) == (refused, "nothing", refused)
