"""`GET /v1/vendors`: a customer finds a vendor by name, on the map or not."""

from __future__ import annotations

from typing import Any

import aiohttp
import asyncpg
import pytest

from streamer.errors import ProtocolError
from streamer.storage import seed
from streamer.storage.queries import SEARCH
from streamer.transport.query import decode_cursor, encode_cursor, words
from tests.conftest import Serve
from tests.support.apps import described

NAMES = ["Żurek Mobil", "Hot-Dog Hala", "Crêpes Nowy Świat", "Łódź/Burrito", "zurek na wynos", "Kebab.pl"]


async def named(database_url: str, names: list[str]) -> list[str]:
    """Seeds one vendor for each name; returns their ids."""
    vendors = [one.vendor_id for one in await seed.seed(database_url, len(names))]
    connection = await asyncpg.connect(database_url)
    try:
        await connection.executemany(
            'UPDATE "vendors" SET "name" = $2 WHERE "id" = $1', list(zip(vendors, names, strict=True))
        )
    finally:
        await connection.close()
    return vendors


async def found(session: aiohttp.ClientSession, **params: str) -> Any:
    """Returns an answer, which must match the API description."""
    async with session.get("/v1/vendors", params=params) as answer:
        body = await answer.json(content_type=None)
        described(("Found", "Problem"))["Found" if answer.status == 200 else "Problem"].validate(body)
        return body


async def test_names_are_found_by_the_beginnings_of_their_words(serve: Serve, database_url: str) -> None:
    """Search ignores accents, and matches any word of a name."""
    await named(database_url, NAMES)
    async with aiohttp.ClientSession((await serve()).url) as session:
        for query, expected in {
            "zur": ["zurek na wynos", "Żurek Mobil"],
            "ŻUREK mob": ["Żurek Mobil"],
            "dog": ["Hot-Dog Hala"],
            "swiat crep": ["Crêpes Nowy Świat"],
            "lodz": ["Łódź/Burrito"],
            "burrito": ["Łódź/Burrito"],
            "pl": ["Kebab.pl"],
            "ot": [],
        }.items():
            assert [one["name"] for one in (await found(session, query=query))["vendors"]] == expected, query


async def test_pages_hold_each_vendor_once(serve: Serve, database_url: str) -> None:
    """Equal names, and vendors added or deleted between two pages, must neither hide nor repeat another vendor."""
    vendors = await named(database_url, ["Same name"] * 7 + ["Same again"] * 6)
    async with aiohttp.ClientSession((await serve()).url) as session:
        seen: list[str] = []
        cursor: str | None = ""
        while cursor is not None:
            page = await found(session, query="same", limit="4", **({"cursor": cursor} if cursor else {}))
            assert len(page["vendors"]) <= 4
            seen += [one["vendorId"] for one in page["vendors"]]
            cursor = page["next"]
        assert len(seen) == len(vendors)
        assert set(seen) == set(vendors)


async def test_closed_and_deleted_vendors(serve: Serve, database_url: str) -> None:
    """`open=true` leaves closed vendors out; nobody finds a deleted one."""
    closed, deleted, other = await named(database_url, ["Taco one", "Taco two", "Taco three"])
    connection = await asyncpg.connect(database_url)
    await connection.execute('UPDATE "vendors" SET "open" = false WHERE "id" = $1', closed)
    await connection.execute('UPDATE "vendors" SET "deletedAt" = now() WHERE "id" = $1', deleted)
    await connection.close()
    async with aiohttp.ClientSession((await serve()).url) as session:
        assert {one["vendorId"] for one in (await found(session, query="taco"))["vendors"]} == {closed, other}
        assert [one["vendorId"] for one in (await found(session, query="taco", open="true"))["vendors"]] == [other]


async def test_invalid_searches_are_refused(serve: Serve) -> None:
    """Each refusal names the value, and no text reaches PostgreSQL's query language."""
    async with aiohttp.ClientSession((await serve()).url) as session:
        for params in (
            {},
            {"query": " & | ! "},
            {"query": "x" * 101},
            {"query": "a b c d e f g h i"},
            {"query": "a", "limit": "0"},
            {"query": "a", "limit": "1.5"},
            {"query": "a", "open": "yes"},
            {"query": "a", "cursor": "W10"},
        ):
            assert (await found(session, **params))["code"] == "ERR_INVALID_MESSAGE", params
        assert (await found(session, query="a:* & !b' <-> \\c"))["vendors"] == []
    async with aiohttp.ClientSession((await serve(watch_auth="required")).url) as session:
        assert (await found(session, query="a"))["code"] == "ERR_UNAUTHORIZED"


async def test_the_index_serves_the_search(serving_url: str) -> None:
    """Without the index each keystroke of a search would read all vendors' rows."""
    connection = await asyncpg.connect(serving_url)
    try:
        await connection.execute("SET enable_seqscan = off")
        plan = await connection.fetch("EXPLAIN " + SEARCH, "taco:*", False, "", "", 20)
    finally:
        await connection.close()
    assert any("idx_vendors_name_search" in row[0] for row in plan), plan


def test_words_and_cursors() -> None:
    """A cursor from `next` is accepted; anything else is refused."""
    assert words("  Żurek-Mobil_2 ŁÓDŹ!") == ["zurek", "mobil", "2", "lodz"]
    for name, vendor_id in (("Zażółć ~ \n", "v"), ("", "")):
        assert decode_cursor(encode_cursor(name, vendor_id)) == (name, vendor_id)
    for wrong in ("", "x", "!!!", "bnVsbA", encode_cursor("a\0", "v"), "ü"):
        with pytest.raises(ProtocolError, match="cursor"):
            decode_cursor(wrong)
