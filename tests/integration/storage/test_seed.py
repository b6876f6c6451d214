"""Seeded vendors on a real PostgreSQL."""

from __future__ import annotations

from typing import Any

import pytest

from streamer.errors import DatabaseError
from streamer.storage import seed
from tests.conftest import connected


async def everything(connection: Any) -> list[Any]:
    return [
        await connection.fetch(f'SELECT * FROM "{table}" ORDER BY "id"') for table in ("users", "vendors", "locations")
    ]


async def test_the_documented_seed(database_url: str) -> None:
    """The quick start uses this user and this vendor."""
    (seeded,) = await seed.seed(database_url)
    assert (seeded.clerk_id, seeded.name, len(seeded.vendor_id)) == ("clerk_test_user", "Test Vendor", 25)
    async with connected(database_url) as connection:
        row = await connection.fetchrow(
            """
            SELECT u."email", u."firstName", u."lastName", v."description", v."lat", v."long", v."open"
            FROM "users" u JOIN "vendors" v ON v."userId" = u."id" WHERE v."id" = $1
            """,
            seeded.vendor_id,
        )
    assert tuple(row) == (
        *("test@example.com", "Test", "User"),
        "A test vendor for development",
        40.7128,
        -74.006,
        True,
    )


async def test_seeding_twice_changes_nothing(database_url: str) -> None:
    """A second run must not rename or move vendors that are in use."""
    async with connected(database_url) as connection:
        first = [await seed.seed(database_url), await seed.seed(database_url, 30)]
        await connection.execute("""UPDATE "vendors" SET "name" = 'Renamed' WHERE "id" = 'cseedvendor00000000000007'""")
        before = await everything(connection)
        second = [await seed.seed(database_url), await seed.seed(database_url, 30)]
        assert await everything(connection) == before
    assert [one.vendor_id for one in second[1]] == [one.vendor_id for one in first[1]]
    assert second[1][6].name == "Renamed"


async def test_prismas_own_seed_was_there_before(database_url: str) -> None:
    """The backend's seed creates the same user with another id; ours must use that one, and add no second vendor."""
    async with connected(database_url) as connection:
        await connection.execute(
            """
            INSERT INTO "users" ("id", "clerkId", "email", "updatedAt")
            VALUES ('cm3v', 'clerk_test_user', 'test@example.com', now());
            INSERT INTO "vendors" ("id", "name", "userId", "updatedAt") VALUES ('cm3w', 'Test Vendor', 'cm3v', now());
            """
        )
        assert await seed.seed(database_url) == [("cm3w", "clerk_test_user", "Test Vendor")]
        assert await connection.fetchval('SELECT count(*) FROM "vendors"') == 1


async def test_many_vendors_have_an_owner_each(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A load test reads the printed ids, and creates a token for each owner."""
    monkeypatch.setattr(seed, "CHUNK", 7)
    seeded = await seed.seed(database_url, 20)
    assert seeded[0] == ("cseedvendor00000000000001", "clerk_seed_000001", "Seed Vendor 000001")
    assert len({one.clerk_id for one in seeded}) == len({one.vendor_id for one in seeded}) == 20
    assert all(len(one.vendor_id) == 25 for one in seeded)
    async with connected(database_url) as connection:
        rows = await connection.fetch(
            """
            SELECT v."id", u."clerkId", v."name" FROM "vendors" v JOIN "users" u ON u."id" = v."userId" ORDER BY v."id"
            """
        )
    assert [tuple(row) for row in rows] == seeded
    assert await seed.seed(database_url, 5) == seeded[:5]


async def test_seeds_that_conflict_with_existing_rows(database_url: str) -> None:
    """Otherwise there would be fewer vendors than requested, without an explanation."""
    async with connected(database_url) as connection:
        await connection.execute(
            """
            INSERT INTO "users" ("id", "clerkId", "email", "updatedAt")
            VALUES ('x', 'x', 'test@example.com', now()), ('y', 'y', 'seed_000002@example.com', now())
            """
        )
    with pytest.raises(DatabaseError, match=r"test@example\.com"):
        await seed.seed(database_url)
    with pytest.raises(DatabaseError, match=r"1 of the vendors .* can't be added"):
        await seed.seed(database_url, 3)


async def test_seeding_an_old_schema_names_the_remedy(empty_database_url: str) -> None:
    """Otherwise the error would only name a column."""
    with pytest.raises(DatabaseError, match="streamer db upgrade"):
        await seed.seed(empty_database_url)
