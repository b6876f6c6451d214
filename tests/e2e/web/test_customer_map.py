"""A customer's map in a real Chromium: search, links, location, replay, languages, bubbles, embedding."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import asyncpg
import pytest
from aiohttp import web

from streamer.accounts.sign_in import make_link
from streamer.accounts.tokens import make_token
from streamer.storage import seed
from tests.conftest import Serve
from tests.e2e.web.test_live_map import LAT, LONG, as_sent, opened, shows, world_of
from tests.support.apps import SECRET, eventually, now_ms
from tests.support.browser import EXECUTABLE, PHONE, SKIP, Chromium, Tab, browsing
from tests.support.proxy import Proxy

pytestmark = [pytest.mark.skipif(EXECUTABLE is None, reason=SKIP), pytest.mark.timeout(300)]

FAR = (50.0647, 19.945)
LISTED = "[...document.querySelectorAll('#list .name')].map((node) => node.textContent)"


async def rename(database_url: str, names: dict[str, str]) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        await connection.executemany('UPDATE "vendors" SET "name" = $2 WHERE "id" = $1', list(names.items()))
    finally:
        await connection.close()


async def test_a_vendor_is_found_wherever_it_is(endpoint: Chromium, serve: Serve, database_url: str) -> None:
    """A customer searches a truck by name: one in another town is shown there, one at home is listed as such."""
    server = await serve()
    far, near, home = (one.vendor_id for one in await seed.seed(database_url, 3))
    await rename(database_url, {far: "Żurek Kraków", near: "Pierogi", home: "Zurek Dom"})
    async with world_of(server.url, database_url, 2) as world:
        await world.move(world.vendors[0], FAR)
        async with opened(endpoint, server.url + f"/#14/{LAT}/{LONG}") as tab:
            await tab.live()
            await tab.page.fill("#query", "zur")
            await tab.until(f"{LISTED}.length === 2", "both found by the beginning of a word, without accents")
            await tab.page.click(f"#list [data-vendor={world.vendors[0].vendor_id}]")
            await tab.until(f"Math.abs(liveMap.map.getCenter().lat - {FAR[0]}) < 0.01", "the map where it is")
            assert await tab.text("card-name") == "Żurek Kraków"
            assert "q=zur" in await tab.run("location.hash")
            await tab.page.fill("#query", "nobody has this name")
            await tab.until("document.querySelector('#list .none')?.textContent.includes('No vendor')", "none")
            assert tab.errors == []


async def test_a_link_opens_what_it_names(endpoint: Chromium, serve: Serve, database_url: str) -> None:
    """A link to a truck, an area, a filter shows the same view to others, also on a page that is already open."""
    server = await serve()
    async with world_of(server.url, database_url, 4) as world:
        first, second, closed = world.vendors[:3]
        await world.status(closed, False)
        async with opened(endpoint, f"{server.url}/#vendor={first.vendor_id}&circle={LAT},{LONG},900&open=1") as tab:
            await tab.live()
            await tab.until("!document.getElementById('card').hidden", "the vendor's card")
            await tab.until("liveMap.client.watches.get('area')?.fresh", "the circle")
            assert await tab.run("liveMap.tool.area.radius") == 900
            assert await tab.run("document.getElementById('only-open').checked")
            await tab.until(f"{LISTED}.length === 3", "only those open")
            # as when the page writes its own state at that moment
            link = f"#15/{LAT}/{LONG}&vendor={second.vendor_id}"
            await tab.run(
                "(link) => { const own = location.href; location.hash = link; history.replaceState(null, '', own); }",
                link,
            )
            name = await tab.run("(id) => liveMap.fleet.get(id).card.name", second.vendor_id)
            await tab.until(f"document.getElementById('card-name')?.textContent === '{name}'", "the page follows")
            assert await tab.run("liveMap.map.getZoom()") == 15
            assert not await tab.run("liveMap.client.watches.has('area')")
            await tab.page.click("#tool-box")
            await tab.page.keyboard.press("Enter")
            await tab.until("location.hash.includes('box=')", "what is drawn is in the address")
            await tab.page.goto("about:blank")
            await tab.page.goto(server.url)
            await tab.live()
            await tab.until("liveMap.client.watches.get('area')?.fresh", "the state outlives the visit")
            await tab.until(f"document.getElementById('card-name')?.textContent === '{name}'", "the card too")
            assert tab.errors == []


async def test_a_vendor_that_is_not_on_the_map(endpoint: Chromium, serve: Serve, database_url: str) -> None:
    """A link to a truck that is not on the map says so, and shows it as soon as it reports."""
    server = await serve()
    async with world_of(server.url, database_url, 1) as world:
        (vendor,) = world.vendors
        other_id = (await seed.seed(database_url, 2))[1].vendor_id
        async with opened(endpoint, f"{server.url}/#14/{LAT}/{LONG}&vendor={other_id}") as tab:
            await tab.live()
            await tab.until("document.getElementById('card').textContent.includes('not on the map')", "why it is not")
            await tab.run(f"location.hash = '#14/{LAT}/{LONG}&vendor={vendor.vendor_id}'")
            await tab.until("document.getElementById('follow') !== null", "one that is")


async def test_distances_are_from_where_the_customer_is(endpoint: Chromium, serve: Serve, database_url: str) -> None:
    """Customers see their position with its accuracy, and the distance of each truck, in miles where usual."""
    server = await serve()
    async with world_of(server.url, database_url, 1) as world:
        await world.move(world.vendors[0], (LAT + 0.01, LONG))
        for locale, far in (("de-DE", "1.1 km"), ("en-GB", "0.7 mi")):
            place = {"latitude": LAT, "longitude": LONG, "accuracy": 40}
            options: dict[str, Any] = {"permissions": ["geolocation"], "geolocation": place, "locale": locale}
            async with opened(endpoint, f"{server.url}/?lang=en#13/{LAT + 0.03}/{LONG}", **options) as tab:
                await tab.live()
                await tab.page.click("#tool-locate")
                await tab.until("liveMap.you.position !== null", "the own place")
                await tab.until(
                    "document.querySelectorAll('.here, .here-accuracy').length === 2", "a dot, and around it"
                )
                await tab.until(f"document.querySelector('#list .far')?.textContent === '{far}'", f"{far}")
                await tab.page.reload()
                await tab.until("liveMap.you.position !== null", "known again after a reload")
                assert tab.errors == []
        async with opened(endpoint, server.url) as tab:  # without the permission
            await tab.live()
            await tab.page.click("#tool-locate")
            await tab.until("document.getElementById('notice').textContent.includes('blocked')", "why there is no dot")
            assert await tab.run("document.getElementById('tool-locate').getAttribute('aria-pressed')") == "false"


async def test_today_is_replayed(endpoint: Chromium, serve: Serve, database_url: str) -> None:
    """The slider shows stored positions, such as that of noon, and leads back to the live position."""
    server = await serve(history_access="public")
    async with world_of(server.url, database_url, 1) as world:
        (vendor,) = world.vendors
        start = now_ms() - 20_000
        for step in range(10):
            await world.move(vendor, (LAT + step * 0.001, LONG), timestamp=start + step * 1000)
        await world.move(vendor, (LAT, LONG))
        assert vendor.app is not None
        await vendor.app.acked(12)
        async with opened(endpoint, f"{server.url}/#14/{LAT}/{LONG}&vendor={vendor.vendor_id}") as tab:
            await tab.live()
            await tab.page.click("#today")
            await tab.until("liveMap.replaying !== null", "a slider")
            at_five = """(time) => {
              const slider = document.getElementById('replay-time');
              slider.min = time;
              slider.value = time;
              slider.dispatchEvent(new Event('input'));
              return liveMap.layer.ghost.y;
            }"""
            y = await tab.run(at_five, start + 5000)
            expected = await tab.run(
                f"(async () => (await import(document.querySelector('script[type=module]').src.replace('map.js', "
                f"'fleet.js'))).project({LAT + 0.005}, {LONG})[1])()"
            )
            assert y == pytest.approx(expected, abs=1e-12)
            await tab.page.click("#replay-play")
            await tab.until(f"liveMap.layer.ghost.y !== {y}", "it moves")
            await tab.page.click("#replay-close")
            await tab.until("liveMap.replaying === null && liveMap.layer.ghost === null", "live again")
            assert tab.errors == []


async def test_directions_open_the_devices_own_maps(endpoint: Chromium, serve: Serve) -> None:
    """One tap opens directions in the phone's maps app."""
    server = await serve()
    async with opened(endpoint, server.url) as tab:
        await tab.live()
        links = await tab.run(
            """async () => {
              const { src } = document.querySelector('script[type=module]');
              const { directions } = await import(src.replace('map.js', 'here.js'));
              const card = { lat: 52.2, long: 21, name: 'A & B' };
              return ['iPhone', 'Android', 'X11'].map((agent) => directions(card, agent));
            }"""
        )
        assert links == [
            "https://maps.apple.com/?daddr=52.200000,21.000000&q=A%20%26%20B",
            "geo:52.200000,21.000000?q=52.200000,21.000000(A%20%26%20B)",
            "https://www.openstreetmap.org/directions?to=52.200000%2C21.000000",
        ]


async def test_the_page_in_another_language(endpoint: Chromium, serve: Serve, database_url: str) -> None:
    """Customers read all texts in their language, with its plural forms."""
    server = await serve()
    phone = {"viewport": PHONE, "has_touch": True, "is_mobile": True, "locale": "pl-PL"}
    async with world_of(server.url, database_url, 5) as world, opened(endpoint, server.url, **phone) as tab:
        await tab.live()
        await shows(tab, as_sent(world))
        await tab.until("document.getElementById('handle-text').textContent === '5 sprzedawców'", "counted in Polish")
        assert await tab.run("document.documentElement.lang") == "pl"
        await tab.page.tap("#tool-help")
        assert await tab.run("document.querySelector('.touch').checkVisibility()"), "help for fingers"
        assert not await tab.run("document.querySelector('.keys').checkVisibility()")
        assert tab.errors == []


async def test_every_gesture_of_the_help(endpoint: Chromium, serve: Serve, database_url: str) -> None:
    """Each gesture in the help works: drag, pinch, double tap, opening a bubble, drawing an area."""
    server = await serve()
    phone = {"viewport": PHONE, "has_touch": True, "is_mobile": True}
    async with (
        world_of(server.url, database_url, 5),
        opened(endpoint, f"{server.url}/#13/{LAT}/{LONG}", **phone) as tab,
    ):
        await tab.live()
        fingers = await tab.page.context.new_cdp_session(tab.page)

        async def touch(*ways: list[tuple[float, float]]) -> None:
            """Moves several fingers at the same time."""
            for step, points in enumerate(zip(*ways, strict=True)):
                touched = [{"x": x, "y": y, "id": id} for id, (x, y) in enumerate(points)]
                kind = "touchMove" if step else "touchStart"
                await fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touched})
                await tab.run("new Promise(requestAnimationFrame)")
            await fingers.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

        def way(start: tuple[float, float], end: tuple[float, float]) -> list[tuple[float, float]]:
            return [(start[0] + (end[0] - start[0]) * n / 8, start[1] + (end[1] - start[1]) * n / 8) for n in range(9)]

        before = await tab.run("liveMap.map.getCenter().lng")
        await touch(way((250, 400), (150, 400)))
        await tab.until(f"liveMap.map.getCenter().lng > {before} + 0.01", "the map dragged")

        await touch(way((180, 400), (100, 330)), way((210, 400), (290, 470)))
        await tab.until("liveMap.map.getZoom() >= 14 && !liveMap.map._animatingZoom", "zoomed in by two fingers")
        await touch(way((100, 330), (180, 400)), way((290, 470), (210, 400)))
        await tab.until("liveMap.map.getZoom() <= 13 && !liveMap.map._animatingZoom", "and out")

        zoom = await tab.run("liveMap.map.getZoom()")
        for _ in range(2):
            await touch([(60, 250)])
        await tab.until(f"liveMap.map.getZoom() > {zoom} && !liveMap.map._animatingZoom", "zoomed in by two taps")

        await tab.page.tap("#tool-circle")
        center = await tab.run("[liveMap.map.getCenter().lat, liveMap.map.getCenter().lng]")
        await touch(way((195, 400), (195, 300)))
        await tab.until("liveMap.tool.area?.radius > 100", "a circle drawn by a finger")
        assert await tab.run("[liveMap.map.getCenter().lat, liveMap.map.getCenter().lng]") == center, "the map stays"

        await tab.run(f"liveMap.map.setView([{LAT}, {LONG}], 4, {{ animate: false }})")
        await tab.until("liveMap.view?.fresh && liveMap.bubbles.bubbles.some((one) => one.seen)", "a bubble")
        x, y = await tab.run("(() => { const { px, py } = liveMap.bubbles.bubbles[0]; return [px, py]; })()")
        await touch([(x, y)])
        await tab.until("liveMap.map.getZoom() > 4", "what is in the bubble")
        assert tab.errors == []


async def test_a_bad_token_does_not_lock_the_map(endpoint: Chromium, serve: Serve, database_url: str) -> None:
    """A token that expired overnight: the map continues without it if allowed, and says so."""
    server = await serve()
    expired = make_token(SECRET, "clerk_test_user", 60, now=1_700_000_000)
    async with (
        world_of(server.url, database_url, 2) as world,
        opened(endpoint, f"{server.url}/#token={expired}") as tab,
    ):
        await tab.live()
        await shows(tab, as_sent(world))
        assert "without it" in await tab.text("notice")
        assert not await tab.run("document.getElementById('token-dialog').open")
        await tab.page.reload()
        await tab.live()
        assert await tab.run("document.getElementById('notice').hidden"), "forgotten, not tried again"


async def test_a_vendor_signs_in_by_a_link(endpoint: Chromium, serve: Serve, database_url: str) -> None:
    """A vendor scans a code and is signed in; a used link shows the remedy."""
    (vendor,) = await seed.seed(database_url, 1)
    server = await serve()
    link = make_link(SECRET, vendor.vendor_id, server.url, now_ms() / 1000).url
    async with browsing(endpoint, viewport=PHONE) as context:
        tab = Tab(await context.new_page())
        await tab.page.goto(link)
        await tab.until("document.getElementById('status').dataset.state === 'open'", "signed in")
        assert await tab.text("known-id") == vendor.vendor_id
        assert "code=" not in await tab.run("location.href")
        await tab.page.reload()
        await tab.until("document.getElementById('status').dataset.state === 'open'", "still signed in")
        await tab.page.click("#forget")
        await tab.page.goto("about:blank")
        await tab.page.goto(link)
        await tab.until("document.getElementById('sign-in-problem').textContent.includes('already been used')", "used")
        assert await tab.run("document.getElementById('report').disabled")
    async with Proxy(server.url) as proxy, browsing(endpoint, viewport=PHONE) as context:
        tab = Tab(await context.new_page())
        await tab.page.goto(proxy.url + "/vendor")
        proxy.down()
        again = make_link(SECRET, vendor.vendor_id, proxy.url, now_ms() / 1000).url
        await tab.run("(hash) => { location.hash = hash; }", again.partition("#")[2])
        await tab.until("document.getElementById('sign-in-problem').textContent.includes('cannot be reached')", "why")
        proxy.up()
        await tab.until("document.getElementById('status').dataset.state === 'open'", "the link stayed valid")


async def test_bubbles_join_and_open(endpoint: Chromium, serve: Serve) -> None:
    """Groups whose bubbles would overlap are merged, also over the antimeridian; a click zooms to their vendors."""
    server = await serve()
    async with opened(endpoint, server.url + "/#4/0/180") as tab:
        await tab.live()  # no snapshot of the empty world follows
        await tab.run(
            """(() => {
              const of = (group, lat, long, count, open) => [group, { group, lat, long, count, open, online: count }];
              const groups = [of('a', 0, 179.9, 30, 2), of('b', 0, -179.9, 12, 0), of('c', 20, 170, 5, 0)];
              liveMap.bubbles.show(new Map(groups));
            })()"""
        )
        await tab.until("liveMap.bubbles.bubbles.length === 2", "two that overlap are one")
        joined = await tab.run("liveMap.bubbles.bubbles.map(({ count, open, px, py }) => [count, open, px, py])")
        assert [one[:2] for one in joined] == [[42, 2], [5, 0]]
        middle = await tab.run("[liveMap.map.getSize().x / 2, liveMap.map.getSize().y / 2]")
        assert abs(joined[0][2] - middle[0]) < 12
        zoom = await tab.run("liveMap.map.getZoom()")
        await tab.page.mouse.click(joined[0][2], joined[0][3])
        await tab.until(f"liveMap.map.getZoom() > {zoom}", "closer")


async def test_zoomed_out_the_map_counts(endpoint: Chromium, serve: Serve, database_url: str) -> None:
    """At world level the map shows where how many vendors are; one click zooms to all of them."""
    server = await serve()
    async with world_of(server.url, database_url, 12) as world:
        await world.move(world.vendors[0], FAR)
        async with opened(endpoint, server.url + "/#3/30/0") as tab:
            await tab.until("document.getElementById('count-view').textContent === '12'", "all counted")
            await tab.until("liveMap.bubbles.bubbles.reduce((sum, { count }) => sum + count, 0) === 12", "in bubbles")
            await tab.page.click("#tool-fit")
            await tab.until("liveMap.map.getZoom() > 5", "closer")
            await tab.until("document.getElementById('count-view').textContent === '12'", "with all of them in view")
            assert tab.errors == []


async def test_another_site_embeds_the_map(endpoint: Chromium, serve: Serve, database_url: str) -> None:
    """A site with one script and one element has the live map; attributes and the event work across origins."""
    server = await serve()
    async with AsyncExitStack() as stack:
        world = await stack.enter_async_context(world_of(server.url, database_url, 2))
        first, second = (vendor.vendor_id for vendor in world.vendors)
        body = (
            f"<!doctype html><link rel=icon href=data:,><script type=module src='{server.url}/embed.js'></script>"
            f"<venta-map lat={LAT} long={LONG} zoom=14 theme=dark lang=pl vendor={first}></venta-map>"
        )

        async def page(_: web.Request) -> web.Response:
            return web.Response(text=body, content_type="text/html")

        app = web.Application()
        app.router.add_get("/", page)
        runner = web.AppRunner(app)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "localhost", 0).start()
        port = runner.addresses[0][1]
        tab = await stack.enter_async_context(opened(endpoint, f"http://localhost:{port}/"))
        await tab.until("document.querySelector('venta-map')?.shadowRoot?.querySelector('iframe')", "a frame")
        await tab.run(
            "document.querySelector('venta-map').addEventListener('vendor', (event) => "
            "(globalThis.picked = event.detail.vendorId))"
        )
        frame = next(one for one in tab.page.frames if one.url.startswith(server.url))

        async def inside(script: str, what: str) -> None:
            async def holds() -> bool:
                return bool(await frame.evaluate(script))

            await eventually(holds, what, within=60)

        await inside("globalThis.liveMap?.fleet.movers.size === 2", "the vendors")
        await inside("!document.getElementById('card').hidden", "the card")
        assert await frame.evaluate("document.documentElement.dataset.theme") == "dark"
        assert await frame.evaluate("document.documentElement.lang") == "pl"
        assert not await frame.evaluate("document.querySelector('.tools').checkVisibility()")
        await frame.evaluate("performance.mark('kept')")
        await tab.run("(id) => document.querySelector('venta-map').setAttribute('vendor', id)", second)
        await tab.until(f"globalThis.picked === '{second}'", "the event")
        assert await frame.evaluate("performance.getEntriesByName('kept').length") == 1, "not loaded again"
        assert tab.errors == []
