"""Vendors for development and tests: the same ids and names every time."""

from __future__ import annotations

from typing import Any, NamedTuple

from streamer.errors import DatabaseError
from streamer.storage import queries
from streamer.storage.connections import connected
from streamer.storage.revisions import require_newest

CHUNK = 10_000
"""Vendors of one transaction."""


class SeededVendor(NamedTuple):
    """A vendor that `seed` added or found, and the `clerkId` of its user."""

    vendor_id: str
    clerk_id: str
    name: str


async def seed(url: str, vendors: int | None = None) -> list[SeededVendor]:
    """Adds the documented test user and vendor; or, with a number, that many users with one vendor each.

    Existing rows are not changed.
    """
    await require_newest(url)
    async with connected(url) as connection:
        if vendors is None:
            return [await _seed_test_vendor(connection)]
        seeded: list[SeededVendor] = []
        for first in range(1, vendors + 1, CHUNK):
            seeded += await _seed_chunk(connection, range(first, min(first + CHUNK, vendors + 1)))
        return seeded


async def _seed_test_vendor(connection: Any) -> SeededVendor:
    async with connection.transaction():
        await connection.execute(queries.SEED_TEST_USER)
        await connection.execute(queries.SEED_TEST_VENDOR)
        row = await connection.fetchrow(queries.TEST_VENDOR)
    if row is None:
        raise DatabaseError(
            "the test vendor can't be added: another user has the id or email (test@example.com) of clerk_test_user, "
            "or another vendor has its id; change or delete that one"
        )
    return SeededVendor(*row)


async def _seed_chunk(connection: Any, numbers: range) -> list[SeededVendor]:
    digits = [f"{number:06d}" for number in numbers]
    clerk_ids = [f"clerk_seed_{number}" for number in digits]
    vendor_ids = [f"cseedvendor{number:0>14}" for number in digits]
    async with connection.transaction():
        await connection.execute(
            queries.SEED_USERS,
            [f"cseeduser{number:0>16}" for number in digits],
            clerk_ids,
            [f"seed_{number}@example.com" for number in digits],
            digits,
        )
        await connection.execute(
            queries.SEED_VENDORS, vendor_ids, [f"Seed Vendor {number}" for number in digits], clerk_ids
        )
        rows = await connection.fetch(queries.SEEDED, vendor_ids)
    if len(rows) < len(numbers):
        raise DatabaseError(
            f"{len(numbers) - len(rows)} of the vendors {vendor_ids[0]} to {vendor_ids[-1]} can't be added: other "
            "users have their id or email (seed_…@example.com); change or delete those"
        )
    return [SeededVendor(*row) for row in rows]
