"""Sign-in links: a vendor scans a code instead of pasting a token; a code works only once."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any
from urllib.parse import unquote

import aiohttp
import pytest

from streamer.accounts.sign_in import LIFETIME, make_link
from streamer.storage import seed
from streamer.web.backends import qr_svg
from tests.conftest import Serve
from tests.support.apps import SECRET, described

KEY = "the-key-of-a-backend-the-key-of-a-backend"


async def post(url: str, path: str, body: Any, key: str | None = None) -> tuple[int, Any]:
    """Returns the status and the body of an answer, which must match the API description."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with aiohttp.ClientSession() as session, session.post(url + path, json=body, headers=headers) as answer:
        answered = await answer.json(content_type=None)
        shape = {200: "SignIn", 201: "SignInLink"}.get(answer.status, "Problem")
        described((shape,))[shape].validate(answered)
        return answer.status, answered


def code_of(url: str) -> str:
    return unquote(url.partition("#code=")[2])


async def test_a_link_works_once_on_all_processes_together(serve: Serve, database_url: str) -> None:
    """A stolen code, or one sent twice, must not sign in a second person."""
    (vendor,) = await seed.seed(database_url, 1)
    first = await serve(backend_key=KEY, public_url="https://streamer.example/")
    second = await serve(backend_key=KEY)
    status, link = await post(first.url, "/v1/sign-in-links", {"vendorId": vendor.vendor_id}, KEY)
    assert status == 201
    assert link["url"].startswith("https://streamer.example/vendor#code=")
    assert link["qr"].startswith("<svg")
    assert 0 < link["expiresAt"] - time.time() * 1000 <= LIFETIME * 1000
    code = {"code": code_of(link["url"])}
    answers = await asyncio.gather(*(post(one.url, "/v1/sign-in", code) for one in (first, second, first, second)))
    assert sorted(status for status, _ in answers) == [200, 401, 401, 401]
    (signed_in,) = (body for status, body in answers if status == 200)
    assert all("used already" in body["detail"] for status, body in answers if status == 401)
    assert signed_in["vendorId"] == vendor.vendor_id
    ping = {"lat": 52.2297, "long": 21.0122}
    headers = {"Authorization": f"Bearer {signed_in['token']}"}
    path = f"{second.url}/v1/vendors/{vendor.vendor_id}/locations"
    async with aiohttp.ClientSession(headers=headers) as session, session.post(path, json=ping) as answer:
        assert answer.status == 200


async def test_a_code_that_is_not_valid(serve: Serve, database_url: str) -> None:
    """Each error contains the remedy; none reveals whether a code exists."""
    (vendor,) = await seed.seed(database_url, 1)
    url = (await serve(backend_key=KEY)).url
    now = time.time()
    good = code_of(make_link(SECRET, vendor.vendor_id, url, now).url)
    for code, status, words in (
        (good[:-2] + "xx", 401, "is not valid"),
        (good.replace(vendor.vendor_id, "another"), 401, "is not valid"),
        ("", 400, "1 to 1024"),
        ("~~~", 401, "is not valid"),
        ("ü~ü", 401, "is not valid"),
        (code_of(make_link("another secret" * 4, vendor.vendor_id, url, now).url), 401, "is not valid"),
        (code_of(make_link(SECRET, vendor.vendor_id, url, now - LIFETIME - 1).url), 401, "has expired"),
        (code_of(make_link(SECRET, "nobody", url, now).url), 404, "no vendor"),
    ):
        assert (answer := await post(url, "/v1/sign-in", {"code": code}))[0] == status, (code, answer)
        assert words in answer[1]["detail"], (code, answer)
    assert (await post(url, "/v1/sign-in", []))[1]["code"] == "ERR_MISSING_FIELD"
    assert (await post(url, "/v1/sign-in", {"code": good}))[0] == 200, "none of these has used it up"


async def test_only_a_backend_makes_links(serve: Serve, database_url: str) -> None:
    """A link gives a token for a month: none is created without the key, or if no key is set."""
    (vendor,) = await seed.seed(database_url, 1)
    asked = {"vendorId": vendor.vendor_id}
    url = (await serve(backend_key=KEY)).url
    assert (await post(url, "/v1/sign-in-links", asked))[0] == 401
    assert (await post(url, "/v1/sign-in-links", asked, KEY + "x"))[0] == 401
    assert (await post(url, "/v1/sign-in-links", {"vendorId": "nobody"}, KEY))[0] == 404
    status, answer = await post((await serve()).url, "/v1/sign-in-links", asked, KEY)
    assert (status, answer["code"]) == (403, "ERR_FORBIDDEN")
    assert "STREAMER_BACKEND_KEY" in answer["detail"]


@pytest.mark.parametrize("length", [60, 160])
def test_a_qr_code_is_a_picture_by_itself(length: int) -> None:
    """A backend embeds it unchanged in a page, so it must not load or run anything."""
    picture = qr_svg("https://streamer.example/vendor#code=" + "x" * length)
    assert re.match(r'<svg [^>]*xmlns="http://www.w3.org/2000/svg"', picture)
    assert "script" not in picture
