"""Who may do what: a token's user to the vendors it owns."""

from __future__ import annotations

from typing import Protocol

from streamer.accounts.tokens import Identity
from streamer.errors import ErrorCode, ProtocolError
from streamer.storage.store import VendorRow


class Vendors(Protocol):
    """Who knows of vendors and users, as `loader.py` does."""

    async def vendor(self, vendor_id: str) -> VendorRow | None: ...

    async def vendors_of(self, clerk_id: str) -> list[VendorRow]: ...


async def owned_vendor(vendors: Vendors, identity: Identity, vendor_id: str | None) -> VendorRow:
    """The vendor that a user may report for: the named one, or the only one; ProtocolError says why there is none."""
    if vendor_id is not None:
        row = await vendors.vendor(vendor_id)
        if row is None:
            raise ProtocolError(ErrorCode.VENDOR_NOT_FOUND, f"there is no vendor {vendor_id!r}")
        if row.clerk_id != identity.clerk_id:
            raise ProtocolError(ErrorCode.FORBIDDEN, f"vendor {vendor_id!r} is not this user's")
        return row
    rows = await vendors.vendors_of(identity.clerk_id)
    if not rows:
        raise ProtocolError(ErrorCode.VENDOR_NOT_FOUND, f"user {identity.clerk_id!r} has no vendor")
    if len(rows) > 1:
        raise ProtocolError(
            ErrorCode.MISSING_FIELD, f"user {identity.clerk_id!r} has {len(rows)} vendors: name one by ?vendorId="
        )
    return rows[0]
