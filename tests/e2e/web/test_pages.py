"""The pages over HTTP: content, caching and content security policy."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import orjson
import pytest

from streamer.settings import Settings
from streamer.web import pages
from tests.conftest import Serve

KEPT = "public, max-age=31536000, immutable"


@pytest.fixture
async def browser() -> AsyncIterator[aiohttp.ClientSession]:
    """A client without a token."""
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.mark.parametrize("path", ["/", "/vendor"])
async def test_a_page_and_all_that_it_names(serve: Serve, browser: aiohttp.ClientSession, path: str) -> None:
    """A missing file would break the page; a changed file under an old name would not reach browsers that cached it."""
    url = (await serve(watch_auth="required")).url
    async with browser.get(url + path) as answer:
        assert answer.status == 200
        assert answer.content_type == "text/html"
        assert answer.headers["Cache-Control"] == "no-cache"
        page, tag = await answer.text(), answer.headers["ETag"]
    assert "{{" not in page
    named = re.findall(r'(?:href|src)="(/(?:map|client)/[^"]+)"', page)
    assert len(named) >= 5
    for file in named:
        async with browser.get(url + file) as answer:
            assert answer.status == 200, file
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            if file.startswith("/map/"):
                assert answer.headers["Cache-Control"] == KEPT
                assert answer.headers["Content-Encoding"] == "gzip"
        async with browser.get(url + file.replace("/map/", "/map/older-"), headers={"Accept-Encoding": ""}) as answer:
            if file.startswith("/map/"):
                assert answer.headers["Cache-Control"] == "no-store", "an older page must not keep newer files"
                assert "Content-Encoding" not in answer.headers
    async with browser.get(url + path, headers={"If-None-Match": tag}) as answer:
        assert answer.status == 304


async def test_every_import_is_there(serve: Serve, browser: aiohttp.ClientSession) -> None:
    """Modules import each other by relative paths, so all must be served under one version."""
    url = (await serve()).url
    async with browser.get(url) as answer:
        base = re.search(r'"(/map/[0-9a-f]+/)map\.js"', await answer.text())
    assert base is not None
    seen: set[str] = set()
    wanted = ["map.js", "vendor.js"]
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        async with browser.get(url + base[1] + name) as answer:
            assert answer.status == 200, name
            assert answer.content_type == "text/javascript"
            text = await answer.text()
        wanted += re.findall(r'(?:from |import\()"\./([^"]+)"', text)
        assert set(re.findall(r'from "(/[^"]+)"', text)) <= {"/client/venta.js"}
    assert {"fleet.js", "land.js", "page.js", "history.js"} <= seen
    for none in ("nothing.js", "map.html", "..%2Fpages.py", "%2e%2e"):
        async with browser.get(f"{url}{base[1]}{none}") as answer:
            assert answer.status == 404, none


async def test_nothing_from_elsewhere(serve: Serve, browser: aiohttp.ClientSession) -> None:
    """A page must not run scripts of other hosts or be framed by them, as they could act as its visitors."""
    url = (await serve()).url
    async with browser.get(url) as answer:
        page, headers = await answer.text(), answer.headers
    rules = dict(rule.strip().split(" ", 1) for rule in headers["Content-Security-Policy"].split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == "'self'"
    assert rules["frame-ancestors"] == "'none'"
    assert not re.findall(r'(?:href|src)="(?:https?:)?//', page)
    assert not re.findall(r"<script(?![^>]*(?:src=|application/json))", page)
    assert not re.findall(r'\s(?:on\w+|style)="', page)
    assert "geolocation=(self)" in headers["Permissions-Policy"]


async def test_the_settings_of_the_page(serve: Serve, browser: aiohttp.ClientSession) -> None:
    """Settings reach the page, whatever they contain, but no secrets."""
    tiles = "http://tiles.example:81/{z}/{x}/{y}.png?key=</script>"
    url = (await serve(tiles_url=tiles, map_center="-33.9,151.2", max_radius=5000.0, watch_auth="required")).url
    async with browser.get(url) as answer:
        page, policy = await answer.text(), answer.headers["Content-Security-Policy"]
    data = re.search(r'<script type="application/json" id="settings">(.*?)</script>', page)
    assert data is not None
    told = orjson.loads(data[1])
    assert told["tilesUrl"] == tiles
    assert (told["center"], told["maxRadius"], told["tokenNeeded"]) == ([-33.9, 151.2], 5000, True)
    assert " http://tiles.example:81" in policy
    assert "secret" not in data[1].lower()
    assert "postgres" not in data[1]


async def test_the_clock(serve: Serve, browser: aiohttp.ClientSession) -> None:
    """The page computes ages by the server's clock; a cached answer would make all ages wrong."""
    running = await serve()
    async with browser.get(running.url + "/map/now") as answer:
        assert answer.headers["Cache-Control"] == "no-store"
        first = (await answer.json())["time"]
    async with browser.get(running.url + "/map/now") as answer:
        assert 0 <= (await answer.json())["time"] - first < 60_000


def test_tiles_over_https_need_no_rule_of_their_own() -> None:
    """Only plain http is listed; a tile server's subdomains are written as one wildcard."""
    assert pages.policy("https://a.example/{z}/{x}/{y}", "h") == pages.policy(None, "h")
    assert "http://*.tiles.example" in pages.policy("http://{s}.tiles.example/{z}/{x}/{y}.png", "h")


def test_connections_go_to_this_host_only() -> None:
    """The client chooses the Host header: nothing but a host may be inserted into the policy."""
    assert "connect-src 'self' ws://map.example:81 wss://map.example:81;" in pages.policy(None, "map.example:81")
    assert "connect-src 'self' ws://[::1]:8080 wss://[::1]:8080;" in pages.policy(None, "[::1]:8080")
    for forged in ("a b", "a; script-src *", "*", "", "a,b"):
        assert "connect-src 'self';" in pages.policy(None, forged)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("tiles_url", "https://tiles.example/", "{z}, {x} and {y}"),
        ("tiles_url", "ftp://tiles.example/{z}/{x}/{y}", "http:// or https://"),
        ("map_center", "Warsaw", "like 52.2297,21.0122"),
        ("map_center", "52.2297,210", "-180 to 180"),
    ],
)
def test_a_setting_that_can_not_be(name: str, value: str, said: str) -> None:
    """A wrong map setting must be reported at the start, not by visitors."""
    with pytest.raises(ValueError, match=re.escape(said)):
        Settings.model_validate({name: value})


def strings(code: str) -> dict[str, Any]:
    return dict(orjson.loads((pages.FOLDER / "strings" / f"{code}.json").read_bytes()))


def test_every_language_has_every_text() -> None:
    """A missing text in one language would break the page; an unused one would never be updated."""
    assert {"en", "pl"} <= set(pages.LANGUAGES)
    english = strings("en")
    files = [path.read_text(encoding="utf-8") for path in pages.FOLDER.glob("*.*") if path.suffix in (".js", ".html")]
    used = set(re.findall(r"\{\{t:([\w.-]+)\}\}", " ".join(files)))
    assert used <= set(english)
    for code in pages.LANGUAGES:
        texts = strings(code)
        assert set(texts) == set(english), code
        for key, text in texts.items():
            forms = [english[key], text] if isinstance(text, str) else [*english[key], *text]
            places = [set(re.findall(r"\{(\w+)\}", form)) for form in forms if isinstance(form, str)]
            assert all(place == places[0] for place in places), (code, key)
    scripts = " ".join(files)
    for key in set(english) - used:
        stem = key.rpartition(".")[0]
        assert f'"{key}"' in scripts or f"`{stem}.$" in scripts or f"strings.{key}" in scripts, f"{key} is never shown"


@pytest.mark.parametrize(
    ("query", "accepted", "expected"),
    [("", "", "en"), ("", "pl-PL,pl;q=0.9,en;q=0.8", "pl"), ("", "de,fr;q=0.5", "en"), ("?lang=en", "pl", "en")],
)
async def test_the_language_is_the_visitors(
    serve: Serve, browser: aiohttp.ClientSession, query: str, accepted: str, expected: str
) -> None:
    """The page is in the browser's language, or that of a link; a cache must not mix languages."""
    url = (await serve()).url
    async with browser.get(f"{url}/{query}", headers={"Accept-Language": accepted}) as answer:
        page = await answer.text()
        assert "Accept-Language" in answer.headers["Vary"]
    assert f'<html lang="{expected}">' in page
    assert strings(expected)["search.placeholder"] in page


async def test_the_map_can_be_installed(serve: Serve, browser: aiohttp.ClientSession) -> None:
    """For installing the map on the home screen, the manifest has the required members, and its icons exist."""
    url = (await serve()).url
    async with browser.get(url + "/manifest.webmanifest") as answer:
        assert answer.content_type == "application/manifest+json"
        manifest = await answer.json(content_type=None)
    assert {"name", "start_url", "display", "icons"} <= set(manifest)
    assert {icon["sizes"] for icon in manifest["icons"]} == {"192x192", "512x512"}
    for icon in manifest["icons"]:
        async with browser.get(url + icon["src"]) as answer:
            assert (answer.status, answer.content_type) == (200, "image/png")
            size = int.from_bytes((await answer.read())[16:20], "big")
            assert icon["sizes"] == f"{size}x{size}"


async def test_only_the_embedded_map_may_be_framed(serve: Serve, browser: aiohttp.ClientSession) -> None:
    """Another site may frame the map, which shows public positions, but never the page of a signed-in vendor."""
    url = (await serve()).url
    for path, framed in (("/", False), ("/vendor", False), ("/embed", True)):
        async with browser.get(url + path) as answer:
            policy = answer.headers["Content-Security-Policy"]
            assert ("frame-ancestors *" in policy) == framed
            assert ("X-Frame-Options" in answer.headers) != framed
