"""The signed-in user's alerts on the map, in a real Chromium: created for the watched area, listed, and deleted."""

from __future__ import annotations

import pytest

from streamer.accounts.tokens import make_token
from tests.conftest import Serve
from tests.e2e.web.test_live_map import LAT, LONG, opened, world_of
from tests.support.apps import SECRET
from tests.support.browser import EXECUTABLE, SKIP, Chromium
from tests.support.receiver import Receiver

pytestmark = [pytest.mark.skipif(EXECUTABLE is None, reason=SKIP), pytest.mark.timeout(300)]

KEY = "a-key-for-alerts-a-key-for-alerts"
ROWS = "[...document.querySelectorAll('#alerts-list [data-alert]')]"


async def test_an_alert_is_made_listed_and_ended(endpoint: Chromium, serve: Serve, database_url: str) -> None:
    """A user draws a circle, gets the secret once, gets a webhook when a truck enters, and deletes the alert."""
    async with Receiver() as receiver:
        server = await serve(alert_key=KEY, alert_development_hosts=(receiver.host,))
        async with world_of(server.url, database_url, 1) as world:
            (vendor,) = world.vendors
            await world.move(vendor, (LAT + 0.05, LONG))
            token = make_token(SECRET, vendor.clerk_id, 600)
            address = f"{server.url}/?lang=en#14/{LAT}/{LONG}&token={token}"
            async with opened(endpoint, address, locale="de-DE") as tab:
                await tab.live()
                await tab.until("!document.getElementById('tool-alerts').hidden", "the tool of who is signed in")
                await tab.page.click("#tool-alerts")
                await tab.until("document.querySelector('#alerts-list')?.textContent.includes('no alerts')", "none yet")
                assert "Watch a box or a circle first" in await tab.text("alerts-area")
                assert await tab.run("document.getElementById('alerts-create').disabled")
                await tab.page.click("#alerts button.secondary")
                await tab.run(f"liveMap.tool.show({{ center: {{ lat: {LAT}, long: {LONG} }}, radius: 500 }})")
                await tab.page.click("#tool-alerts")
                await tab.until("document.getElementById('alerts-area').textContent.includes('500 m')", "the circle")
                await tab.page.fill("#alerts-url", "http://elsewhere.example/hook")
                await tab.page.click("#alerts-create")
                await tab.until("document.getElementById('alerts-said').textContent.includes('https://')", "why not")
                await tab.page.fill("#alerts-url", receiver.url)
                await tab.page.click("#alerts-create")
                await tab.until(f"{ROWS}.length === 1", "the alert")
                await tab.until("document.querySelector('#alerts-said code') !== null", "its secret")
                (alert_id,) = await tab.run(f"{ROWS}.map((row) => row.dataset.alert)")
                receiver.secrets[alert_id] = await tab.run("document.querySelector('#alerts-said code').textContent")
                words = await tab.run(f"{ROWS}[0].textContent")
                assert "Circle, radius 500 m" in words
                assert receiver.host in words
                begun = "fetch('/v1/alerts/{}', {{ headers: {{ Authorization: 'Bearer {}' }} }})"
                await tab.until(
                    f"{begun.format(alert_id, token)}.then((answer) => answer.json()).then((one) => !!one.startedAt)",
                    "an alert that has begun",
                )
                await world.move(vendor, (LAT, LONG))
                await receiver.gets("entered", alert_id=alert_id)
                await tab.page.click(f"[data-alert='{alert_id}'] button")
                await tab.until(f"{ROWS}.length === 0", "no alert any more")
                (refused,) = tab.errors
                assert "400" in refused  # of the invalid URL


async def test_who_is_not_signed_in_has_no_alerts(endpoint: Chromium, serve: Serve, database_url: str) -> None:
    """Without alerts on the server the tool is hidden; in Polish it has a Polish name."""
    for settings, token in (({"alert_key": KEY}, ""), ({}, "&token=x")):
        server = await serve(**settings)
        async with opened(endpoint, f"{server.url}/?lang=pl#14/{LAT}/{LONG}{token}") as tab:
            await tab.live()
            assert await tab.run("document.getElementById('tool-alerts').hidden")
            label = await tab.run("document.getElementById('tool-alerts').getAttribute('aria-label')")
            assert label == "Powiadomienia"
