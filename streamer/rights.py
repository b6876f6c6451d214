"""Who may do what: a token's user to the vendors it owns."""

from __future__ import annotations

from streamer.auth import Identity
from streamer.errors import ErrorCode, ProtocolError
from streamer.store import Store, VendorRow


async def owned_vendor(store: Store, identity: Identity, vendor_id: str | None) -> VendorRow:
    """The vendor that a user may report for: the named one, or the only one; ProtocolError says why there is none."""
    if vendor_id is not None:
        row = await store.vendor(vendor_id)
        if row is None:
            raise ProtocolError(ErrorCode.VENDOR_NOT_FOUND, f"there is no vendor {vendor_id!r}")
        if row.clerk_id != identity.clerk_id:
            raise ProtocolError(ErrorCode.FORBIDDEN, f"vendor {vendor_id!r} is not this user's")
        return row
    rows = await store.vendors_of(identity.clerk_id)
    if not rows:
        raise ProtocolError(ErrorCode.VENDOR_NOT_FOUND, f"user {identity.clerk_id!r} has no vendor")
    if len(rows) > 1:
        raise ProtocolError(
            ErrorCode.MISSING_FIELD, f"user {identity.clerk_id!r} has {len(rows)} vendors: name one by ?vendorId="
        )
    return rows[0]
